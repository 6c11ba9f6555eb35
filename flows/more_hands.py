"""a long video that a worker of a work pool has begun -> further runs on it, for workers that can take a share"""

from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

    from ferflow.sources import Job

HELPS = "helps"
"""Tag of a further run: it only helps. Whoever copies it to a new run begins one without the tag."""

_FRAMES_A_RUN = 20_000
# Ten minutes of video. To begin, a run needs some ten seconds.


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
    if run.work_pool_name is None or run.deployment_id is None:
        return []
    workers = client.read_workers_for_work_pool(run.work_pool_name)
    others = sum(worker.status == "ONLINE" for worker in workers) - 1
    return [
        client.create_flow_run_from_deployment(
            run.deployment_id,
            parameters={**run.parameters, "sources": [str(job.source)], "force": False},
            tags=[HELPS],
            # Asked again, the server gives the same run; of a run's earlier attempt they have ended.
            idempotency_key=f"{run_id} {run.run_count} {job.video_id} {number}",
        ).id
        for number in range(max(min(wanted, others), 0))
    ]


def send_home(client: "SyncPrefectClient", run_id: UUID) -> None:
    """Cancel a further run, as a person does it in Prefect's page: one that has not begun never does, and one that is
    at work stops; of one that has ended nothing is changed."""
    from prefect.states import Cancelling

    client.set_flow_run_state(run_id, Cancelling())
