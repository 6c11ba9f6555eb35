"""Prefect's server or its database goes away in the middle of a run: the videos do not wait, and nothing is lost."""

import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault_table import IS_WHOLE
from hosts import Database, postgresql
from prefect_server import Server, eventually, serve_prefect
from test_faults import ROOT, assert_is_whole, assert_nothing_is_left, clip, fill  # noqa: F401

VIDEOS = 12
CASES = [
    ("analyze", "server", 0),
    ("watch", "database", 0),
    ("analyze", "database", 0),
    ("watch", "server", 0),
    ("analyze", "server", 45),
    ("watch", "database", 45),
]
"""What is lost to which command, and for how many seconds at least; the videos that are left take some as well."""


@dataclass
class Prefect:
    """A server on PostgreSQL, begun again with the same port and data after it was killed."""

    database: Database
    home: Path
    ended: ExitStack
    server: Server | None = None

    def up(self) -> Server:
        if self.server is None or self.server.process.poll() is not None:
            port = self.server.port if self.server else 0
            settings = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": self.database.url}
            self.server = self.ended.enter_context(serve_prefect(self.home, port=port, **settings))
        return self.server


@pytest.fixture(scope="module")
def prefect(tmp_path_factory):
    with postgresql() as database, ExitStack() as ended:
        yield Prefect(database, tmp_path_factory.mktemp("prefect"), ended)


def done(root: Path) -> int:
    return len([path for path in (root / "videos").glob("*.parquet") if path.stem != "columns"])


class Command:
    """A `ferflow` command on a server, over a folder of videos."""

    def __init__(self, name: str, server: Server, folder: Path, inbox: Path, **environment: str) -> None:
        self.root, self._log = folder / "results", folder / "log"
        sources = ["--inbox", str(inbox)] if name == "watch" else [str(inbox)]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.cli", name, *sources, "--results", str(self.root)],
                cwd=ROOT,
                env=server.environment | environment,
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def said(self) -> str:
        return self._log.read_text()

    def wait_for_videos(self, count: int) -> None:
        def are_done() -> bool:
            assert self.process.poll() is None, self.said
            return done(self.root) >= count

        eventually(are_done, f"{count} videos")


@pytest.mark.fault("Prefect's server is killed, or its database stopped, in the middle of a run, and comes back")
@pytest.mark.parametrize(("name", "lost", "away_seconds"), CASES if IS_WHOLE else CASES[:2])
def test_a_run_outlives_a_server_or_a_database_that_is_away(
    name,
    lost,
    away_seconds,
    prefect,
    clip,  # noqa: F811
    tmp_path,
    record_property,
):
    """Seen to fail: without `PREFECT_CLIENT_RETRY_EXTRA_CODES` in `flows/__init__.py` a database that was away made a
    run whose videos were all done fail with a traceback."""
    inbox, server = fill(clip, tmp_path / "inbox", VIDEOS), prefect.up()
    with Command(name, server, tmp_path, inbox) as command:
        command.wait_for_videos(2)
        before, began = done(command.root), time.monotonic()
        (server.kill if lost == "server" else prefect.database.stop)()
        command.wait_for_videos(VIDEOS)  # None of which needs a server.
        time.sleep(max(began + away_seconds - time.monotonic(), 0))
        (prefect.up if lost == "server" else prefect.database.start)()
        seconds = time.monotonic() - began
        eventually(lambda: server.last_run()["state_name"] == "Completed", "the end of the run")
        if name == "watch":
            command.process.send_signal(signal.SIGINT)
        assert command.process.wait(60) == 0, command.said
    assert server.last_run()["state"]["message"] == f"{VIDEOS} analysed, 0 already done, 0 failed."
    assert "Traceback" not in command.said
    assert_is_whole(command.root, videos=VIDEOS)
    assert_nothing_is_left(command.root)
    while_away = f"{VIDEOS - before} of {VIDEOS} videos done in the {seconds:.0f} s that it was away"
    record_property("figures", f"ferflow {name}, {lost}: {while_away}; {server.last_run()['state']['message']}")


@pytest.mark.fault("Prefect's server is killed in the middle of a run, and stays away")
def test_a_server_that_stays_away_costs_a_sentence_and_no_video(prefect, clip, tmp_path, record_property):  # noqa: F811
    """Seen to fail: it ended with httpx's traceback, after 7 s for each of 80 events that it tried to tell."""
    inbox, server = fill(clip, tmp_path / "inbox", VIDEOS), prefect.up()
    with Command("analyze", server, tmp_path, inbox, PREFECT_CLIENT_MAX_RETRIES="0") as command:
        command.wait_for_videos(2)
        server.kill()
        assert command.process.wait(90) == 2, command.said
    (sentence,) = [line for line in command.said.splitlines() if line.startswith("ferflow: ")]
    assert f"{server.url}: this Prefect server has gone away" in sentence
    assert "Traceback" not in command.said
    assert_is_whole(command.root, videos=VIDEOS)
    assert_nothing_is_left(command.root)
    record_property("figures", f"{done(command.root)} of {VIDEOS} videos done, none twice; {sentence!r}")
