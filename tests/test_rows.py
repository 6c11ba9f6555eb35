"""Tables: what is written is what pandas, DuckDB and Polars read."""

import dataclasses
import errno
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest

from ferflow.emotions import EMOTIONS
from ferflow.records import Analysis, Box, Face, FaceRow, Segment, VideoInfo, VideoSummary
from ferflow.rows import TABLES, read_faces, read_video, write_faces, write_segments, write_video
from ferflow.sources import open_results
from ferflow.storage import Results, part_file

INFO = VideoInfo(
    width=640, height=360, frame_count=3, duration_seconds=0.3, fps=10.0, has_audio=True, warning="ends early."
)
ANALYSIS = Analysis(
    video_id="0123456789abcdef",
    source="/videos/interview 03 ä.mp4",
    model_version="small-1",
    settings_hash="abc",
    started_at=datetime(2026, 1, 2, 3, 4, 5, 600, tzinfo=UTC),
    info=INFO,
)
SUMMARY = VideoSummary(
    video_id=ANALYSIS.video_id,
    source=ANALYSIS.source,
    status="done",
    error="ends early.",
    info=INFO,
    face_count=3,
    track_count=1,
    dominant_emotion="happy",
    emotion_shares=(0.0, 0.0, 0.0, 0.75, 0.25, 0.0, 0.0),
    annotated_path="annotated/a.mp4",
    timeline_path="timelines/a.png",
    model_version="small-1",
    settings_hash="abc",
    processed_at=datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC),
    processing_seconds=1.5,
)


def row(index: int, best: int = 3) -> FaceRow:
    probabilities = [0.05] * len(EMOTIONS)
    probabilities[best] = 0.7
    face = Face(Box(10.5, 20.0, 50.0, 60.0), right_eye_xy=(20.0, 30.0), left_eye_xy=(40.0, 31.0), score=0.9)
    return FaceRow(index, index / 10, 0.1, track_id=0, face=face, probabilities=tuple(probabilities))


@pytest.fixture
def results(tmp_path) -> Results:
    return open_results(tmp_path / "results")


def write(results: Results, rows: list[FaceRow], video_id: str = ANALYSIS.video_id) -> Path:
    analysis = dataclasses.replace(ANALYSIS, video_id=video_id)
    path = results.rows("faces", video_id)
    write_faces(path, rows, lambda: analysis, parts=results.parts)
    return path


def test_faces_come_back_as_they_were_written(results):
    faces, analysis = read_faces(write(results, [row(0), row(1, best=6), row(2)]))
    assert analysis == ANALYSIS
    assert faces.frame_index.tolist() == [0, 1, 2]
    assert faces.pts_seconds.tolist() == [0.0, 0.1, 0.2]
    assert faces.boxes_xyxy[0].tolist() == [10.5, 20.0, 50.0, 60.0]
    assert EMOTIONS[faces.probabilities[1].argmax()] == "surprise"


def test_more_rows_than_are_kept_at_once_come_back_in_order(results):
    faces, _ = read_faces(write(results, [row(index) for index in range(20_000)]))
    assert (faces.frame_index == np.arange(20_000)).all()


@pytest.mark.parametrize("summary", [SUMMARY, dataclasses.replace(SUMMARY, emotion_shares=None, dominant_emotion=None)])
def test_a_video_comes_back_as_it_was_written(results, summary):
    path = results.rows("videos", summary.video_id)
    write_video(path, summary, parts=results.parts)
    assert read_video(path) == summary


def test_a_failed_video_comes_back_as_it_was_written(results):
    failed = dataclasses.replace(
        SUMMARY, status="failed", error="the file is empty.", info=None, emotion_shares=None, annotated_path=None
    )
    path = results.rows("videos", failed.video_id)
    write_video(path, failed, parts=results.parts)
    assert read_video(path) == failed
    assert pd.read_parquet(path).frame_count.tolist() == [0]


def test_a_video_that_was_never_done_has_no_row(results):
    assert read_video(results.rows("videos", "nothing")) is None


def test_tables_have_their_columns_before_the_first_video(results):
    for name, schema in TABLES.items():
        table = pd.read_parquet(results.table(name))
        assert list(table.columns) == schema.names
        assert table.empty


def test_every_reader_sees_the_same_rows_also_of_videos_without_faces(results):
    write(results, [], video_id="a" * 16)
    write(results, [row(0), row(1)], video_id="b" * 16)
    write_segments(
        results.rows("segments", "b" * 16),
        [Segment(0, "happy", 0.0, 0.2, 0.7)],
        video_id="b" * 16,
        model_version="small-1",
        parts=results.parts,
    )
    write_video(results.rows("videos", SUMMARY.video_id), SUMMARY, parts=results.parts)
    for name, count in {"faces": 2, "segments": 1, "videos": 1}.items():
        folder = results.table(name)
        assert len(pd.read_parquet(folder)) == count
        assert duckdb.sql(f"select * from '{folder}/*.parquet'").fetchall().__len__() == count
        assert len(pl.read_parquet(folder)) == count
        assert set(pd.read_parquet(folder).model_version) == {"small-1"}
    faces = pd.read_parquet(results.table("faces"))
    assert faces.emotion.tolist() == ["happy", "happy"]
    assert (faces.dtypes[list(EMOTIONS)] == "float32").all()
    assert faces.dtypes["emotion"] == "category"
    assert (faces.dtypes["frame_index"], faces.dtypes["track_id"]) == ("int32", "int32")
    assert faces[list(EMOTIONS)].sum(axis=1).tolist() == pytest.approx([1.0, 1.0])


def test_a_table_can_be_read_while_rows_are_being_written(results):
    write(results, [row(0)], video_id="a" * 16)

    def rows():
        for index in range(9000):
            if index % 1000 == 0:
                assert len(pd.read_parquet(results.table("faces"))) == 1
                assert len(pl.read_parquet(results.table("faces"))) == 1
            yield row(index)

    write_faces(results.rows("faces", "b" * 16), rows(), lambda: ANALYSIS, parts=results.parts)
    assert len(pd.read_parquet(results.table("faces"))) == 9001


def test_an_analysis_that_breaks_off_leaves_no_rows(results):
    def rows():
        yield row(0)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_faces(results.rows("faces", "c" * 16), rows(), lambda: ANALYSIS, parts=results.parts)
    assert pd.read_parquet(results.table("faces")).empty
    assert not list(results.parts.glob("*/.*.part"))


def test_a_full_disk_is_told_in_the_system_s_words(tmp_path):
    """Seen to fail: "Error writing bytes to file. Detail: [errno 28] No space left on device"."""
    target = tmp_path / "faces.parquet"

    def write() -> None:
        with part_file(target) as part:
            part.symlink_to("/dev/full")
            pd.DataFrame({"a": [1]}).to_parquet(part)

    with pytest.raises(OSError, match="No space left on device") as told:
        write()
    assert (told.value.errno, told.value.strerror, told.value.filename) == (
        errno.ENOSPC,
        "No space left on device",
        str(target),
    )
