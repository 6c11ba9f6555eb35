"""videos -> results, driven by this process without a server: the same stages as under Prefect."""

import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ferflow.config import Settings
from ferflow.sources import Job, plan_jobs
from ferflow.stages import summarize_video
from ferflow.storage import Results
from flows.each_video import Listener, Stages, process_each
from models.apart import analyze_apart, annotate_apart, check_models, help_apart, help_other_run
from models.warm import version_in_use


def analyze_in_process(
    videos: Sequence[Path],
    results: Results,
    *,
    settings: Settings,
    force: bool,
    workers: int,
    listener: Listener,
    stop: threading.Event | None = None,
) -> None:
    """Analyse videos, several at a time; a broken one is recorded and the others go on.

    Args:
        videos: the files.
        results: where to write.
        settings: what to do.
        force: do again what has been done.
        workers: videos at a time, a thread each.
        listener: hears of everything, also of failed videos.
        stop: once it is set, by another thread, the work ends within a frame.

    Raises:
        StoppedError: it was stopped.
        ModelError: a model is missing or does not fit; no further video was begun.
        OSError: the results cannot be written.
        ExceptionGroup: errors that nobody foresaw, of single videos; all others are done.
    """
    check_models(settings)  # One that cannot be used stops the run before anything is written.
    in_use = partial(version_in_use, settings.model)
    jobs = plan_jobs(videos, results, model_version=in_use, settings=settings, force=force)
    process_each(
        jobs,
        results,
        Stages(analyze_apart, annotate_apart, _summarize, help_apart, help_other_run),
        settings=settings,
        workers=workers,
        listener=listener,
        stop=stop,
    )


def _summarize(job: Job, faces_path: Path, annotated_path: Path | None, results: Results, settings: Settings) -> Path:
    del job  # Under Prefect it names the task run.
    return summarize_video(faces_path, annotated_path, results, settings=settings)
