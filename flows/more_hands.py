"""a long video or a folder that a worker of a work pool has begun -> further runs, for workers that can take a share"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

    from ferflow.sources import Job

HELPS = "helps"
"""Tag of a further run: it only helps. Whoever copies it to a new run begins one without the tag."""

_FRAMES_A_RUN, _VIDEOS_A_RUN = 20_000, 50
# Ten minutes of video, or half a minute's work of clips. To begin, a run needs some ten seconds.


def ask_for_hands(client: "SyncPrefectClient", run_id: UUID, job: "Job", frames_expected: int) -> list[UUID]:
    """Begin further runs of this run's deployment on one of its videos.

    Each finds that the video is in work here, and makes pieces of it (see `ferflow.pieces`) until none is left. One
    that begins when nobody is at work on it any more does nothing: this run may have been cancelled.

    Args:
        client: of Prefect's server.
        run_id: this run.
        job: the video.
        frames_expected: how long it is.

    Returns:
        Those that were begun: one for each ten minutes, no more than there are other workers; none outside a work pool.
    """
    wanted = frames_expected // _FRAMES_A_RUN
    if not wanted:
        return []
    run = client.read_flow_run(run_id)
    others = _other_workers(client, run)
    return _begin(client, run, job.video_id, [[str(job.source)]] * min(wanted, others), tags=[HELPS])


def share_out(client: "SyncPrefectClient", run_id: UUID, videos: Sequence[str]) -> list[UUID]:
    """Begin further runs of this run's deployment, each on a part of its videos.

    This run begins with the first part. Whoever has finished its own goes on where others are not yet (this run) or
    ends; claims see to it that nobody does a video that another is at.

    Args:
        client: of Prefect's server.
        run_id: this run.
        videos: all that it is about, in its order.

    Returns:
        Those that were begun: one for each fifty videos but the first fifty, no more than there are other workers; none
        outside a work pool.
    """
    wanted = (len(videos) - 1) // _VIDEOS_A_RUN
    if wanted < 1:
        return []
    run = client.read_flow_run(run_id)
    parts = min(wanted, _other_workers(client, run)) + 1
    bounds = [len(videos) * part // parts for part in range(1, parts + 1)]
    shares = [videos[begin:end] for begin, end in pairwise(bounds)]
    return _begin(client, run, "share", shares, tags=[])


def _other_workers(client: "SyncPrefectClient", run: "FlowRun") -> int:
    """How many there are in a run's work pool; none where it is in none."""
    if run.work_pool_name is None or run.deployment_id is None:
        return 0
    workers = client.read_workers_for_work_pool(run.work_pool_name)
    return max(sum(worker.status == "ONLINE" for worker in workers) - 1, 0)


def _begin(
    client: "SyncPrefectClient", run: "FlowRun", what: str, shares: Iterable[Sequence[str]], *, tags: list[str]
) -> list[UUID]:
    """Begin a run of the same deployment on each share of the sources, with what else this one was given."""
    parameters: dict[str, Any] = {**run.parameters, "force": False}
    return [
        client.create_flow_run_from_deployment(
            run.deployment_id,  # type: ignore[arg-type]
            parameters=parameters | {"sources": [*sources]},
            tags=tags,
            # Asked again, the server gives the same run; of a run's earlier attempt they have ended.
            idempotency_key=f"{run.id} {run.run_count} {what} {number}",
        ).id
        for number, sources in enumerate(shares)
    ]


def send_home(client: "SyncPrefectClient", run_id: UUID) -> None:
    """Cancel a further run, as a person does it in Prefect's page: one that has not begun never does, and one that is
    at work stops; of one that has ended nothing is changed."""
    from prefect.states import Cancelling

    client.set_flow_run_state(run_id, Cancelling())
