"""The flow on a real Prefect server, which the tests start; real videos, the real model."""

import base64
import errno
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect_server import Server, end, eventually, without_prefect

from ferflow.config import Settings
from ferflow.errors import ConfigError, ModelError
from ferflow.sources import find_videos, open_results
from ferflow.storage import Results, content_id
from flows.analyze_videos import analyze_on_server, analyze_videos
from flows.in_process import analyze_in_process
from tasks import video
from viewer.prefect_run import run_url

ROOT = Path(__file__).parents[1]
STAGES = ("analyze", "annotate", "summarize")


@dataclass(frozen=True, slots=True)
class Batch:
    """A run of the flow over a folder with good and broken videos, which several tests look at."""

    inbox: Path
    results: Path
    state: Any
    run: Any


@pytest.fixture(scope="module")
def batch(server: Server, make_video, astronaut, tmp_path_factory) -> Batch:
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    folder = tmp_path_factory.mktemp("drop")
    inbox = folder / "inbox"
    make_video(inbox / "interview_03.mp4", frame_count=6, image=astronaut)
    make_video(inbox / "die Straße.mp4", frame_count=5)
    make_video(inbox / "talk.webm", frame_count=4, codec="libvpx", image=np.ascontiguousarray(astronaut[:, ::-1]))
    (inbox / "zweite Fassung.mp4").write_bytes((inbox / "interview_03.mp4").read_bytes())
    (inbox / "empty.mp4").touch()
    (inbox / "text.mp4").write_text("not a video")
    with temporary_settings({PREFECT_API_URL: server.url, PREFECT_HOME: server.environment["PREFECT_HOME"]}):
        state = analyze_videos([str(inbox)], str(folder / "results"), workers=2, return_state=True)
    return Batch(inbox, folder / "results", state, server.last_run())


GOOD = ("interview_03.mp4", "die Straße.mp4", "talk.webm")
BROKEN = {
    "empty.mp4": "the file is empty (0 bytes); copy or record it again.",
    "text.mp4": "this is a text file, not a video, whatever its name says.",
}


def test_one_bad_video_does_not_stop_the_batch(batch):
    state = batch.run["state"]
    assert (state["type"], state["name"]) == ("COMPLETED", "Completed with 2 failed videos")
    assert state["message"].startswith("3 analysed, 0 already done, 2 failed, 1 copy of others.")
    assert all(f"{name}: {sentence}" in state["message"] for name, sentence in BROKEN.items())
    rows = {Path(row["source"]).name: row for row in table(batch.results, "videos").to_pylist()}
    assert {name: row["status"] for name, row in rows.items()} == dict.fromkeys(GOOD, "done") | dict.fromkeys(
        BROKEN, "failed"
    )
    assert {name: rows[name]["error"] for name in BROKEN} == BROKEN
    assert all((batch.results / rows[name]["annotated_path"]).stat().st_size for name in GOOD)


def test_a_run_is_named_for_what_it_does(batch):
    assert batch.run["name"] == "analyze 6 videos: inbox"


def test_a_task_run_names_its_video(batch, server):
    expected = {f"{stage}: {name}" for name in GOOD for stage in STAGES} | {f"analyze: {name}" for name in BROKEN}
    eventually(lambda: ended(server, batch.run["id"]) == expected, "the task runs to be known")


def test_a_broken_file_is_not_tried_again(batch, server):
    eventually(lambda: len(ended(server, batch.run["id"])) == 11, "the task runs to be known")
    runs = server.task_runs(batch.run["id"])
    for name, sentence in BROKEN.items():
        run = runs[f"analyze: {name}"]
        assert run["state_type"] == "FAILED"
        assert sentence in run["state"]["message"]
        assert run["run_count"] == 1


def test_each_video_and_stage_logs_one_line_with_counts_and_seconds(batch, server):
    def lines() -> list[str]:
        logs = server.ask("logs/filter", logs={"flow_run_id": {"any_": [batch.run["id"]]}}, limit=200)
        return [log["message"] for log in logs]

    starts = [f"{name}: " for name in GOOD]
    eventually(lambda: sum(line.startswith(tuple(starts)) for line in lines()) >= 9, "the logs")
    said = [line for line in lines() if line.startswith(tuple(starts))]
    assert len(said) == 9, said
    assert any(line.startswith("interview_03.mp4: 6 frames, 6 faces found in ") for line in said)
    assert any(line.startswith("interview_03.mp4: summarized (tracks: 1, mostly happy) in ") for line in said)
    assert any(line.startswith("die Straße.mp4: summarized (tracks: 0) in ") for line in said)
    assert all(line.endswith(" s") for line in said)
    for name, sentence in BROKEN.items():
        assert f"{name}: failed: {sentence}" in lines()
    assert not any("Traceback" in line for line in lines())


def test_a_run_ends_with_a_table_of_its_videos(batch, server):
    (artifact,) = server.ask(
        "artifacts/filter", artifacts={"flow_run_id": {"any_": [batch.run["id"]]}, "type": {"any_": ["table"]}}
    )
    rows = json.loads(artifact["data"])
    assert [row["outcome"] for row in rows] == ["failed"] * 2 + ["done"] * 3 + ["copy"]
    copied = f"the same content as {batch.inbox / 'interview_03.mp4'}, whose result stands for both"
    assert {row["video"]: row["note"] for row in rows} == (
        BROKEN | dict.fromkeys(GOOD, "") | {"zweite Fassung.mp4": copied}
    )
    assert artifact["description"] == "3 analysed, 0 already done, 2 failed, 1 copy of others."


def test_each_video_has_a_page(batch, server):
    pages = {page["description"]: page for page in artifacts(server, batch.run["id"], "markdown")}
    assert pages.keys() == {*GOOD, *BROKEN}
    rows = {Path(row["source"]).name: row for row in table(batch.results, "videos").to_pylist()}
    links = {row["video"]: row.get("page") for row in table_of_videos(server, batch.run["id"])}
    for name, page in pages.items():
        assert page["key"] == Results(batch.results).key(rows[name]["video_id"])
        assert links[name] == f"[open](/artifacts/artifact/{page['id']})"
        assert f"`{rows[name]['source']}`" in page["data"]
    happy = pages["interview_03.mp4"]["data"]
    assert happy.startswith("# interview_03.mp4\n\nOne person in 0.6 s of video, mostly **happy** (")
    assert f"| annotated video | `{batch.results / rows['interview_03.mp4']['annotated_path']}` |" in happy
    assert pages["die Straße.mp4"]["data"].startswith("# die Straße.mp4\n\nNo face was found in 0.5 s of video.")
    for name, sentence in BROKEN.items():
        assert f"**This video could not be analysed:** {sentence}" in pages[name]["data"]


def test_the_same_video_has_a_page_for_each_results_folder(batch, on_server, tmp_path, monkeypatch):
    """Seen to fail: the second folder's page took the place of the first one's, and the viewer led to its run."""
    monkeypatch.setenv("PREFECT_API_URL", on_server.url)
    first, second = Results(batch.results), Results(tmp_path / "results")
    video_id = content_id(batch.inbox / "talk.webm")
    analyze_videos([str(batch.inbox / "talk.webm")], str(second.root), return_state=True)
    expected = {first: batch.run["id"], second: on_server.last_run()["id"]}
    assert {folder: str(run_url(folder, video_id)).rpartition("/")[2] for folder in expected} == expected
    # Where only an earlier version has left a page, that one.
    on_server.ask("artifacts/", key="video-0123", type="markdown", data="", flow_run_id=batch.run["id"])
    assert str(run_url(first, "0123")).rpartition("/")[2] == batch.run["id"]


def test_of_a_run_over_very_many_videos_each_has_a_page_and_the_first_ones_a_picture(
    batch, on_server, tmp_path, monkeypatch
):
    """Seen to fail: of a run over more than a thousand videos the viewer found the first thousand only."""
    monkeypatch.setenv("PREFECT_API_URL", on_server.url)
    monkeypatch.setattr("flows.run_page._PICTURES_IN_RUN", 1)
    results = Results(tmp_path / "results")
    videos = [batch.inbox / name for name in ("interview_03.mp4", "talk.webm")]
    analyze_videos([str(video) for video in videos], str(results.root), return_state=True)
    run_id = on_server.last_run()["id"]
    pages = {page["description"]: page["data"] for page in artifacts(on_server, run_id, "markdown")}
    assert pages.keys() == {video.name for video in videos}
    assert sum("data:image/jpeg" in page for page in pages.values()) == 1
    assert all("| timeline picture | " in page for page in pages.values())
    assert [str(run_url(results, content_id(video))).rpartition("/")[2] for video in videos] == [run_id] * 2


def test_a_run_makes_few_pages_of_what_was_done_before_it(batch, on_server, tmp_path, monkeypatch):
    monkeypatch.setattr("flows.run_page._PICTURES_IN_RUN", 1)
    results = open_results(tmp_path / "results")
    videos = [batch.inbox / name for name in ("interview_03.mp4", "talk.webm")]
    analyze_in_process(videos, results, settings=Settings(), force=False, workers=1, listener=Deaf())
    analyze_videos([str(video) for video in videos], str(results.root), return_state=True)
    run = on_server.last_run()
    assert run["state"]["message"] == "0 analysed, 2 already done, 0 failed."
    assert len(artifacts(on_server, run["id"], "markdown")) == 1


def test_whatever_is_in_its_name_a_video_has_task_runs_and_a_page_of_that_name(batch, on_server, tmp_path):
    """Seen to fail: the server never heard of the task runs of a name that is no text, and of a broken video of such a
    name; control characters reached the terminals of whoever reads the logs."""
    names = {b"caf\xe9.mp4": "caf\\xe9.mp4", b"line\nbreak \x1b[31m.mp4": "line\\nbreak \\x1b[31m.mp4"}
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    for number, odd in enumerate(names):
        make = (batch.inbox / GOOD[number]).read_bytes()
        (inbox / os.fsdecode(odd)).write_bytes(make)
    (inbox / os.fsdecode(b"\xe9mpty.mp4")).touch()
    analyze_videos([str(inbox)], str(tmp_path / "results"), return_state=True)
    run = on_server.last_run()
    assert run["state"]["name"] == "Completed with 1 failed video"
    expected = {f"{stage}: {name}" for name in names.values() for stage in STAGES} | {"analyze: \\xe9mpty.mp4"}
    eventually(lambda: ended(on_server, run["id"]) == expected, "the task runs to be known", patience_seconds=60)
    pages = {page["description"] for page in artifacts(on_server, run["id"], "markdown")}
    assert pages == {*names.values(), "\\xe9mpty.mp4"}
    of_it = {"flow_run_id": {"any_": [run["id"]]}}
    lines: list[str] = []

    def are_told() -> bool:
        lines[:] = [line["message"] for line in on_server.ask("logs/filter", logs=of_it)]
        return sum("frames" in line for line in lines) == 2

    eventually(are_told, "the lines of the videos")
    assert all(line.isprintable() for line in lines)


def test_a_page_holds_a_small_picture_of_the_timeline(batch, server):
    import cv2

    for page in artifacts(server, batch.run["id"], "markdown"):
        if page["description"] in GOOD:
            (encoded,) = re.findall(r"\(data:image/jpeg;base64,([^)]+)\)", page["data"])
            assert len(encoded) < 60_000
            picture = cv2.imdecode(np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_COLOR)
            assert picture.shape[1] == 1000


def test_a_run_says_how_far_it_is_while_it_goes_on(batch, on_server, tmp_path, monkeypatch):
    """Seen to fail: where `RunPage._tell_progress` told only the end."""
    annotate = video.annotate_apart

    def said() -> list[tuple[float, str]]:
        found = artifacts(on_server, on_server.last_run()["id"], "progress")
        return [(float(progress["data"]), progress["description"]) for progress in found]

    def wait_and_annotate(job, *rest) -> Path:
        if job.name == "talk.webm":
            half = [(75, "1 of 2 videos, 10 frames looked at. Now: talk.webm (50 %)")]
            eventually(lambda: said() == half, lambda: f"how far it is; {said()}", patience_seconds=30)
        return annotate(job, *rest)

    monkeypatch.setattr(video, "annotate_apart", wait_and_annotate)
    sources = [str(batch.inbox / name) for name in ("interview_03.mp4", "talk.webm")]
    analyze_videos(sources, str(tmp_path), workers=1, return_state=True)
    assert said() == [(100, "2 of 2 videos, 10 frames looked at.")]


def test_what_ferflow_itself_logs_is_among_the_logs(batch, on_server, tmp_path, monkeypatch):
    annotate = video.annotate_apart

    def say(*arguments, **options) -> Path:
        logging.getLogger("ferflow.claims").info("a line of ferflow's own")
        return annotate(*arguments, **options)

    monkeypatch.setattr(video, "annotate_apart", say)
    analyze_videos([str(batch.inbox / "talk.webm")], str(tmp_path), return_state=True)
    run = on_server.last_run()
    asked = {"logs": {"flow_run_id": {"any_": [run["id"]]}}, "limit": 200}
    eventually(
        lambda: "a line of ferflow's own" in [log["message"] for log in on_server.ask("logs/filter", **asked)],
        "the line",
    )


def test_a_second_look_makes_no_second_page(batch, on_server, tmp_path):
    state = analyze_videos([str(batch.inbox / "talk.webm")], str(batch.results), return_state=True)
    assert state.message == "0 analysed, 1 already done, 0 failed."
    assert artifacts(on_server, on_server.last_run()["id"], "markdown") == []
    # One that was made without the server gets its page with the first run that meets it.
    shutil.copytree(batch.results, tmp_path / "results")
    video = shutil.copy(batch.inbox / "talk.webm", tmp_path / "talk.webm")
    with video.open("ab") as file:
        file.write(bytes(100))
    results = open_results(tmp_path / "results")
    analyze_in_process([video], results, settings=Settings(), force=False, workers=1, listener=Deaf())
    analyze_videos([str(video)], str(tmp_path / "results"), return_state=True)
    (page,) = artifacts(on_server, on_server.last_run()["id"], "markdown")
    assert page["description"] == "talk.webm"


def artifacts(server: Server, run_id: str, kind: str) -> list[Any]:
    return server.ask("artifacts/filter", artifacts={"flow_run_id": {"any_": [run_id]}, "type": {"any_": [kind]}})


def table_of_videos(server: Server, run_id: str) -> list[Any]:
    (shown,) = artifacts(server, run_id, "table")
    rows: list[Any] = json.loads(shown["data"])
    return rows


class Deaf:
    """A listener that hears nothing."""

    def stage(self, job, name, done, expected) -> None: ...

    def copied(self, job) -> None: ...

    def elsewhere(self, job) -> None: ...

    def finished(self, job, summary) -> None: ...


def test_both_ways_write_the_same_rows(batch, tmp_path):
    results = open_results(tmp_path / "results")
    analyze_in_process(
        find_videos([batch.inbox]), results, settings=Settings(), force=False, workers=1, listener=Deaf()
    )
    for name in ("faces", "segments"):
        assert table(results.root, name).equals(table(batch.results, name))
    clock = ["processed_at", "processing_seconds"]
    assert table(results.root, "videos").drop(clock).equals(table(batch.results, "videos").drop(clock))


def test_second_run_does_nothing(batch, server):
    # By the command, as a person repeats it: the server is named in the environment, so the flow runs there.
    files = {path: path.stat().st_mtime_ns for path in batch.results.rglob("*") if path.is_file()}
    done = run_command("analyze", batch.inbox, "--results", batch.results, **server.environment)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("0 analysed, 3 already done, 2 failed, 1 copy of others.\n")
    assert "| INFO    | Flow run 'analyze 6 videos: inbox' - " in done.stderr
    assert {path: path.stat().st_mtime_ns for path in batch.results.rglob("*") if path.is_file()} == files
    run = server.last_run()
    assert run["id"] != batch.run["id"]
    assert run["state"]["name"] == "Completed with 2 failed videos"
    # Its own table is there when it has ended, so a task run, which is announced before, would be there too.
    assert server.task_runs(run["id"]) == {}


@pytest.mark.parametrize("fault", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_a_fault_that_passes_is_tried_again(fault, batch, on_server, tmp_path, monkeypatch):
    annotate = video.annotate_apart
    tries = []

    def stumble(*arguments, **options) -> Path:
        tries.append(arguments)
        if len(tries) == 1:
            raise fault
        return annotate(*arguments, **options)

    monkeypatch.setattr(video, "annotate_apart", stumble)
    state = analyze_videos([str(batch.inbox / "talk.webm")], str(tmp_path), return_state=True)
    assert (state.name, state.message) == ("Completed", "1 analysed, 0 already done, 0 failed.")
    assert len(tries) == 2
    run = on_server.last_run()
    eventually(lambda: len(ended(on_server, run["id"])) == 3, "the task runs to be known")
    assert on_server.task_runs(run["id"])["annotate: talk.webm"]["run_count"] == 2


def test_a_damaged_model_stops_the_run_and_is_not_tried_again(batch, on_server, tmp_path, monkeypatch):
    tries = []

    def without_weights(*arguments) -> None:
        tries.append(1)
        raise ModelError("the detector's weights are missing; fetch them.")

    monkeypatch.setattr(video, "analyze_apart", without_weights)
    state = analyze_videos([str(batch.inbox)], str(tmp_path), workers=1, return_state=True)
    assert (state.type.value, state.message) == ("FAILED", "the detector's weights are missing; fetch them.")
    assert len(tries) == 1


def test_a_run_in_which_every_video_is_broken_has_failed(batch, on_server, tmp_path):
    state = analyze_videos([str(batch.inbox / name) for name in BROKEN], str(tmp_path), return_state=True)
    assert state.type.value == "FAILED"
    assert all(sentence in state.message for sentence in BROKEN.values())


def test_what_is_not_there_is_one_sentence(on_server, tmp_path):
    state = analyze_videos([str(tmp_path / "nowhere")], str(tmp_path / "results"), return_state=True)
    assert state.type.value == "FAILED"
    assert state.message == f"{tmp_path}/nowhere: there is no such file or folder; check the name."
    assert on_server.last_run()["name"] == "analyze: nowhere"
    assert not (tmp_path / "results").exists()


def test_a_scheduled_run_happens(batch, server, tmp_path):
    parameters = {"sources": [str(batch.inbox / "talk.webm")], "results": str(tmp_path / "results")}
    program = (
        "import json, sys\n"
        "from flows.analyze_videos import analyze_videos\n"
        "analyze_videos.serve('every-5-seconds', interval=5, limit=1, parameters=json.loads(sys.argv[1]))\n"
    )
    with (tmp_path / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", program, json.dumps(parameters)],
            env=server.environment | {"PREFECT_RUNNER_POLL_FREQUENCY": "1"},
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def finished() -> Any:
        assert process.poll() is None, (tmp_path / "serve.log").read_text()
        return server.ask(
            "flow_runs/filter",
            deployments={"name": {"any_": ["every-5-seconds"]}},
            flow_runs={"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}},
            limit=1,
        )

    try:
        (run,) = eventually(finished, "a scheduled run")
    finally:
        end(process)
    assert run["auto_scheduled"]
    assert (run["state"]["type"], run["name"]) == ("COMPLETED", "analyze 1 video: talk.webm"), run["state"]
    (row,) = table(tmp_path / "results", "videos").to_pylist()
    assert row["status"] == "done"


def test_the_form_explains_every_field():
    form = analyze_videos.parameters
    fields = form.properties | {
        f"settings.{name}": field for name, field in form.definitions["Settings"]["properties"].items()
    }
    assert [name for name, field in fields.items() if len(field.get("description", "")) < 20] == []
    assert fields.keys() >= {"sources", "results", "settings", "force", "workers"}
    assert fields.keys() >= {f"settings.{name}" for name in Settings.model_fields}
    assert form.required == ["sources"]
    assert {name: field["default"] for name, field in fields.items() if name != "sources"} == {
        "results": "results",
        "settings": Settings().model_dump(),
        "force": False,
        "workers": 0,
        "ray": "",
    } | {f"settings.{name}": value for name, value in Settings().model_dump().items()}


@pytest.mark.parametrize(
    "wrong", [{"sources": []}, {"workers": -1}, {"settings": {"max_fps": -1}}, {"settings": {"colour": "red"}}]
)
def test_a_wrong_value_is_refused(wrong):
    from prefect.exceptions import ParameterTypeError

    with pytest.raises(ParameterTypeError, match=next(iter(wrong))):
        analyze_videos.validate_parameters({"sources": ["inbox"]} | wrong)


def test_command_without_a_server_never_imports_prefect(batch, tmp_path):
    program = (
        "import sys\n"
        "from flows.cli import main\n"
        "status = main(sys.argv[1:])\n"
        "print(status, sorted(name for name in sys.modules if name.split('.')[0] == 'prefect'))"
    )
    video = batch.inbox / "talk.webm"
    for choice in ([], ["--no-prefect"]):
        environment = without_prefect() | ({"PREFECT_API_URL": "http://127.0.0.1:9/api"} if choice else {})
        done = subprocess.run(
            [sys.executable, "-c", program, "analyze", str(video), "--results", str(tmp_path), *choice],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.splitlines()[-1] == "0 []", done.stdout + done.stderr


def test_an_unreachable_server_is_one_sentence(batch, tmp_path):
    done = run_command(
        "analyze", batch.inbox, "--results", tmp_path, **without_prefect(), PREFECT_API_URL="http://127.0.0.1:9/api"
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "ferflow: http://127.0.0.1:9/api: no Prefect server answers there; start one with `ferflow up` in another "
        "window, or correct or unset PREFECT_API_URL."
    ]


def test_without_any_server_the_command_says_how_to_start_one(batch, tmp_path):
    environment = without_prefect() | {"PREFECT_HOME": str(tmp_path / "home")}
    done = run_command("analyze", batch.inbox, "--prefect", "--results", tmp_path, **environment)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "ferflow: No Prefect server is configured; start one with `ferflow up` in another window "
        "and set PREFECT_API_URL=http://127.0.0.1:4200/api."
    ]


@pytest.mark.parametrize(
    ("status", "sentence"), [(401, "wants a password; set PREFECT_API_AUTH_STRING"), (404, "is no Prefect server")]
)
def test_a_server_that_refuses_is_one_sentence(status, sentence, tmp_path):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    class Refusal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Refusal) as refusing:
        threading.Thread(target=refusing.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{refusing.server_port}/api"
        with temporary_settings({PREFECT_API_URL: url}), pytest.raises(ConfigError, match=sentence) as raised:
            analyze_on_server([str(tmp_path)], str(tmp_path), settings=Settings(), force=False, workers=None)
        refusing.shutdown()
    assert str(raised.value).startswith(url)


@pytest.mark.parametrize("wish", [None, "true"])
def test_telemetry_is_off_unless_the_user_wants_it(wish):
    wanted = {} if wish is None else {"PREFECT_SERVER_ANALYTICS_ENABLED": wish, "DO_NOT_TRACK": "0"}
    names = "PREFECT_SERVER_ANALYTICS_ENABLED", "DO_NOT_TRACK"
    environment = {name: value for name, value in os.environ.items() if name not in names}
    program = (
        "import flows.analyze_videos\n"
        "from prefect.settings import get_current_settings\n"
        "import os\n"
        "print(get_current_settings().server.analytics_enabled, os.environ['DO_NOT_TRACK'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment | wanted, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == (["False", "1"] if wish is None else ["True", "0"])


def ended(server: Server, flow_run_id: str) -> set[str]:
    """Names of the task runs of a run that are known to have ended."""
    runs = server.task_runs(flow_run_id)
    return {name for name, run in runs.items() if run["state_type"] in {"COMPLETED", "FAILED", "CRASHED"}}


def table(results: Path, name: str) -> pa.Table:
    """All rows of a table, in an order that does not depend on who was first, without the order of the files."""
    rows = pq.ParquetDataset(results / name).read()
    keys = [
        column for column in ("video_id", "frame_index", "track_id", "start_seconds") if column in rows.column_names
    ]
    return rows.sort_by([(key, "ascending") for key in keys]).combine_chunks()


def run_command(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
