"""new videos -> a run over them: in this process, as a flow run of it, or by the workers of a deployment"""

import itertools
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ferflow.errors import ConfigError
from ferflow.records import VideoSummary
from ferflow.sources import Job, open_results
from ferflow.storage import StoredFile, absolute, place, unreadable_id, utf8
from ferflow.watch_settings import WatchSettings
from flows.each_video import default_workers
from flows.more_hands import HELPS
from flows.server import find_server
from flows.watcher import Fate, Runs
from models.apart import check_models

if TYPE_CHECKING:
    from uuid import UUID

    from flows.report import Report

logger = logging.getLogger(__name__)

Outcome = tuple[Job, VideoSummary | None]
"""A video and what became of it; None where nothing was done about it: a copy of another, or in another run."""

_UNFINISHED = ("SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING")
_RUNS_AT_ONCE = 200
# As many as a Prefect server tells of at a time.


def choose_runs(settings: WatchSettings, *, on_server: bool) -> Runs:
    """What the settings ask for, warm: what its first run needs is loaded.

    Raises:
        ModelError: the model cannot be used.
        ConfigError: a Ray cluster is named, and no server.
    """
    if settings.deployment:
        return DeploymentRuns(settings)
    if settings.ray and not on_server:
        raise ConfigError(
            f"ray = {settings.ray}: only runs on a Prefect server are carried out on Ray. Watch with --prefect and the "
            "server's address in PREFECT_API_URL, or leave the setting empty."
        )
    check_models(settings.settings)
    return FlowRuns(settings) if on_server else PlainRuns(settings)


class PlainRuns:
    """Runs in this process, without Prefect; they are told on standard error."""

    def __init__(self, settings: WatchSettings) -> None:
        """Nothing is begun."""
        self._settings = settings
        self._stop = threading.Event()
        self._results = open_results(place(settings.results))

    def ready(self) -> None:
        """They always can."""

    def stop(self) -> None:
        """End the runs that are under way, and every later one."""
        self._stop.set()

    def unfinished(self) -> None:
        """There are none elsewhere."""

    def cancelled(self) -> set[str]:
        """There are none elsewhere."""
        return set()

    def analyze(self, files: Sequence[StoredFile]) -> Mapping[str, Fate]:
        """Analyse videos; see `flows.in_process.analyze_in_process`."""
        from flows.in_process import analyze_in_process
        from flows.report import Report

        with Report(len(files)) as report:
            heard = _Heard(report)
            analyze_in_process(
                [file.path for file in files],
                self._results,
                settings=self._settings.settings,
                force=False,
                workers=self._settings.workers or default_workers(),
                listener=heard,
                stop=self._stop,
            )
        return fates_of(heard.outcomes)


class FlowRuns(PlainRuns):
    """Flow runs of this process, on the Prefect server that is configured."""

    def __init__(self, settings: WatchSettings) -> None:
        """Nothing is begun; what a run needs is loaded."""
        import flows.analyze_videos  # noqa: F401

        super().__init__(settings)
        self._stops: list[threading.Event] = []

    def ready(self) -> None:
        """See whether the server answers."""
        find_server()

    def stop(self) -> None:
        """End the runs that are under way, and every later one."""
        super().stop()
        for stop in [*self._stops]:
            stop.set()

    def analyze(self, files: Sequence[StoredFile]) -> Mapping[str, Fate]:
        """Run the flow and wait for its end."""
        # A server takes text; a file whose name is none is a video all the same.
        odd = [file for file in files if utf8(str(file.path)) != str(file.path)]
        fates = dict(super().analyze(odd)) if odd else {}
        if sources := [str(file.path) for file in files if file not in odd]:
            fates |= fates_of(self._run_flow(sources, str(absolute(place(self._settings.results)))))
        return fates

    def _run_flow(self, sources: list[str], results: str) -> Iterable[Outcome]:
        from flows.analyze_videos import analyze_as_deployed

        # Of each run its own: whoever cancels one sets it too.
        stop = threading.Event()
        self._stops.append(stop)
        if self._stop.is_set():
            stop.set()
        try:
            return analyze_as_deployed(
                sources,
                results,
                settings=self._settings.settings,
                workers=self._settings.workers,
                ray=self._settings.ray,
                stop=stop,
            )
        finally:
            self._stops.remove(stop)


class Subflows(FlowRuns):
    """Flow runs within another of this process."""

    def _run_flow(self, sources: list[str], results: str) -> Iterable[Outcome]:
        from flows.analyze_videos import analyze_on_server

        settings, workers, ray = self._settings.settings, self._settings.workers, self._settings.ray
        return analyze_on_server(sources, results, settings=settings, force=False, workers=workers, ray=ray)


class DeploymentRuns:
    """Flow runs of a deployment, which whatever serves it carries out: the workers of its pool, on any hosts."""

    def __init__(self, settings: WatchSettings) -> None:
        """Nothing is begun."""
        self._settings = settings
        self._began_at = datetime.now(UTC)
        self._cannot_be_sent: set[str] = set()

    def stop(self) -> None:
        """They go on: they are not this process's."""

    def ready(self) -> None:
        """See whether the server answers and knows the deployment."""
        find_server()
        self._deployment_id()

    def analyze(self, files: Sequence[StoredFile]) -> None:
        """Ask for one run over those that no unfinished run is about; what becomes of them the results will say."""
        from prefect.deployments import run_deployment

        unfinished = self.unfinished()
        paths = [str(file.path) for file in files]
        # A server takes text; what is not sent is looked at again later, and may have another name then.
        for path in {path for path in paths if utf8(path) != path} - self._cannot_be_sent:
            logger.warning("%s: a Prefect server cannot be told this name, which is not UTF-8; rename it.", utf8(path))
            self._cannot_be_sent.add(path)
        if sources := [path for path in paths if path not in unfinished | self._cannot_be_sent]:
            parameters = {
                "sources": sources,
                "results": str(absolute(place(self._settings.results))),
                "settings": self._settings.settings.model_dump(),
                "ray": self._settings.ray,
                "workers": self._settings.workers,
            }
            run_deployment(self._settings.deployment, parameters=parameters, timeout=0)

    def unfinished(self) -> set[str]:
        """The videos of every run that has not ended, also of those that somebody else asked for."""
        return self._videos_of_runs(_UNFINISHED)

    def cancelled(self) -> set[str]:
        """The videos of every run that was cancelled since the watch began."""
        return self._videos_of_runs(("CANCELLED",), since=self._began_at)

    def _videos_of_runs(self, states: Sequence[str], *, since: datetime | None = None) -> set[str]:
        from prefect import get_client
        from prefect.client.schemas import filters
        from prefect.client.schemas.objects import StateType

        find_server()
        deployment = filters.DeploymentFilter(id=filters.DeploymentFilterId(any_=[self._deployment_id()]))
        of_them = filters.FlowRunFilter(
            state=filters.FlowRunFilterState(
                type=filters.FlowRunFilterStateType(any_=[StateType(name) for name in states])
            ),
            # Its end, not its beginning: it may have been sent by an earlier watch.
            end_time=None if since is None else filters.FlowRunFilterEndTime.model_validate({"after_": since}),
        )
        found: set[str] = set()
        with get_client(sync_client=True) as client:
            for offset in itertools.count(0, _RUNS_AT_ONCE):
                runs = client.read_flow_runs(
                    deployment_filter=deployment, flow_run_filter=of_them, limit=_RUNS_AT_ONCE, offset=offset
                )
                # Further runs come and go with the one that they help.
                own = (run for run in runs if HELPS not in run.tags)
                found.update(source for run in own for source in run.parameters.get("sources", ()))
                if len(runs) < _RUNS_AT_ONCE:
                    break
        return found

    def _deployment_id(self) -> "UUID":
        from prefect import get_client
        from prefect.exceptions import ObjectNotFound

        name = self._settings.deployment
        try:
            with get_client(sync_client=True) as client:
                return client.read_deployment_by_name(name).id
        except (ObjectNotFound, ValueError) as error:
            raise ConfigError(
                f"deployment = {name}: the server knows none of this name; make it with `prefect deploy`, "
                "or correct the setting, for example to analyze-videos/analyze-videos."
            ) from error


def fates_of(outcomes: Iterable[Outcome]) -> dict[str, Fate]:
    """What became of files, by their path: a copy shares its original's fate.

    Those in another run are left out, and those that could not be read and so are known by their path alone.
    """
    outcomes = list(outcomes)
    fates: dict[str, Fate] = {
        job.video_id: "failed" if summary.status == "failed" else "done"
        for job, summary in outcomes
        if summary and summary.video_id == job.video_id != unreadable_id(job.source)
    }
    return {str(job.source): fates[job.video_id] for job, _ in outcomes if job.video_id in fates}


class _Heard:
    """Keeps what a report is told."""

    def __init__(self, report: "Report") -> None:
        self.outcomes: list[Outcome] = []
        self._report = report

    def stage(self, job: Job, name: str, done: int, expected: int | None) -> None:
        self._report.stage(job, name, done, expected)

    def copied(self, job: Job) -> None:
        self.outcomes.append((job, None))
        self._report.copied(job)

    def elsewhere(self, job: Job) -> None:
        self.outcomes.append((job, None))
        self._report.elsewhere(job)

    def finished(self, job: Job, summary: VideoSummary) -> None:
        self.outcomes.append((job, summary))
        self._report.finished(job, summary)
