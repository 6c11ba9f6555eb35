"""Every face, near and far, once: on portraits, on composed scenes and, where they are, on real videos."""

import ctypes
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from ferflow.errors import ModelError
from ferflow.faces import FaceDetector
from ferflow.frames import VideoReader
from ferflow.records import Box, Face
from models.face_detector import MediaPipeFaceDetector, VideoFaceFinder, far_views

SINGLE = [
    "eamm_disgusted.mp4",
    "eamm_fear.mp4",
    "eamm_sad.mp4",
    "happy_then_angry_same_track.mp4",
    "huimiang_1543684773.avi",
    "justinshenk_fer_test.mp4",
    "justinshenk_fer_woman2.mp4",
    "lipnet_GRID_bbaf2n.mpg",
    "liveportrait_d13.mp4",
    "mead_M003_level_1_happy_024.mp4",
    "mead_M030_level_3_angry_016.mp4",
    "mead_W015_level_1_neutral_030.mp4",
    "mead_W023_level_2_surprised_010.mp4",
    "pyfeat_WolfgangLanger_Pexels.mp4",
    "rotated90_displaymatrix.mp4",
    "single_vfr.mp4",
]
FACELESS = ["intel_bottle-detection.mp4", "moviepy_no_duration.webm", "moviepy_video_with_failing_audio.mp4"]

ASTRONAUT_EYES = (202.0, 106.0), (246.0, 108.0)
"""Right and left eye of scikit-image's astronaut, measured by hand."""
ASTRONAUT_FACE, HOPPER_FACE = Box(177, 82, 272, 177), Box(171, 146, 365, 340)


@pytest.fixture(scope="module")
def detector() -> Iterator[MediaPipeFaceDetector]:
    with MediaPipeFaceDetector() as opened:
        yield opened


@pytest.fixture(params=["each picture by itself", "as a video"])
def make_finder(request: pytest.FixtureRequest, detector: MediaPipeFaceDetector) -> Callable[[], FaceDetector]:
    return (lambda: detector) if request.param == "each picture by itself" else (lambda: VideoFaceFinder(detector))


def test_a_portrait_has_one_face_with_its_eyes_in_place(detector, astronaut) -> None:
    for size_px in (128, 256, 512, 1024, 2160):
        scale = size_px / 512
        image = cv2.resize(astronaut, (size_px, size_px), interpolation=cv2.INTER_AREA)
        (face,) = detector.detect(image)
        found = face.right_eye_xy, face.left_eye_xy
        for (x, y), (true_x, true_y) in zip(found, ASTRONAUT_EYES, strict=True):
            assert abs(x / scale - true_x) < 5
            assert abs(y / scale - true_y) < 5
        assert face.box.x_min < face.right_eye_xy[0] < face.left_eye_xy[0] < face.box.x_max
        assert 0.5 <= face.score <= 1.0


def test_another_portrait_has_one_face(detector, grace_hopper) -> None:
    assert len(detector.detect(grace_hopper)) == 1


def test_two_people_side_by_side_are_two_faces_best_first(detector, astronaut, grace_hopper) -> None:
    faces = detector.detect(np.hstack([astronaut, grace_hopper[:512]]))
    assert sorted(face.box.x_min < 512 for face in faces) == [False, True]
    assert faces[0].score >= faces[1].score


@pytest.mark.parametrize("face_px", [140, 200, 280])
def test_faces_in_a_1080p_picture_are_found_in_their_place(detector, astronaut, grace_hopper, face_px) -> None:
    scene, centres = _scene(
        [(astronaut, ASTRONAUT_FACE, 400, 500), (grace_hopper, HOPPER_FACE, 1500, 620)], face_px=face_px
    )
    assert _distances(detector.detect(scene), centres) == pytest.approx([0, 0], abs=face_px * 0.2)


@pytest.mark.parametrize("face_px", [40, 60, 80, 100])
def test_small_faces_in_a_1080p_video_are_found_in_its_first_frame(detector, astronaut, grace_hopper, face_px) -> None:
    scene, centres = _scene(
        [(astronaut, ASTRONAUT_FACE, 400, 500), (grace_hopper, HOPPER_FACE, 1500, 620)], face_px=face_px
    )
    assert _distances(VideoFaceFinder(detector).detect(scene), centres) == pytest.approx([0, 0], abs=face_px * 0.2)


@pytest.mark.parametrize(
    ("width", "height", "squares"),
    [(1920, 1080, 2), (1080, 1920, 2), (1280, 720, 2), (3840, 1600, 3), (640, 360, 0), (1500, 1500, 0), (9000, 20, 0)],
)
def test_the_squares_of_a_large_picture_cover_it(width: int, height: int, squares: int) -> None:
    whole, *parts = far_views(width, height)
    assert whole == (0, 0, width, height)
    assert len(parts) == squares
    covered = np.zeros((height, width), bool)
    for left, top, across, down in parts:
        assert across == down == min(width, height)
        covered[top : top + down, left : left + across] = True
    assert covered.all() or not parts


def test_a_face_that_fills_the_picture_is_found(detector, astronaut, grace_hopper) -> None:
    for portrait in (astronaut, grace_hopper):
        (face,) = detector.detect(portrait)
        x, y = (face.box.x_min + face.box.x_max) / 2, (face.box.y_min + face.box.y_max) / 2
        for widths, aspect, height in itertools.product((1.6, 1.2, 1.0, 0.85), (1.0, 16 / 9), (96, 256, 720)):
            tall = face.box.width * widths
            wide = tall * aspect
            top, left = max(int(y - tall / 2), 0), max(int(x - wide / 2), 0)
            crop = portrait[top : int(y + tall / 2), left : int(x + wide / 2)]
            size_wh = (round(height * crop.shape[1] / crop.shape[0]), height)
            assert len(detector.detect(cv2.resize(crop, size_wh, interpolation=cv2.INTER_LINEAR))) == 1


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_a_face_on_its_side_or_upside_down_is_found(detector, astronaut, quarter_turns) -> None:
    assert len(detector.detect(np.ascontiguousarray(np.rot90(astronaut[:300, 60:400], quarter_turns)))) == 1


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((360, 640, 3), np.uint8),
        np.full((360, 640, 3), 128, np.uint8),
        np.random.default_rng(1).integers(0, 256, (360, 640, 3), np.uint8),
        np.random.default_rng(2).integers(0, 256, (1080, 1920, 3), np.uint8),
        np.repeat(np.linspace(0, 255, 640, dtype=np.uint8)[None, :, None], 360, 0).repeat(3, 2),
        np.kron(np.indices((18, 32)).sum(0) % 2 * 255, np.ones((20, 20))).astype(np.uint8)[..., None].repeat(3, 2),
    ],
    ids=["black", "grey", "noise", "noise 1080p", "gradient", "chequered"],
)
def test_a_picture_without_a_face_has_none(detector, picture) -> None:
    assert detector.detect(np.ascontiguousarray(picture)) == []


def test_texture_has_no_face(detector) -> None:
    import skimage.data

    for texture in (skimage.data.brick(), skimage.data.grass(), skimage.data.gravel(), skimage.data.page()):
        assert detector.detect(np.repeat(texture[..., None], 3, axis=2)) == []


@pytest.mark.parametrize("height_width", [(1, 1), (1, 2), (16, 16), (20, 2000), (2000, 20), (1, 4000), (2160, 3840)])
def test_a_picture_of_any_shape_is_looked_at(detector, height_width) -> None:
    assert detector.detect(np.full((*height_width, 3), 90, np.uint8)) == []


def test_a_view_that_is_not_contiguous_has_the_same_face(detector, astronaut) -> None:
    padded = np.zeros((512, 544, 3), np.uint8)
    padded[:, :512] = astronaut
    view = padded[:, :512]
    assert not view.flags.c_contiguous
    assert detector.detect(view) == detector.detect(astronaut)


def test_a_grey_photograph_has_its_face(detector, astronaut) -> None:
    gray = cv2.cvtColor(astronaut, cv2.COLOR_RGB2GRAY)
    assert len(detector.detect(cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB))) == 1


def test_a_near_face_is_found_in_its_first_frame_and_in_every_one(detector, astronaut) -> None:
    finder = VideoFaceFinder(detector)
    empty = np.full_like(astronaut, 90)
    assert [len(finder.detect(image)) for image in [empty, *[astronaut] * 5, empty, astronaut]] == [
        0,
        1,
        1,
        1,
        1,
        1,
        0,
        1,
    ]


def test_a_far_face_is_found_two_frames_late_at_most_and_kept(detector, astronaut) -> None:
    scene, _ = _scene([(astronaut, ASTRONAUT_FACE, 400, 500)], face_px=140)
    for empty_frames in range(4):
        finder = VideoFaceFinder(detector)
        for _ in range(empty_frames):
            assert finder.detect(np.full_like(scene, 90)) == []
        assert [len(finder.detect(scene)) for _ in range(5)][2:] == [1, 1, 1]


def test_a_far_face_that_jumps_is_found_in_the_same_frame(detector, astronaut) -> None:
    finder = VideoFaceFinder(detector)
    for x, y in [(400, 500)] * 5 + [(1500, 300)] * 2 + [(200, 800)] * 2:
        scene, centres = _scene([(astronaut, ASTRONAUT_FACE, x, y)], face_px=140)
        assert _distances(finder.detect(scene), centres) == pytest.approx([0], abs=28)


def test_a_video_does_not_remember_the_one_before(detector, astronaut) -> None:
    VideoFaceFinder(detector).detect(astronaut)
    assert VideoFaceFinder(detector).detect(np.full_like(astronaut, 90)) == []


def test_the_detector_can_be_closed_twice(astronaut) -> None:
    with MediaPipeFaceDetector() as opened:
        assert len(opened.detect(astronaut)) == 1
    opened.close()


def test_a_missing_system_library_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    with pytest.raises(ModelError, match="sudo apt-get install libegl1 libgles2"):
        MediaPipeFaceDetector()


def test_detecting_writes_nothing_to_the_terminal_and_loads_no_tensorflow() -> None:
    program = (
        "import sys, numpy\n"
        "from models.face_detector import MediaPipeFaceDetector\n"
        "with MediaPipeFaceDetector() as detector: detector.detect(numpy.zeros((64, 64, 3), numpy.uint8))\n"
        "sys.exit('tensorflow' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_what_goes_wrong_while_chatter_is_dropped_is_still_said(capfd: pytest.CaptureFixture[str]) -> None:
    from models.quiet import without_chatter

    with without_chatter():
        os.write(2, b"I0000 00:00:1 gl_context.cc:1] GL version: 3.2\nE0000 00:00:1 real.cc:1] out of memory\n")
        os.write(2, b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\nTraceback\n")
    assert capfd.readouterr().err == "E0000 00:00:1 real.cc:1] out of memory\nTraceback\n"


@pytest.mark.parametrize("name", SINGLE)
def test_one_person_is_one_face_in_every_frame(shared: Path, make_finder, name: str) -> None:
    assert set(_counts(shared, make_finder(), name)) == {1}


def test_a_printed_skull_on_a_shirt_is_hardly_ever_a_face(shared: Path, detector) -> None:
    counts = _counts(shared, detector, "intel_asl_again.mkv", most=80)
    assert min(counts) == 1
    assert np.mean(counts) < 1.05


def test_two_people_are_two_faces_in_every_frame(shared: Path, make_finder) -> None:
    assert set(_counts(shared, make_finder(), "two_faces_happy_left_angry_right.mp4")) == {2}


@pytest.mark.parametrize("name", FACELESS)
def test_a_video_without_people_has_no_faces(shared: Path, make_finder, name: str) -> None:
    counts = _counts(shared, make_finder(), name, most=60)
    assert np.mean(np.array(counts) == 0) >= 0.98


def test_people_in_a_street_are_found(shared: Path, make_finder) -> None:
    assert np.mean(_counts(shared, make_finder(), "facenet_pytorch_video.mp4", most=35)) >= 2.5


def test_people_walking_up_a_corridor_are_found(shared: Path, make_finder) -> None:
    assert np.mean(_counts(shared, make_finder(), "intel_face-demographics-walking.gif", most=35)) >= 1.4


def test_a_face_is_gone_when_the_title_of_a_cartoon_follows(shared: Path, detector) -> None:
    counts = _counts(shared, detector, "pyfeat_face_noface.mov", most=57)
    assert set(counts[:24]) == {1}
    assert np.mean(counts[28:]) < 0.1


def _counts(shared: Path, finder: FaceDetector, name: str, *, most: int = 12) -> list[int]:
    """Faces in each of at most so many frames, spread over the video."""
    with VideoReader(shared / "videos" / name) as reader:
        step = -(-(reader.frames_expected or 120) // most)
        frames = itertools.islice(reader.frames(), 0, None, step)
        return [len(finder.detect(frame.image_rgb)) for frame in frames]


def _scene(
    people: list[tuple[np.ndarray, Box, int, int]], *, face_px: float
) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """A wall in 1080p with portraits (picture, its face, column, row): faces of this width at these places."""
    rows, columns = np.indices((1080, 1920))
    wall = 120 + 30 * np.sin(columns / 170) + 20 * np.cos(rows / 90)
    scene = np.repeat(wall.astype(np.uint8)[..., None], 3, axis=2)
    half = round(face_px * 1.2)
    for portrait, face, x, y in people:
        middle_x, middle_y = round((face.x_min + face.x_max) / 2), round((face.y_min + face.y_max) / 2)
        reach_px = round(face.width * 1.2)
        person = portrait[middle_y - reach_px : middle_y + reach_px, middle_x - reach_px : middle_x + reach_px]
        small = cv2.resize(person, (2 * half, 2 * half), interpolation=cv2.INTER_AREA)
        scene[y - half : y + half, x - half : x + half] = small
    return scene, [(x, y) for _, _, x, y in people]


def _distances(faces: list[Face], centres: list[tuple[float, float]]) -> list[float]:
    """How far each face is from where it belongs, in the order of the places, once there are as many as places."""
    assert len(faces) == len(centres)
    return [
        min(np.hypot((f.box.x_min + f.box.x_max) / 2 - x, (f.box.y_min + f.box.y_max) / 2 - y) for f in faces)
        for x, y in centres
    ]
