"""A real Prefect server for the tests that need one, and how to ask it; the fixtures are made known in conftest.py."""

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.up_command import with_settings

PATIENCE_SECONDS = 180
# What takes seconds on a free machine takes minutes on a busy one.
SECONDS_TO_STOP = 20
# Two or three on a free machine: a look every two seconds, and Prefect's serving process waits three.
_TELLS_NOBODY = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}


def eventually(
    look: Callable[[], Any], what: str | Callable[[], str], *, patience_seconds: float = PATIENCE_SECONDS
) -> Any:
    """Ask until the answer is one; events and logs reach a server some time after they happened.

    Args:
        look: asks.
        what: is waited for; or tells it when it was waited for in vain, with what the logs say by then.
        patience_seconds: how long.
    """
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
        if answer := look():
            return answer
        time.sleep(0.3)
    pytest.fail(f"waited {patience_seconds:.0f} s for {what if isinstance(what, str) else what()}")


def answer_to(request: urllib.request.Request) -> Any:
    """What a Prefect server answers; None where that is an empty text."""
    for is_last in (False, False, True):
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.loads(response.read() or b"null")
        except (urllib.error.HTTPError, TimeoutError) as error:
            # Its database is locked for a moment; Prefect's own clients ask again, too.
            if is_last or getattr(error, "code", 503) != 503:
                raise
            time.sleep(1)
    return None


def free_port(host: str = "127.0.0.1") -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port


def without_prefect() -> dict[str, str]:
    """This process's environment but for settings of Prefect."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}


@dataclass(frozen=True, slots=True)
class Server:
    """A running Prefect server."""

    url: str
    environment: dict[str, str]
    process: subprocess.Popen[bytes]

    @property
    def port(self) -> int:
        return int(self.url.removesuffix("/api").rpartition(":")[2])

    def kill(self) -> None:
        """End it as a machine does that loses its power."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def ask(self, path: str, **question: Any) -> Any:
        request = urllib.request.Request(
            f"{self.url}/{path}", json.dumps(question).encode(), {"Content-Type": "application/json"}
        )
        return answer_to(request)

    def task_runs(self, flow_run_id: str) -> dict[str, Any]:
        runs = self.ask("task_runs/filter", flow_runs={"id": {"any_": [flow_run_id]}})
        return {run["name"]: run for run in runs}

    def last_run(self) -> Any:
        return self.ask("flow_runs/filter", sort="START_TIME_DESC", limit=1)[0]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    with serve_prefect(tmp_path_factory.mktemp("prefect"), **with_settings({})) as started:
        yield started
        # What this process still has to tell the server, it would complain about afterwards.
        EventsWorker.drain_all(timeout=30)
        APILogWorker.drain_all(timeout=30)


@contextlib.contextmanager
def serve_prefect(home: Path, *, host: str = "127.0.0.1", port: int = 0, **settings: str) -> Iterator[Server]:
    """A server with settings of its own, on an address of this machine; with the home and the port of an earlier one
    it is that one again."""
    home.mkdir(exist_ok=True)
    database = home / "prefect.db"
    if "PREFECT_SERVER_DATABASE_CONNECTION_URL" not in settings and not database.exists():
        database.write_bytes(_database_without_runs())
    port = port or free_port(host)
    url = f"http://{host}:{port}/api"
    environment = without_prefect() | {
        "PREFECT_HOME": str(home),
        **_TELLS_NOBODY,
        **settings,
    }
    quick = {"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2", "PREFECT_UI_ENABLED": "false"}
    log = home / "server.log"
    with log.open("ab") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.prefect_server", "--host", host, "--port", str(port)],
            env=environment | quick,
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:

        def is_up() -> bool:
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                return answer.status == 200
            return False

        eventually(is_up, lambda: f"the Prefect server; {log.read_text()}")
        yield Server(url, environment | {"PREFECT_API_URL": url}, process)
    finally:
        end(process)


@functools.cache
def _database_without_runs() -> bytes:
    """Prefect's tables, as a new server makes them in an SQLite file; that takes it longer than all else."""
    with tempfile.TemporaryDirectory() as home:
        subprocess.run(
            [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"],
            env=without_prefect() | {"PREFECT_HOME": home} | _TELLS_NOBODY,
            check=True,
            capture_output=True,
        )
        return (Path(home) / "prefect.db").read_bytes()


@pytest.fixture
def on_server(server: Server) -> Iterator[Server]:
    """Flows that this process runs are on the server."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    with temporary_settings({PREFECT_API_URL: server.url, PREFECT_HOME: server.environment["PREFECT_HOME"]}):
        yield server


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop a process that was started here as the first of its session, and all that it started."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
