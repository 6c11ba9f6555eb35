"""a look into the inbox -> a run over what is new and whole in it, or 'Nothing new'"""

from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed
from pydantic import Field

from ferflow.config import Settings
from ferflow.errors import ConfigError, FerflowError, StoppedError
from ferflow.storage import StoredFile, place, printable
from ferflow.watch_settings import load_watch_settings
from flows.server import failed
from flows.watch_runs import DeploymentRuns, Subflows
from flows.watcher import Fate, Watcher

_DEFAULTS = load_watch_settings(None)
_NAMED = 10
# Failed videos that the end of a look names.


def _name_run() -> str:
    try:
        return f"look into {', '.join(place(source).name for source in flow_run.parameters['sources'])}"
    except FerflowError:  # The run itself says what is wrong; an address may hold a key.
        return "look into the inbox"


@flow(flow_run_name=_name_run, persist_result=False)
def watch_inbox(
    sources: Annotated[list[str], Field(min_length=1)] = _DEFAULTS.sources,
    results: str = _DEFAULTS.results,
    settings: Settings = _DEFAULTS.settings,
    after: Literal["leave", "move"] = _DEFAULTS.after,
    done_folder: str = _DEFAULTS.done_folder,
    failed_folder: str = _DEFAULTS.failed_folder,
    redo_outdated: bool = _DEFAULTS.redo_outdated,
    workers: Annotated[int, Field(ge=0)] = _DEFAULTS.workers,
    videos_per_run: Annotated[int, Field(ge=1)] = _DEFAULTS.videos_per_run,
    deployment: str = _DEFAULTS.deployment,
    ray: str = _DEFAULTS.ray,
) -> State[Any]:
    """Look once for new videos in the inbox and analyse them. Meant for a schedule; `ferflow watch` looks all the time.

    Args:
        sources: Where new videos arrive, for example /data/inbox or s3://bucket/inbox.
        results: Folder to write to, for example /data/results; what is done is known from it.
        settings: What to look at and how.
        after: Leave a video where it is when it has been dealt with, or move it out of the way.
        done_folder: Where analysed videos are moved: a folder beside the inbox, or a whole path such as /data/done.
        failed_folder: Where videos are moved that cannot be analysed, for example /data/failed.
        redo_outdated: Analyse again what was analysed with another model or other settings.
        workers: Videos at a time; 0 is one for each processor.
        videos_per_run: The most videos in one run; more become several.
        deployment: Analyse on the workers of a deployment, such as analyze-videos/analyze-videos; empty for here.
        ray: Ray cluster to work on, for example ray://head:10001; leave it empty to work on this machine.
    """
    said: list[str] = []
    seen: list[StoredFile] = []
    fates: dict[str, Fate] = {}
    try:
        watching = load_watch_settings(
            None,
            sources=sources,
            results=results,
            settings=settings,
            after=after,
            done_folder=done_folder,
            failed_folder=failed_folder,
            redo_outdated=redo_outdated,
            workers=workers,
            videos_per_run=videos_per_run,
            deployment=deployment,
            ray=ray,
        )
        runs = DeploymentRuns(watching) if deployment else Subflows(watching)
        runs.ready()
        watcher = Watcher(watching, runs, say=said.append)
        files = watcher.look()
        for sentence in said:
            get_run_logger().warning(sentence)
        while files:
            of_these = runs.analyze(files)
            if of_these is not None:
                watcher.account(files, of_these)
                fates |= of_these
            seen += files
            files = watcher.take()
    except StoppedError as error:
        return Cancelled(message=str(error), data=error)
    except FerflowError as error:
        return failed(error)
    return _state(seen, fates, said, deployment)


def _state(seen: list[StoredFile], fates: dict[str, Fate], said: list[str], deployment: str) -> State[Any]:
    if not seen and said:
        return failed(ConfigError(" ".join(said)))
    if not seen:
        return Completed(name="Nothing new", message="There is no new video that is whole.")
    count = f"{len(seen)} new video{'s' * (len(seen) > 1)}"
    if deployment:
        return Completed(name="Sent", message=f"{count} sent to {deployment}.")
    failures = [printable(place(path).name) for path, fate in fates.items() if fate == "failed"]
    broken, rest = len(failures), len(seen) - len(fates)
    message = f"{count}: {len(fates) - broken} done, {broken} failed{f', {rest} in another run' if rest else ''}."
    if failures:
        more = f" and {broken - _NAMED} more" if broken > _NAMED else ""
        message += f" Failed: {', '.join(failures[:_NAMED])}{more}. The run of the analysis says why."
    name = f"Completed with {broken} failed video{'s' * (broken > 1)}" if broken else None
    return Completed(name=name, message=message)
