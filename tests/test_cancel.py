"""Cancel and Retry, pressed in Prefect's page, on a real server; a process that runs its deployment itself."""

import contextvars
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from prefect_server import SECONDS_TO_STOP, Server, end, eventually

from ferflow.config import Settings
from ferflow.errors import ConfigError, StoppedError
from flows.analyze_videos import AUTOMATIC, analyze_as_deployed, analyze_on_server
from flows.watch_inbox import watch_inbox

ROOT = Path(__file__).parents[1]


SERVE = """
import asyncio
from prefect.runner import Runner
from ferflow.watch_settings import load_watch_settings
from flows.deployments import offers, registered

runner = Runner(pause_on_shutdown=False)
runner.add_deployment(registered(offers("/", load_watch_settings(None))[0]))
asyncio.run(runner.start())
"""


@pytest.fixture(scope="module")
def inbox(make_video, astronaut, tmp_path_factory) -> Path:
    """A short video, and one that takes a minute."""
    folder = tmp_path_factory.mktemp("inbox")
    make_video(folder / "a short.mp4", frame_count=3, image=astronaut)
    big = np.repeat(np.repeat(astronaut, 2, axis=0), 2, axis=1)
    make_video(folder / "b long.mp4", frame_count=1000, image=big, options={"preset": "ultrafast"})
    return folder


@pytest.fixture(scope="module")
def serving(server: Server, tmp_path_factory) -> Iterator[Server]:
    """The flow is served, as `ferflow serve` does it."""
    with (tmp_path_factory.mktemp("serve") / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE],
            env=server.environment | {"PREFECT_RUNNER_POLL_FREQUENCY": "1"},
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        eventually(lambda: deployments(server), "the deployment")
        yield server
    finally:
        end(process)


def deployments(server: Server) -> list[Any]:
    return server.ask("deployments/filter", deployments={"name": {"any_": ["analyze-videos"]}})


def state(server: Server, run_id: str) -> Any:
    return server.ask("flow_runs/filter", flow_runs={"id": {"any_": [run_id]}})[0]["state"]


def is_at_work(results: Path) -> bool:
    """Something is being written that is not finished."""
    return any((results / ".parts").rglob("*.part"))


def press_cancel(server: Server, run_id: str) -> None:
    server.ask(f"flow_runs/{run_id}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})


def assert_nothing_is_half_written(results: Path) -> None:
    names = [Path(row["source"]).name for row in pq.ParquetDataset(results / "videos").read().to_pylist()]
    assert names == ["a short.mp4"]
    assert list((results / ".parts").rglob("*.part")) == []
    assert [path for path in (results / ".claims").rglob("*") if path.is_file()] == []
    assert [path.name.startswith("a short") for path in (results / "annotated").iterdir()] == [True]


def test_a_run_of_this_process_is_cancelled(on_server, inbox, tmp_path):
    raised: list[BaseException] = []

    def run() -> None:
        try:
            analyze_on_server([str(inbox)], str(tmp_path), settings=Settings(), force=False, workers=1)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,))
    thread.start()
    eventually(lambda: len([*tmp_path.glob("videos/*.parquet")]) == 2 and is_at_work(tmp_path), "the long video")
    run_id = on_server.last_run()["id"]
    press_cancel(on_server, run_id)
    pressed_at = time.monotonic()
    thread.join(60)
    took = time.monotonic() - pressed_at
    assert took < SECONDS_TO_STOP
    ended = state(on_server, run_id)
    assert (ended["type"], ended["name"]) == ("CANCELLED", "Cancelled")
    assert ended["message"] == (
        "1 analysed, 0 already done, 0 failed. Cancelled: 1 not done. Start it again, and it goes on from here."
    )
    (error,) = raised
    assert isinstance(error, StoppedError)
    assert_nothing_is_half_written(tmp_path)
    eventually(
        lambda: on_server.task_runs(run_id)["analyze: b long.mp4"]["state_type"] == "CANCELLED", "the task's state"
    )


def test_a_look_into_the_inbox_ends_as_cancelled_when_its_run_is(on_server, inbox, tmp_path):
    run_ids: list[str] = []

    def press_when_at_work() -> None:
        eventually(lambda: len([*tmp_path.glob("videos/*.parquet")]) == 2 and is_at_work(tmp_path), "the long video")
        run_ids.append(on_server.last_run()["id"])
        press_cancel(on_server, run_ids[0])

    thread = threading.Thread(target=press_when_at_work)
    thread.start()
    look = watch_inbox([str(inbox)], str(tmp_path), workers=1, return_state=True)
    thread.join()
    said = "1 analysed, 0 already done, 0 failed. Cancelled: 1 not done. Start it again, and it goes on from here."
    assert (look.type, look.message) == ("CANCELLED", said)
    run = state(on_server, run_ids[0])
    assert (run["type"], run["message"]) == ("CANCELLED", said)
    assert_nothing_is_half_written(tmp_path)


def test_a_run_of_the_serving_process_is_cancelled(serving, inbox, tmp_path):
    (deployment,) = deployments(serving)
    parameters = {"sources": [str(inbox)], "results": str(tmp_path), "workers": 1}
    run = serving.ask(f"deployments/{deployment['id']}/create_flow_run", parameters=parameters)
    eventually(lambda: len([*tmp_path.glob("videos/*.parquet")]) == 2 and is_at_work(tmp_path), "the long video")
    press_cancel(serving, run["id"])
    pressed_at = time.monotonic()
    eventually(lambda: state(serving, run["id"])["type"] != "CANCELLING", "the end of the run")
    took = time.monotonic() - pressed_at
    assert took < SECONDS_TO_STOP
    assert state(serving, run["id"])["type"] == "CANCELLED"
    time.sleep(3)
    assert state(serving, run["id"])["type"] == "CANCELLED"
    assert_nothing_is_half_written(tmp_path)


def test_a_retry_goes_on_with_the_stage_at_which_the_run_was_cancelled(serving, make_video, astronaut, inbox, tmp_path):
    big = np.repeat(np.repeat(astronaut, 2, axis=0), 2, axis=1)
    sources = [
        make_video(tmp_path / "inbox" / "a.mp4", frame_count=3, image=astronaut),
        make_video(tmp_path / "inbox" / "b.mp4", frame_count=600, image=big, options={"preset": "ultrafast"}),
    ]
    results = tmp_path / "results"
    (deployment,) = deployments(serving)
    parameters = {"sources": [*map(str, sources)], "results": str(results), "workers": 1}
    run = serving.ask(f"deployments/{deployment['id']}/create_flow_run", parameters=parameters)
    eventually(
        lambda: len([*results.glob("faces/*.parquet")]) == 3 and is_at_work(results), "the drawing of the second"
    )
    press_cancel(serving, run["id"])
    eventually(lambda: state(serving, run["id"])["type"] != "CANCELLING", "the end of the run")
    assert state(serving, run["id"])["type"] == "CANCELLED"
    kept = {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()}
    assert [path.suffix for path in kept if path.parent.name == "annotated"] == [".mp4"]

    serving.ask(f"flow_runs/{run['id']}/set_state", state={"type": "SCHEDULED", "name": "AwaitingRetry"})
    ended = eventually(
        lambda: (now := state(serving, run["id"]))["type"] in ("COMPLETED", "FAILED", "CRASHED") and now, "the retry"
    )
    assert (ended["type"], ended["message"]) == ("COMPLETED", "1 analysed, 1 already done, 0 failed.")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len([*results.glob("annotated/*.mp4")]) == 2


@pytest.mark.parametrize("source", ["nowhere", "letter.mp4"])
def test_what_fails_a_run_of_the_serving_process_is_a_sentence_in_its_logs_too(source, serving, tmp_path):
    """Seen to fail: after the sentence there were 45 lines of code."""
    (tmp_path / "letter.mp4").write_text("Dear all")
    (deployment,) = deployments(serving)
    parameters = {"sources": [str(tmp_path / source)], "results": str(tmp_path / "results")}
    run = serving.ask(f"deployments/{deployment['id']}/create_flow_run", parameters=parameters)

    def logs() -> list[str]:
        return [log["message"] for log in serving.ask("logs/filter", logs={"flow_run_id": {"any_": [run["id"]]}})]

    eventually(lambda: state(serving, run["id"])["type"] == "FAILED", "the end of the run")
    eventually(lambda: f"Finished in state Failed({state(serving, run['id'])['message']!r})" in logs(), "the logs")
    time.sleep(5)
    assert [log for log in logs() if "Traceback" in log or "unexpected" in log] == []


def test_a_process_runs_the_deployment_itself(serving, on_server, inbox, tmp_path):
    from prefect import get_client

    outcomes = analyze_as_deployed([str(inbox / "a short.mp4")], str(tmp_path), settings=Settings())
    ((job, summary),) = outcomes
    assert (job.source.name, summary.status) == ("a short.mp4", "done")
    run = serving.last_run()
    (deployment,) = deployments(serving)
    assert run["deployment_id"] == deployment["id"]
    assert {AUTOMATIC, "videos"} <= set(run["tags"])
    assert (run["name"], run["state_name"]) == ("analyze 1 video: a short.mp4", "Completed")
    assert (run["run_count"], run["infrastructure_pid"]) == (1, None)
    with get_client(sync_client=True) as client:
        states = [state.type.value for state in client.read_flow_run_states(run["id"])]
    # Never scheduled: else the serving process might take it.
    assert sorted(states) == ["COMPLETED", "PENDING", "RUNNING"]


def test_without_a_deployment_it_is_a_run_like_any_other(on_server, inbox, tmp_path, monkeypatch):
    monkeypatch.setattr("flows.analyze_videos.DEPLOYMENT", "analyze-videos/nobody-made-this")
    ((_, summary),) = analyze_as_deployed([str(inbox / "a short.mp4")], str(tmp_path), settings=Settings())
    assert summary.status == "done"
    run = on_server.last_run()
    assert (run["deployment_id"], run["tags"], run["state_name"]) == (None, [AUTOMATIC], "Completed")


def test_who_runs_it_can_stop_it(on_server, inbox, tmp_path):
    stop = threading.Event()

    def stop_when_at_work() -> None:
        eventually(lambda: len([*tmp_path.glob("videos/*.parquet")]) == 2 and is_at_work(tmp_path), "the long video")
        stop.set()

    thread = threading.Thread(target=stop_when_at_work)
    thread.start()
    with pytest.raises(StoppedError, match="1 not done"):
        analyze_as_deployed([str(inbox)], str(tmp_path), settings=Settings(), workers=1, stop=stop)
    thread.join()
    assert on_server.last_run()["state_type"] == "CANCELLED"
    assert_nothing_is_half_written(tmp_path)


@pytest.mark.parametrize("moment", ["begins", "ends"])
def test_a_run_that_is_cancelled_just_as_it_begins_or_ends_is_cancelled(
    moment, on_server, inbox, tmp_path, monkeypatch
):
    """Seen to fail: it stayed Cancelling, with an error of Prefect's, which the watch took for a run that broke off."""
    flows = sys.modules["flows.analyze_videos"]
    run_flow, state_of = flows.run_flow, flows.RunPage.state
    pressed: list[str] = []

    def press(run_id: str) -> None:
        pressed.append(run_id)
        press_cancel(on_server, run_id)

    def begin(flow: Any, *, flow_run: Any, **rest: Any) -> Any:
        press(str(flow_run.id))
        return run_flow(flow, flow_run=flow_run, **rest)

    def end_with(page: Any) -> Any:
        press(str(page._run_id))
        return state_of(page)

    if moment == "begins":
        monkeypatch.setattr(flows, "run_flow", begin)
    else:
        monkeypatch.setattr(flows.RunPage, "state", end_with)
    with pytest.raises(StoppedError, match="What was finished is kept"):
        analyze_as_deployed([str(inbox / "a short.mp4")], str(tmp_path), settings=Settings())
    assert [state(on_server, run_id)["type"] for run_id in pressed] == ["CANCELLED"]


def test_what_is_wrong_is_one_sentence(on_server, tmp_path):
    with pytest.raises(ConfigError, match="there is no such file or folder"):
        analyze_as_deployed([str(tmp_path / "nowhere")], str(tmp_path / "results"), settings=Settings())
