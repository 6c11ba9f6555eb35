"""Which faces a person is asked about: the doubtful ones, spread out, and a fair draw of the others."""

import dataclasses
from collections import Counter, defaultdict
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ferflow import rows as tables
from ferflow.emotions import EMOTIONS
from ferflow.errors import ConfigError
from ferflow.records import Analysis, Box, Face, FaceRow, VideoInfo
from ferflow.rows import write_faces
from ferflow.selection import LEAST_SURE, RANDOM, FacePlace, Picked, PickedFace, pick_faces
from ferflow.sources import open_results
from ferflow.storage import Results

INFO = VideoInfo(width=640, height=360, frame_count=3, duration_seconds=0.3, fps=10.0, has_audio=True, warning=None)


@pytest.fixture
def results(tmp_path) -> Results:
    return open_results(tmp_path / "results")


def face_row(frame_index: int, *, margin: float, fps: int = 10, track_id: int = 0, side_px: float = 60.0) -> FaceRow:
    """A face whose two best guesses are `margin` apart."""
    rest = 0.04
    shared = 1 - rest * (len(EMOTIONS) - 2)
    probabilities = [rest] * len(EMOTIONS)
    probabilities[3], probabilities[5] = (shared + margin) / 2, (shared - margin) / 2
    box = Box(100.0, 50.0, 100.0 + side_px, 50.0 + side_px)
    face = Face(box, right_eye_xy=(115.0, 70.0), left_eye_xy=(145.0, 71.0), score=0.9)
    return FaceRow(frame_index, frame_index / fps, 1 / fps, track_id, face, tuple(probabilities))


def add_video(results: Results, name: str, rows: list[FaceRow]) -> str:
    """Write the faces of a video that is there; returns its id."""
    source = results.root.parent / f"{name}.mp4"
    source.touch()
    video_id = name.encode().hex().rjust(16, "0")
    analysis = Analysis(video_id, str(source), "small-1", "abc", datetime(2026, 1, 2, tzinfo=UTC), INFO)
    in_order = sorted(rows, key=lambda row: (row.frame_index, row.track_id))
    write_faces(results.rows("faces", video_id), in_order, lambda: analysis, parts=results.parts)
    return video_id


def noise(seed: int, *, frames: int, tracks: int = 1, fps: int = 10) -> list[FaceRow]:
    margins = np.random.default_rng(seed).uniform(0, 0.8, (frames, tracks)).round(3)
    return [
        face_row(frame, margin=margins[frame, track], track_id=track, fps=fps)
        for frame in range(frames)
        for track in range(tracks)
    ]


def margin(picked: PickedFace) -> float:
    second, first = sorted(picked.probabilities)[-2:]
    return first - second


def by_reason(picked: Picked, why: str) -> list[PickedFace]:
    return [face for face in picked.faces if face.why == why]


def require_apart(faces: list[PickedFace], least_seconds: float = 1.0) -> None:
    times = defaultdict(list)
    for face in faces:
        times[face.place.video_id, face.place.track_id].append(face.pts_seconds)
    for of_person in times.values():
        assert all(later - earlier >= least_seconds for earlier, later in pairwise(sorted(of_person)))


def test_the_faces_with_the_smallest_margin_come_first(results):
    add_video(results, "a", [face_row(10 * second, margin=0.1 + second / 100) for second in range(20)])
    add_video(results, "b", [face_row(10 * second, margin=0.105 + second / 100) for second in range(20)])
    picked = pick_faces(results, count=6, random_share=0, seed=0)
    assert [margin(face) for face in picked.faces] == pytest.approx([0.1, 0.105, 0.11, 0.115, 0.12, 0.125], abs=1e-5)
    assert picked.face_count == 40
    first = picked.faces[0]
    assert (first.place.frame_index, first.pts_seconds, first.model_version) == (0, 0.0, "small-1")
    assert first.face.box == Box(100.0, 50.0, 160.0, 110.0)
    assert (first.face.right_eye_xy, first.face.left_eye_xy) == ((115.0, 70.0), (145.0, 71.0))
    assert Path(first.source).name == "a.mp4"


def test_what_the_model_is_torn_between_goes_before_what_it_spreads_over_many(results):
    # By entropy it would be the other way round.
    torn = face_row(0, margin=0.02)
    spread = dataclasses.replace(face_row(100, margin=0), probabilities=(0.12, 0.12, 0.12, 0.28, 0.12, 0.12, 0.12))
    add_video(results, "a", [torn, spread])
    assert [face.place.frame_index for face in pick_faces(results, count=2, random_share=0, seed=0).faces] == [0, 100]


def test_no_two_faces_of_a_person_lie_within_a_second(results):
    add_video(results, "a", noise(1, frames=900, tracks=3))
    picked = pick_faces(results, count=60, random_share=0.4, seed=0)
    assert len(picked.faces) == 60
    require_apart(list(picked.faces))


def test_no_track_and_no_video_fills_the_sheet(results):
    doubtful = [
        face_row(10 * second, margin=0.01 * (1 + track), track_id=track) for second in range(60) for track in range(8)
    ]
    add_video(results, "doubtful", doubtful)
    for name in "abcd":
        add_video(results, name, [dataclasses.replace(row, pts_seconds=row.frame_index) for row in noise(2, frames=60)])
    picked = pick_faces(results, count=40, random_share=0, seed=0).faces
    videos = Counter(Path(face.source).stem for face in picked)
    assert videos == {"doubtful": 20, "a": 5, "b": 5, "c": 5, "d": 5}
    tracks = Counter(face.place.track_id for face in picked if Path(face.source).stem == "doubtful")
    assert max(tracks.values()) <= 5


def test_one_long_video_fills_the_sheet_where_there_is_no_other(results):
    add_video(results, "a", noise(3, frames=1000))
    picked = pick_faces(results, count=50, random_share=0.2, seed=0)
    assert Counter(face.why for face in picked.faces) == {LEAST_SURE: 40, RANDOM: 10}


def test_fewer_faces_than_asked_for_are_all_that_there_are(results):
    add_video(results, "a", noise(4, frames=30))
    assert 2 <= len(pick_faces(results, count=50, random_share=0.2, seed=0).faces) <= 3


def test_faces_too_small_to_be_recognised_are_passed_over(results):
    add_video(results, "a", [face_row(0, margin=0.0, side_px=20), face_row(20, margin=0.5, side_px=30)])
    picked = pick_faces(results, count=5, random_share=0, seed=0)
    assert [face.place.frame_index for face in picked.faces] == [20]
    assert picked.face_count == 1


def test_the_draw_is_fair_among_all_other_faces(results):
    # Half of the faces lie in one long video, and half of them are surer than the others.
    add_video(results, "long", [face_row(20 * n, margin=0.3 + 0.4 * (n % 2)) for n in range(1000)])
    for name in "abcdefghij":
        add_video(results, name, [face_row(20 * n, margin=0.3 + 0.4 * (n % 2)) for n in range(100)])
    drawn = [
        face
        for seed in range(20)
        for face in by_reason(pick_faces(results, count=40, random_share=1, seed=seed), RANDOM)
    ]
    assert len(drawn) == 800
    from_long = sum(Path(face.source).stem == "long" for face in drawn)
    sure = sum(margin(face) > 0.5 for face in drawn)
    # Three standard deviations of 800 throws of a coin are 42.
    assert from_long == pytest.approx(400, abs=42)
    assert sure == pytest.approx(400, abs=42)


def test_the_draw_takes_nothing_that_is_picked_already(results):
    add_video(results, "a", noise(5, frames=900, tracks=2))
    picked = pick_faces(results, count=60, random_share=0.5, seed=0)
    assert len(by_reason(picked, RANDOM)) == 30
    assert len({face.place for face in picked.faces}) == 60


def test_the_same_seed_draws_the_same_faces_and_another_others(results):
    for name in "abc":
        add_video(results, name, noise(ord(name), frames=500))
    first, again, other = (pick_faces(results, count=40, random_share=0.5, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert by_reason(first, LEAST_SURE) == by_reason(other, LEAST_SURE)
    assert by_reason(first, RANDOM) != by_reason(other, RANDOM)


def test_what_was_reviewed_is_not_picked_again_nor_what_looks_the_same(results):
    for name in "ab":
        add_video(results, name, noise(ord(name), frames=600, tracks=2))
    earlier: list[PickedFace] = []
    for _ in range(3):
        reviewed = {face.place for face in earlier}
        picked = pick_faces(results, count=30, random_share=0.2, seed=0, reviewed=reviewed)
        assert len(picked.faces) == 30
        earlier += picked.faces
    require_apart(earlier)


def test_faces_reviewed_elsewhere_do_not_matter(results):
    add_video(results, "a", noise(6, frames=100))
    foreign = [FacePlace("f" * 16, 0, 0), FacePlace("f" * 16, 999_999_999, 999_999_999)]
    plain = pick_faces(results, count=5, random_share=0.2, seed=0)
    assert pick_faces(results, count=5, random_share=0.2, seed=0, reviewed=foreign) == plain


def test_a_video_that_is_gone_gives_its_place_to_others_and_is_named(results):
    gone = add_video(results, "gone", [face_row(20 * n, margin=0.0) for n in range(10)])
    add_video(results, "here", noise(7, frames=200))
    source = results.root.parent / "gone.mp4"
    source.unlink()
    picked = pick_faces(results, count=10, random_share=0.2, seed=0)
    assert len(picked.faces) == 10
    assert gone not in {face.place.video_id for face in picked.faces}
    assert picked.problems == (f"{source}: the video is not there any more, so its faces cannot be shown.",)


@pytest.mark.parametrize("damage", [lambda content: content[:-50], lambda content: b"no table", lambda content: b""])
def test_a_damaged_table_does_not_stop_the_others(results, damage):
    video_id = add_video(results, "damaged", noise(8, frames=100))
    add_video(results, "whole", noise(9, frames=100))
    path = results.rows("faces", video_id)
    path.write_bytes(damage(path.read_bytes()))
    picked = pick_faces(results, count=5, random_share=0.2, seed=0)
    assert {Path(face.source).stem for face in picked.faces} == {"whole"}
    assert picked.problems == (f"{path}: this table is damaged; remove the file and analyse its video again.",)


def test_a_table_damaged_in_its_middle_gives_none_of_its_rows(results):
    video_id = add_video(results, "damaged", noise(8, frames=5000))
    path = results.rows("faces", video_id)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = b"\xff" * 4000
    path.write_bytes(content)
    picked = pick_faces(results, count=5, random_share=0.2, seed=0)
    assert picked.faces == ()
    assert len(picked.problems) == 1


def test_a_folder_without_results_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match="there are no results in this folder; run `ferflow analyze` first"):
        pick_faces(Results(tmp_path / "nothing"), count=5, random_share=0.2, seed=0)


def test_results_without_faces_give_none(results):
    add_video(results, "empty", [])
    assert pick_faces(results, count=5, random_share=0.2, seed=0) == Picked((), 0, ())


def plainly(results: Results, videos: dict[str, list[FaceRow]], count: int) -> list[FacePlace]:
    """The least sure faces, picked without regard to memory: the surest way to be right."""
    candidates = []
    for video_id, rows in videos.items():
        seconds: dict[tuple[int, int], FaceRow] = {}
        for row in sorted(rows, key=lambda row: (np.float32(_margin32(row)), row.frame_index)):
            seconds.setdefault((row.track_id, int(row.pts_seconds)), row)
        taken: dict[int, list[float]] = defaultdict(list)
        levels = Counter[int]()
        for row in sorted(seconds.values(), key=lambda row: (_margin32(row), row.frame_index, row.track_id)):
            if all(abs(row.pts_seconds - near) >= 1 for near in taken[row.track_id]):
                level = len(taken[row.track_id]) // 5
                taken[row.track_id].append(row.pts_seconds)
                while levels[level] >= 20:
                    level += 1
                levels[level] += 1
                place = FacePlace(video_id, row.frame_index, row.track_id)
                candidates.append((level, _margin32(row), video_id, row.frame_index, row.track_id, place))
    candidates.sort(key=lambda candidate: candidate[:-1])
    return [place for *_, place in sorted(candidate[1:] for candidate in candidates[:count])]


def _margin32(row: FaceRow) -> np.float32:
    second, first = np.sort(np.array(row.probabilities, np.float32))[-2:]
    return first - second


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 3), st.sampled_from([1, 10, 30])), max_size=5),
    count=st.integers(1, 80),
    rows_at_once=st.sampled_from([7, 100, 65_536]),
)
@example(shapes=[(400, 1, 10)], count=20, rows_at_once=100)
def test_reading_in_pieces_picks_what_looking_at_everything_at_once_would(
    tmp_path_factory, monkeypatch, shapes, count, rows_at_once
):
    results = open_results(tmp_path_factory.mktemp("pieces") / "results")
    monkeypatch.setattr(tables, "_ROWS_READ_AT_ONCE", rows_at_once)
    videos = {}
    for number, (frames, tracks, fps) in enumerate(shapes):
        rows = noise(number, frames=frames, tracks=tracks, fps=fps)
        videos[add_video(results, f"v{number}", rows)] = rows
    picked = pick_faces(results, count=count, random_share=0, seed=0)
    assert [face.place for face in picked.faces] == plainly(results, videos, count)
