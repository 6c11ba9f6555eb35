"""videos and folders -> results, as one Prefect flow run with a task run per video and stage"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_client, get_run_logger
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.flow_engine import run_flow
from prefect.runtime import flow_run
from prefect.states import Pending
from pydantic import Field

from ferflow.config import Settings, load_settings
from ferflow.errors import ConfigError, FerflowError, StoppedError
from ferflow.sources import find_videos, open_results, plan_jobs
from ferflow.storage import place, printable, utf8
from flows.each_video import Stages, default_workers, process_each
from flows.more_hands import HELPS
from flows.on_ray import on_ray
from flows.run_page import Outcome, RunPage, stop_of_this_run, stopped_by
from flows.server import failed, find_server, result_of, result_on_server, server_may_leave
from models.apart import check_models, help_apart, help_other_run
from models.warm import version_in_use
from tasks.video import analyze_video, annotate_video, summarize_video

DEPLOYMENT = "analyze-videos/analyze-videos"
"""The flow and its deployment, as `ferflow up` registers it."""
AUTOMATIC = "automatic"
"""Tag of a run that a process began by itself, and begins anew by itself if it does not end well."""

_NAMED = 3
# More files than that are named by their folder.

_DEFAULTS = load_settings(None)


def _name_run() -> str:
    try:
        sources = [place(source) for source in flow_run.parameters["sources"]]
    except FerflowError:  # The run itself says what is wrong; an address may hold a key.
        return "analyze"
    folders = {source.parent for source in sources}
    if len(sources) > _NAMED and len(folders) == 1:
        names = folders.pop().name
    else:
        names = ", ".join(source.name for source in sources[:_NAMED]) + (", ..." if len(sources) > _NAMED else "")
    try:
        count = len(find_videos(sources))
    except FerflowError:
        return printable(f"analyze: {names}")
    return printable(f"analyze {_videos(count)}: {names}")


@flow(flow_run_name=_name_run, persist_result=False)
def analyze_videos(
    sources: Annotated[list[str], Field(min_length=1)],
    results: str = "results",
    settings: Settings = _DEFAULTS,
    force: bool = False,
    workers: Annotated[int, Field(ge=0)] = 0,
    ray: str = "",
) -> State[Any]:
    """Find the faces in videos and tell which emotion each shows, frame by frame.

    Writes tables of faces, segments and videos, a copy of each video with boxes and labels, and a timeline
    picture of each. What has been done with the same model and settings is not done again. A broken video is
    recorded and the others go on.

    Args:
        sources: Videos, and folders that are searched for videos: /data/inbox/talk.mp4, /data/inbox, s3://bucket/inbox.
        results: Folder to write to, made if it is not there, for example /data/results.
        settings: What to look at and how.
        force: Do again what was done before; off leaves it as it is.
        workers: Videos at a time; 0 is one for each processor.
        ray: Ray cluster to work on, for example ray://head:10001; leave it empty to work on this machine.
    """
    stop = stop_of_this_run()
    try:
        videos = find_videos(map(place, sources))
        folder = open_results(place(results))
        check_models(settings)
        in_use = partial(version_in_use, settings.model)
        get_run_logger().info("%s, model %s, results in %s", _videos(len(videos)), in_use(), folder.root)
        stages = Stages(analyze_video, annotate_video, summarize_video, help_apart, help_other_run)
        only_help = HELPS in flow_run.tags
        # What a watch names one by one, it has shared out itself; with force, two runs would do each video.
        is_shared = len(videos) > len(sources) and not (force or only_help)
        # A server takes text; a video whose name is none is left to this run.
        shareable = [str(video) for video in videos if is_shared and utf8(str(video)) == str(video)]
        with (
            RunPage(len(videos), folder, stop, shareable=shareable) as page,
            on_ray(ray, stages) as stages,
            _disk_at_fault(folder.root),
        ):
            process_each(
                plan_jobs(videos, folder, model_version=in_use, settings=settings, force=force, only_help=only_help),
                folder,
                stages,
                settings=settings,
                workers=workers or default_workers(),
                listener=page,
                stop=stop,
            )
    except StoppedError:
        pass
    except FerflowError as error:
        return failed(error)
    return page.state()


def analyze_on_server(
    sources: list[str], results: str, *, settings: Settings, force: bool, workers: int | None, ray: str = ""
) -> list[Outcome]:
    """Run the flow in this process, on the Prefect server that is configured, and give what became of each video.

    Raises:
        ConfigError: no server is configured, none answers, or it wants a password.
    """
    outcomes: list[Outcome] = result_on_server(analyze_videos, sources, results, settings, force, workers or 0, ray)
    return outcomes


def analyze_as_deployed(
    sources: Sequence[str],
    results: str,
    *,
    settings: Settings,
    force: bool = False,
    workers: int = 0,
    ray: str = "",
    stop: threading.Event | None = None,
) -> list[Outcome]:
    """Run the flow in this process, as a run of its deployment, and give what became of each video.

    So it is found among the deployment's runs, and a person can cancel it, retry it (then the serving process runs it)
    and copy it to a new run. Where the deployment is not registered, or is one of a work pool, whose workers may be on
    hosts that have not these folders, it is a run like any other: without Retry, and none of them takes a share in it.

    Args:
        sources: videos and folders.
        results: where to write.
        settings: what to look at and how.
        force: do again what has been done.
        workers: videos at a time; 0 for one for each processor.
        ray: address of a Ray cluster to work on; empty for this machine.
        stop: once it is set, by another thread, the run ends as cancelled within a frame.

    Raises:
        StoppedError: somebody cancelled the run, or `stop` was set.
        ConfigError: no server is configured, none answers, it wants a password, or it went away and stayed away.
        FerflowError: what the run failed with.
    """
    find_server()
    parameters = {
        "sources": [*sources],
        "results": results,
        "settings": settings.model_dump(mode="json"),
        "force": force,
        "workers": workers,
        "ray": ray,
    }
    with server_may_leave(), get_client(sync_client=True) as client:
        deployment = None
        with contextlib.suppress(ObjectNotFound):
            deployment = client.read_deployment_by_name(DEPLOYMENT)
        if deployment is None or deployment.work_pool_name is not None:
            run = client.create_flow_run(analyze_videos, parameters=parameters, tags=[AUTOMATIC], state=Pending())
        else:
            # Pending, not scheduled: no serving process and no worker takes it.
            run = client.create_flow_run_from_deployment(
                deployment.id, parameters=parameters, tags=[*deployment.tags, AUTOMATIC], state=Pending()
            )
    with server_may_leave():
        with stopped_by(stop or threading.Event()):
            state: Any = run_flow(analyze_videos, flow_run=run, return_type="state")
        outcomes: list[Outcome] = result_of(state)
    return outcomes


@contextlib.contextmanager
def _disk_at_fault(folder: Path) -> Iterator[None]:
    """Say in a sentence what ended the run: a full disk, or one that cannot be written to."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{folder}: nothing can be read or written there ({error.strerror or error}). Make room or mend the disk, "
            "and start this run again: what was finished is kept."
        ) from error


def _videos(count: int) -> str:
    return f"{count} video{'s' * (count != 1)}"
