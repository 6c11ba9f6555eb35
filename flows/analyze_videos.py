"""videos and folders -> results, as one Prefect flow run with a task run per video and stage"""

from collections import Counter
from functools import partial
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from pydantic import Field

from ferflow.config import Settings, load_settings
from ferflow.errors import FerflowError
from ferflow.records import VideoSummary
from ferflow.sources import Job, find_videos, open_results, plan_jobs
from ferflow.storage import place
from flows.each_video import Stages, default_workers, process_each
from flows.report import describe
from flows.server import result_on_server
from models.warm import version_in_use, warm_classifier
from tasks.video import analyze_video, annotate_video, summarize_video

_NAMED_IN_STATE = 10
_ROWS_IN_TABLE = 1000
# A page that a browser shows at once; the videos table has them all.

_DEFAULTS = load_settings(None)

Outcome = tuple[Job, VideoSummary | None]
"""A video and what became of it; None where nothing was done about it: a copy of another, or in another run."""


def _name_run() -> str:
    sources = [place(source) for source in flow_run.parameters["sources"]]
    names = ", ".join(source.name for source in sources[:3]) + (", ..." if len(sources) > 3 else "")
    try:
        count = len(find_videos(sources))
    except FerflowError:
        return f"analyze: {names}"
    return f"analyze {_videos(count)}: {names}"


@flow(flow_run_name=_name_run, persist_result=False)
def analyze_videos(
    sources: Annotated[list[str], Field(min_length=1)],
    results: str = "results",
    settings: Settings = _DEFAULTS,
    force: bool = False,
    workers: Annotated[int, Field(ge=1)] | None = None,
) -> State[Any]:
    """Find the faces in videos and tell which emotion each shows, frame by frame.

    Writes tables of faces, segments and videos, a copy of each video with boxes and labels, and a timeline
    picture of each. What has been done with the same model and settings is not done again. A broken video is
    recorded and the others go on.

    Args:
        sources: Videos, and folders that are searched for videos, for example /data/inbox or /data/inbox/talk.mp4.
        results: Folder to write to, made if it is not there, for example /data/results.
        settings: What to look at and how.
        force: Do again what has been done.
        workers: Videos at a time; leave it empty for half of the processors.
    """
    outcomes = _Outcomes()
    try:
        videos = find_videos(map(place, sources))
        folder = open_results(place(results))
        version = warm_classifier(settings.model).version
        in_use = partial(version_in_use, settings.model)
        get_run_logger().info("%s, model %s, results in %s", _videos(len(videos)), version, folder.root)
        process_each(
            plan_jobs(videos, folder, model_version=in_use, settings=settings, force=force),
            folder,
            Stages(analyze_video, annotate_video, summarize_video),
            settings=settings,
            workers=workers or default_workers(),
            listener=outcomes,
        )
    except FerflowError as error:
        # Its sentence is all that a person needs; raised, it would be shown with the lines of code it came through.
        return Failed(message=str(error), data=error)
    finally:
        outcomes.publish()
    return outcomes.state()


def analyze_on_server(
    sources: list[str], results: str, *, settings: Settings, force: bool, workers: int | None
) -> list[Outcome]:
    """Run the flow in this process, on the Prefect server that is configured, and give what became of each video.

    Raises:
        ConfigError: no server is configured, none answers, or it wants a password.
    """
    outcomes: list[Outcome] = result_on_server(analyze_videos, sources, results, settings, force, workers)
    return outcomes


class _Outcomes:
    """Listens to a run and tells Prefect's page about it."""

    def __init__(self) -> None:
        self._outcomes: list[Outcome] = []
        self._logger = get_run_logger()

    def stage(self, job: Job, name: str, done: int, expected: int | None) -> None:
        """The task runs show it."""

    def copied(self, job: Job) -> None:
        """Keep it for the end."""
        self._outcomes.append((job, None))

    def elsewhere(self, job: Job) -> None:
        """Keep it for the end."""
        self._outcomes.append((job, None))

    def finished(self, job: Job, summary: VideoSummary) -> None:
        """Keep it for the end; say now what is wrong."""
        self._outcomes.append((job, summary))
        if summary.status == "failed":
            self._logger.warning(describe(summary))

    @property
    def _failed(self) -> list[VideoSummary]:
        return [summary for _, summary in self._outcomes if summary is not None and summary.status == "failed"]

    def publish(self) -> None:
        """Show the videos as a table, failed ones first."""
        if not self._outcomes:
            return
        rows = [_row(job, summary) for job, summary in self._outcomes]
        rows.sort(key=lambda row: ("failed", "done", "already done", "in another run", "copy").index(row["outcome"]))
        note = "" if len(rows) <= _ROWS_IN_TABLE else f" The first {_ROWS_IN_TABLE}:"
        create_table_artifact(rows[:_ROWS_IN_TABLE], key="analyzed-videos", description=f"{self._counts()}{note}")

    def state(self) -> State[Any]:
        """How the run ended: failed only if every video did."""
        failed = self._failed
        if not failed:
            return Completed(message=self._counts(), data=self._outcomes)
        named = [describe(summary).replace(": failed: ", ": ", 1) for summary in failed[:_NAMED_IN_STATE]]
        if len(failed) > _NAMED_IN_STATE:
            named.append(f"And {len(failed) - _NAMED_IN_STATE} more, see the table.")
        message = f"{self._counts()} {' '.join(named)}"
        if len(failed) == sum(summary is not None for _, summary in self._outcomes):
            return Failed(message=message, data=self._outcomes)
        name = f"Completed with {len(failed)} failed video{'s' * (len(failed) > 1)}"
        return Completed(name=name, message=message, data=self._outcomes)

    def _counts(self) -> str:
        counts = Counter(_outcome(job, summary) for job, summary in self._outcomes)
        copies = f", {counts['copy']} {'copy' if counts['copy'] == 1 else 'copies'} of others" if counts["copy"] else ""
        elsewhere = f", {counts['in another run']} in another run" if counts["in another run"] else ""
        done = f"{counts['done']} analysed, {counts['already done']} already done, {counts['failed']} failed"
        return f"{done}{copies}{elsewhere}."


def _outcome(job: Job, summary: VideoSummary | None) -> str:
    if summary is None:
        return "in another run" if job.is_elsewhere else "copy"
    return "already done" if summary.status == "done" and job.earlier else summary.status


def _row(job: Job, summary: VideoSummary | None) -> dict[str, Any]:
    row: dict[str, Any] = {"video": job.source.name, "outcome": _outcome(job, summary)}
    if job.is_elsewhere:
        return row | {"note": "another run is at work on it"}
    if summary is None:
        return row | {"note": f"the same content as {job.copy_of}, whose result stands for both"}
    info = summary.info
    return row | {
        "note": summary.error or "",
        "mostly": summary.dominant_emotion or "",
        "tracks": summary.track_count if info else "",
        "seconds of video": round(info.duration_seconds, 1) if info else "",
        "seconds of work": round(summary.processing_seconds, 1),
        "annotated video": summary.annotated_path or "",
    }


def _videos(count: int) -> str:
    return f"{count} video{'s' * (count != 1)}"
