"""A long video in pieces: every row is that of the whole, whoever makes them and whatever is killed meanwhile."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ferflow.claims import Claims
from ferflow.config import Settings
from ferflow.errors import PieceError
from ferflow.frames import VideoReader, find_cuts
from ferflow.pieces import Pieces, find_pieces, open_pieces, piece_faces, read_piece, write_piece
from ferflow.records import Box, Face
from ferflow.rows import read_analysis
from ferflow.sources import Job, open_results, plan_jobs
from ferflow.stages import analyze_piece, analyze_video, stitch_pieces
from ferflow.storage import Results, content_id
from flows.each_video import Stages, process_each
from flows.in_process import _summarize
from models import apart
from models.warm import face_finder, version_in_use, warm_classifier

SETTINGS = Settings(annotate=False)


@pytest.fixture
def results(tmp_path) -> Results:
    return open_results(tmp_path / "results")


@pytest.fixture(scope="module")
def crowd(astronaut, grace_hopper) -> Callable[[int], np.ndarray]:
    """Two people, one of whom walks through the picture and out of it."""
    scene = np.zeros((320, 560, 3), np.uint8)
    scene[:256, :256] = astronaut[::2, ::2]

    def draw(index: int) -> np.ndarray:
        image = scene.copy()
        left = 230 + 6 * index
        walker = grace_hopper[: 2 * 300 : 2, ::2][:, : max(560 - left, 0)]
        image[: walker.shape[0], left : left + walker.shape[1]] = walker
        return image

    return draw


def in_pieces(file: Path, results: Results, cuts: tuple[Any, ...], settings: Settings = SETTINGS) -> Path:
    classifier = warm_classifier(settings.model)
    pieces = open_pieces(results, "1" * 16, cuts, model_version=classifier.version, settings=settings)
    for number in reversed(pieces.missing()):
        detector = face_finder()
        analyze_piece(file, results, pieces, number, detector=detector, classifier=classifier, settings=settings)
    return stitch_pieces(
        file,
        results,
        pieces,
        model_version=classifier.version,
        settings=settings,
        started_at=datetime.now(UTC),
    )


def in_one_go(file: Path, results: Results, settings: Settings = SETTINGS, **options: Any) -> Path:
    return analyze_video(
        file,
        results,
        video_id="0" * 16,
        detector=face_finder,
        classifier=warm_classifier(settings.model),
        settings=settings,
        **options,
    )


def rows(path: Path) -> pa.Table:
    return pq.read_table(path).drop_columns(["video_id"])


VIDEOS = {
    "b_frames": {"suffix": ".mp4", "codec": "libx264", "options": {"g": "8", "bf": "3"}},
    "open_gop": {
        "suffix": ".mkv",
        "codec": "libx264",
        "options": {"g": "8", "x264-params": "open-gop=1:keyint=8:min-keyint=8:scenecut=0:bframes=3:b-adapt=0"},
    },
    "mjpeg": {"suffix": ".mov", "codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "vp9": {"suffix": ".webm", "codec": "libvpx-vp9", "options": {"g": "8"}},
    "uneven": {
        "suffix": ".mp4",
        "codec": "libx264",
        "options": {"g": "8"},
        "pts": np.cumsum([0.04, 0.12, 0.04, 0.08, 0.2] * 8).tolist(),
    },
}


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("max_fps", [0.0, 9.0])
def test_every_row_of_the_pieces_is_that_of_the_whole(make_video, tmp_path, results, crowd, name, max_fps):
    options = dict(VIDEOS[name])
    file = make_video(tmp_path / f"{name}{options.pop('suffix')}", frame_count=40, fps=25, image=crowd, **options)
    settings = Settings(annotate=False, max_fps=max_fps)
    cuts = find_cuts(file, piece_seconds=0.3)
    assert len(cuts) >= 3
    whole = in_one_go(file, results, settings, piece_seconds=0.3)
    stitched = in_pieces(file, results, cuts, settings)
    assert rows(stitched).equals(rows(whole))
    assert len(set(rows(whole)["track_id"].to_pylist())) >= 2, "two people cross the seams"
    before, after = read_analysis(whole), read_analysis(stitched)
    assert before is not None
    assert after is not None
    assert after.info == before.info


def test_people_are_found_in_every_frame_around_a_seam(make_video, tmp_path, results, crowd):
    file = make_video(tmp_path / "two.mp4", frame_count=40, fps=25, image=crowd, options={"g": "8"})
    uncut = in_one_go(file, results)
    cut = in_pieces(file, results, find_cuts(file, piece_seconds=0.3))
    found = [np.bincount(rows(path)["frame_index"].to_numpy(), minlength=40) for path in (uncut, cut)]
    # Where someone has half left the picture, whoever looks anew sees him two frames less.
    assert np.abs(found[0] - found[1]).sum() <= 2


def test_a_real_clip_in_five_pieces_is_the_same(shared, results):
    file = shared / "videos" / "face_recognition_short_hamilton_clip.mp4"
    cuts = find_cuts(file, piece_seconds=1)
    assert len(cuts) == 4
    assert rows(in_pieces(file, results, cuts)).equals(rows(in_one_go(file, results, piece_seconds=1)))


def test_a_video_shorter_than_two_pieces_is_not_cut(make_video, tmp_path, results):
    file = make_video(tmp_path / "short.mp4", frame_count=40, fps=10, options={"g": "2"})
    assert find_cuts(file) == ()
    assert find_cuts(file, piece_seconds=2.1) == ()
    assert [float(cut) for cut in find_cuts(file, piece_seconds=1.9)] == pytest.approx([2.0])


@pytest.mark.parametrize(("suffix", "codec"), [(".ts", "libx264"), (".mpg", "mpeg2video"), (".flv", "libx264")])
def test_a_video_whose_times_depend_on_where_one_begins_is_not_cut(make_video, tmp_path, suffix, codec):
    file = make_video(tmp_path / f"clip{suffix}", frame_count=50, fps=25, codec=codec, options={"g": "5"})
    assert find_cuts(file, piece_seconds=0.4) == ()


def test_a_fragmented_video_is_cut_only_where_a_seek_leads(make_video, tmp_path):
    import av

    whole = make_video(tmp_path / "whole.mp4", frame_count=50, fps=25, options={"g": "5"})
    fragmented = tmp_path / "fragmented.mp4"
    with (
        av.open(str(whole)) as source,
        av.open(str(fragmented), "w", options={"movflags": "frag_keyframe+empty_moov"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    for cut in find_cuts(fragmented, piece_seconds=0.4):
        with VideoReader(fragmented) as reader:
            assert next(reader.piece(cut, None)).pts == cut


def test_a_piece_that_is_damaged_is_refused(make_video, tmp_path):
    file = make_video(tmp_path / "clip.mp4", frame_count=50, fps=25, options={"g": "5"})
    cuts = find_cuts(file, piece_seconds=0.4)
    content = bytearray(file.read_bytes())
    middle = content.index(b"mdat") + (content.index(b"moov") - content.index(b"mdat")) // 2
    content[middle : middle + 400] = bytes(400)
    file.write_bytes(content)
    refused = []
    for span in zip((None, *cuts), (*cuts, None), strict=True):
        with VideoReader(file) as reader:
            try:
                list(reader.piece(*span))
            except PieceError as error:
                refused.append(str(error))
    assert 1 <= len(refused) < len(cuts) + 1


def test_a_cut_that_is_no_key_frame_is_refused(make_video, tmp_path):
    file = make_video(tmp_path / "clip.mp4", frame_count=20, fps=10, options={"g": "10"})
    with VideoReader(file) as reader, pytest.raises(PieceError, match="no seek leads to"):
        list(reader.piece(find_cuts(file, piece_seconds=0.9)[0] + reader.time_base, None))


def test_a_piece_is_read_as_it_was_written(results):
    face = Face(Box(0.1, 1 / 3, 5.0, 7.0), (1.0, 2.0), (3.0, 4.0), 0.7)
    looks = [(0, 0.0, 0.04, [face]), (1, 0.04, 0.04, []), (2, 1 / 3, 0.04, [face, face])]
    pieces = open_pieces(results, "v", (), model_version="m", settings=SETTINGS)
    scores = np.random.default_rng(0).random((3, 7), np.float32)
    found = piece_faces(looks, scores, frame_count=5, end=Fraction(10, 3))
    write_piece(pieces.path(0), found, parts=results.parts)
    read = read_piece(pieces.path(0))
    assert (read.frame_count, read.end) == (5, Fraction(10, 3))
    for name in ("frame_index", "pts_seconds", "frame_seconds", "face_count", "faces", "probabilities"):
        before, after = getattr(found, name), getattr(read, name)
        assert (before.dtype, before.tolist()) == (after.dtype, after.tolist())
    pieces.path(0).write_bytes(pieces.path(0).read_bytes()[:-40])
    with pytest.raises(ValueError, match="damaged"):
        read_piece(pieces.path(0))


def test_no_piece_is_taken_by_two(results):
    cuts = Fraction(1), Fraction(2), Fraction(3)
    pieces = open_pieces(results, "v", cuts, model_version="m", settings=SETTINGS)
    first, second = Claims(results), Claims(results)
    taking = pieces.take(first)
    assert next(taking) == 0
    assert list(pieces.take(second)) == [1, 2, 3], "not made, so free again for whoever comes next"
    empty = piece_faces([], np.zeros((0, 7), np.float32), frame_count=0, end=Fraction(10, 3))
    write_piece(pieces.path(0), empty, parts=results.parts)
    assert next(taking) == 1
    taking.close()
    pieces.close(first)
    assert list(pieces.take(second)) == []
    assert find_pieces(results, "v", model_version="m", settings=SETTINGS) is None
    assert not list(results.claims.iterdir())


@pytest.fixture(scope="module")
def long_clip(make_video, crowd, tmp_path_factory) -> Path:
    """Five minutes at one frame a second: four pieces of a minute and more."""
    folder = tmp_path_factory.mktemp("long")
    options = {"g": "10"}
    return make_video(
        folder / "long.mp4", frame_count=300, fps=1, image=lambda index: crowd(index // 4 % 40), options=options
    )


@pytest.fixture(scope="module")
def rows_of_long_clip(long_clip, tmp_path_factory) -> pa.Table:
    return pq.read_table(in_one_go(long_clip, open_results(tmp_path_factory.mktemp("whole")))).drop_columns(
        ["video_id", "source"]
    )


def command(file: Path, results: Results) -> list[str]:
    """The command as a user types it."""
    config = results.root.parent / "plain.toml"
    config.write_text("annotate = false")
    options = ["--results", str(results.root), "--config", str(config), "--no-prefect"]
    return [sys.executable, "-m", "flows.cli", "analyze", str(file), *options]


def analyze(file: Path, results: Results) -> str:
    """Run it to its end; gives what it says."""
    return subprocess.run(command(file, results), capture_output=True, text=True, check=True).stdout


def rows_of(results: Results, file: Path) -> pa.Table:
    return pq.read_table(results.rows("faces", content_id(file))).drop_columns(["video_id", "source"])


def leftovers(results: Results) -> list[Path]:
    return [path for folder in (results.pieces, results.claims) for path in folder.rglob("*.*")]


class Heard:
    """What a run tells."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, job: Job, name: str, done: int, expected: int | None) -> None:
        assert expected is None or done <= expected

    def copied(self, job: Job) -> None:
        self.said.append("copied")

    def elsewhere(self, job: Job) -> None:
        self.said.append("elsewhere")

    def finished(self, job: Job, summary: Any) -> None:
        self.said.append(summary.status)


def test_a_long_video_is_analysed_by_several_threads_and_is_the_same(long_clip, rows_of_long_clip, results):
    heard = Heard()
    assert len(find_cuts(long_clip)) == 3
    helped = set()

    def help_out(*arguments: Any) -> bool:
        has_helped = apart.help_apart(*arguments)
        if has_helped:
            helped.add(threading.get_ident())
        return has_helped

    jobs = plan_jobs([long_clip], results, model_version=lambda: version_in_use("default"), settings=SETTINGS)
    stages = Stages(apart.analyze_apart, apart.annotate_apart, _summarize, help_out, apart.help_other_run)
    process_each(jobs, results, stages, settings=SETTINGS, workers=2, listener=heard)
    assert heard.said == ["done"]
    assert helped
    assert rows_of(results, long_clip).equals(rows_of_long_clip)
    assert leftovers(results) == []


def test_a_run_helps_with_the_long_video_of_another_which_then_only_stitches(long_clip, rows_of_long_clip, results):
    video_id = content_id(long_clip)
    with Claims(results).hold(video_id):
        version = version_in_use("default")
        pieces = open_pieces(results, video_id, find_cuts(long_clip), model_version=version, settings=SETTINGS)
        assert "another run" in analyze(long_clip, results)
        assert pieces.missing() == []
        mark(pieces, 2)
    analyze(long_clip, results)
    found = rows_of(results, long_clip)
    is_marked = np.array(found["detection_score"].to_pylist()) == 0.5
    frames = found["frame_index"].to_numpy()
    assert is_marked.tolist() == ((frames >= 120) & (frames < 180)).tolist(), "taken as it was, and none made anew"
    assert leftovers(results) == []


def mark(pieces: Pieces, number: int) -> None:
    """Make a piece known again in the result: all its faces get the score 0.5."""
    piece = read_piece(pieces.path(number))
    piece.faces[:, 8] = 0.5
    write_piece(pieces.path(number), piece, parts=pieces.folder)


def test_a_killed_run_goes_on_with_the_pieces_that_are_missing(long_clip, results):
    version = version_in_use("default")
    until = time.monotonic() + 120
    pieces = None
    with subprocess.Popen(command(long_clip, results), stdout=subprocess.DEVNULL) as running:
        while pieces is None or len(pieces.missing()) == 4:
            assert time.monotonic() < until
            assert running.poll() is None
            time.sleep(0.02)
            pieces = find_pieces(results, content_id(long_clip), model_version=version, settings=SETTINGS)
        running.kill()
    made = sorted({0, 1, 2, 3} - set(pieces.missing()))
    assert made
    mark(pieces, made[0])
    analyze(long_clip, results)
    scores = rows_of(results, long_clip)
    first_frame = 60 * made[0]
    is_marked = np.array(scores["detection_score"].to_pylist()) == 0.5
    assert set(scores["frame_index"].to_numpy()[is_marked]) <= set(range(first_frame, first_frame + 60))
    assert is_marked.any()
    assert leftovers(results) == []


def test_a_damaged_long_video_is_analysed_in_one_go(long_clip, tmp_path, results):
    content = bytearray(long_clip.read_bytes())
    middle = content.index(b"mdat") + (content.index(b"moov") - content.index(b"mdat")) * 5 // 6
    content[middle : middle + 2000] = bytes(2000)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(content)
    assert len(find_cuts(damaged)) == 3
    analyze(damaged, results)
    whole = pq.read_table(in_one_go(damaged, results)).drop_columns(["video_id", "source"])
    assert rows_of(results, damaged).equals(whole)
    assert leftovers(results) == []
