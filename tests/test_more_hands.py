"""A long video that a worker of a pool has begun: further runs are begun on it, for the other workers."""

import contextlib
import contextvars
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import pytest
from prefect_server import Server, end, eventually

from ferflow.claims import Claims
from ferflow.config import Settings
from ferflow.sources import Job
from ferflow.storage import Results, content_id
from flows.more_hands import HELPS, ask_for_hands, send_home, share_out

ROOT = Path(__file__).parents[1]
PREFECT = [sys.executable, "-m", "prefect"]
HOUR = 90_000
"""Its frames."""


@pytest.fixture(scope="module")
def client(server):
    from prefect.client.orchestration import SyncPrefectClient

    with SyncPrefectClient(server.url) as client:
        yield client


def begin(client: Any, pool: str | None) -> Any:
    """A run of a deployment, in a pool or not."""
    from prefect import flow

    @flow(name=f"analyze in {pool}")
    def analyze(sources: list[str], force: bool = False) -> None: ...

    deployment = client.create_deployment(client.create_flow(analyze), name="analyze", work_pool_name=pool)
    return client.create_flow_run_from_deployment(deployment, parameters={"sources": ["/videos"], "force": True})


def make_pool(client: Any, name: str, *, workers: int) -> str:
    from prefect.client.schemas.actions import WorkPoolCreate

    client.create_work_pool(WorkPoolCreate(name=name, type="process"))
    for number in range(workers):
        client.send_worker_heartbeat(name, f"worker {number}", heartbeat_interval_seconds=30)
    return name


def start_in_pool(client: Any, pool: str, parameters: dict[str, Any]) -> tuple[Any, threading.Thread]:
    """A run of the real flow, in a thread of this process, as if a worker of the pool had taken it."""
    from prefect.flow_engine import run_flow
    from prefect.states import Pending

    from flows.analyze_videos import analyze_videos

    deployment = client.create_deployment(client.create_flow(analyze_videos), name=pool, work_pool_name=pool)
    run = client.create_flow_run_from_deployment(deployment, parameters=parameters, state=Pending())
    thread = threading.Thread(
        target=contextvars.copy_context().run,
        args=(run_flow, analyze_videos),
        kwargs={"flow_run": run, "return_type": "state"},
    )
    thread.start()
    return run, thread


def others(client: Any, run: Any) -> list[Any]:
    runs = client.read_flow_runs()
    return [other for other in runs if other.deployment_id == run.deployment_id and other.id != run.id]


@pytest.fixture
def job() -> Job:
    file = Path("/videos/hour.mp4")
    return Job(file, file, video_id="1234", tag=None, model_version="fer", earlier=None)


def test_there_is_one_for_each_other_worker_and_each_ten_minutes(client, job):
    run = begin(client, make_pool(client, "three", workers=3))
    assert len(ask_for_hands(client, run.id, job, HOUR)) == 2
    assert [other.parameters for other in others(client, run)] == [
        {"sources": ["/videos/hour.mp4"], "force": False}
    ] * 2
    run = begin(client, "three")
    assert len(ask_for_hands(client, run.id, job, HOUR // 4)) == 1


def test_asked_again_there_are_no_more(client, job):
    run = begin(client, make_pool(client, "again", workers=2))
    (hand,) = ask_for_hands(client, run.id, job, HOUR)
    assert ask_for_hands(client, run.id, job, HOUR) == [hand]
    assert len(others(client, run)) == 1


def test_a_second_attempt_has_hands_of_its_own(client, job):
    """Seen to fail: without the attempt in the key the server gave the first one's, which had ended."""
    from prefect.states import Cancelled, Running, Scheduled

    run = begin(client, make_pool(client, "attempts", workers=2))
    client.set_flow_run_state(run.id, Running(), force=True)
    (first,) = ask_for_hands(client, run.id, job, HOUR)
    client.set_flow_run_state(first, Cancelled(), force=True)
    for state in (Cancelled(), Scheduled(), Running()):
        client.set_flow_run_state(run.id, state, force=True)
    (second,) = ask_for_hands(client, run.id, job, HOUR)
    assert second != first


def test_hands_that_are_sent_home_do_not_begin_or_are_told_to_stop(client, job):
    from prefect.states import Completed, Running

    run = begin(client, make_pool(client, "home", workers=4))
    waiting, working, ended = ask_for_hands(client, run.id, job, HOUR)
    client.set_flow_run_state(working, Running(), force=True)
    client.set_flow_run_state(ended, Completed(), force=True)
    for hand in (waiting, working, ended):
        send_home(client, hand)
    states = [client.read_flow_run(hand).state.type.value for hand in (waiting, working, ended)]
    assert states == ["CANCELLED", "CANCELLING", "COMPLETED"]


@pytest.mark.parametrize(("workers", "frames"), [(3, 15_000), (1, HOUR)], ids=["short", "nobody else"])
def test_there_are_none_for_a_short_video_or_without_other_workers(client, job, workers, frames):
    run = begin(client, make_pool(client, f"none for {workers}", workers=workers))
    assert ask_for_hands(client, run.id, job, frames) == []
    assert others(client, run) == []


def test_there_are_none_outside_a_work_pool(client, job):
    run = begin(client, None)
    assert ask_for_hands(client, run.id, job, HOUR) == []


@pytest.mark.parametrize(
    ("workers", "count", "parts"),
    [
        (3, 200, [(66, 133), (133, 200)]),
        (9, 101, [(33, 67), (67, 101)]),
        (9, 51, [(25, 51)]),
        (9, 50, []),
        (1, 200, []),
    ],
    ids=["as many as workers", "as many as fifties", "one more than fifty", "fifty", "nobody else"],
)
def test_a_folder_is_shared_out_among_the_workers(client, workers, count, parts):
    run = begin(client, make_pool(client, f"{workers} share {count}", workers=workers))
    videos = [f"/videos/{number:03}.mp4" for number in range(count)]
    assert len(share_out(client, run.id, videos)) == len(parts)
    assert share_out(client, run.id, videos) == share_out(client, run.id, videos), "asked again, there are no more"
    found = sorted(other.parameters["sources"] for other in others(client, run))
    assert found == [videos[begin:end] for begin, end in parts]
    assert all(HELPS not in other.tags for other in others(client, run))


def test_a_folder_given_by_hand_is_done_by_two_workers_each_video_once(
    client, server, on_server, make_video, astronaut, tmp_path, monkeypatch
):
    from prefect.flow_engine import run_flow

    from flows.analyze_videos import analyze_videos

    monkeypatch.setattr("flows.more_hands._VIDEOS_A_RUN", 4)
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    for number in range(8):
        image = np.ascontiguousarray(np.roll(astronaut, 3 * number, axis=1))
        make_video(inbox / f"{number}.mp4", frame_count=4, image=image)
    pool = make_pool(client, "by hand", workers=2)
    parameters = {"sources": [str(inbox)], "results": str(tmp_path / "results"), "workers": 1}
    run, thread = start_in_pool(client, pool, parameters)
    (hand,) = eventually(lambda: others(client, run), "a further run")
    assert hand.parameters == client.read_flow_run(run.id).parameters | {
        "sources": [str(inbox / f"{number}.mp4") for number in range(4, 8)],
        "force": False,
    }
    state = run_flow(analyze_videos, flow_run=hand, return_type="state")
    thread.join(120)
    assert state.type.value == client.read_flow_run(run.id).state.type.value == "COMPLETED"
    videos = pd.read_parquet(tmp_path / "results" / "videos")
    assert sorted(videos["source"]) == [str(inbox / f"{number}.mp4") for number in range(8)]
    of_these = {
        "flow_runs": {"id": {"any_": [str(run.id), str(hand.id)]}},
        "task_runs": {"name": {"like_": "analyze:"}},
    }
    eventually(lambda: server.ask("task_runs/count", **of_these) >= 8, "what the runs did")
    assert server.ask("task_runs/count", **of_these) == 8


def test_who_cancels_a_run_sends_its_hands_home(client, on_server, make_video, astronaut, tmp_path, monkeypatch):
    """Seen to fail: the further run stayed scheduled, and would have analysed the cancelled video."""
    from prefect.states import Cancelling

    monkeypatch.setattr("flows.more_hands._FRAMES_A_RUN", 1000)
    face = np.ascontiguousarray(astronaut[:256, 96:352])
    video = make_video(tmp_path / "long.mp4", frame_count=6000, fps=30, image=face, options={"preset": "ultrafast"})
    pool = make_pool(client, "cancelled", workers=2)
    parameters = {"sources": [str(video)], "results": str(tmp_path / "results"), "settings": {"annotate": False}}
    run, thread = start_in_pool(client, pool, parameters)
    (hand,) = eventually(lambda: others(client, run), "a further run")
    client.set_flow_run_state(run.id, Cancelling())
    thread.join(60)
    states = [client.read_flow_run(each.id).state.type.value for each in (run, hand)]
    assert states == ["CANCELLED", "CANCELLED"]


def test_a_process_that_runs_the_deployment_itself_asks_no_worker(
    client, on_server, make_video, astronaut, tmp_path, monkeypatch
):
    """Seen to fail: a watch's own run was one of the pool's, and other hosts were sent to folders of this one."""
    from flows.analyze_videos import AUTOMATIC, analyze_as_deployed, analyze_videos

    monkeypatch.setattr("flows.more_hands._FRAMES_A_RUN", 1000)
    monkeypatch.setattr("flows.analyze_videos.DEPLOYMENT", "analyze-videos/of workers")
    face = np.ascontiguousarray(astronaut[:256, 96:352])
    video = make_video(tmp_path / "long.mp4", frame_count=2000, fps=30, image=face, options={"preset": "ultrafast"})
    pool = make_pool(client, "own", workers=2)
    deployment = client.create_deployment(client.create_flow(analyze_videos), name="of workers", work_pool_name=pool)
    outcomes = analyze_as_deployed([str(video)], str(tmp_path / "results"), settings=Settings(annotate=False))
    assert [summary.status for _, summary in outcomes] == ["done"]
    # Nor could a worker retry it.
    assert [run.name for run in client.read_flow_runs() if run.deployment_id == deployment] == []
    assert on_server.last_run()["tags"] == [AUTOMATIC]


def test_a_further_run_that_nobody_is_left_to_help_does_nothing(client, on_server, make_video, tmp_path, monkeypatch):
    """Seen to fail: it analysed the whole video, which its owner's cancelling had ended."""
    from prefect.flow_engine import run_flow

    from flows.analyze_videos import analyze_videos

    monkeypatch.setattr("flows.more_hands._FRAMES_A_RUN", 5)
    video = make_video(tmp_path / "long.mp4", frame_count=10)
    results = tmp_path / "results"
    pool = make_pool(client, "nothing left", workers=2)
    deployment = client.create_deployment(client.create_flow(analyze_videos), name="late", work_pool_name=pool)
    parameters = {"sources": [str(video)], "results": str(results), "settings": {"annotate": False}}
    run = client.create_flow_run_from_deployment(deployment, parameters=parameters)
    long = Job(video, video, content_id(video), tag=None, model_version="fer", earlier=None)
    (hand,) = ask_for_hands(client, run.id, long, 10)

    def carried_out(run_id: UUID) -> str:
        state = run_flow(analyze_videos, flow_run=client.read_flow_run(run_id), return_type="state")
        return f"{state.name}: {state.message}"

    assert carried_out(hand) == "Completed: There is nothing left to help with."
    assert [path.stem for path in (results / "videos").iterdir()] == ["columns"]
    # What a person begins is a run like any other, also one with what the further run was given.
    again = client.create_flow_run_from_deployment(deployment, parameters=client.read_flow_run(hand).parameters)
    assert carried_out(again.id) == "Completed: 1 analysed, 0 already done, 0 failed."
    with Claims(Results(results)).hold(long.video_id):
        (late,) = ask_for_hands(client, again.id, long, 10)
        (results / "videos" / f"{long.video_id}.parquet").unlink()
        assert carried_out(late) == "Completed: 0 analysed, 0 already done, 0 failed, 1 in another run."


@contextlib.contextmanager
def worker(server: Server, number: int, folder: Path) -> Iterator[None]:
    with (folder / f"worker {number}.log").open("wb") as log:
        process = subprocess.Popen(
            [*PREFECT, "worker", "start", "--pool", "ferflow", "--name", f"worker {number}", "--limit", "1"],
            cwd=ROOT,
            env=environment(server, folder),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield
    finally:
        end(process)


def environment(server: Server, folder: Path) -> dict[str, str]:
    places = {name: str(folder) for name in ("FERFLOW_INBOX", "FERFLOW_RESULTS", "FERFLOW_FOLDER")}
    models = {"FERFLOW_MODELS": os.environ["FERFLOW_MODELS"]}
    return server.environment | {"PREFECT_WORKER_QUERY_SECONDS": "1"} | places | models


def test_two_workers_make_the_pieces_of_one_video(server, make_video, astronaut, tmp_path):
    frames, seen_a_second = 21_000, 10
    face = np.ascontiguousarray(astronaut[:256:2, 96:352:2])
    video = make_video(tmp_path / "long.mp4", frame_count=frames, fps=30, image=face, options={"preset": "ultrafast"})
    results = tmp_path / "results"
    for command in (["work-pool", "create", "ferflow", "--type", "process"], ["deploy", "--name", "analyze-videos"]):
        subprocess.run(
            [*PREFECT, "--no-prompt", *command],
            cwd=ROOT,
            env=environment(server, tmp_path),
            check=True,
            capture_output=True,
        )
    owners: dict[str, set[str]] = {}

    def look() -> bool:
        for claim in (results / ".claims").glob("*-*.*"):
            with contextlib.suppress(FileNotFoundError):
                owners.setdefault(json.loads(claim.read_bytes())["owner"], set()).add(claim.stem)
        return bool(list((results / "videos").glob("[0-9a-f]" * 16 + ".parquet")))

    with worker(server, 1, tmp_path), worker(server, 2, tmp_path):
        eventually(lambda: len(server.ask("work_pools/ferflow/workers/filter")) == 2, "both workers")
        (deployment,) = server.ask("deployments/filter", deployments={"name": {"any_": ["analyze-videos"]}})
        settings = {"max_fps": seen_a_second, "annotate": False}
        parameters = {"sources": [str(video)], "results": str(results), "workers": 1, "settings": settings}
        server.ask(f"deployments/{deployment['id']}/create_flow_run", parameters=parameters)
        eventually(look, "the video", patience_seconds=400)

        def runs() -> list[Any]:
            return server.ask("flow_runs/filter", deployments={"id": {"any_": [deployment["id"]]}})

        eventually(lambda: {run["state"]["type"] for run in runs()} == {"COMPLETED"}, "both runs to end")
        assert len(runs()) == 2
    assert [len(pieces) > 0 for pieces in owners.values()] == [True, True]
    assert not set.intersection(*owners.values()), "no piece was made twice"
    (row,) = pd.read_parquet(results / "videos").itertuples()
    assert (row.status, row.frame_count) == ("done", frames)
    faces = pd.read_parquet(results / "faces").sort_values("frame_index")
    # Where a piece begins, its first frame is looked at.
    assert set(np.diff(faces.frame_index, prepend=-3, append=frames)) <= {1, 2, 3}
    assert len(faces) == pytest.approx(frames * seen_a_second / 30, abs=10)
    assert faces.track_id.nunique() == 1
