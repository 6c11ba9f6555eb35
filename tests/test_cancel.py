"""Cancel, pressed in Prefect's page, on a real server: the work ends within seconds and leaves nothing half-written."""

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
from prefect_server import Server, end, eventually

from ferflow.config import Settings
from ferflow.errors import StoppedError
from flows.analyze_videos import analyze_on_server

ROOT = Path(__file__).parents[1]
SECONDS_TO_STOP = 15
# Two or three on a free machine: a look every two seconds, and Prefect's serving process waits three.
SERVE = (
    "from flows.analyze_videos import analyze_videos\n"
    "analyze_videos.serve('analyze-videos', pause_on_shutdown=False, tags=['videos'])\n"
)


@pytest.fixture(scope="module")
def inbox(make_video, astronaut, tmp_path_factory) -> Path:
    """A short video, and one that takes minutes."""
    folder = tmp_path_factory.mktemp("inbox")
    make_video(folder / "a short.mp4", frame_count=3, image=astronaut)
    big = np.repeat(np.repeat(astronaut, 2, axis=0), 2, axis=1)
    make_video(folder / "b long.mp4", frame_count=2500, image=big, options={"preset": "ultrafast"})
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


def is_drawing(results: Path) -> bool:
    """The long video's picture is being written."""
    return any((results / ".parts").rglob("*.part"))


def press_cancel(server: Server, run_id: str) -> None:
    server.ask(f"flow_runs/{run_id}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})


def assert_nothing_is_half_written(results: Path) -> None:
    names = [Path(row["source"]).name for row in pq.ParquetDataset(results / "videos").read().to_pylist()]
    assert names == ["a short.mp4"]
    assert [path for path in (results / ".parts").rglob("*.part")] == []
    assert [path for path in (results / ".claims").rglob("*") if path.is_file()] == []
    assert [path.name.startswith("a short") for path in (results / "annotated").iterdir()] == [True]


def test_a_run_of_this_process_is_cancelled(on_server, inbox, tmp_path):
    raised: list[BaseException] = []

    def run() -> None:
        try:
            analyze_on_server([str(inbox)], str(tmp_path), settings=Settings(), force=False, workers=1)
        except BaseException as error:
            raised.append(error)

    import contextvars

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,))
    thread.start()
    eventually(lambda: len([*tmp_path.glob("videos/*.parquet")]) == 2 and is_drawing(tmp_path), "the long video")
    run_id = on_server.last_run()["id"]
    press_cancel(on_server, run_id)
    pressed_at = time.monotonic()
    thread.join(60)
    took = time.monotonic() - pressed_at
    print(f"stopped after {took:.1f} s")
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


def test_a_run_of_the_serving_process_is_cancelled(serving, inbox, tmp_path):
    (deployment,) = deployments(serving)
    parameters = {"sources": [str(inbox)], "results": str(tmp_path), "workers": 1}
    run = serving.ask(f"deployments/{deployment['id']}/create_flow_run", parameters=parameters)
    eventually(lambda: len([*tmp_path.glob("videos/*.parquet")]) == 2 and is_drawing(tmp_path), "the long video")
    press_cancel(serving, run["id"])
    pressed_at = time.monotonic()
    eventually(lambda: state(serving, run["id"])["type"] != "CANCELLING", "the end of the run")
    took = time.monotonic() - pressed_at
    print(f"stopped after {took:.1f} s")
    assert took < SECONDS_TO_STOP
    assert state(serving, run["id"])["type"] == "CANCELLED"
    time.sleep(3)
    assert state(serving, run["id"])["type"] == "CANCELLED"
    assert_nothing_is_half_written(tmp_path)
    print(state(serving, run["id"])["message"])
