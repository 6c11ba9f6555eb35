"""a camera's pictures as they come -> the faces and emotions of the newest one, and what was seen lately

A thread looks at one picture at a time, always the newest: those that come meanwhile are passed over, so that what is
drawn is never late. Nothing is written anywhere, and what was seen is forgotten after a minute unless it is to be kept.
"""

import contextlib
import csv
import io
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ferflow.emotions import EMOTIONS, EmotionClassifier
from ferflow.errors import FerflowError
from ferflow.faces import FaceDetector, crop_gray, face_window
from ferflow.overlay import draw_faces
from ferflow.records import Box, Face
from ferflow.tracks import Tracker

SHOWN_SECONDS = 60.0
"""How far back the timeline goes."""
_STALE_SECONDS = 1.0
# What was seen longer ago is not drawn any more.
_SMOOTHING_SECONDS = 0.3
# Memory of the average, about as long as the window of half a second in which an analysis averages.
_CUT_OFF_SECONDS = 5.0
_PATIENCE_SECONDS = 10.0
# Without a picture for so long the thread ends; the next one begins another.
_LOOK_EVERY_SECONDS = 1 / 12
# An expression lasts half a second; looking more often takes the processor from the picture's way there and back.
_TRACKED_PX = 1000
# As wide is every picture taken to be by who follows a face, whatever the browser sends.
_MOST_KEPT = 500_000
# Faces: an hour of five people at 25 pictures a second.

_log = logging.getLogger(__name__)

Models = Callable[[], contextlib.AbstractContextManager[tuple[FaceDetector, EmotionClassifier]]]
"""Opens the models on the thread that uses them, and closes them there."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen in one picture."""

    seconds: float
    """When the picture came, from the first one on."""
    boxes_xyxy: np.ndarray
    """float64 (n, 4), in parts of the picture's width and height: browsers send smaller ones over slow lines."""
    track_ids: np.ndarray
    """int64 (n,), the person."""
    probabilities: np.ndarray
    """float64 (n, 7) in the order of EMOTIONS, averaged over the last moment."""

    @property
    def emotions(self) -> np.ndarray:
        """int64 (n,), the most probable of each face."""
        classes: np.ndarray = self.probabilities.argmax(axis=1)
        return classes


class LiveFaces:
    """What one camera sees. Safe to be asked by many threads."""

    def __init__(self, models: Models, *, clock: Callable[[], float] = time.monotonic) -> None:
        """No thread runs and nothing is loaded before the first picture.

        Args:
            models: the detector and the classifier.
            clock: gives seconds that never go back.
        """
        self._models = models
        self._clock = clock
        # Over all the times that the camera is started: what is kept of them is told apart by it.
        self._tracker = Tracker()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._waiting: tuple[float, np.ndarray] | None = None
        self._offered_at = -math.inf
        self._started_at: float | None = None
        self._lately: deque[Sight] = deque()
        self._kept: list[Sight] = []
        self._kept_faces = 0
        self.is_kept = False
        """Whether everything that is seen is to be kept, for `csv`."""
        self.error: str | None = None
        """Why nothing can be seen, in a sentence."""

    @property
    def now(self) -> float:
        """Seconds since the first picture came."""
        return 0.0 if self._started_at is None else self._clock() - self._started_at

    @property
    def is_cut_off(self) -> bool:
        """Whether pictures came, and none has for some seconds, though nobody has closed this."""
        return math.isfinite(self._offered_at) and self._clock() - self._offered_at > _CUT_OFF_SECONDS

    def annotate(self, image_rgb: np.ndarray) -> None:
        """Take a picture, and draw on it what was seen last; takes a few milliseconds.

        Args:
            image_rgb: uint8 (height, width, 3), C-contiguous and writable; drawn on.
        """
        with self._changed:
            if self._started_at is None:
                self._started_at = self._clock()
            self._offered_at = self._clock()
            self._waiting = self.now, image_rgb.copy()
            if self._thread is None and self.error is None:
                self._thread = threading.Thread(target=self._run, name="live-faces", daemon=True)
                self._thread.start()
            self._changed.notify()
            sight = self._lately[-1] if self._lately else None
        if sight is not None and self.now - sight.seconds <= _STALE_SECONDS:
            scale = np.array(image_rgb.shape[1::-1] * 2)
            draw_faces(image_rgb, sight.boxes_xyxy * scale, sight.track_ids, sight.emotions, sight.probabilities)

    def lately(self) -> list[Sight]:
        """What was seen in the last minute, the oldest first."""
        with self._changed:
            return [sight for sight in self._lately if self.now - sight.seconds <= SHOWN_SECONDS]

    def csv(self) -> str:
        """All faces that were kept, a row each, columns named as in the faces table; boxes in parts of the picture."""
        text = io.StringIO()
        rows = csv.writer(text)
        rows.writerow(["pts_seconds", "track_id", "x_min", "y_min", "x_max", "y_max", *EMOTIONS, "emotion"])
        with self._changed:
            kept = list(self._kept)
        for sight in kept:
            for box, track_id, row in zip(sight.boxes_xyxy, sight.track_ids, sight.probabilities, strict=True):
                numbers = [f"{number:.4f}" for number in (*box, *row)]
                rows.writerow([f"{sight.seconds:.3f}", track_id, *numbers, EMOTIONS[int(row.argmax())]])
        return text.getvalue()

    @property
    def kept_faces(self) -> int:
        """How many faces were kept."""
        return self._kept_faces

    def forget_kept(self) -> None:
        """Keep nothing of what was kept."""
        with self._changed:
            self._kept, self._kept_faces = [], 0

    def try_again(self) -> None:
        """Load the models anew with the next picture, after an error."""
        self.error = None

    def close(self) -> None:
        """End the thread; no more pictures are expected, but one may come and begin another."""
        with self._changed:
            self._offered_at = -math.inf
            self._changed.notify()

    def _run(self) -> None:
        try:
            with self._models() as (detector, classifier):
                look = _Look(detector, classifier, self._tracker)
                # Whoever was seen before the camera was off is not there any more, or somebody else is.
                self._tracker.assign([], self.now - _LOOK_EVERY_SECONDS)
                while (newest := self._next()) is not None:
                    seconds, image_rgb = newest
                    began = time.monotonic()
                    self._keep(look.at(image_rgb, seconds))
                    time.sleep(max(began + _LOOK_EVERY_SECONDS - time.monotonic(), 0.0))
        except Exception as error:
            self.error = told(error)
        finally:
            with self._changed:
                self._thread = None

    def _next(self) -> tuple[float, np.ndarray] | None:
        """The newest picture, waited for; None if none comes any more."""
        with self._changed:
            while self._waiting is None:
                left = self._offered_at + _PATIENCE_SECONDS - self._clock()
                if left <= 0:
                    return None
                self._changed.wait(left)
            newest, self._waiting = self._waiting, None
            return newest

    def _keep(self, sight: Sight) -> None:
        with self._changed:
            self._lately.append(sight)
            while sight.seconds - self._lately[0].seconds > SHOWN_SECONDS:
                self._lately.popleft()
            if self.is_kept and self._kept_faces < _MOST_KEPT:
                self._kept.append(sight)
                self._kept_faces += len(sight.track_ids)


class _Look:
    """The faces of one picture after the other, each person's scores averaged over the last moment."""

    def __init__(self, detector: FaceDetector, classifier: EmotionClassifier, tracker: Tracker) -> None:
        self._detector = detector
        self._classifier = classifier
        self._tracker = tracker
        self._averages: dict[int, tuple[float, np.ndarray]] = {}

    def at(self, image_rgb: np.ndarray, seconds: float) -> Sight:
        faces = self._detector.detect(image_rgb)
        height, width = image_rgb.shape[:2]
        track_ids = self._tracker.assign([_enlarged(face, _TRACKED_PX / width) for face in faces], seconds)
        averages = {}
        if faces:
            size_px, framing = self._classifier.crop_size_px, self._classifier.framing
            crops = [crop_gray(image_rgb, face_window(face, framing), size_px=size_px) for face in faces]
            for track_id, scores in zip(track_ids, self._classifier.classify(np.stack(crops)), strict=True):
                before = self._averages.get(track_id)
                weight = 1.0 if before is None else -math.expm1(-(seconds - before[0]) / _SMOOTHING_SECONDS)
                averages[track_id] = seconds, scores if before is None else before[1] + weight * (scores - before[1])
        self._averages = {
            track_id: average for track_id, average in self._averages.items() if seconds - average[0] <= _STALE_SECONDS
        } | averages
        boxes = [(face.box.x_min, face.box.y_min, face.box.x_max, face.box.y_max) for face in faces]
        return Sight(
            seconds,
            np.array(boxes, np.float64).reshape(-1, 4) / [width, height, width, height],
            np.array(track_ids, np.int64),
            np.array([averages[track_id][1] for track_id in track_ids], np.float64).reshape(-1, len(EMOTIONS)),
        )


def told(error: Exception) -> str:
    """Why nothing can be seen, in a sentence; logged too, for whoever runs the page."""
    _log.error("Live: nothing can be seen.", exc_info=error)
    if isinstance(error, FerflowError):
        return str(error)
    return f"an unexpected error ({type(error).__name__}), of which this page's log tells more; try again."


def _enlarged(face: Face, factor: float) -> Face:
    """With its box in larger or smaller pixels."""
    box = face.box
    return replace(face, box=Box(*(edge * factor for edge in (box.x_min, box.y_min, box.x_max, box.y_max))))
