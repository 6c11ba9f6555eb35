"""one video -> its faces file or its annotated copy, made in a child process, so that a damaged file harms no other.

See `ferflow.child_process` for what a child process survives and what it costs.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ferflow.child_process import Progress, call_apart
from ferflow.config import Settings
from ferflow.errors import ModelError, VideoError
from ferflow.sources import Job
from ferflow.stages import annotate_video
from ferflow.storage import Results, clear_abandoned
from models.store import find_model
from models.warm import analyze_file, load_models


def analyze_apart(job: Job, results: Results, settings: Settings, progress: Progress | None = None) -> Path:
    """Find, follow and score every face of a video; see `ferflow.stages.analyze_video`.

    Raises:
        VideoError: the video cannot be read, or is more than the settings allow.
        ModelError: a model cannot be used.
    """
    model = find_model(settings.model)
    with job.at_hand() as file, _leaving_nothing(results):
        work = partial(
            analyze_file,
            file,
            results,
            model=model,
            video_id=job.video_id,
            source=job.source,
            tag=job.tag,
            redo=job.is_forced,
            settings=settings,
        )
        return call_apart(work, video=job.source, settings=settings, progress=progress)


def annotate_apart(
    job: Job, faces_path: Path, results: Results, settings: Settings, progress: Progress | None = None
) -> Path:
    """Write a copy of a video with its faces' boxes and labels; see `ferflow.stages.annotate_video`.

    Raises:
        VideoError: the video cannot be read, or is more than the settings allow.
    """
    with job.at_hand() as file, _leaving_nothing(results):
        work = partial(annotate_video, file, faces_path, results, settings=settings)
        return call_apart(work, video=job.source, settings=settings, progress=progress)


def check_models(settings: Settings) -> None:
    """Make sure that an analysis can begin, and have a process with the models ready for it.

    Raises:
        ModelError: a model is missing, or cannot be used.
    """
    model = find_model(settings.model)
    try:
        call_apart(partial(load_models, model), video=model, settings=settings)
    except VideoError as error:
        raise ModelError(f"{model}: this model cannot be loaded ({error}). Fetch or train the model again.") from error


@contextlib.contextmanager
def _leaving_nothing(results: Results) -> Iterator[None]:
    """A child that was ended leaves no unfinished file."""
    try:
        yield
    except BaseException:
        clear_abandoned(results)
        raise
