"""Which frames the detector sees, and what is placed between them."""

from fractions import Fraction

import numpy as np
import pytest

from ferflow.looks import find_faces
from ferflow.records import Box, Face, Frame

SIZE_PX = 40


class Watcher:
    """Finds the faces that a test put at each frame, and remembers at which frames it was asked."""

    def __init__(self, faces_at) -> None:
        self._faces_at = faces_at
        self.asked: list[int] = []

    def detect(self, image_rgb: np.ndarray) -> list[Face]:
        index = int(image_rgb[0, 0, 0])
        self.asked.append(index)
        return self._faces_at(index)


def frames(count: int, fps: int) -> list[Frame]:
    """Each with its number as its colour."""
    step = Fraction(1, fps)
    return [Frame(i, i * step, step, np.full((2, 2, 3), i, np.uint8)) for i in range(count)]


def face(x: float, score: float = 0.9) -> Face:
    return Face(Box(x, 0, x + SIZE_PX, SIZE_PX), (x + 10, 15), (x + 30, 15), score)


@pytest.mark.parametrize(
    ("fps", "asked"),
    [
        (10, [0, 1, 2, 3, 4, 5, 6, 7]),
        (15, [0, 1, 2, 3, 4, 5, 6, 7]),
        (25, [0, 2, 4, 6, 7]),
        (30, [0, 3, 6, 7]),
        (60, [0, 6, 7]),
    ],
)
def test_looks_are_at_most_a_tenth_of_a_second_apart_and_the_last_frame_is_seen(fps, asked):
    detector = Watcher(lambda index: [face(100)])
    found = list(find_faces(frames(8, fps), detector))
    assert sorted(detector.asked) == asked
    assert [frame.index for frame, _ in found] == list(range(8)), "every frame, in order"
    assert all(faces == [face(100)] for _, faces in found)


def test_a_face_that_moves_slowly_is_placed_between_two_looks():
    detector = Watcher(lambda index: [face(100 + 2 * index, score=0.6 + 0.1 * index)])
    found = list(find_faces(frames(4, 30), detector))
    assert detector.asked == [0, 3]
    for index, (_, (seen,)) in enumerate(found):
        assert seen.box.x_min == pytest.approx(100 + 2 * index)
        assert seen.right_eye_xy[0] == pytest.approx(110 + 2 * index)
        assert seen.score == pytest.approx(0.6 + 0.1 * index)


def test_faces_that_change_their_order_keep_their_places():
    left, right = face(0), face(300)
    detector = Watcher(lambda index: [left, right] if index == 0 else [right, left])
    found = list(find_faces(frames(4, 30), detector))
    assert all(set(faces) == {left, right} for _, faces in found)
    assert detector.asked == [0, 3]


@pytest.mark.parametrize(
    "faces_at",
    [
        lambda index: [face(100)] if index < 2 else [],
        lambda index: [face(100)] if index >= 2 else [],
        lambda index: [face(100 + 30 * index)],
        lambda index: [face(100), face(300)] if index == 1 else [face(100 + 60 * (index == 3)), face(300)],
    ],
    ids=["it goes", "it comes", "it moves fast", "another takes its place"],
)
def test_where_faces_change_the_detector_sees_every_frame(faces_at):
    detector = Watcher(faces_at)
    found = list(find_faces(frames(4, 30), detector))
    assert detector.asked == [0, 3, 1, 2]
    assert [faces for _, faces in found] == [faces_at(index) for index in range(4)]


def test_of_a_rate_that_varies_only_frames_close_to_each_other_are_passed_over():
    starts = [Fraction(ms, 1000) for ms in (0, 33, 66, 500, 533, 566, 600)]
    varied = [
        Frame(index, start, until - start, np.full((2, 2, 3), index, np.uint8))
        for index, (start, until) in enumerate(zip(starts, [*starts[1:], Fraction(633, 1000)], strict=True))
    ]
    detector = Watcher(lambda index: [face(100)])
    assert len(list(find_faces(varied, detector))) == 7
    assert sorted(detector.asked) == [0, 2, 3, 6], "both sides of the pause, and every third where they are close"


def test_every_frame_is_looked_at_where_that_is_asked_for():
    detector = Watcher(lambda index: [face(100)])
    list(find_faces(frames(5, 60), detector, most_seconds=Fraction(0)))
    assert detector.asked == [0, 1, 2, 3, 4]
