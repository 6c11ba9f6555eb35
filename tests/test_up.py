"""`ferflow up` for real: in an empty folder, with its server, its serving process, its watcher and its viewer."""

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from browser import opened, started_browser
from playwright.sync_api import expect
from prefect_server import answer_to, eventually, without_prefect

from ferflow.storage import Results, content_id
from ferflow.watch_settings import load_watch_settings
from flows.automations import DEAD_RUNS
from flows.deployments import offers
from viewer.prefect_run import run_url

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")

FERFLOW = Path(sys.executable).with_name("ferflow")
PASSWORD = "admin:a-long-password"


@dataclass(frozen=True, slots=True)
class Up:
    """A running `ferflow up`."""

    folder: Path
    process: "subprocess.Popen[bytes]"
    password: str = ""

    @property
    def said(self) -> str:
        return (self.folder / "said.txt").read_text()

    @property
    def logs(self) -> str:
        return "\n".join(log.read_text() for log in (self.folder / ".ferflow").glob("*.log"))

    @property
    def page(self) -> str:
        (line,) = (line for line in self.said.splitlines() if line.startswith("Prefect's page"))
        return line.split()[2]

    @property
    def viewer(self) -> str:
        (line,) = (line for line in self.said.splitlines() if line.startswith("Your videos"))
        return line.split()[2]

    def ask(self, path: str, question: Any = None) -> Any:
        """What the API answers to a GET, or to a POST if there is a question."""
        body = None if question is None else json.dumps(question).encode()
        request = urllib.request.Request(f"{self.page}/{path}", body, {"Content-Type": "application/json"})
        if self.password:
            request.add_header("Authorization", f"Basic {base64.b64encode(self.password.encode()).decode()}")
        return answer_to(request)

    def deployments(self) -> dict[str, Any]:
        return {found["name"]: found for found in self.ask("api/deployments/filter", {})}

    def wait_for_forms(self) -> dict[str, Any]:
        def complete() -> dict[str, Any] | None:
            assert self.process.poll() is None, self.said
            found = self.deployments()
            forms = [deployment["parameter_openapi_schema"] for deployment in found.values()]
            is_complete = len(found) == len(OFFERS) and all("additionalProperties" in form for form in forms)
            return found if is_complete else None

        return eventually(complete, lambda: f"the deployments; {self.said}{self.logs}")


OFFERS = offers("/", load_watch_settings(None))


def start(
    folder: Path, *options: str, command: tuple[str, ...] = (str(FERFLOW), "up"), password: str = "", **given: str
) -> Up:
    """Start it in a folder and wait until it says its addresses."""
    environment = without_prefect()
    environment |= {"PREFECT_HOME": str(folder / "home"), "FERFLOW_MODELS": str(folder / "models")} | given
    if password:
        environment["PREFECT_SERVER_API_AUTH_STRING"] = password
    with (folder / "said.txt").open("wb") as said:
        process = subprocess.Popen(
            [*command, *options],
            cwd=folder,
            env=environment,
            stdout=said,
            stderr=subprocess.STDOUT,
            # As from a terminal: what runs these tests in the background may have them ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    up = Up(folder, process, password)

    def is_ready() -> bool:
        assert process.poll() is None, up.said
        return "Ctrl-C" in up.said

    try:
        eventually(is_ready, "ferflow up")
    except BaseException:
        end(up)
        raise
    return up


def end(up: Up) -> None:
    """Leave nothing behind, whatever a test has found."""
    up.process.kill()
    up.process.wait()
    deadline = time.monotonic() + 30
    while (left := processes_in(up.folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    for number in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def processes_in(folder: Path) -> dict[int, str]:
    """The processes whose working folder it is, each with its command."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cwd").resolve() == folder.resolve():
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
    return found


def process_of(up: Up, command: str) -> int | None:
    return next((number for number, line in processes_in(up.folder).items() if command in line), None)


@pytest.fixture(scope="module")
def up(tmp_path_factory) -> Iterator[Up]:
    running = start(tmp_path_factory.mktemp("new"))
    yield running
    end(running)


@pytest.fixture(scope="module")
def clip(make_video, astronaut, tmp_path_factory) -> Path:
    return make_video(tmp_path_factory.mktemp("clips") / "clip.mp4", frame_count=4, image=astronaut)


def run_form(up: Up, name: str, **parameters: Any) -> Any:
    """Press Run, and wait for the end."""
    deployment = up.wait_for_forms()[name]
    created = up.ask(f"api/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})

    def ended() -> Any:
        run = up.ask(f"api/flow_runs/{created['id']}")
        return run if run["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    return eventually(ended, lambda: f"the run of {name}; {up.logs}")


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    table = pq.read_table(folder / "results" / "videos").to_pylist() if (folder / "results" / "videos").is_dir() else []
    return {Path(row["source"]).name: row for row in table}


def test_the_viewer_answers_as_soon_as_its_address_is_said(up):
    # The first of the file, because it takes seconds to begin.
    with urllib.request.urlopen(f"{up.viewer}/_stcore/health", timeout=60) as answer:
        assert answer.read() == b"ok"


def test_it_says_where_everything_is(up):
    assert f"copy them into {up.folder}/inbox\n" in up.said
    assert f"{up.folder}/results\n" in up.said
    assert f"Your videos     {up.viewer}   drop one here" in up.said
    assert up.said.endswith("Ctrl-C stops everything.\n")
    assert (up.folder / "inbox").is_dir()
    assert (up.folder / "results").is_dir()


def test_the_page_is_there_and_asks_nobody_else(up):
    with urllib.request.urlopen(up.page, timeout=60) as answer:
        assert b"<html" in answer.read()
    said = up.ask("ui-settings")
    # The newer page calls an analytics service from the browser.
    assert (said["api_url"], said["default_ui"]) == ("/api", "v1")
    server = up.ask("api/admin/settings")["server"]
    assert server["analytics_enabled"] is False
    assert sorted(server["services"]["db_vacuum"]["enabled"]) == ["events", "flow_runs"]


def test_another_page_in_the_browser_may_not_ask_the_server(up):
    request = urllib.request.Request(
        f"{up.page}/api/deployments/filter",
        method="OPTIONS",
        headers={"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "POST"},
    )
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request, timeout=60)


def test_the_deployments_are_there_with_complete_forms(up):
    found = up.wait_for_forms()
    for offer in OFFERS:
        deployment = found[offer.name]
        assert (deployment["description"], deployment["tags"]) == (offer.description, [*offer.tags])
        assert deployment["enforce_parameter_schema"]
        assert not deployment["paused"]
    automations = lambda: [automation["name"] for automation in up.ask("api/automations/filter", {})]  # noqa: E731
    assert eventually(automations, lambda: f"what the watch makes; {up.logs}") == [DEAD_RUNS]
    analyze = found["analyze-videos"]
    assert analyze["parameters"] == {"sources": [f"{up.folder}/inbox"], "results": f"{up.folder}/results"}
    fields = analyze["parameter_openapi_schema"]["definitions"]["Settings"]["properties"]
    assert fields["model"]["enum"][0] == "default"
    assert fields["model"]["enum"][1].startswith("fer-")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"sources": []}, "'sources'. Failure reason: [] should be non-empty"),
        ({"results": 7}, "'results'. Failure reason: 7 is not of type 'string'"),
        ({"workers": -1}, "'workers'. Failure reason: -1 is less than the minimum of 0"),
        ({"settings": {"max_fps": -1}}, "'settings.max_fps'. Failure reason: -1 is less than the minimum of 0"),
        ({"settings": {"model": "fer-9"}}, "'settings.model'. Failure reason: 'fer-9' is not one of ['default', "),
        ({"settings": {"colour": "red"}}, "Additional properties are not allowed ('colour' was unexpected)"),
        ({"fource": True}, "Additional properties are not allowed ('fource' was unexpected)"),
    ],
)
def test_a_wrong_value_is_answered_with_a_sentence(up, wrong, sentence):
    deployment = up.wait_for_forms()["analyze-videos"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        up.ask(f"api/deployments/{deployment['id']}/create_flow_run", {"parameters": wrong})
    assert refused.value.code == 409
    assert sentence in json.load(refused.value)["detail"]


def test_a_person_analyses_one_file_by_the_form(up, clip):
    elsewhere = shutil.copy(clip, up.folder / "interview.mp4")
    run = run_form(up, "analyze-videos", sources=[str(elsewhere)], settings={"annotate": False})
    assert (run["state"]["type"], run["name"]) == ("COMPLETED", "analyze 1 video: interview.mp4"), run["state"]
    assert rows(up.folder)["interview.mp4"]["status"] == "done"


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("/no/such/folder", "/no/such/folder: there is no such file or folder; check the name."),
        ("htp://bucket/inbox", "htp://bucket/inbox: htp:// cannot be opened"),
        ("s3://key:secret@bucket/inbox", "leave the key out of the address"),
    ],
)
def test_a_wrong_path_is_answered_with_a_sentence(up, source, sentence):
    run = run_form(up, "analyze-videos", sources=[source])
    assert run["state"]["type"] == "FAILED"
    assert sentence in run["state"]["message"]
    assert "secret" not in run["name"] + run["state"]["message"]


def test_a_video_copied_into_the_inbox_is_analysed(up, make_video, grace_hopper, monkeypatch):
    made = make_video(up.folder / "made" / "talk.mp4", frame_count=4, image=grace_hopper)
    shutil.copy(made, up.folder / "inbox" / "talk.mp4")
    eventually(lambda: "talk.mp4" in rows(up.folder), lambda: f"the video; {up.logs}")
    assert rows(up.folder)["talk.mp4"]["status"] == "done"
    # From its page a person finds the run in Prefect.
    monkeypatch.setenv("PREFECT_API_URL", f"{up.page}/api")
    link = eventually(lambda: run_url(Results(up.folder / "results"), content_id(made)), "the link to the run")
    run = up.ask(f"api/flow_runs/{link.rpartition('/')[2]}")
    assert (link.startswith(f"{up.page}/runs/flow-run/"), run["name"]) == (True, "analyze 1 video: talk.mp4")


def test_a_person_goes_from_the_page_of_a_video_to_its_run(up):
    made = up.folder / "made" / "talk.mp4"
    with started_browser() as browser, opened(browser) as page:
        page.goto(f"{up.viewer}/video?video={content_id(made)}")
        page.get_by_text("About this result").click()
        with page.expect_popup() as prefect:
            # By a key: what is above grows while the page loads, so that a press of a mouse can end beside the link.
            page.get_by_role("link", name="Its run in Prefect").press("Enter")
        expect(prefect.value.get_by_text("analyze 1 video: talk.mp4").first).to_be_visible()


def test_the_viewer_is_there_for_this_machine_alone(up):
    assert up.viewer.startswith("http://127.0.0.1:85")


def test_a_model_that_is_added_can_be_chosen(up, two_models):
    folder = two_models[0]
    up.wait_for_forms()
    shutil.copytree(folder, up.folder / "models" / folder.name)

    def choices() -> list[str]:
        form = up.deployments()["analyze-videos"]["parameter_openapi_schema"]
        return form["definitions"]["Settings"]["properties"]["model"]["enum"]

    eventually(lambda: folder.name in choices(), lambda: f"the choice; {up.logs}")


def test_a_second_one_in_the_folder_is_refused(up):
    done = subprocess.run([FERFLOW, "up"], cwd=up.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"ferflow: {up.folder}: `ferflow up` runs in this folder already. Stop it there with Ctrl-C first, or start "
        "this one in another folder.\n"
    )


def test_a_schedule_that_somebody_turned_on_stays_on_when_the_serving_process_begins_again(up):
    deployment = up.wait_for_forms()["watch-labelled"]
    (schedule,) = deployment["schedules"]
    assert not schedule["active"]
    request = urllib.request.Request(
        f"{up.page}/api/deployments/{deployment['id']}/schedules/{schedule['id']}",
        b'{"active": true}',
        {"Content-Type": "application/json"},
        method="PATCH",
    )
    answer_to(request)
    serving = eventually(lambda: process_of(up, "flows.cli serve"), "the serving process")
    os.kill(serving, signal.SIGKILL)
    eventually(lambda: "The serving process was ended by SIGKILL and is started again in 1 s." in up.said, "a word")
    eventually(lambda: process_of(up, "flows.cli serve") not in (None, serving), "another serving process")
    before = deployment["updated"]
    again = eventually(
        lambda: (found := up.wait_for_forms()["watch-labelled"])["updated"] > before and found, "its registration"
    )
    assert [plan["active"] for plan in again["schedules"]] == [True]


def test_a_port_that_is_taken_is_one_sentence(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = refused(tmp_path, "--port", str(port))
    assert done == f"ferflow: --port {port}: another program uses this port of 127.0.0.1; name another, or none.\n"


def test_it_is_not_opened_to_others_without_a_password(tmp_path):
    assert refused(tmp_path, "--host", "0.0.0.0").startswith("ferflow: --host 0.0.0.0: others could start runs on")


def test_a_setting_without_meaning_stops_it_at_once(tmp_path):
    (tmp_path / "watch.toml").write_text('after = "delete"\n')
    assert refused(tmp_path, "--config", "watch.toml").startswith("ferflow: watch.toml: after = 'delete' has no mean")


def test_a_named_server_that_does_not_answer_is_one_sentence(tmp_path):
    said = refused(tmp_path, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert said.startswith("ferflow: http://127.0.0.1:9/api: no Prefect server answers there; start one with `ferflow")


def test_a_named_server_that_answers_is_used(server, tmp_path):
    up = start(tmp_path, PREFECT_API_URL=server.url)
    try:
        assert up.page == server.url.removesuffix("/api")
        up.wait_for_forms()
        assert process_of(up, "flows.prefect_server") is None
        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(60) == 0
        assert processes_in(tmp_path) == {}
    finally:
        end(up)
    assert server.ask("deployments/filter")


def test_make_up_is_all_of_it(tmp_path, clip):
    # Installed already, as far as make can see.
    for name in ("pyproject.toml", "uv.lock", ".uv/bin/uv", ".venv/.ready"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".venv" / "bin").mkdir()
    (tmp_path / ".venv" / "bin" / "ferflow").symlink_to(FERFLOW)
    shutil.copy(FERFLOW.parents[2] / "Makefile", tmp_path)
    up = start(tmp_path, command=("make", "up"))
    try:
        shutil.copy(clip, tmp_path / "inbox")
        eventually(lambda: clip.name in rows(tmp_path), lambda: f"the video; {up.logs}")
        running = process_of(up, ".venv/bin/ferflow up")
        assert running is not None
        os.kill(running, signal.SIGINT)
        assert up.process.wait(60) == 0
        assert processes_in(tmp_path) == {}
    finally:
        end(up)


def refused(folder: Path, *options: str, **given: str) -> str:
    environment = without_prefect()
    done = subprocess.run(
        [FERFLOW, "up", *options], cwd=folder, env=environment | given, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


@pytest.mark.fault("`ferflow up` is killed with -9 in the middle of a run", "0 processes left")
def test_killed_with_9_it_leaves_no_process_and_with_a_password_all_works(tmp_path, make_video, grace_hopper):
    """Seen to fail: without `_Guard` in `flows.processes` the server and the others lived on."""
    up = start(tmp_path, password=PASSWORD)
    try:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            Up(tmp_path, up.process).deployments()
        begin_long_run(up, make_video, grace_hopper)
        up.process.kill()
        up.process.wait()
        eventually(lambda: not processes_in(tmp_path), f"the end of {processes_in(tmp_path)}")
    finally:
        end(up)


def test_ctrl_c_leaves_no_process(up, make_video, grace_hopper):
    # The last of the file, because it ends what the others ask.
    begin_long_run(up, make_video, grace_hopper)
    assert len(processes_in(up.folder)) >= 7
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(60) == 0
    assert processes_in(up.folder) == {}
    assert up.said.endswith("Stopping ...\n")


def begin_long_run(up: Up, make_video, image) -> None:
    """Begin to analyse a video that takes minutes, in a process of its own."""
    small = image[::4, ::4][:128, :128]
    long = make_video(up.folder / "made" / "long.mp4", frame_count=3000, fps=25, image=small)
    deployment = up.wait_for_forms()["analyze-videos"]
    up.ask(f"api/deployments/{deployment['id']}/create_flow_run", {"parameters": {"sources": [str(long)]}})
    eventually(lambda: process_of(up, "prefect.engine"), lambda: f"the process of the run; {up.logs}")
