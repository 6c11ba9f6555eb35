"""The same person keeps one number, two people never share one."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferflow.records import Box, Face
from ferflow.tracks import Tracker


def face(x: float, y: float = 100.0, size: float = 40.0) -> Face:
    box = Box(x - size / 2, y - size / 2, x + size / 2, y + size / 2)
    return Face(box, (x - size / 5, y - size / 6), (x + size / 5, y - size / 6), 0.9)


def test_frames_without_faces_give_no_ids_and_use_none_up() -> None:
    tracker = Tracker()
    assert tracker.assign([], 0.0) == []
    assert tracker.assign([face(100)], 0.04) == [0]


def test_ids_follow_the_order_of_the_faces() -> None:
    tracker = Tracker()
    assert tracker.assign([face(100), face(300)], 0.0) == [0, 1]
    assert tracker.assign([face(301), face(99)], 0.04) == [1, 0]


@pytest.mark.parametrize("fps", [60, 25, 10, 1])
def test_a_person_who_sits_keeps_the_number_at_any_frame_rate(fps: int) -> None:
    tracker = Tracker()
    ids = {
        tracker.assign([face(100 + 4 * math.sin(t), 100 + 3 * math.cos(2 * t))], t)[0]
        for t in (index / fps for index in range(60))
    }
    assert ids == {0}


@pytest.mark.parametrize("fps", [60, 30, 12])
def test_a_person_who_walks_through_the_picture_keeps_the_number(fps: int) -> None:
    # 1.4 m/s across the picture is 7 face sizes a second: boxes of neighbouring frames at 12 fps barely overlap.
    tracker = Tracker()
    assert {tracker.assign([face(40 + 280 * index / fps)], index / fps)[0] for index in range(3 * fps)} == {0}


def test_a_small_face_that_moves_by_more_than_itself_each_second_is_one_person_at_1_fps() -> None:
    tracker = Tracker()
    assert {tracker.assign([face(40 + 44 * second)], float(second))[0] for second in range(10)} == {0}


def test_a_varying_frame_rate_does_not_break_a_track() -> None:
    tracker = Tracker()
    times = [0.0, 0.01, 0.02, 0.5, 0.52, 1.4, 1.42, 1.44, 2.3]
    assert {tracker.assign([face(40 + 60 * t)], t)[0] for t in times} == {0}


@pytest.mark.parametrize("fps", [30, 10, 1])
def test_a_face_missed_for_a_second_comes_back_where_it_was(fps: int) -> None:
    tracker = Tracker()
    times = [index / fps for index in range(3 * fps)]
    ids = [tracker.assign([] if 1 <= t < 2 else [face(100 + 5 * t)], t) for t in times]
    assert {found[0] for found in ids if found} == {0}


def test_a_walking_face_missed_for_most_of_a_second_comes_back_where_it_was_heading() -> None:
    tracker = Tracker()
    times = [index / 25 for index in range(75)]
    ids = [tracker.assign([] if 1 <= t < 1.8 else [face(40 + 160 * t)], t) for t in times]
    assert {found[0] for found in ids if found} == {0}


def test_a_walking_face_that_stopped_while_it_was_missed_comes_back() -> None:
    tracker = Tracker()
    times = [index / 25 for index in range(75)]
    ids = [tracker.assign([] if 1 <= t < 1.6 else [face(40 + 160 * min(t, 1.0))], t) for t in times]
    assert {found[0] for found in ids if found} == {0}


def test_a_face_that_was_seen_walking_only_twice_is_known_to_walk() -> None:
    tracker = Tracker()
    times = [index / 25 for index in range(50)]
    ids = [tracker.assign([] if 0.06 < t < 0.36 else [face(40 + 320 * t)], t) for t in times]
    assert {found[0] for found in ids if found} == {0}


def test_a_face_that_comes_back_after_two_seconds_is_a_new_person() -> None:
    tracker = Tracker()
    for index in range(25):
        tracker.assign([face(100)], index / 25)
    for index in range(25, 75):
        tracker.assign([], index / 25)
    assert tracker.assign([face(100)], 3.0) == [1]


def test_when_one_of_two_neighbours_turns_away_the_other_keeps_the_number() -> None:
    tracker = Tracker()
    for index in range(25):
        assert tracker.assign([face(100), face(160)], index / 25) == [0, 1]
    for index in range(25, 40):
        assert tracker.assign([face(160)], index / 25) == [1]
    assert tracker.assign([face(160), face(101)], 40 / 25) == [1, 0]


def test_a_new_face_beside_the_place_of_one_that_left_is_another_person() -> None:
    tracker = Tracker()
    tracker.assign([face(100)], 0.0)
    tracker.assign([], 0.5)
    assert tracker.assign([face(172)], 1.0) == [1]


def test_a_person_seen_a_moment_ago_wins_over_one_who_was_lost_nearby() -> None:
    tracker = Tracker()
    tracker.assign([face(100), face(120)], 0.0)
    for index in range(1, 20):
        tracker.assign([face(120)], index / 25)
    # The second one leans over to where the first was lost, a little past the middle.
    assert tracker.assign([face(109)], 20 / 25) == [1]


def test_of_two_faces_at_one_place_the_one_of_the_same_size_is_the_same_person() -> None:
    tracker = Tracker()
    tracker.assign([face(100, size=50), face(100, size=40)], 0.0)
    assert tracker.assign([face(101, size=40), face(102, size=50)], 0.04) == [1, 0]


@pytest.mark.parametrize("scale", [0.25, 1, 25])
def test_near_and_far_faces_are_followed_alike(scale: float) -> None:
    tracker = Tracker()
    tracker.assign([face(100 * scale, 100 * scale, 40 * scale)], 0.0)
    assert tracker.assign([face(116 * scale, 100 * scale, 40 * scale)], 0.04) == [0]
    assert tracker.assign([face(170 * scale, 100 * scale, 40 * scale)], 0.08) == [1]


@pytest.mark.parametrize("fps", [60, 25, 12])
@pytest.mark.parametrize("hidden", [False, True])
def test_people_who_cross_keep_their_numbers(fps: int, hidden: bool) -> None:
    tracker = Tracker()
    for index in range(2 * fps + 1):
        t = index / fps
        left, right = 100 + 100 * t, 300 - 100 * t
        if hidden and abs(left - right) < 30:  # the one in front hides the other
            assert tracker.assign([face(right, 104)], t) == [0]
        else:
            assert tracker.assign([face(right, 104), face(left)], t) == [0, 1]


def test_a_cut_to_another_place_gives_new_numbers_and_a_cut_to_the_same_place_does_not() -> None:
    tracker = Tracker()
    for index in range(25):
        assert tracker.assign([face(100, 100, 60), face(500, 100, 60)], index / 25) == [0, 1]
    assert tracker.assign([face(250, 120, 60), face(502, 99, 62)], 1.0) == [2, 1]


def test_a_cut_to_a_close_up_at_the_same_place_is_another_person() -> None:
    tracker = Tracker()
    tracker.assign([face(100, size=40)], 0.0)
    assert tracker.assign([face(100, size=90)], 0.04) == [1]


def test_a_box_without_area_does_not_stop_the_tracker() -> None:
    tracker = Tracker()
    assert tracker.assign([face(100, size=0)], 0.0) == [0]
    assert tracker.assign([face(100, size=0)], 0.04) == [0]


def test_a_time_that_does_not_rise_is_survived() -> None:
    tracker = Tracker()
    assert [tracker.assign([face(100)], t) for t in (0.0, 0.04, 0.04, 0.0, 0.08)] == [[0]] * 5


def test_memory_does_not_grow_with_the_length_of_the_video() -> None:
    tracker = Tracker()
    for index in range(3000):
        tracker.assign([face(1000 * (index % 50))], index / 25)
    assert len(tracker._tracks) < 30


centers = st.lists(st.tuples(st.floats(0, 2000), st.floats(0, 1000), st.floats(1, 400)), max_size=6)


@settings(deadline=None)
@given(st.lists(st.tuples(centers, st.floats(0.001, 3)), max_size=12))
def test_no_number_is_given_twice_in_a_frame_and_new_ones_count_up(frames: list) -> None:
    tracker, now, highest = Tracker(), 0.0, -1
    for places, step in frames:
        now += step
        ids = tracker.assign([face(*place) for place in places], now)
        assert len(ids) == len(places) == len(set(ids))
        for new in [track_id for track_id in ids if track_id > highest]:
            assert new == highest + 1
            highest = new
