"""Boxes and labels stay inside the picture, can be read and do not hide each other."""

import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferflow import overlay
from ferflow.emotions import EMOTIONS
from ferflow.overlay import EMOTION_COLORS_RGB, draw_faces, draw_frame, ink_rgb
from ferflow.records import FaceColumns, Frame

HAPPY, SAD = EMOTIONS.index("happy"), EMOTIONS.index("sad")


def gray_picture(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def draw(picture: np.ndarray, boxes: list, emotions: list[int] | None = None, *, bars: bool = False) -> np.ndarray:
    """Draw the boxes, all happy unless told, and give the picture back."""
    shown = np.array([HAPPY] * len(boxes) if emotions is None else emotions, int)
    probabilities = np.full((len(boxes), len(EMOTIONS)), 0.02)
    probabilities[np.arange(len(boxes)), shown] = 0.88
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    draw_faces(picture, corners, np.arange(len(boxes)), shown, probabilities, bars=bars)
    return picture


def is_color(picture: np.ndarray, emotion: int) -> np.ndarray:
    return (picture == EMOTION_COLORS_RGB[emotion]).all(axis=2)


def test_each_emotion_has_a_color_of_its_own() -> None:
    assert len(set(EMOTION_COLORS_RGB)) == len(EMOTION_COLORS_RGB) == len(EMOTIONS)


def relative_luminance(color: tuple[int, int, int]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(color) / 255]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("color", EMOTION_COLORS_RGB)
def test_labels_have_the_contrast_that_wcag_asks_for(color: tuple[int, int, int]) -> None:
    dark, light = sorted([relative_luminance(color), relative_luminance(ink_rgb(color))])
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_no_face_changes_nothing() -> None:
    assert (draw(gray_picture(64, 48), []) == 90).all()


def test_the_box_is_drawn_in_the_color_of_its_emotion_and_the_face_stays_visible() -> None:
    picture = draw(gray_picture(640, 360), [(200, 100, 300, 220)], [SAD])
    assert is_color(picture, SAD)[100:220, 200].all()
    assert is_color(picture, SAD)[219, 200:300].all()
    assert (picture[104:216, 204:296] == 90).all()
    assert (picture[230:] == 90).all()


@pytest.mark.parametrize("size_wh", [(1, 1), (16, 16), (128, 128), (97, 61), (640, 360), (1080, 1920), (3840, 2160)])
@pytest.mark.parametrize("bars", [False, True])
def test_a_picture_of_any_size_can_be_drawn_on(size_wh: tuple[int, int], bars: bool) -> None:
    width, height = size_wh
    boxes = [(0.3 * width, 0.3 * height, 0.6 * width, 0.7 * height), (0, 0, width, height), (0, 0, 0.1, 0.1)]
    assert not (draw(gray_picture(width, height), boxes, bars=bars) == 90).all()


@pytest.mark.parametrize(
    "box",
    [(-50, -50, 30, 30), (600, 320, 700, 400), (-10, 100, 650, 200), (0, 0, 640, 360), (638, 358, 640, 360)],
)
def test_a_box_at_the_edge_is_clipped_and_still_labelled(box: tuple[int, int, int, int]) -> None:
    picture = draw(gray_picture(640, 360), [box])
    rows, columns = np.nonzero(is_color(picture, HAPPY))
    assert np.ptp(rows) >= 15
    assert np.ptp(columns) >= 60


@pytest.mark.parametrize("box", [(-50, 0, -10, 30), (700, 0, 800, 30), (30, 30, 30, 30), (40, 40, 20, 20)])
def test_a_box_outside_the_picture_or_without_area_is_not_drawn(box: tuple[int, int, int, int]) -> None:
    assert (draw(gray_picture(640, 360), [box]) == 90).all()


def tags_of(monkeypatch: pytest.MonkeyPatch, picture: np.ndarray, boxes: list) -> list[tuple[int, int, int, int]]:
    """Where the tags were drawn."""
    tags = []
    inner = overlay._draw_tag

    def watched(*args, **kwargs):
        tags.append(inner(*args, **kwargs))
        return tags[-1]

    monkeypatch.setattr(overlay, "_draw_tag", watched)
    draw(picture, boxes)
    return tags


def test_letters_grow_with_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    (small,) = tags_of(monkeypatch, gray_picture(640, 360), [(200, 100, 300, 200)])
    (large,) = tags_of(monkeypatch, gray_picture(1920, 1080), [(600, 300, 900, 600)])
    assert (large[3] - large[1]) > 1.5 * (small[3] - small[1])


def test_the_label_of_a_face_at_the_upper_edge_stands_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ((_, top, _, _),) = tags_of(monkeypatch, gray_picture(640, 360), [(200, 4, 300, 120)])
    assert top >= 120


@pytest.mark.parametrize("gap_px", [60, 70, 100, 140])
def test_labels_of_neighbours_do_not_cover_each_other(gap_px: int, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = [(100 + gap_px * index, 150, 150 + gap_px * index, 210) for index in range(4)]
    tags = tags_of(monkeypatch, gray_picture(640, 360), boxes)
    assert not any(overlay._shared(first, second) for first, second in itertools.combinations(tags, 2))


def test_a_label_rather_goes_below_than_over_another_face(monkeypatch: pytest.MonkeyPatch) -> None:
    upper, lower = tags_of(monkeypatch, gray_picture(640, 360), [(200, 100, 260, 160), (205, 165, 265, 225)])
    assert upper[3] <= 100
    assert lower[1] >= 225


def test_bars_stand_beside_a_large_face_and_are_left_out_when_there_is_no_room() -> None:
    roomy = draw(gray_picture(640, 360), [(200, 60, 360, 260)], bars=True)
    assert all(is_color(roomy, emotion)[:, 360:].any() for emotion in range(len(EMOTIONS)))
    for boxes in ([(200, 60, 260, 120)], [(50, 60, 620, 350)], [(30, 60, 230, 300), (240, 60, 600, 300)]):
        cramped = draw(gray_picture(640, 360), boxes, bars=True)
        assert not is_color(cramped, SAD).any()


corners = st.tuples(*[st.floats(-300, 900)] * 4)


@settings(max_examples=50, deadline=None)
@given(st.lists(corners, max_size=5), st.integers(1, 700), st.integers(1, 500), st.booleans())
def test_no_boxes_and_no_size_break_the_drawing(boxes: list, width: int, height: int, bars: bool) -> None:
    picture = draw(gray_picture(width, height), boxes, bars=bars)
    assert picture.shape == (height, width, 3)


def frame_at(index: int, fps: int = 25, size_wh: tuple[int, int] = (640, 360)) -> Frame:
    return Frame(index, Fraction(index, fps), Fraction(1, fps), gray_picture(*size_wh))


FACES = FaceColumns(
    frame_index=np.int32([2, 3, 3, 10]),
    pts_seconds=np.array([2, 3, 3, 10]) / 25,
    frame_seconds=np.full(4, 0.04),
    track_id=np.int32([0, 0, 1, 0]),
    boxes_xyxy=np.float32([[100, 100, 150, 150], [100, 100, 150, 150], [400, 100, 450, 150], [100, 100, 150, 150]]),
    probabilities=np.eye(7, dtype=np.float32)[[HAPPY, HAPPY, SAD, HAPPY]],
)
SHOWN = np.array([HAPPY, HAPPY, SAD, HAPPY])


def counts_at(index: int, faces: FaceColumns = FACES) -> tuple[bool, bool]:
    """Whether a frame gets a happy and a sad face."""
    frame = frame_at(index)
    draw_frame(frame, faces, SHOWN[: len(faces.track_id)], source_size_wh=(640, 360))
    return bool(is_color(frame.image_rgb, HAPPY).any()), bool(is_color(frame.image_rgb, SAD).any())


def test_each_frame_gets_its_own_faces_and_no_others() -> None:
    expected = {2: (True, False), 3: (True, True), 10: (True, False)}
    assert [counts_at(index) for index in range(13)] == [expected.get(index, (False, False)) for index in range(13)]


def test_a_face_stays_until_its_time_is_over_when_only_some_frames_were_analysed() -> None:
    sampled = replace(FACES, frame_seconds=np.full(4, 5 / 25))
    happy = [index for index in range(20) if counts_at(index, sampled)[0]]
    assert happy == [2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14]


def test_a_frame_whose_duration_is_unknown_still_gets_its_faces() -> None:
    assert counts_at(3, replace(FACES, frame_seconds=np.zeros(4))) == (True, True)


def test_a_table_without_rows_draws_nothing() -> None:
    nobody = FaceColumns(**{name: getattr(FACES, name)[:0] for name in FaceColumns.__slots__})
    assert counts_at(3, nobody) == (False, False)


def test_boxes_follow_the_picture_when_it_was_made_smaller() -> None:
    frame = frame_at(2, size_wh=(320, 180))
    draw_frame(frame, FACES, SHOWN, source_size_wh=(640, 360))
    assert is_color(frame.image_rgb, HAPPY)[50:75, 50].all()
    assert not is_color(frame.image_rgb, HAPPY)[76:].any()
