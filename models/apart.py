"""one video -> its faces file or its annotated copy, made in a child process, so that a damaged file harms no other.

See `ferflow.child_process` for what a child process survives and what it costs. A long video is analysed in pieces
(`ferflow.pieces`), each by whichever thread, process or host is free.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from functools import partial
from pathlib import Path

from ferflow.child_process import Progress, call_apart
from ferflow.claims import Claims
from ferflow.config import Settings
from ferflow.errors import ModelError, PieceError, VideoError
from ferflow.pieces import find_pieces, open_pieces
from ferflow.sources import Job
from ferflow.stages import annotate_video, naming_source, stitch_pieces
from ferflow.storage import Results, clear_abandoned
from models.store import find_model
from models.warm import analyze_file, analyze_piece_of_file, cuts_of_file, load_models, version_of

_LOOK_SECONDS = 0.5
# Between two looks whether others have made their pieces.
_OPENING_SECONDS = 10.0
# So long another run may take to read where its video is cut.

logger = logging.getLogger(__name__)


def analyze_apart(job: Job, results: Results, settings: Settings, progress: Progress | None = None) -> Path:
    """Find, follow and score every face of a video; see `ferflow.stages.analyze_video`.

    Raises:
        VideoError: the video cannot be read, or is more than the settings allow.
        ModelError: a model cannot be used.
    """
    model = find_model(settings.model)
    with job.at_hand() as file, naming_source(str(job.source), file), _leaving_nothing(results):
        cuts = _cuts(job, file, results, settings, progress)
        if cuts:
            try:
                return _analyze_in_pieces(job, file, results, settings, cuts, progress)
            except PieceError as error:
                logger.info("%s It is analysed in one go.", error)
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


def help_apart(job: Job, results: Results, settings: Settings, progress: Progress | None = None) -> bool:
    """Analyse pieces of a long video that somebody else has claimed, until none is free.

    Where something is wrong, that is left to whoever has claimed the video.

    Returns:
        Whether there was anything to do.
    """
    has_helped = False
    try:
        model = find_model(settings.model)
        pieces = find_pieces(results, job.video_id, model_version=version_of(model), settings=settings)
        if pieces is None:
            return False
        with job.at_hand() as file, _leaving_nothing(results):
            for number in pieces.take(Claims(results)):
                has_helped = True
                work = partial(analyze_piece_of_file, file, results, pieces, number, model=model, settings=settings)
                call_apart(work, video=job.source, settings=settings, progress=progress)
    except Exception as error:
        logger.debug("%s: not helped with: %s", job.source, error)
    return has_helped


def help_other_run(job: Job, results: Results, settings: Settings, progress: Progress | None = None) -> None:
    """Analyse pieces of a long video of another run, which may only just have begun, as `help_apart` does."""
    until = time.monotonic() + _OPENING_SECONDS
    try:
        with job.at_hand() as file, _leaving_nothing(results):
            is_long = bool(_cuts(job, file, results, settings, progress))
    except Exception as error:
        logger.debug("%s: not helped with: %s", job.source, error)
        return
    while is_long and not help_apart(job, results, settings, progress) and time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)


def _cuts(
    job: Job, file: Path, results: Results, settings: Settings, progress: Progress | None
) -> tuple[Fraction, ...]:
    work = partial(
        cuts_of_file,
        file,
        results,
        video_id=job.video_id,
        model_version=version_of(find_model(settings.model)),
        redo=job.is_forced,
        settings=settings,
    )

    def still_none(_: int, expected: int | None) -> None:
        if progress is not None:
            progress(0, expected)

    return call_apart(work, video=job.source, settings=settings, progress=still_none)


def _analyze_in_pieces(
    job: Job, file: Path, results: Results, settings: Settings, cuts: Sequence[Fraction], progress: Progress | None
) -> Path:
    started_at = datetime.now(UTC)
    model = find_model(settings.model)
    version = version_of(model)
    pieces = open_pieces(results, job.video_id, cuts, model_version=version, settings=settings, redo=job.is_forced)
    claims = Claims(results)
    done, expected = 0, None

    def tell(of_piece: int, of_video: int | None) -> None:
        nonlocal expected
        expected = of_video or expected
        if progress is not None:
            progress(min(done + of_piece, expected or done + of_piece), expected)

    analyze = partial(analyze_piece_of_file, file, results, pieces, model=model, settings=settings)
    stitch = partial(
        stitch_pieces,
        file,
        results,
        pieces,
        model_version=version,
        settings=settings,
        started_at=started_at,
        source=job.source,
        tag=job.tag,
    )
    try:
        while missing := pieces.missing():
            for number in pieces.take(claims):
                done = round((expected or 0) * (1 - len(missing) / pieces.count))
                call_apart(partial(analyze, number), video=job.source, settings=settings, progress=tell)
                missing = pieces.missing()
            if missing:
                tell(0, None)
                time.sleep(_LOOK_SECONDS)
        done = 0
        try:
            path = call_apart(stitch, video=job.source, settings=settings, progress=tell)
        except (FileNotFoundError, ValueError) as error:
            raise PieceError(f"{job.source}: a piece of it was lost.") from error
    except (PieceError, VideoError):
        pieces.close(claims)
        raise
    pieces.close(claims)
    return path


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
