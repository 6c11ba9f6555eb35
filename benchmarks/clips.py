"""clips whose file name says the emotion -> what the whole pipeline says of each"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from ferflow.config import Settings
from ferflow.emotions import EMOTIONS, EmotionClassifier
from ferflow.faces import FaceDetector
from ferflow.stages import analyze_video, summarize_video
from ferflow.storage import Results, content_id
from models.face_detector import MediaPipeFaceDetector, VideoFaceFinder
from training.evaluation import ClipResult


def labelled_clips(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield each video whose name contains exactly one of EMOTIONS, and that; `disgusted` contains `disgust`."""
    for path in sorted(folder.iterdir()):
        named = [emotion for emotion in EMOTIONS if emotion in path.stem.lower()]
        if len(named) == 1 and path.is_file():
            yield path, named[0]


def answer_clips(folder: Path, classifier: EmotionClassifier) -> tuple[ClipResult, ...]:
    """Analyse the labelled clips of a folder with the settings a user has without asking for others."""
    with MediaPipeFaceDetector() as detector:
        return tuple(
            _answer(path, intended, lambda: VideoFaceFinder(detector), classifier)
            for path, intended in labelled_clips(folder)
        )


def _answer(
    path: Path, intended: str, detector: Callable[[], FaceDetector], classifier: EmotionClassifier
) -> ClipResult:
    settings = Settings(annotate=False)
    with tempfile.TemporaryDirectory() as folder:
        results = Results(Path(folder))
        faces = analyze_video(
            path, results, video_id=content_id(path), detector=detector, classifier=classifier, settings=settings
        )
        video = pd.read_parquet(summarize_video(faces, None, results, settings=settings)).iloc[0]
    share = video[f"share_{intended}"]
    answer = video["dominant_emotion"]
    return ClipResult(
        file=path.name,
        intended=intended,
        answer=answer if isinstance(answer, str) else None,
        share=0.0 if pd.isna(share) else float(share),
    )
