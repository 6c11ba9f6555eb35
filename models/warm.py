"""settings -> the detector and the classifier, loaded once per thread and kept for every video that follows."""

import atexit
import contextlib
import threading
from fractions import Fraction
from pathlib import Path

from ferflow.child_process import Progress
from ferflow.config import Settings
from ferflow.frames import find_cuts
from ferflow.pieces import Pieces
from ferflow.stages import analyze_piece, analyze_video, is_analyzed
from ferflow.storage import Results
from models.emotion_classifier import DESCRIPTION_FILE, EmotionModel, read_description
from models.face_detector import MediaPipeFaceDetector, VideoFaceFinder
from models.store import find_model

_thread = threading.local()
_closing = contextlib.ExitStack()
_lock = threading.Lock()


def close_models() -> None:
    """Free every thread's detector; what is asked for afterwards is loaded anew. Called when the process ends."""
    global _thread
    _closing.close()
    _thread = threading.local()


atexit.register(close_models)


def warm_detector() -> MediaPipeFaceDetector:
    """This thread's face detector.

    Raises:
        ModelError: MediaPipe's weights or system libraries are missing.
    """
    if not hasattr(_thread, "detector"):
        with _lock:
            _thread.detector = _closing.enter_context(MediaPipeFaceDetector())
    detector: MediaPipeFaceDetector = _thread.detector
    return detector


def face_finder() -> VideoFaceFinder:
    """A finder for the frames of one video, on this thread's warm detector."""
    return VideoFaceFinder(warm_detector())


def warm_classifier(name: str) -> EmotionModel:
    """This thread's emotion model of a name, as `find_model` reads it; after a promotion `default` is the new one.

    Raises:
        ModelError: there is no such model, or it does not fit.
    """
    folder = find_model(name)
    files = folder, _state(folder)
    if getattr(_thread, "classifier_files", None) != files:
        with _lock:
            _thread.classifier = EmotionModel(folder)
        _thread.classifier_files = files
    classifier: EmotionModel = _thread.classifier
    return classifier


def load_models(model: Path, *, progress: Progress | None = None) -> None:
    """Load what an analysis needs: seconds that the first video would wait.

    Args:
        model: the directory of the emotion model.
        progress: told of nothing.

    Raises:
        ModelError: a model cannot be used.
    """
    del progress
    warm_classifier(str(model))
    warm_detector()


def analyze_file(
    file: Path,
    results: Results,
    *,
    model: Path,
    video_id: str,
    source: Path,
    tag: str | None,
    redo: bool,
    settings: Settings,
    progress: Progress | None,
) -> Path:
    """Find, follow and score every face of a video with this thread's models; see `ferflow.stages.analyze_video`.

    Raises:
        VideoError: the video cannot be read.
        ModelError: a model cannot be used.
    """
    return analyze_video(
        file,
        results,
        video_id=video_id,
        detector=face_finder,
        classifier=warm_classifier(str(model)),
        settings=settings,
        source=source,
        tag=tag,
        redo=redo,
        progress=progress,
    )


def cuts_of_file(
    file: Path,
    results: Results,
    *,
    video_id: str,
    model_version: str,
    redo: bool,
    settings: Settings,
    progress: Progress,
) -> tuple[Fraction, ...]:
    """Where a video that is still to be analysed is cut into pieces; empty for one that is to be analysed in one go.

    Raises:
        VideoError: the video cannot be read.
    """
    if not redo and is_analyzed(results.rows("faces", video_id), model_version, settings):
        return ()
    return find_cuts(file, limits=settings.limits, progress=progress)


def analyze_piece_of_file(
    file: Path,
    results: Results,
    pieces: Pieces,
    number: int,
    *,
    model: Path,
    settings: Settings,
    progress: Progress | None,
) -> int:
    """Find and score the faces of a piece with this thread's models; see `ferflow.stages.analyze_piece`.

    Raises:
        PieceError: it would not show what the whole video shows.
        VideoError: the video cannot be read.
        ModelError: a model cannot be used.
    """
    return analyze_piece(
        file,
        results,
        pieces,
        number,
        detector=face_finder(),
        classifier=warm_classifier(str(model)),
        settings=settings,
        progress=progress,
    )


def version_in_use(name: str) -> str:
    """The version that `warm_classifier` would give, without loading it.

    Raises:
        ModelError: there is no such model, or its description does not fit.
    """
    return version_of(find_model(name))


def version_of(model: Path) -> str:
    """The version of the emotion model in a directory.

    Raises:
        ModelError: its description does not fit.
    """
    return read_description(model).version


def _state(folder: Path) -> tuple[int, int] | None:
    """What changes when a model in this folder is replaced by another."""
    try:
        state = (folder / DESCRIPTION_FILE).stat()
    except OSError:  # Loading it will say so.
        return None
    return state.st_ino, state.st_mtime_ns
