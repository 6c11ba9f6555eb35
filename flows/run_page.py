"""what happens during a run -> its page in Prefect: how far it is, a page a video, a table; and whether to stop"""

import contextlib
import contextvars
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

from prefect import get_client, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import (
    ArtifactCollectionFilter,
    ArtifactCollectionFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import State, StateType
from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelled, Completed, Failed

from ferflow.errors import StoppedError
from ferflow.records import VideoSummary
from ferflow.sources import Job
from ferflow.storage import Results, printable, utf8
from flows.more_hands import ask_for_hands, send_home, share_out
from flows.report import describe
from flows.server import leave_lines_of_code_out
from flows.video_page import describe_video

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

_LOOK_SECONDS = 2.0
_TOLD_EVERY_SHARE, _LONGEST_UNTOLD_SECONDS = 0.05, 30.0
# How far a run is, is told the more seldom the longer it has lasted: a thousand runs at once share one server.
_NAMED_IN_STATE = 10
_ROWS_IN_TABLE = 1000
# A page that a browser shows at once; the videos table has them all.
_PICTURES_IN_RUN = 1000
# Each is kept by the server in its video's page: some 20 KB. A page without one takes 1 KB.
_PAGES_IN_A_LOOK = 20
# So that nobody who cancels waits for the pages.

Outcome = tuple[Job, VideoSummary | None]
"""A video and what became of it; None where nothing was done about it: a copy of another, or in another run."""


_stop: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("stop", default=None)


@contextlib.contextmanager
def stopped_by(stop: threading.Event) -> Iterator[None]:
    """Let an event end the run that is begun in this block."""
    token = _stop.set(stop)
    try:
        yield
    finally:
        _stop.reset(token)


def stop_of_this_run() -> threading.Event:
    """The event that ends the run that this is called in."""
    return _stop.get() or threading.Event()


@contextlib.contextmanager
def stopped_when_cancelled() -> Iterator[threading.Event]:
    """An event that is set when somebody cancels the run that this is called in."""
    stop, ended, run_id = stop_of_this_run(), threading.Event(), UUID(str(flow_run.id))

    def keep_looking() -> None:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), get_client(sync_client=True) as client:
            while not (stop.is_set() or ended.wait(_LOOK_SECONDS)):
                with contextlib.suppress(Exception):  # The server is away, say: the next look tries again.
                    if _is_cancelled(client, run_id):
                        stop.set()

    thread = threading.Thread(target=contextvars.copy_context().run, args=(keep_looking,), name="cancel", daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        ended.set()
        thread.join()


class RunPage:
    """Listens to a run, tells Prefect's page about it, and looks there whether somebody cancels the run.

    A thread of its own does the telling, so that no video waits for the server. What cannot be told is left out.
    """

    def __init__(
        self, video_count: int, results: Results, stop: threading.Event, *, shareable: Sequence[str] = ()
    ) -> None:
        """A page of a run over so many videos, which sets `stop` when the run is cancelled.

        Other workers may take a share in those that are named as `shareable`.
        """
        self._count = video_count
        self._shareable = shareable
        self._results = results
        self._stop = stop
        self._logger = get_run_logger()
        self._run_id = UUID(str(flow_run.id))
        self._outcomes: list[Outcome] = []
        self._frames_done = 0
        self._at_work: dict[Job, tuple[str, int, int | None]] = {}
        self._untold: deque[Outcome] = deque()
        self._asked_for: set[str] = set()
        self._hands: list[UUID] = []
        self._pages: dict[str, UUID] = {}
        self._progress_id: UUID | None = None
        self._shown = ""
        self._began_at = self._told_at = time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._keep_looking,), name="run page", daemon=True
        )

    def __enter__(self) -> Self:
        _let_ferflow_speak()
        leave_lines_of_code_out()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell the rest, and look a last time."""
        self._ended.set()
        self._thread.join()
        try:
            with get_client(sync_client=True) as client:
                self._look(client)
                while self._untold:
                    self._tell_pages(client)
            self._tell_table()
        except Exception as missing:
            self._logger.warning("This run's page is not complete: %s", missing)

    def stage(self, job: Job, name: str, done: int, expected: int | None) -> None:
        """Keep it for the next look."""
        with self._lock:
            self._at_work[job] = name, done, expected

    def copied(self, job: Job) -> None:
        """Keep it for the end."""
        self._finish(job, None)

    def elsewhere(self, job: Job) -> None:
        """Keep it for the end."""
        self._finish(job, None)

    def finished(self, job: Job, summary: VideoSummary) -> None:
        """Keep it for the next look; say now what is wrong."""
        self._finish(job, summary)
        if summary.status == "failed":
            self._logger.warning(printable(describe(summary)))

    def state(self) -> State[Any]:
        """How the run ended: failed only if every video did. To be asked for when the page is closed."""
        if self._stop.is_set():
            left = self._count - len(self._outcomes)
            message = (
                f"{self._counts()} Cancelled: {left} not done. Start it again, and it goes on from here."
                if left
                else f"{self._counts()} Cancelled when everything was done."
            )
            return Cancelled(message=message, data=StoppedError(message))
        if not self._outcomes:  # Only of a further run: any other hears of each of its videos.
            return Completed(message="There is nothing left to help with.", data=self._outcomes)
        failed = [summary for _, summary in self._outcomes if summary is not None and summary.status == "failed"]
        if not failed:
            return Completed(message=self._counts(), data=self._outcomes)
        named = [printable(describe(summary)).replace(": failed: ", ": ", 1) for summary in failed[:_NAMED_IN_STATE]]
        if len(failed) > _NAMED_IN_STATE:
            named.append(f"And {len(failed) - _NAMED_IN_STATE} more, see the table.")
        message = f"{self._counts()} {' '.join(named)}"
        if len(failed) == sum(summary is not None for _, summary in self._outcomes):
            return Failed(message=message, data=self._outcomes)
        name = f"Completed with {len(failed)} failed video{'s' * (len(failed) > 1)}"
        return Completed(name=name, message=message, data=self._outcomes)

    def _finish(self, job: Job, summary: VideoSummary | None) -> None:
        with self._lock:
            self._at_work.pop(job, None)
            self._outcomes.append((job, summary))
            if summary is not None:
                self._untold.append((job, summary))
                if job.earlier is None and summary.info is not None:
                    self._frames_done += summary.info.frame_count

    def _keep_looking(self) -> None:
        # A look that fails need not be tried again: the next one is soon, and the end waits for this thread.
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), get_client(sync_client=True) as client:
            while True:
                self._look(client)
                if self._ended.wait(_LOOK_SECONDS):
                    return

    def _look(self, client: "SyncPrefectClient") -> None:
        try:
            if not self._stop.is_set() and _is_cancelled(client, self._run_id):
                self._logger.info("Somebody cancelled this run: it stops.")
                self._stop.set()
            if self._stop.is_set():
                while self._hands:
                    send_home(client, self._hands[-1])
                    self._hands.pop()
            else:
                self._ask_for_hands(client)
            self._tell_progress(client)
            self._tell_pages(client)
        except Exception as error:
            # The server is away, say: the videos need it not, and the next look tries again.
            self._logger.debug("This run's page is not up to date: %s", error)

    def _ask_for_hands(self, client: "SyncPrefectClient") -> None:
        # If that fails, the next look asks once more; the server begins none of the runs twice.
        if self._shareable:
            if hands := share_out(client, self._run_id, self._shareable):
                self._logger.info("%d videos; further runs that take a share in them: %d", self._count, len(hands))
                self._hands += hands
            self._shareable = ()
        with self._lock:
            at_work = [*self._at_work.items()]
        for job, (stage, _, expected) in at_work:
            if stage == "faces" and expected is not None and job.video_id not in self._asked_for:
                if hands := ask_for_hands(client, self._run_id, job, expected):
                    self._logger.info("%s: long; further runs that take a share in it: %d", job.name, len(hands))
                    self._hands += hands
                self._asked_for.add(job.video_id)

    def _tell_progress(self, client: "SyncPrefectClient") -> None:
        with self._lock:
            done, at_work = len(self._outcomes), [*self._at_work.items()]
            frames = self._frames_done + sum(count for _, (stage, count, _) in at_work if stage == "faces")
        shares = {job: _share(*state) for job, state in at_work}
        percent = 100 * min((done + sum(shares.values())) / max(self._count, 1), 1.0)
        text = f"{done} of {self._count} videos, {frames:,} frames looked at."
        if at_work:
            text += " Now: " + ", ".join(f"{job.name} ({100 * share:.0f} %)" for job, share in shares.items())
        now = time.monotonic()
        pause = min(_TOLD_EVERY_SHARE * (now - self._began_at), _LONGEST_UNTOLD_SECONDS)
        if text == self._shown or (now - self._told_at < pause and not self._ended.is_set()):
            return
        if self._progress_id is None:
            artifact = ArtifactCreate(type="progress", data=percent, description=text, flow_run_id=self._run_id)
            self._progress_id = client.create_artifact(artifact).id
        else:
            client.update_artifact(self._progress_id, ArtifactUpdate(data=percent, description=text))
        self._shown, self._told_at = text, now

    def _tell_pages(self, client: "SyncPrefectClient") -> None:
        """Make some of the pages that are to be made."""
        outcomes = [self._untold[index] for index in range(min(len(self._untold), _PAGES_IN_A_LOOK))]
        if keys := [self._results.key(job.video_id) for job, _ in outcomes if job.earlier is not None]:
            those = ArtifactCollectionFilter(key=ArtifactCollectionFilterKey(any_=keys))
            there = client.read_latest_artifacts(artifact_filter=those)
            self._pages |= {str(page.key): page.latest_id for page in there}
        for job, summary in outcomes:
            key = self._results.key(job.video_id)
            is_early = len(self._pages) < _PICTURES_IN_RUN
            # Of very many that were done before, say by a run without a server, the pages would hold up this run's end.
            if summary is not None and key not in self._pages and (is_early or job.earlier is None):
                page = ArtifactCreate(
                    key=key,
                    type="markdown",
                    data=describe_video(summary, self._results, has_picture=is_early),
                    description=job.name,
                    flow_run_id=self._run_id,
                )
                self._pages[key] = client.create_artifact(page).id
            self._untold.popleft()

    def _tell_table(self) -> None:
        """Show the videos as a table, failed ones first."""
        if not self._outcomes:
            return
        rows = [_row(job, summary, self._pages.get(self._results.key(job.video_id))) for job, summary in self._outcomes]
        rows.sort(key=lambda row: ("failed", "done", "already done", "in another run", "copy").index(row["outcome"]))
        note = "" if len(rows) <= _ROWS_IN_TABLE else f" The first {_ROWS_IN_TABLE}:"
        create_table_artifact(rows[:_ROWS_IN_TABLE], key="analyzed-videos", description=f"{self._counts()}{note}")

    def _counts(self) -> str:
        counts = Counter(_outcome(job, summary) for job, summary in self._outcomes)
        copies = f", {counts['copy']} {'copy' if counts['copy'] == 1 else 'copies'} of others" if counts["copy"] else ""
        elsewhere = f", {counts['in another run']} in another run" if counts["in another run"] else ""
        done = f"{counts['done']} analysed, {counts['already done']} already done, {counts['failed']} failed"
        return f"{done}{copies}{elsewhere}."


def _is_cancelled(client: "SyncPrefectClient", run_id: UUID) -> bool:
    kinds = FlowRunFilterStateType(any_=[StateType.CANCELLING, StateType.CANCELLED])
    this_run = FlowRunFilter(id=FlowRunFilterId(any_=[run_id]), state=FlowRunFilterState(type=kinds))
    return client.count_flow_runs(flow_run_filter=this_run) > 0


def _let_ferflow_speak() -> None:
    """Let what ferflow itself logs be among the run's logs."""
    for name in ("ferflow", "models"):
        logger = logging.getLogger(name)
        if not any(isinstance(handler, APILogHandler) for handler in logger.handlers):
            logger.addHandler(APILogHandler())
        if logger.getEffectiveLevel() > logging.INFO:
            logger.setLevel(logging.INFO)


def _share(stage: str, done: int, expected: int | None) -> float:
    """How much of a video's work is done, 0 to 1: finding faces and drawing count the same."""
    share = min(done / expected, 1.0) if expected else 0.0
    return share / 2 if stage == "faces" else 0.5 + share / 2


def _outcome(job: Job, summary: VideoSummary | None) -> str:
    if summary is None:
        return "in another run" if job.is_elsewhere else "copy"
    return "already done" if summary.status == "done" and job.earlier else summary.status


def _row(job: Job, summary: VideoSummary | None, page_id: UUID | None) -> dict[str, Any]:
    row: dict[str, Any] = {"video": job.name, "outcome": _outcome(job, summary)}
    if job.is_elsewhere:
        return row | {"note": "another run is at work on it"}
    if summary is None:
        return row | {"note": f"the same content as {utf8(str(job.copy_of))}, whose result stands for both"}
    info = summary.info
    return row | {
        "note": summary.error or "",
        "page": f"[open](/artifacts/artifact/{page_id})" if page_id else "",
        "mostly": summary.dominant_emotion or "",
        "tracks": summary.track_count if info else "",
        "seconds of video": round(info.duration_seconds, 1) if info else "",
        "seconds of work": round(summary.processing_seconds, 1),
        "annotated video": summary.annotated_path or "",
    }
