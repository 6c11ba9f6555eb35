"""Rows become segments, shares and a picture that agree with each other."""

import itertools
import threading
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferflow import summary
from ferflow.emotions import EMOTIONS
from ferflow.overlay import EMOTION_COLORS_RGB
from ferflow.records import FaceColumns, Segment
from ferflow.summary import (
    describe_segment,
    dominant_emotion,
    draw_timeline,
    emotion_of_rows,
    emotion_shares,
    find_segments,
    smooth_probabilities,
)

ANGRY, HAPPY, NEUTRAL, SAD = (EMOTIONS.index(name) for name in ("angry", "happy", "neutral", "sad"))


def sure_of(emotions: list[int], probability: float = 0.7) -> np.ndarray:
    """One row per emotion with that probability; the others share the rest."""
    rest = (1 - probability) / (len(EMOTIONS) - 1)
    rows = np.full((len(emotions), len(EMOTIONS)), rest, np.float32)
    rows[np.arange(len(emotions)), emotions] = probability
    return rows


def faces_of(
    emotions: list[int], *, times: list[float] | None = None, fps: float = 25, track: int = 0, probability: float = 0.7
) -> FaceColumns:
    """One person; without times, one row per frame."""
    starts = np.arange(len(emotions)) / fps if times is None else np.array(times)
    seconds = np.full(len(starts), 1 / fps) if times is None else np.diff(starts, append=starts[-1:] + 1 / fps)
    return FaceColumns(
        frame_index=np.rint(starts * fps).astype(np.int32),
        pts_seconds=starts,
        frame_seconds=seconds,
        track_id=np.full(len(starts), track, np.int32),
        boxes_xyxy=np.tile(np.float32([10, 10, 50, 50]), (len(starts), 1)),
        probabilities=sure_of(emotions, probability),
    )


def together(*people: FaceColumns) -> FaceColumns:
    """The rows of several people in order of time."""
    names = FaceColumns.__slots__
    columns = {name: np.concatenate([getattr(person, name) for person in people]) for name in names}
    order = np.lexsort((columns["track_id"], columns["pts_seconds"]))
    return FaceColumns(**{name: column[order] for name, column in columns.items()})


NOBODY = faces_of([])


@st.composite
def tables(draw: st.DrawFn) -> FaceColumns:
    """Up to three people, at a rate that varies, with gaps and with frames of no duration."""
    people = []
    for track in range(draw(st.integers(0, 3))):
        steps = draw(st.lists(st.sampled_from([1 / 60, 1 / 25, 0.1, 1 / 3, 1.0, 2.5]), min_size=1, max_size=40))
        emotions = draw(st.lists(st.integers(0, 6), min_size=len(steps), max_size=len(steps)))
        starts = np.cumsum(steps) + draw(st.floats(0, 100))
        shown = np.minimum(steps, 1 / 25) if draw(st.booleans()) else np.diff(starts, append=starts[-1] + 0.04)
        if draw(st.booleans()):
            shown[-1] = 0.0
        rows = faces_of(emotions, times=starts.tolist(), track=track, probability=draw(st.floats(0.2, 0.99)))
        people.append(replace(rows, frame_seconds=shown))
    return together(*people) if people else NOBODY


@settings(deadline=None)
@given(tables(), st.floats(0, 5))
def test_smoothing_keeps_every_row_a_distribution(faces: FaceColumns, window_seconds: float) -> None:
    smoothed = smooth_probabilities(faces, window_seconds=window_seconds)
    assert smoothed.dtype == np.float32
    assert smoothed.shape == faces.probabilities.shape
    np.testing.assert_allclose(smoothed.sum(axis=1), 1, atol=1e-4)
    for emotion in range(len(EMOTIONS)):
        raw = faces.probabilities[:, emotion]
        assert not len(raw) or (raw.min() - 1e-5 <= smoothed[:, emotion].min())
        assert not len(raw) or (smoothed[:, emotion].max() <= raw.max() + 1e-5)


def test_smoothing_averages_over_time_and_not_over_rows() -> None:
    # Ten short angry frames and one happy one as long as all of them.
    faces = faces_of([ANGRY] * 10 + [HAPPY], times=[*(index / 100 for index in range(10)), 0.1], fps=10)
    smoothed = smooth_probabilities(faces, window_seconds=10)
    np.testing.assert_allclose(smoothed[:, ANGRY], smoothed[:, HAPPY], atol=1e-6)


def test_smoothing_counts_the_part_of_a_frame_that_the_window_reaches() -> None:
    faces = faces_of([ANGRY, HAPPY, ANGRY], fps=1, probability=1.0)
    # From 0.5 s to 2.5 s: half a second of each neighbour, one of the happy frame itself.
    assert smooth_probabilities(faces, window_seconds=2)[1, HAPPY] == pytest.approx(0.5)


def test_a_window_shorter_than_a_frame_changes_nothing() -> None:
    faces = faces_of([ANGRY, HAPPY, SAD], fps=1)
    np.testing.assert_allclose(smooth_probabilities(faces, window_seconds=0.5), faces.probabilities, atol=1e-6)


def test_smoothing_never_mixes_two_people() -> None:
    both = together(faces_of([ANGRY] * 50, track=7), faces_of([HAPPY] * 50, track=2))
    smoothed = smooth_probabilities(both, window_seconds=60)
    np.testing.assert_allclose(smoothed, both.probabilities, atol=1e-6)


def test_no_rows_give_no_segments_no_shares_and_no_dominant_emotion() -> None:
    assert smooth_probabilities(NOBODY).shape == (0, len(EMOTIONS))
    assert find_segments(NOBODY) == []
    assert emotion_of_rows(NOBODY, []).shape == (0,)
    assert emotion_shares(NOBODY, []) is None
    assert dominant_emotion(None) is None


def test_one_frame_is_one_segment_as_long_as_the_frame() -> None:
    (segment,) = find_segments(faces_of([SAD]))
    assert segment == Segment(0, "sad", 0.0, 0.04, pytest.approx(0.7))


def test_one_frame_of_unknown_duration_is_still_one_segment() -> None:
    faces = replace(faces_of([SAD]), frame_seconds=np.zeros(1))
    (segment,) = find_segments(faces)
    assert (segment.start_seconds, segment.end_seconds) == (0.0, 0.0)
    assert emotion_shares(faces, [segment])[SAD] == 1.0


def test_happy_then_angry_is_two_segments_that_touch() -> None:
    first, second = find_segments(faces_of([HAPPY] * 75 + [ANGRY] * 70))
    assert (first.emotion, second.emotion) == ("happy", "angry")
    assert first.start_seconds == 0.0
    assert first.end_seconds == second.start_seconds == pytest.approx(3.0, abs=0.05)
    assert second.end_seconds == pytest.approx(145 / 25)


def test_the_mean_probability_is_that_of_the_raw_rows() -> None:
    faces = faces_of([HAPPY] * 50)
    faces.probabilities[:25] = sure_of([HAPPY], 0.5)
    (segment,) = find_segments(faces)
    assert segment.mean_probability == pytest.approx(0.6, abs=1e-6)


def test_a_slip_of_the_model_does_not_cut_a_segment() -> None:
    (segment,) = find_segments(faces_of([HAPPY] * 50 + [SAD] * 5 + [HAPPY] * 50))
    assert (segment.emotion, segment.end_seconds) == ("happy", pytest.approx(105 / 25))


def test_a_stretch_too_short_to_stand_goes_to_its_likelier_neighbour() -> None:
    faces = faces_of([HAPPY] * 50 + [SAD] * 8 + [ANGRY] * 50)
    faces.probabilities[50:58, ANGRY] += 0.1
    faces.probabilities[50:58, SAD] -= 0.1
    first, second = find_segments(faces, window_seconds=0)
    assert (first.emotion, second.emotion) == ("happy", "angry")
    assert second.start_seconds == pytest.approx(2.0)


def test_an_emotion_that_hardly_leads_has_to_last_longer() -> None:
    def after_a_second_of_angry(seconds: float) -> list[str]:
        faces = faces_of([ANGRY] * 25 + [NEUTRAL] * round(25 * seconds))
        faces.probabilities[25:] = 0.09
        faces.probabilities[25:, [ANGRY, NEUTRAL]] = 0.24, 0.31
        return [segment.emotion for segment in find_segments(faces, window_seconds=0)]

    assert after_a_second_of_angry(1.2) == ["angry"]
    assert after_a_second_of_angry(1.8) == ["angry", "neutral"]


def test_an_emotion_that_flickers_from_frame_to_frame_becomes_one_segment() -> None:
    (segment,) = find_segments(faces_of([HAPPY, SAD, HAPPY] * 50), window_seconds=0)
    assert segment.emotion == "happy"


def test_a_short_stretch_that_stands_alone_stays() -> None:
    times = [index / 25 for index in [*range(50), 100, 101, *range(150, 200)]]
    faces = faces_of([HAPPY] * 50 + [SAD] * 2 + [HAPPY] * 50, times=times)
    faces = replace(faces, frame_seconds=np.full(102, 0.04))
    assert [segment.emotion for segment in find_segments(faces)] == ["happy", "sad", "happy"]


def test_a_long_gap_ends_a_segment_and_a_short_one_does_not() -> None:
    times = np.array([*range(25), *range(75, 100), *range(110, 135)]) / 25
    faces = replace(faces_of([HAPPY] * 75, times=times.tolist()), frame_seconds=np.full(75, 0.04))
    spans = [(segment.start_seconds, segment.end_seconds) for segment in find_segments(faces)]
    assert spans == [(0.0, pytest.approx(1.0)), (3.0, pytest.approx(5.4))]


def test_one_frame_a_second_gives_segments_of_whole_seconds() -> None:
    segments = find_segments(faces_of([HAPPY, HAPPY, SAD, ANGRY, ANGRY], fps=1))
    assert [(s.emotion, s.start_seconds, s.end_seconds) for s in segments] == [
        ("happy", 0.0, 2.0),
        ("sad", 2.0, 3.0),
        ("angry", 3.0, 5.0),
    ]


def test_a_rounding_error_in_a_duration_does_not_make_segments_overlap() -> None:
    assert 0.1 + 0.2 > 0.3
    faces = replace(faces_of([HAPPY, SAD], times=[0.1, 0.3]), frame_seconds=np.array([0.2, 0.2]))
    first, second = find_segments(faces, window_seconds=0, min_seconds=0)
    assert first.end_seconds == second.start_seconds == 0.3


@settings(deadline=None)
@given(tables())
def test_the_segments_of_a_track_follow_each_other_and_cover_its_rows(faces: FaceColumns) -> None:
    segments = find_segments(faces)
    assert {segment.track_id for segment in segments} == set(faces.track_id.tolist())
    for track in set(faces.track_id.tolist()):
        own = [segment for segment in segments if segment.track_id == track]
        rows = faces.track_id == track
        starts, seconds = faces.pts_seconds[rows], faces.frame_seconds[rows]
        assert own[0].start_seconds == starts[0]
        assert own[-1].end_seconds == starts[-1] + seconds[-1]
        for segment, following in itertools.pairwise(own):
            assert segment.end_seconds <= following.start_seconds
        for segment in own:
            assert segment.start_seconds <= segment.end_seconds
            assert 0 <= segment.mean_probability <= 1
        assert all(any(s.start_seconds <= start <= s.end_seconds for s in own) for start in starts)


@settings(deadline=None)
@given(tables())
def test_every_row_has_the_emotion_of_the_segment_that_it_lies_in(faces: FaceColumns) -> None:
    segments = find_segments(faces)
    for index, emotion in enumerate(emotion_of_rows(faces, segments[::-1])):
        latest = max(
            (
                s
                for s in segments
                if s.track_id == faces.track_id[index] and s.start_seconds <= faces.pts_seconds[index]
            ),
            key=lambda segment: segment.start_seconds,
        )
        assert EMOTIONS[emotion] == latest.emotion


def test_segments_of_other_faces_are_refused() -> None:
    faces = together(faces_of([HAPPY] * 5, track=0), faces_of([HAPPY] * 5, track=1))
    with pytest.raises(ValueError, match="other faces"):
        emotion_of_rows(faces, [])
    with pytest.raises(ValueError, match="other faces"):
        emotion_of_rows(faces, find_segments(faces)[:1])


@settings(deadline=None)
@given(tables())
def test_shares_sum_to_one(faces: FaceColumns) -> None:
    shares = emotion_shares(faces, find_segments(faces))
    assert (shares is None) == (len(faces.track_id) == 0)
    if shares is not None:
        assert sum(shares) == pytest.approx(1)
        assert shares[EMOTIONS.index(dominant_emotion(shares))] == max(shares)


def test_shares_count_time_and_not_frames() -> None:
    # Three seconds happy at 60 frames a second, then six seconds sad at one.
    times = [index / 60 for index in range(180)] + [3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    faces = faces_of([HAPPY] * 180 + [SAD] * 6, times=times, fps=1)
    shares = emotion_shares(faces, find_segments(faces))
    assert shares[HAPPY] == pytest.approx(1 / 3, abs=0.01)
    assert dominant_emotion(shares) == "sad"


def test_two_people_for_a_second_are_two_seconds() -> None:
    both = together(faces_of([HAPPY] * 25, track=0), faces_of([SAD] * 25, track=1), faces_of([SAD] * 25, track=2))
    assert emotion_shares(both, find_segments(both))[SAD] == pytest.approx(2 / 3)


def test_a_segment_reads_as_a_sentence() -> None:
    assert describe_segment(Segment(2, "happy", 3.2, 5.84, 0.9)) == "track 2 happy from 3.2 s to 5.8 s"


def drawn(path: Path, faces: FaceColumns, *, seconds: float, title: str = "clip.mp4") -> np.ndarray:
    draw_timeline(faces, find_segments(faces), path, title=title, duration_seconds=seconds)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return cv2.imread(str(path))[:, :, ::-1]


def pixels_of(picture: np.ndarray, emotion: int) -> int:
    return int((picture == EMOTION_COLORS_RGB[emotion]).all(axis=2).sum())


@pytest.mark.parametrize(
    ("faces", "seconds"),
    [
        (NOBODY, 12.0),
        (NOBODY, 0.0),
        (faces_of([SAD]), 0.04),
        (replace(faces_of([SAD]), frame_seconds=np.zeros(1)), 0.0),
        (faces_of([HAPPY, SAD] * 50, fps=1), 100.0),
        (faces_of([HAPPY] * 50), 1.0),  # the rows reach further than the video says
        (together(*(faces_of([index % 7] * 30, track=index) for index in range(40))), 3600.0),
        (faces_of([SAD] * 30, fps=1 / 7200), 216000.0),
    ],
    ids=["nobody", "nothing", "one frame", "no time", "1 fps", "too long", "40 people", "60 hours"],
)
def test_a_timeline_can_be_drawn_of(faces: FaceColumns, seconds: float, tmp_path: Path) -> None:
    picture = drawn(tmp_path / "t.png", faces, seconds=seconds)
    assert picture.shape[1] == 1600
    assert 400 < picture.shape[0] < 1000


def test_the_timeline_shows_each_segment_for_its_time(tmp_path: Path) -> None:
    picture = drawn(tmp_path / "t.png", faces_of([HAPPY] * 75 + [SAD] * 25), seconds=4.0)
    band = picture[126, slice(*summary._LANES_X)]
    assert (band == EMOTION_COLORS_RGB[HAPPY]).all(axis=1).mean() == pytest.approx(0.75, abs=0.01)
    assert (band == EMOTION_COLORS_RGB[SAD]).all(axis=1).mean() == pytest.approx(0.25, abs=0.01)


def test_a_gap_in_which_nobody_is_seen_stays_empty_in_the_timeline(tmp_path: Path) -> None:
    picture = drawn(tmp_path / "t.png", faces_of([HAPPY] * 25), seconds=4.0)
    band = picture[126, slice(*summary._LANES_X)]
    assert (band == EMOTION_COLORS_RGB[HAPPY]).all(axis=1).mean() == pytest.approx(0.25, abs=0.01)
    assert (band[300:] == summary._PALE).all()


def test_the_timeline_shows_the_people_seen_longest(tmp_path: Path) -> None:
    crowd = [faces_of([SAD] * 10, track=track) for track in range(30)]
    star = faces_of([HAPPY] * 100, track=30)
    picture = drawn(tmp_path / "t.png", together(*crowd, star), seconds=4.0)
    assert pixels_of(picture, HAPPY) > 900 * 30


def test_the_same_rows_give_the_same_timeline(tmp_path: Path) -> None:
    faces = together(faces_of([HAPPY] * 40), faces_of([SAD] * 40, track=1))
    segments = find_segments(faces)
    paths = [tmp_path / f"{index}.png" for index in range(8)]
    threads = [
        threading.Thread(
            target=draw_timeline, args=(faces, segments, path), kwargs={"title": "a", "duration_seconds": 2}
        )
        for path in paths
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({path.read_bytes() for path in paths}) == 1


@pytest.mark.parametrize(
    "title", ["", "$x_1$ 100%.mp4", "访谈 面接 인터뷰 عربي.mp4", "a\nb\x00\udcff.mp4", "x" * 500 + ".mp4"]
)
def test_any_file_name_can_be_a_title(title: str, tmp_path: Path) -> None:
    drawn(tmp_path / "t.png", NOBODY, seconds=1.0, title=title)


def test_a_long_file_name_keeps_its_beginning_and_its_end() -> None:
    shortened = summary._shorten("interview " * 50 + "part 7.mp4", 800, 30)
    assert shortened.startswith("interview")
    assert shortened.endswith("part 7.mp4")
    assert summary._text_px(shortened, 30, 600) <= 800


def test_a_timeline_that_cannot_be_written_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space"):
        draw_timeline(NOBODY, [], tmp_path / "t.png", title="a", duration_seconds=1.0)
    assert list(tmp_path.iterdir()) == []
