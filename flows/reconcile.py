"""runs that nobody carries out any more -> runs that say so, and that are begun again"""

import functools
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ferflow.claims import claim_lasts_seconds

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.events import ReceivedEvent

logger = logging.getLogger(__name__)

FLOWS = (
    "analyze-videos",
    "compact-results",
    "retrain-emotion-model",
    "train-emotion-model",
    "watch-inbox",
    "watch-labelled",
)
"""The flows that are looked after: a server may have others."""

_RESUMED = ("analyze-videos",)
# What was finished is kept, so that another attempt is never in vain.
_RESUMED_WITHIN = timedelta(days=1)
# A run that crashed longer ago, nobody waits for.
_SILENT_SECONDS = 120.0
# Four heartbeats, where nobody chose another time between two than the package `flows`.
_HEARTBEATS = 2.5
# One may be lost and the next be late.
_BEGINNING_SECONDS = 600.0
# Whoever took the run is starting the process that sends the first heartbeat, or waits for a machine. Of a serving
# process the server does not know whether it lives, of a worker it does.
_ATTEMPTS = 3
_RUNS_AT_ONCE = 200
# As many as a Prefect server tells of at a time.


class Reconciler:
    """Finds the runs whose process was killed or cut off; to be asked to look about once a minute.

    A run is dead if it says nothing while this looks on: then neither a computer that slept, nor a server that was
    away, nor clocks that differ make a living run look dead.
    """

    def __init__(
        self,
        *,
        silent_seconds: float = _SILENT_SECONDS,
        heartbeat_seconds: float | None = None,
        beginning_seconds: float = _BEGINNING_SECONDS,
        attempts: int = _ATTEMPTS,
        claim_seconds: float | None = None,
    ) -> None:
        """Nothing has been seen yet.

        Args:
            silent_seconds: a run that says nothing for so long is dead, unless its heartbeats are rarer.
            heartbeat_seconds: so far apart they are, as long as fewer than two were heard; as in this process if left
                out.
            beginning_seconds: a run that has said nothing yet is dead after this time; after silent_seconds if its
                worker is gone.
            attempts: so often is a run begun, the first time included.
            claim_seconds: so long after its end a run may still hold its videos; as long as a claim lasts if left out.
        """
        self._silent_seconds = silent_seconds
        self._heartbeat_seconds = heartbeat_seconds or float(os.environ["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
        self._beginning_seconds = beginning_seconds
        self._attempts = attempts
        self._claim = timedelta(seconds=claim_lasts_seconds() if claim_seconds is None else claim_seconds)
        self._last_signs: dict[UUID, tuple[object, float]] = {}

    def look(self) -> list[str]:
        """See to all runs once.

        Returns:
            A sentence for each that was found dead or is begun again.

        Raises:
            Exception: what Prefect raises where the server does not answer.
        """
        from prefect import get_client
        from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, get_current_settings, temporary_settings

        if get_current_settings().api.url is None:
            return []
        try:
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), get_client(sync_client=True) as client:
                return [*self._bury(client), *self._begin_again(client)]
        except Exception:
            # What was said meanwhile was not heard.
            self._last_signs.clear()
            raise

    def _bury(self, client: "SyncPrefectClient") -> Iterator[str]:
        from prefect.states import Cancelled, Crashed

        last_signs: dict[UUID, tuple[object, float]] = {}
        gone = functools.cache(functools.partial(_workers_gone, client))
        for run in _runs(client, FLOWS, ["RUNNING", "PENDING", "CANCELLING"]):
            now = time.monotonic()
            beats = _heartbeats(client, run)
            sign, since = (run.state_id, beats[0].id if beats else None), now
            if run.id in self._last_signs and self._last_signs[run.id][0] == sign:
                since = self._last_signs[run.id][1]
            assert run.state is not None
            if now - since < self._patience(run, beats, gone):
                last_signs[run.id] = sign, since
                continue
            if run.state.is_cancelling():
                message = "Cancelled. Nobody was carrying it out any more."
                client.set_flow_run_state(run.id, Cancelled(message=message))
            else:
                message = (
                    f"Nothing was heard of it for {(now - since) / 60:.0f} minutes: the process or the machine that "
                    "carried it out is gone. What was finished is kept."
                )
                client.set_flow_run_state(run.id, Crashed(message=message))
            if beats:
                _tell_automation(client, beats[0])
            _bury_tasks(client, run)
            yield f"{run.name}: {message}"
        self._last_signs = last_signs

    def _patience(
        self, run: "FlowRun", beats: "Sequence[ReceivedEvent]", gone: Callable[[str], frozenset[str]]
    ) -> float:
        assert run.state is not None
        if run.state.is_pending() or not beats:
            return self._silent_seconds if _is_deserted(run, gone) else self._beginning_seconds
        apart = self._heartbeat_seconds
        if len(beats) > 1:
            apart = (beats[0].occurred - beats[1].occurred).total_seconds()
        return max(self._silent_seconds, _HEARTBEATS * apart)

    def _begin_again(self, client: "SyncPrefectClient") -> Iterator[str]:
        from prefect.states import AwaitingRetry

        from flows.analyze_videos import AUTOMATIC

        for run in _runs(client, _RESUMED, ["CRASHED"], since=datetime.now(UTC) - _RESUMED_WITHIN):
            if run.deployment_id is None or AUTOMATIC in run.tags:
                continue
            crashes = sum(state.is_crashed() for state in client.read_flow_run_states(run.id))
            if crashes >= self._attempts:
                continue
            assert run.state is not None
            at = max(datetime.now(UTC), run.state.timestamp + self._claim)
            message = f"It crashed and is begun again, attempt {crashes + 1} of {self._attempts}."
            state: Any = AwaitingRetry(scheduled_time=at, message=message)
            client.set_flow_run_state(run.id, state)
            yield f"{run.name}: {message}"


def reconcile_runs() -> list[str]:
    """Let this process's own `Reconciler` look, which has to be asked about once a minute; log what it did.

    Returns:
        A sentence for each run that was found dead or is begun again; none where the server does not answer.
    """
    try:
        said = _own_reconciler().look()
    except Exception as error:
        # Whatever the way in which a server is away: the next look is in a minute.
        logger.debug("The runs were not looked at: %s", error)
        return []
    for sentence in said:
        logger.warning(sentence)
    return said


@functools.cache
def _own_reconciler() -> Reconciler:
    chosen = os.environ.get("FERFLOW_SILENT_SECONDS")
    if chosen is None:
        return Reconciler()
    # Whoever chooses it knows how often the runs' processes send a heartbeat.
    return Reconciler(silent_seconds=float(chosen), heartbeat_seconds=float(chosen) / _HEARTBEATS)


def _runs(
    client: "SyncPrefectClient", flows: Sequence[str], states: Sequence[str], *, since: datetime | None = None
) -> "Iterator[FlowRun]":
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import StateType

    kinds = filters.FlowRunFilterStateType(any_=[StateType(state) for state in states])
    those = filters.FlowRunFilter(state=filters.FlowRunFilterState(type=kinds))
    if since is not None:
        those.end_time = filters.FlowRunFilterEndTime(after_=since)  # type: ignore[arg-type]
    found: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(
            flow_filter=filters.FlowFilter(name=filters.FlowFilterName(any_=[*flows])),
            flow_run_filter=those,
            limit=_RUNS_AT_ONCE,
            offset=len(found),
        )
        found += page
        if len(page) < _RUNS_AT_ONCE:
            # All are read before any is changed: those that change leave the list that is being read.
            return iter(found)


def _is_deserted(run: "FlowRun", gone: Callable[[str], frozenset[str]]) -> bool:
    """Whether a run that has said nothing yet was taken by a worker that is gone, and with it the process."""
    pool, worker = run.work_pool_name, run.labels.get("prefect.worker.name")
    # Another kind of worker has the run begun by a cluster, which outlives it and may have to wait for a machine.
    is_process = run.labels.get("prefect.worker.type") == "process"
    return is_process and pool is not None and worker in gone(pool)


def _workers_gone(client: "SyncPrefectClient", pool: str) -> frozenset[str]:
    """Workers of a pool of which the server has heard nothing in three of their heartbeats: the newest, no more than
    it tells of at a time."""
    from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus

    gone = WorkerFilter(status=WorkerFilterStatus(any_=["OFFLINE"]))
    return frozenset(worker.name for worker in client.read_workers_for_work_pool(pool, worker_filter=gone))


def _heartbeats(client: "SyncPrefectClient", run: "FlowRun") -> "Sequence[ReceivedEvent]":
    """The last two of a run, the newest first."""
    from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter

    those = EventFilter(
        event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
    )
    # Clocks differ: one that is ahead is heard, too.
    those.occurred.until = datetime.now(UTC) + timedelta(days=1)  # type: ignore[assignment]
    return client.read_events(those, limit=2).events


def _tell_automation(client: "SyncPrefectClient", beat: "ReceivedEvent") -> None:
    """Say that nobody need wait for the next heartbeat of the run that this is one of (flows/automations.py).

    A server that was begun again keeps back for a quarter of an hour what follows a state from before, as the run's new
    state does. This follows nothing.
    """
    from prefect.events import Event

    event = Event(event="prefect.flow-run.found-dead", resource=beat.resource, related=beat.related)
    client.request("POST", "/events", json=[event.model_dump(mode="json")])


def _bury_tasks(client: "SyncPrefectClient", run: "FlowRun") -> None:
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    kinds = filters.TaskRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])
    tasks = client.read_task_runs(
        flow_run_filter=filters.FlowRunFilter(id=filters.FlowRunFilterId(any_=[run.id])),
        task_run_filter=filters.TaskRunFilter(state=filters.TaskRunFilterState(type=kinds)),
    )
    for task in tasks:
        client.set_task_run_state(task.id, Crashed(message="Its run is dead."), force=True)
