"""A long video that a worker of a pool has begun: further runs are begun on it, for the other workers."""

from pathlib import Path
from typing import Any

import pytest
from prefect_server import serve_prefect

from ferflow.sources import Job
from flows.more_hands import ask_for_hands

HOUR = 90_000
"""Its frames."""


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    from prefect.client.orchestration import SyncPrefectClient

    with serve_prefect(tmp_path_factory.mktemp("server")) as server, SyncPrefectClient(server.url) as client:
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


def others(client: Any, run: Any) -> list[Any]:
    return [other for other in client.read_flow_runs() if other.flow_id == run.flow_id and other.id != run.id]


@pytest.fixture
def job() -> Job:
    file = Path("/videos/hour.mp4")
    return Job(file, file, video_id="1234", tag=None, model_version="fer", earlier=None)


def test_there_is_one_for_each_other_worker_and_each_ten_minutes(client, job):
    run = begin(client, make_pool(client, "three", workers=3))
    assert ask_for_hands(client, run.id, job, HOUR) == 2
    assert [other.parameters for other in others(client, run)] == [
        {"sources": ["/videos/hour.mp4"], "force": False}
    ] * 2
    run = begin(client, "three")
    assert ask_for_hands(client, run.id, job, HOUR // 4) == 1


def test_asked_again_there_are_no_more(client, job):
    run = begin(client, make_pool(client, "again", workers=2))
    assert [ask_for_hands(client, run.id, job, HOUR) for _ in range(2)] == [1, 1]
    assert len(others(client, run)) == 1


@pytest.mark.parametrize(("workers", "frames"), [(3, 15_000), (1, HOUR)], ids=["short", "nobody else"])
def test_there_are_none_for_a_short_video_or_without_other_workers(client, job, workers, frames):
    run = begin(client, make_pool(client, f"none for {workers}", workers=workers))
    assert ask_for_hands(client, run.id, job, frames) == 0
    assert others(client, run) == []


def test_there_are_none_outside_a_work_pool(client, job):
    run = begin(client, None)
    assert ask_for_hands(client, run.id, job, HOUR) == 0
