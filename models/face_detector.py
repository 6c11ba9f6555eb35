"""frame -> every face in it, near and far: MediaPipe's two BlazeFace models as one FaceDetector"""

import contextlib
import ctypes
import os
import re
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from ferflow.errors import ModelError
from ferflow.faces import intersection_over_union
from ferflow.records import Box, Face
from models.detector_weights import detector_weights_paths

# A candidate may be weak, because a second look decides; the second look is strict.
_CANDIDATE_SCORE = 0.3
_CONFIRM_SCORE = 0.5
# Side of the second look in widths of the candidate.
_ZOOM = 2.5
_SAME_FACE_OVERLAP = 0.3
_CONTAINED = 0.7

_CHATTER = re.compile(
    rb"(I\d{4} |INFO: |WARNING: All log messages before absl|W\d{4} .*inference_feedback_manager)",
)


class MediaPipeFaceDetector:
    """Finds near and far faces with BlazeFace short range and full range (sparse); a FaceDetector.

    Both models see the whole picture. What they agree on is a face; what only one of them claims is looked at again
    by short range, enlarged, which also places the eyes of a far face more exactly.

    Use it as a context manager, or call `close()`. It keeps no memory from one picture to the next.

    Raises:
        ModelError: MediaPipe's system libraries or the weights are missing.
    """

    def __init__(self) -> None:
        _require_system_libraries()
        paths = detector_weights_paths()
        with _without_chatter():
            self._image_class, self._srgb, create = _import_mediapipe()
            self._open = contextlib.ExitStack()
            try:
                self._short_range = self._open.enter_context(create(paths.short_range, _CANDIDATE_SCORE))
                self._full_range = self._open.enter_context(create(paths.full_range_sparse, _CANDIDATE_SCORE))
            except (RuntimeError, ValueError) as error:
                self._open.close()
                raise ModelError(
                    f"MediaPipe cannot load the face detector from {paths.short_range.parent}: {error}"
                ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the models; calling it twice is fine."""
        with _without_chatter():
            self._open.close()

    def detect(self, image_rgb: np.ndarray) -> list[Face]:
        """Find every face in one picture.

        Args:
            image_rgb: uint8 (height, width, 3) RGB.

        Returns:
            Faces in pixels of the picture, best first, none twice. Boxes may reach past the edge.
        """
        # MediaPipe finds nothing in an array that is not contiguous, and says nothing.
        image = self._image(np.ascontiguousarray(image_rgb))
        near = _without_repeats(self._look(self._short_range, image))
        far = _without_repeats(self._look(self._full_range, image))

        sure: list[Face] = []
        doubtful: list[Face] = []
        for face in near:
            agreed = any(_same(face, other) for other in far)
            (sure if agreed and face.score >= _CONFIRM_SCORE else doubtful).append(face)
        doubtful += [face for face in far if not any(_same(face, other) for other in near)]
        sure += [seen for face in doubtful for seen in self._look_closer(image_rgb, face)]
        return _without_repeats(sure)

    def _look_closer(self, image_rgb: np.ndarray, candidate: Face) -> list[Face]:
        """The candidate as short range sees it enlarged: one face, or none."""
        height, width = image_rgb.shape[:2]
        box = candidate.box
        reach = max(box.width, box.height) * _ZOOM / 2
        x, y = (box.x_min + box.x_max) / 2, (box.y_min + box.y_max) / 2
        left, right = max(int(x - reach), 0), min(int(x + reach) + 1, width)
        top, bottom = max(int(y - reach), 0), min(int(y + reach) + 1, height)
        if right - left < 2 or bottom - top < 2:
            return []
        region = self._image(np.ascontiguousarray(image_rgb[top:bottom, left:right]))
        seen = [face for face in self._look(self._short_range, region, left, top) if _same(face, candidate)]
        return [face for face in seen[:1] if face.score >= _CONFIRM_SCORE]

    def _image(self, image_rgb: np.ndarray) -> Any:
        return self._image_class(image_format=self._srgb, data=image_rgb)

    @staticmethod
    def _look(model: Any, image: Any, left: int = 0, top: int = 0) -> list[Face]:
        """What one model sees in a region whose corner lies at (left, top) of the picture; best first."""
        width, height = image.width, image.height
        faces = []
        for detection in model.detect(image).detections:
            box, (right_eye, left_eye) = detection.bounding_box, detection.keypoints[:2]
            faces.append(
                Face(
                    box=Box(
                        left + box.origin_x,
                        top + box.origin_y,
                        left + box.origin_x + box.width,
                        top + box.origin_y + box.height,
                    ),
                    right_eye_xy=(left + right_eye.x * width, top + right_eye.y * height),
                    left_eye_xy=(left + left_eye.x * width, top + left_eye.y * height),
                    score=float(detection.categories[0].score),
                )
            )
        return sorted(faces, key=lambda face: -face.score)


def _same(first: Face, second: Face) -> bool:
    """Whether two boxes are of one face: they overlap, or one lies within the other."""
    if intersection_over_union(first.box, second.box) > _SAME_FACE_OVERLAP:
        return True
    a, b = first.box, second.box
    width = min(a.x_max, b.x_max) - max(a.x_min, b.x_min)
    height = min(a.y_max, b.y_max) - max(a.y_min, b.y_min)
    return width > 0 and height > 0 and width * height > _CONTAINED * min(a.area, b.area)


def _without_repeats(faces: list[Face]) -> list[Face]:
    """Best first, each face once."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.score):
        if not any(_same(face, other) for other in kept):
            kept.append(face)
    return kept


def _import_mediapipe() -> tuple[Any, Any, Any]:
    """MediaPipe's image class, its RGB format, and a function that creates a detector."""
    # Where TensorFlow is installed this module of MediaPipe imports it, for a decorator of its documentation:
    # 11.2 CPU seconds instead of 1.8. This is what it falls back to elsewhere.
    name = "mediapipe.tasks.python.core.optional_dependencies"
    if name not in sys.modules:
        stand_in = types.ModuleType(name)
        stand_in.doc_controls = types.SimpleNamespace(  # type: ignore[attr-defined]
            do_not_generate_docs=lambda decorated: decorated
        )
        sys.modules[name] = stand_in
    try:
        import mediapipe  # type: ignore[import-untyped]
        from mediapipe.tasks.python import BaseOptions, vision  # type: ignore[import-untyped]
    except (ImportError, OSError) as error:
        raise ModelError(f"MediaPipe cannot be imported ({error}): run `uv sync` again.") from error

    def create(weights: Path, least_score: float) -> Any:
        options = vision.FaceDetectorOptions(
            base_options=BaseOptions(model_asset_path=str(weights)), min_detection_confidence=least_score
        )
        return vision.FaceDetector.create_from_options(options)

    return mediapipe.Image, mediapipe.ImageFormat.SRGB, create


def _require_system_libraries() -> None:
    """MediaPipe's library is linked to libEGL and libGLESv2 on Linux, and only says that it cannot be loaded."""
    if sys.platform != "linux":
        return
    for name in ("libEGL.so.1", "libGLESv2.so.2"):
        try:
            ctypes.CDLL(name)
        except OSError as error:
            raise ModelError(
                f"MediaPipe needs the system library {name}, which is not installed: "
                "run `sudo apt-get install libegl1 libgles2`."
            ) from error


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Drop the known harmless lines that MediaPipe's C++ writes to stderr; pass on every other line afterwards."""
    sys.stderr.flush()
    try:
        real = os.dup(2)
    except OSError:  # no stderr to keep clean
        yield
        return
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)
            caught.seek(0)
            for line in caught:
                if not _CHATTER.match(line):
                    os.write(2, line)
