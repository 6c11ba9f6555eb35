"""The videos of a results folder as the page asks for them: real tables, small and merged, on disk and in a bucket."""

import os
import threading
from dataclasses import replace

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from made_results import INFO, add_failure, add_video

from ferflow.compaction import compact
from ferflow.emotions import EMOTIONS
from ferflow.records import Segment
from ferflow.rows import write_segments, write_video
from ferflow.sources import open_results
from viewer.library import Choice, Library


def opened(results):
    library = Library(results)
    library.refresh()
    return library


def names(library, *asked, **options):
    return [video.name for video in library.videos(*asked, **options)]


def shown_first(library, video):
    return EMOTIONS[library.strips([video.video_id])[video.video_id][0].argmax()]


@pytest.fixture
def results(tmp_path):
    return open_results(tmp_path / "results")


@pytest.fixture
def library(results):
    """Two folders, one below the other: three videos that are done, one without a face, one that failed."""
    add_video(results, "/study/b.mp4", emotion="sad")
    add_video(results, "/study/day 1/a.mp4", info=replace(INFO, duration_seconds=60.0), face_count=300)
    add_video(results, "/study/day 1/C.mp4", emotion="angry")
    add_video(results, "/study/day 1/empty.mp4", face_count=0, dominant_emotion=None, emotion_shares=None)
    add_failure(results, "/studying/notes.mp4")
    return opened(results)


def test_the_newest_video_comes_first(library):
    assert names(library, Choice()) == ["notes.mp4", "empty.mp4", "C.mp4", "a.mp4", "b.mp4"]


def test_videos_come_in_the_order_that_is_asked_for(library):
    assert names(library, Choice(), "name") == ["a.mp4", "b.mp4", "C.mp4", "empty.mp4", "notes.mp4"]
    assert names(library, Choice(), "oldest")[0] == "b.mp4"
    assert names(library, Choice(), "longest")[0] == "a.mp4"
    assert names(library, Choice(), "longest")[-1] == "notes.mp4"
    assert names(library, Choice(), "most faces")[0] == "a.mp4"
    assert names(library, Choice(), "slowest")[0] == "empty.mp4"


def test_a_page_of_the_table_holds_no_more_than_was_asked_for(library):
    assert names(library, Choice(), first=1, count=2) == ["empty.mp4", "C.mp4"]


def test_videos_are_found_by_name_status_emotion_and_folder(library):
    assert names(library, Choice(text=" c.MP ")) == ["C.mp4"]
    assert names(library, Choice(status="failed")) == ["notes.mp4"]
    assert names(library, Choice(status="without a face")) == ["empty.mp4"]
    assert names(library, Choice(emotion="sad")) == ["b.mp4"]
    assert names(library, Choice(folder="/study/day 1", status="done")) == ["C.mp4", "a.mp4"]
    assert names(library, Choice(folder="/study")) == ["empty.mp4", "C.mp4", "a.mp4", "b.mp4"]


@pytest.mark.parametrize("text", ["'", "%", "_", "\\", "' or 1=1 --", "$text", "[", "*"])
def test_whatever_is_searched_for_is_only_a_text(library, text):
    assert names(library, Choice(text=text)) == []


def test_a_failure_keeps_its_reason(library):
    (failed,) = library.videos(Choice(status="failed"))
    assert (failed.error, failed.duration_seconds) == ("this is a text file, not a video.", None)


def test_totals_count_each_video_by_the_time_of_its_faces(library):
    totals = library.totals(Choice(folder="/study/day 1"))
    assert (totals.videos, totals.failed, totals.without_face) == (3, 0, 1)
    assert (totals.duration_seconds, totals.face_count) == (80.0, 400)
    shares = dict(zip(EMOTIONS, totals.emotion_shares, strict=True))
    assert shares["happy"] == pytest.approx((0.7 * 300 + 0.05 * 100) / 400)
    assert sum(shares.values()) == pytest.approx(1.0)


def test_totals_of_videos_without_a_face_have_no_shares(library):
    assert library.totals(Choice(status="failed")).emotion_shares is None
    assert library.totals(Choice(text="nothing like this")).videos == 0


def test_each_folder_has_its_totals(library):
    folders = library.folders(Choice())
    assert [(totals.folder, totals.videos) for totals in folders] == [
        ("/study", 1),
        ("/study/day 1", 3),
        ("/studying", 1),
    ]


def test_a_strip_shows_at_each_time_what_all_the_faces_showed(results):
    segments = [
        Segment(0, "sad", 0.0, 5.0, 0.9),
        Segment(1, "happy", 2.5, 4.0, 0.9),
        Segment(2, "happy", 2.5, 4.0, 0.9),
        Segment(0, "angry", 7.5, 10.0, 0.9),
    ]
    video = add_video(results, "/a.mp4", segments=segments)
    strip = opened(results).strips([video.video_id])[video.video_id]
    sad, happy, angry = (strip[:, EMOTIONS.index(emotion)] for emotion in ("sad", "happy", "angry"))
    assert sad.tolist() == [1] * 80 + [0] * 80
    assert happy.tolist() == [0] * 40 + [2] * 24 + [0] * 96
    assert angry.tolist() == [0] * 120 + [1] * 40
    assert strip.sum() == sad.sum() + happy.sum() + angry.sum()


def test_where_one_person_changes_within_a_moment_the_longer_emotion_counts(results):
    segments = [Segment(0, "sad", 0.0, 5.02, 0.9), Segment(0, "happy", 5.02, 10.0, 0.9)]
    video = add_video(results, "/a.mp4", segments=segments)
    strip = opened(results).strips([video.video_id])[video.video_id]
    assert np.count_nonzero(strip, axis=1).tolist() == [1] * 160
    assert strip.argmax(axis=1).tolist() == [EMOTIONS.index("sad")] * 80 + [EMOTIONS.index("happy")] * 80


def test_merged_tables_give_the_same(library, results):
    ids = [video.video_id for video in library.videos(Choice())]
    before, strips = (library.videos(Choice()), library.totals(Choice())), opened(results).strips(ids)
    assert sum(strip.any() for strip in strips.values()) == 3
    assert compact(results, older_than_days=0).small_files > 0
    library.refresh()
    assert (library.videos(Choice()), library.totals(Choice())) == before
    np.testing.assert_equal(opened(results).strips(ids), strips)


def test_what_comes_changes_or_goes_is_seen_the_next_time(library, results):
    assert not library.refresh()
    new = add_video(results, "/study/new.mp4", emotion="fear")
    assert library.refresh()
    assert names(library, Choice(emotion="fear")) == ["new.mp4"]
    assert shown_first(library, new) == "fear"

    segments = [Segment(0, "disgust", 0.0, 10.0, 0.7)]
    path = results.rows("segments", new.video_id)
    write_segments(path, segments, video_id=new.video_id, model_version="m", parts=results.parts)
    again = replace(new, dominant_emotion="disgust")
    write_video(results.rows("videos", new.video_id), again, parts=results.parts)
    assert library.refresh()
    assert names(library, Choice(emotion="fear")) == []
    assert shown_first(library, new) == "disgust"

    results.rows("videos", new.video_id).unlink()
    assert library.refresh()
    assert library.totals(Choice()).videos == 5


def test_nothing_is_read_twice(library, results):
    path = results.rows("videos", library.videos(Choice())[0].video_id)
    status = path.stat()
    path.write_bytes(bytes(status.st_size))  # Who reads it again finds it damaged.
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    add_video(results, "/study/new.mp4")
    library.refresh()
    assert library.damaged == ()
    assert library.totals(Choice()).videos == 6


def test_a_damaged_file_is_named_and_the_others_are_shown(library, results):
    damaged = results.rows("videos", "f" * 16)
    damaged.write_bytes(b"PAR1 but not really PAR1")
    library.refresh()
    assert library.damaged == (damaged,)
    assert library.totals(Choice()).videos == 5
    add_video(results, "/study/new.mp4")
    library.refresh()
    assert library.damaged == (damaged,)
    assert library.totals(Choice()).videos == 6
    damaged.unlink()
    library.refresh()
    assert library.damaged == ()


def test_a_damaged_strip_leaves_the_others(results):
    videos = [add_video(results, f"/{name}.mp4") for name in "abc"]
    results.rows("segments", videos[1].video_id).write_bytes(b"no table")
    strips = opened(results).strips([video.video_id for video in videos])
    assert [strips[video.video_id].any() for video in videos] == [True, False, True]


def test_a_file_of_an_earlier_version_lacks_columns_and_is_shown(library, results):
    old = add_video(results, "/old.mp4")
    path = results.rows("videos", old.video_id)
    rewritten = path.with_suffix(".new")
    duckdb.sql(f"copy (select * exclude (processing_seconds) from '{path}') to '{rewritten}' (format parquet)")
    rewritten.rename(path)
    library.refresh()
    assert "old.mp4" in names(library, Choice())
    assert library.damaged == ()


@pytest.mark.parametrize("old", [0, 1])
def test_segments_of_an_earlier_version_have_their_strips_beside_later_ones(results, old):
    videos = [add_video(results, f"/{name}.mp4") for name in "ab"]
    path = results.rows("segments", videos[old].video_id)
    pq.write_table(pq.read_table(path).drop_columns(["model_version"]), path)
    strips = opened(results).strips([video.video_id for video in videos])
    assert all(strip.any() for strip in strips.values())


@pytest.mark.parametrize("folder", ["[a] *", "it's ?", "{x,y}", "a\"b'c;--"])
def test_a_results_folder_may_have_any_name(tmp_path, folder):
    results = open_results(tmp_path / folder)
    video = add_video(results, "/a.mp4")
    library = opened(results)
    assert names(library, Choice()) == ["a.mp4"]
    assert library.strips([video.video_id])[video.video_id].any()


def test_a_file_that_is_a_link_is_no_part_of_the_results(results, tmp_path):
    """Seen to fail: a link in a folder from a stranger showed the videos of another results folder."""
    private = open_results(tmp_path / "private")
    hidden = add_video(private, "/private/hidden.mp4", emotion="sad")
    video = add_video(results, "/study/a.mp4")
    (results.table("videos") / "link.parquet").symlink_to(private.rows("videos", hidden.video_id))
    assert names(opened(results), Choice()) == ["a.mp4"]
    segments = results.rows("segments", video.video_id)
    elsewhere = segments.rename(tmp_path / segments.name)
    assert not opened(results).strips([video.video_id])[video.video_id].any()
    segments.symlink_to(elsewhere)
    assert not opened(results).strips([video.video_id])[video.video_id].any()


def test_what_columns_a_table_has_is_not_read_through_a_link(results, tmp_path):
    private = open_results(tmp_path / "private")
    hidden = add_video(private, "/private/hidden.mp4", emotion="sad")
    old = results.rows("videos", add_video(results, "/study/a.mp4").video_id)
    pq.write_table(pq.read_table(old).drop_columns(["share_sad"]), old)
    columns = results.table("videos") / "columns.parquet"
    columns.unlink()
    columns.symlink_to(private.rows("videos", hidden.video_id))
    assert "hidden.mp4" not in names(opened(results), Choice())


def test_an_empty_results_folder_has_no_videos(results):
    library = opened(results)
    assert library.videos(Choice()) == library.folders(Choice()) == []
    assert library.totals(Choice()).videos == 0


def test_reading_meets_no_error_while_tables_are_written_and_merged(results):
    for number in range(30):
        add_video(results, f"/{number}.mp4")
    library = opened(results)
    is_over = threading.Event()
    errors, counts = [], []

    def read():
        try:
            while not is_over.is_set():
                library.refresh()
                counts.append(library.totals(Choice()).videos)
                some = library.videos(Choice(), "oldest", count=30)
                strips = opened(results).strips([video.video_id for video in some])
                assert all(strip.any() for strip in strips.values())
        except Exception as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(3):
            add_video(results, f"/new {number}.mp4")
            compact(results, older_than_days=0)
    finally:
        is_over.set()
        reader.join()
    assert errors == []
    assert counts == sorted(counts)
    assert min(counts) >= 30


def test_the_tables_may_lie_in_a_bucket(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("FERFLOW_CACHE", str(tmp_path))
    results = open_results(bucket / "results")
    video = add_video(results, "s3://videos/day 1/a.mp4")
    library = opened(results)
    (listed,) = library.videos(Choice())
    assert (listed.name, listed.folder) == ("a.mp4", "s3://videos/day 1")
    assert library.strips([video.video_id])[video.video_id].any()
