"""frame -> every face in it, near and far: MediaPipe's two BlazeFace models as one FaceDetector"""

import contextlib
import ctypes
import dataclasses
import functools
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import cv2
import numpy as np

from ferflow.errors import ModelError
from ferflow.faces import intersection_over_union
from ferflow.records import Box, Face
from models.detector_weights import detector_weights_paths
from models.quiet import without_chatter

# A candidate may be weak, because a second look decides. All numbers were chosen on 30 clips: with full range's
# candidates from 0.3 up a street in 1080p loses 6 % of its faces, from 0.2 up there is a third more to look at.
_NEAR_CANDIDATE = 0.3
_FAR_CANDIDATE = 0.25
# Where both models see a face and neither doubts it, that is enough.
_SURE = 0.5
# The second look: its side in widths of the candidate, what it must bring by itself, and together with half of the
# candidate's score to be enough, or to deserve a third look, and what all three must bring. With one threshold of 0.8
# instead, 41 things are taken for faces where these take 7 (in 1400 frames), and 5 % more faces are found.
_LOOK_WIDTHS = 2.5
_CONFIRMED = 0.5
_ENOUGH = 0.95
_WORTH_A_THIRD_LOOK = 0.75
_ENOUGH_OF_THREE = 1.4
_STEADY_OVERLAP = 0.5
_LOOK_PX = 256
# Short range places the eyes of a face this small in the picture (in parts of its longer side) 7 to 33 % of their
# distance off, full range 4 to 10 %; of a larger one both 3 to 8 % (against face landmarks on 16 clips).
_SMALL = 0.3
# Below this score full range may see an upright face where one lies on its side.
_EYES_SURE = 0.7
# A face larger than this is short range's own ground, where full range finds four tenths or fewer.
_FILLS = 0.5
# A face known from the frame before is still there from this score on; with 0.5 two people who walk towards a camera
# are found in 1.5 places a frame instead of 1.8.
_STILL_THERE = 0.4
# Full range draws its boxes larger and higher than short range: median of 15 clips, in widths.
_FULL_RANGE_WIDTH = 1.06
_FULL_RANGE_RAISE = 0.05
# Two boxes are of one face when they overlap this much, or when this much of the smaller lies in the larger.
_OVERLAP = 0.3
_CONTAINED = 0.7
# MediaPipe copies what it is given: shrunk first, both models on 2160p take 2.5 ms less of 12, on 1080p the same.
_LARGE_PX = 1280
_SHRUNK_PX = 640
_MOST_SQUARES = 4


class View(NamedTuple):
    """A part of a picture, in its pixels."""

    left: int
    top: int
    width: int
    height: int


def far_views(width: int, height: int) -> list[View]:
    """What full range can look at: the whole picture, and of a large one also squares of its shorter side.

    In a 1080p picture the whole shows it three quarters of the faces of 30 to 60 px, the squares nearly all.
    """
    shorter, longer = sorted((width, height))
    count = -(-longer // max(shorter, 1))
    views = [View(0, 0, width, height)]
    # Below that size what only a square shows has hardly 30 px, and of a strip there would be many squares.
    if longer >= _LARGE_PX and 2 <= count <= _MOST_SQUARES:
        starts = [round(index * (longer - shorter) / (count - 1)) for index in range(count)]
        views += [View(x, 0, shorter, shorter) if width > height else View(0, x, shorter, shorter) for x in starts]
    return views


class MediaPipeFaceDetector:
    """Finds near and far faces with BlazeFace short range and full range (sparse); a FaceDetector.

    Both models see the whole picture. Where both are sure, there is a face; what only one of them claims is looked at
    again by short range, enlarged and with black around it beyond the picture's edge. That removes what full range
    takes for a face (up to 20 % of the frames of a faceless video), and finds a face that fills more than the picture.

    Use it as a context manager, or call `close()`. It keeps no memory from one picture to the next.

    Raises:
        ModelError: MediaPipe's system libraries or the weights are missing.
    """

    def __init__(self) -> None:
        _require_system_libraries()
        paths = detector_weights_paths()
        with without_chatter():
            self._image_class, self._srgb, create = _import_mediapipe()
            self._open = contextlib.ExitStack()
            try:
                self._short_range = self._open.enter_context(create(paths.short_range, _NEAR_CANDIDATE))
                self._full_range = self._open.enter_context(create(paths.full_range_sparse, _FAR_CANDIDATE))
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
        with without_chatter():
            self._open.close()

    def detect(self, image_rgb: np.ndarray) -> list[Face]:
        """Find every face in one picture.

        Args:
            image_rgb: uint8 (height, width, 3) RGB.

        Returns:
            Faces in pixels of the picture, best first, none twice. Boxes may reach past the edge.
        """
        whole = far_views(*image_rgb.shape[1::-1])[:1]
        return self.search(image_rgb, known=[], views=whole)[0]

    def search(self, image_rgb: np.ndarray, *, known: Sequence[Face], views: Sequence[View]) -> tuple[list[Face], bool]:
        """Find the faces of one picture where those of the frame before are known: for VideoFaceFinder.

        Args:
            image_rgb: uint8 (height, width, 3) RGB.
            known: the faces of the frame before; each is looked for in its place, enlarged.
            views: the parts of the picture that full range searches, out of `far_views`. Without any, it still
                searches the whole picture when a known face is lost.

        Returns:
            The faces as `detect` returns them, and whether full range was run.
        """
        height, width = image_rgb.shape[:2]
        longer_px = max(height, width)
        if known and not views and all(face.box.width < _SMALL * longer_px for face in known):
            # These are looked for in their places anyway; whoever is new is met in the next search.
            again = [self._follow(image_rgb, face, []) for face in known]
            if None not in again:
                return _without_repeats([face for face in again if face is not None]), False
        whole = View(0, 0, width, height)
        near = _without_repeats(self._look_at(self._short_range, image_rgb, whole))
        followed = [self._follow(image_rgb, face, near) for face in known]
        faces = [face for face in followed if face is not None]
        if len(faces) < len(known) and whole not in views:
            views = [whole, *views]
        far = _without_repeats([face for view in views for face in self._look_at(self._full_range, image_rgb, view)])

        for face in near:
            if face.score < _SURE or any(_same(face, other) for other in faces):
                continue
            if face.box.width > _FILLS * longer_px:
                faces.append(face)
                continue
            partner = next((other for other in far if intersection_over_union(face.box, other.box) > _OVERLAP), None)
            if partner is None or partner.score < _SURE:
                continue
            if face.box.width < _SMALL * longer_px:
                closer = None if partner.score >= _EYES_SURE else self._look_closer(image_rgb, partner)
                face = closer or _in_short_range_terms(partner)
            faces.append(face)
        for candidate in far + near:
            if not any(_same(candidate, face) for face in faces):
                faces += self._confirm(image_rgb, candidate)
        return _without_repeats(faces), bool(views)

    def _look_at(self, model: Any, image_rgb: np.ndarray, view: View) -> list[Face]:
        """What one model sees in a part of the picture, or in all of it; best first."""
        part = image_rgb[view.top : view.top + view.height, view.left : view.left + view.width]
        longer_px = max(view.width, view.height)
        if longer_px > _SHRUNK_PX and max(image_rgb.shape) >= _LARGE_PX:
            shrink = _SHRUNK_PX / longer_px
            size_wh = (max(round(view.width * shrink), 1), max(round(view.height * shrink), 1))
            part = cv2.resize(part, size_wh, interpolation=cv2.INTER_LINEAR)
        step_xy = (view.width / part.shape[1], view.height / part.shape[0])
        return _look(model, self._image(part), (view.left, view.top), step_xy)

    def _follow(self, image_rgb: np.ndarray, known: Face, near: list[Face]) -> Face | None:
        """Where a face of the frame before is now, or None."""
        small_px = _SMALL * max(image_rgb.shape[:2])
        for face in near:
            large = face.box.width >= small_px and face.score >= _SURE
            if large and intersection_over_union(face.box, known.box) > _OVERLAP:
                return face
        seen = self._look_closer(image_rgb, known)
        return seen if seen is not None and seen.score >= _STILL_THERE else None

    def _confirm(self, image_rgb: np.ndarray, candidate: Face) -> list[Face]:
        """The candidate as enlarged looks show it: one face, or none."""
        second = self._look_closer(image_rgb, candidate)
        if second is None or second.score < _CONFIRMED:
            return []
        together = candidate.score / 2 + second.score
        if together >= _ENOUGH:
            return [second]
        if together < _WORTH_A_THIRD_LOOK:
            return []
        third = self._look_closer(image_rgb, second)
        if third is None or intersection_over_union(second.box, third.box) < _STEADY_OVERLAP:
            return []
        return [second] if together + third.score >= _ENOUGH_OF_THREE else []

    def _look_closer(self, image_rgb: np.ndarray, candidate: Face) -> Face | None:
        """What short range sees in the place of the candidate, enlarged."""
        box = candidate.box
        side = max(box.width, box.height, 2.0) * _LOOK_WIDTHS
        side_px = max(min(round(side), _LOOK_PX), 2)
        step = side / side_px
        left, top = (box.x_min + box.x_max - side) / 2, (box.y_min + box.y_max - side) / 2
        region = cv2.warpAffine(
            image_rgb,
            np.array([[step, 0.0, left + step / 2 - 0.5], [0.0, step, top + step / 2 - 0.5]]),
            (side_px, side_px),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
        )
        seen = _look(self._short_range, self._image(region), (left, top), (step, step))
        return next((face for face in seen if _same(face, candidate)), None)

    def _image(self, image_rgb: np.ndarray) -> Any:
        # In an array that is not contiguous MediaPipe finds nothing, and says nothing.
        return self._image_class(image_format=self._srgb, data=np.ascontiguousarray(image_rgb))


class VideoFaceFinder:
    """Finds faces in the frames of one video, in their order: a FaceDetector that remembers the frame before.

    At half the cost of single pictures where faces are near or there are none, at much the same elsewhere, it finds up
    to twice as many far faces.

    Each known face is looked for in its place, enlarged, and a large one by short range in the whole frame. Full range,
    three times as dear as short range, sees every n-th of the frames that it is given: the whole, and of a large one a
    square in turn; in the first frame all of them, and the whole again whenever a known face is lost. A new face is
    found at most n - 1 frames late. Make one finder for each video; they can share a detector.
    """

    def __init__(self, detector: MediaPipeFaceDetector, *, search_every: int = 2) -> None:
        """Begin a video.

        Args:
            detector: does the looking; stays open.
            search_every: n. `ferflow.looks` gives it every second or third frame of a video; with 3 instead of 2, far
                faces then come in later.
        """
        self._detector = detector
        self._search_every = search_every
        self._frames_to_search = 0
        self._searches = 0
        self._known: list[Face] = []

    def detect(self, image_rgb: np.ndarray) -> list[Face]:
        """Find every face in the next frame.

        Args:
            image_rgb: uint8 (height, width, 3) RGB.

        Returns:
            Faces in pixels of the frame, best first, none twice. Boxes may reach past the edge.
        """
        views: list[View] = []
        if self._frames_to_search == 0:
            whole, *squares = far_views(*image_rgb.shape[1::-1])
            turn = self._searches % len(squares) if squares else 0
            views = [whole, *(squares[turn : turn + 1] if self._searches else squares)]
            self._searches += 1
        self._known, searched = self._detector.search(image_rgb, known=self._known, views=views)
        self._frames_to_search = self._search_every - 1 if searched else self._frames_to_search - 1
        return list(self._known)


def _look(model: Any, image: Any, corner_xy: tuple[float, float], step_xy: tuple[float, float]) -> list[Face]:
    """What one model sees, best first.

    Args:
        model: a MediaPipe FaceDetector.
        image: a MediaPipe Image.
        corner_xy: where its corner lies in the picture.
        step_xy: pixels of the picture per pixel of the image.
    """
    (left, top), (step_x, step_y) = corner_xy, step_xy
    width, height = image.width, image.height
    faces = []
    for detection in model.detect(image).detections:
        box, (right_eye, left_eye) = detection.bounding_box, detection.keypoints[:2]
        faces.append(
            Face(
                box=Box(
                    left + box.origin_x * step_x,
                    top + box.origin_y * step_y,
                    left + (box.origin_x + box.width) * step_x,
                    top + (box.origin_y + box.height) * step_y,
                ),
                right_eye_xy=(left + right_eye.x * width * step_x, top + right_eye.y * height * step_y),
                left_eye_xy=(left + left_eye.x * width * step_x, top + left_eye.y * height * step_y),
                score=float(detection.categories[0].score),
            )
        )
    return sorted(faces, key=lambda face: -face.score)


def _in_short_range_terms(face: Face) -> Face:
    """Full range's face with the box that short range would draw."""
    box = face.box
    shift_y, trim = box.height * _FULL_RANGE_RAISE, box.width * (1 - 1 / _FULL_RANGE_WIDTH) / 2
    return dataclasses.replace(
        face,
        box=Box(box.x_min + trim, box.y_min + shift_y + trim, box.x_max - trim, box.y_max + shift_y - trim),
    )


def _same(first: Face, second: Face) -> bool:
    """Whether two boxes are of one face: they overlap, or one lies within the other."""
    a, b = first.box, second.box
    if intersection_over_union(a, b) > _OVERLAP:
        return True
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


@functools.cache
def _import_mediapipe() -> tuple[Any, Any, Any]:
    """MediaPipe's image class, its RGB format, and a function that creates a detector."""
    try:
        with _little_of_mediapipe():
            import mediapipe  # type: ignore[import-untyped]
            from mediapipe.tasks.python import BaseOptions  # type: ignore[import-untyped]
            from mediapipe.tasks.python.core import mediapipe_c_bindings  # type: ignore[import-untyped]
            from mediapipe.tasks.python.vision import face_detector  # type: ignore[import-untyped]

            mediapipe_c_bindings.load_raw_library()  # It looks for its library through the package.
    except (ImportError, OSError) as error:
        raise ModelError(f"MediaPipe cannot be imported ({error}): run `uv sync` again.") from error

    def create(weights: Path, least_score: float) -> Any:
        options = face_detector.FaceDetectorOptions(
            base_options=BaseOptions(model_asset_path=str(weights)), min_detection_confidence=least_score
        )
        return face_detector.FaceDetector.create_from_options(options)

    return mediapipe.Image, mediapipe.ImageFormat.SRGB, create


@contextlib.contextmanager
def _little_of_mediapipe() -> Iterator[None]:
    """Import from it what finds faces, in 0.1 CPU seconds instead of 1.9, or of 11 where TensorFlow is installed.

    TensorFlow it takes for a decorator of its documentation, pyplot for drawing, and an audio library. Whoever imports
    it afterwards gets a whole one.
    """
    found = importlib.util.find_spec("mediapipe")
    if found is None or found.origin is None or "mediapipe" in sys.modules:
        yield
        return
    above = "mediapipe.tasks.python"
    for name in ("audio", "genai", "vision"):
        package = types.ModuleType(f"{above}.{name}")
        package.__path__ = [str(Path(found.origin).parent / "tasks" / "python" / name)]
        sys.modules[package.__name__] = package
    # What this module falls back to where there is no TensorFlow.
    decorators = types.ModuleType(f"{above}.core.optional_dependencies")
    decorators.doc_controls = types.SimpleNamespace(  # type: ignore[attr-defined]
        do_not_generate_docs=lambda decorated: decorated
    )
    sys.modules[decorators.__name__] = decorators
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "mediapipe"]:
            del sys.modules[name]


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
