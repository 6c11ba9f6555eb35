"""Sources: which videos there are, and which are still to be done."""

import contextlib
import dataclasses
import errno
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ferflow import sources
from ferflow.config import Settings
from ferflow.errors import ConfigError
from ferflow.records import VideoSummary
from ferflow.rows import read_video, write_video
from ferflow.sources import KnownSources, find_videos, is_listed, list_videos, open_results, plan_jobs
from ferflow.storage import Results, content_id
from flows.each_video import Stages, process_each
from flows.report import Report
from flows.watch_runs import fates_of


def touch(path: Path, content: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content or path.name)
    return path


@pytest.fixture
def results(tmp_path) -> Results:
    return open_results(tmp_path / "results")


def finish(results: Results, video_id: str, **changes: object) -> VideoSummary:
    """A result as an analysis leaves it."""
    summary = VideoSummary(
        video_id=video_id,
        source="somewhere",
        status="done",
        error=None,
        info=None,
        face_count=0,
        track_count=0,
        dominant_emotion=None,
        emotion_shares=None,
        annotated_path="annotated/a.mp4",
        timeline_path=None,
        model_version="model-1",
        settings_hash=Settings().settings_hash,
        processed_at=datetime.now(UTC),
        processing_seconds=1.0,
    )
    summary = dataclasses.replace(summary, **changes)  # type: ignore[arg-type]
    touch(results.root / "annotated" / "a.mp4")
    write_video(results.rows("videos", video_id), summary, parts=results.parts)
    return summary


def plan(videos: list[Path], results: Results, **options: object) -> list[tuple[str, bool]]:
    """Names of the videos, and whether their results are there."""
    chosen = {"model_version": lambda: "model-1", "settings": Settings()} | options
    jobs = plan_jobs(videos, results, **chosen)  # type: ignore[arg-type]
    return [(job.source.name, job.earlier is not None) for job in jobs]


def test_a_folder_gives_its_videos_and_leaves_the_other_files(tmp_path):
    for name in [
        "b.MP4",
        "a.mov",
        "deep/er/c.webm",
        "notes.txt",
        ".hidden.mp4",
        "~lock.mp4",
        ".git/x.mp4",
        "d.mp4.part",
    ]:
        touch(tmp_path / name)
    names = [path.relative_to(tmp_path).as_posix() for path in find_videos([tmp_path])]
    assert names == ["a.mov", "b.MP4", "deep/er/c.webm"]


def test_a_named_file_counts_whatever_its_name_and_once(tmp_path):
    named = touch(tmp_path / "recording of März")
    assert find_videos([named, named, tmp_path]) == [named]


def test_what_ferflow_drew_is_not_analysed_again(tmp_path):
    results = open_results(tmp_path)
    touch(results.root / "annotated" / "a-1234.mp4")
    video = touch(tmp_path / "a.mp4")
    assert find_videos([tmp_path]) == [video]


def test_a_source_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone: there is no such file or folder"):
        find_videos([tmp_path / "gone"])


def test_a_folder_without_videos_says_what_is_looked_for(tmp_path):
    touch(tmp_path / "notes.txt")
    with pytest.raises(ConfigError, match=r"no video in there; ferflow looks for .*\.mp4"):
        find_videos([tmp_path])


def test_a_results_folder_that_cannot_be_made_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="choose another with --results"):
        open_results(touch(tmp_path / "file") / "results")


def test_the_same_content_is_one_video(tmp_path, results):
    first = touch(tmp_path / "a.mp4", "content")
    second = touch(tmp_path / "copy of a.mp4", "content")
    other = touch(tmp_path / "b.mp4", "other")
    jobs = list(plan_jobs([first, second, other], results, model_version=lambda: "model-1", settings=Settings()))
    assert [(job.source.name, job.copy_of) for job in jobs] == [
        ("a.mp4", None),
        ("copy of a.mp4", first),
        ("b.mp4", None),
    ]


def test_what_is_done_is_not_done_again_under_another_name_either(tmp_path, results):
    video = touch(tmp_path / "a.mp4")
    (job,) = plan_jobs([video], results, model_version=lambda: "model-1", settings=Settings())
    earlier = finish(results, job.video_id)
    renamed = Path(shutil.move(video, tmp_path / "renamed.mp4"))
    (job,) = plan_jobs([renamed], results, model_version=lambda: "model-1", settings=Settings())
    assert job.earlier == earlier


@pytest.mark.parametrize(
    "options",
    [{"force": True}, {"model_version": lambda: "model-2"}, {"settings": Settings(max_fps=5)}],
    ids=["forced", "another model", "other settings"],
)
def test_what_is_done_is_done_again_when(tmp_path, results, options):
    video = touch(tmp_path / "a.mp4")
    (job,) = plan_jobs([video], results, model_version=lambda: "model-1", settings=Settings())
    finish(results, job.video_id)
    assert plan([video], results) == [("a.mp4", True)]
    assert plan([video], results, **options) == [("a.mp4", False)]


def test_what_is_done_is_done_again_when_its_annotated_video_is_gone(tmp_path, results):
    video = touch(tmp_path / "a.mp4")
    (job,) = plan_jobs([video], results, model_version=lambda: "model-1", settings=Settings())
    finish(results, job.video_id)
    (results.root / "annotated" / "a.mp4").unlink()
    assert plan([video], results) == [("a.mp4", False)]


@pytest.mark.parametrize(
    "content",
    [b"", b"PAR1", bytes(100), b"PAR1" + bytes(4000) + b"\xff\0\0\0PAR1"],
    ids=["empty", "cut off", "blank", "damaged at the end"],
)
@pytest.mark.fault("a file of the videos table is empty or damaged")
def test_a_damaged_row_is_told_of_once_and_costs_no_other_video(tmp_path, results, caplog, content):
    """Seen to fail: nothing was known any more of any video, and a watch did nothing that came while it was away."""
    videos = [touch(tmp_path / name) for name in ("a.mp4", "b.mp4")]
    first, second = plan_jobs(videos, results, model_version=lambda: "model-1", settings=Settings())
    for job in (first, second):
        finish(results, job.video_id, source=str(job.source))
    damaged = results.rows("videos", first.video_id)
    damaged.write_bytes(content)
    known = KnownSources(results)
    assert known.look().keys() == known.look().keys() == {str(second.source)}
    assert [record.message for record in caplog.records] == [
        f"{damaged}: this table is damaged; remove the file and analyse its video again."
    ]
    assert plan(videos, results) == [("a.mp4", False), ("b.mp4", True)]
    finish(results, first.video_id, source=str(first.source))
    assert known.look().keys() == {str(first.source), str(second.source)}


def test_what_is_done_is_done_again_when_its_faces_are_damaged(tmp_path, results):
    """Seen to fail: it was already done, and every reader of the faces failed."""
    video = touch(tmp_path / "a.mp4")
    (job,) = plan_jobs([video], results, model_version=lambda: "model-1", settings=Settings())
    finish(results, job.video_id)
    results.rows("faces", job.video_id).write_bytes(b"")
    assert plan([video], results) == [("a.mp4", False)]


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (OSError(errno.EIO, "Input/output error"), "the file cannot be read (Input/output error); check the disk"),
        (ConnectionError("no answer"), "the file cannot be read (no answer); check the disk"),
        (PermissionError(errno.EACCES, "Permission denied"), "the file cannot be read; ask its owner"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "there is no such file."),
    ],
)
def test_what_cannot_be_read_now_is_not_analysed_and_tried_again(tmp_path, results, monkeypatch, fault, sentence):
    """Seen to fail: it was analysed under a hash of its path, and once more under its own when it could be read."""
    video = touch(tmp_path / "a.mp4")
    with monkeypatch.context() as patch:
        patch.setattr("ferflow.sources.content_id", lambda path: (_ for _ in ()).throw(fault))
        (job,) = plan_jobs([video], results, model_version=lambda: "model-1", settings=Settings())
    assert job.fault is not None
    assert job.fault.startswith(sentence)
    heard = Report(1)
    process_each(iter([job]), results, Stages(_never, _never, _never), settings=Settings(), workers=1, listener=heard)
    assert [summary.error for summary in heard.failed] == [job.fault]
    assert fates_of([(job, heard.failed[0])]) == {}, "a watch hands it out again"
    assert [path.name for path in results.root.rglob("*.parquet")] == ["columns.parquet"] * 3
    (job,) = plan_jobs([video], results, model_version=lambda: "model-1", settings=Settings())
    assert (job.fault, job.video_id) == (None, content_id(video))


@pytest.mark.parametrize("there", ["folder", "bucket"])
@pytest.mark.parametrize("moment", ["listed", "stat_file", "_is_regular", "content_id"])
def test_a_video_that_vanishes_between_its_listing_and_its_end_is_one_sentence(
    there, moment, request, tmp_path, results, monkeypatch
):
    folder = tmp_path / "inbox" if there == "folder" else request.getfixturevalue("bucket") / "inbox"
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode())
    videos = find_videos([folder])

    def vanish() -> None:
        (folder / "b.mp4").unlink(missing_ok=True)

    def look_before_it_vanishes(path: Path) -> object:
        found = look(path)
        if path.name == "b.mp4":
            vanish()
        return found

    if moment == "listed":
        vanish()
    else:
        look = getattr(sources, moment)
        monkeypatch.setattr(sources, moment, look_before_it_vanishes)
    jobs = plan_jobs(videos, results, model_version=lambda: "model-1", settings=Settings())
    faults = {}
    for job in jobs:
        with contextlib.closing(job):
            faults[job.name] = job.fault
    # What was read of a bucket's is at hand; a file of this machine is missed when it is opened.
    is_read = moment == "content_id" and there == "bucket"
    assert faults == {"a.mp4": None, "b.mp4": None if is_read else "there is no such file.", "c.mp4": None}


def _never(*_: object) -> Path:
    raise AssertionError("it is not to be analysed")


def test_a_file_that_is_replaced_while_it_is_identified_is_not_taken_for_either(tmp_path, results, monkeypatch):
    """Seen to fail: without the second look at the tag in `sources._identify` the new content was taken up under the
    old one's tag."""
    video = touch(tmp_path / "a.mp4", "old")

    def replace(path: Path) -> str:
        touch(path, "new, and longer")
        return content_id(path)

    with monkeypatch.context() as patch:
        patch.setattr("ferflow.sources.content_id", replace)
        (job,) = plan_jobs([video], results, model_version=lambda: "model-1", settings=Settings())
    assert job.fault is not None
    assert job.fault.startswith("it was changed or replaced while it was read;")
    assert plan([video], results) == [("a.mp4", False)]


@pytest.mark.fault("a pipe, a device or a link to one is named like a video")
def test_what_is_no_file_is_passed_over_and_said_so(tmp_path, results, caplog):
    """Seen to fail: the run waited for ever for somebody to write into the pipe, and Ctrl-C did not end it."""
    video = touch(tmp_path / "inbox" / "a.mp4")
    os.mkfifo(tmp_path / "inbox" / "pipe.mp4")
    (tmp_path / "inbox" / "zeros.mp4").symlink_to("/dev/zero")
    assert find_videos([tmp_path / "inbox"]) == [video]
    assert [file.path for file in list_videos(tmp_path / "inbox")] == [video]
    assert [name for name in ("a.mp4", "pipe.mp4") if is_listed(tmp_path / "inbox" / name, tmp_path)] == ["a.mp4"]
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}/inbox/{name}.mp4: this is a pipe or a device, not a file; it is passed over."
        for name in ("pipe", "zeros")
    ], "once, however often it is looked at"
    with pytest.raises(ConfigError, match=r"pipe\.mp4: this is a pipe or a device, not a file; name a video"):
        find_videos([tmp_path / "inbox" / "pipe.mp4"])
    (job,) = plan_jobs([tmp_path / "inbox" / "pipe.mp4"], results, model_version=lambda: "model-1", settings=Settings())
    assert job.fault == "this is a pipe or a device, not a file; name a video or a folder of videos."


def test_a_folder_that_cannot_be_read_is_said(tmp_path, caplog):
    """Seen to fail: it was passed over in silence."""
    video = touch(tmp_path / "a.mp4")
    here = os.open(tmp_path, os.O_RDONLY)
    # A path longer than the system takes, which also the administrator cannot read.
    for _ in range(20):
        os.mkdir("x" * 250, dir_fd=here)
        here, above = os.open("x" * 250, os.O_RDONLY, dir_fd=here), here
        os.close(above)
    os.close(here)
    try:
        assert find_videos([tmp_path]) == find_videos([tmp_path]) == [video]
    finally:
        shutil.rmtree(tmp_path)
    (said,) = [record.message for record in caplog.records]
    assert said.endswith("xxx: this folder cannot be read (File name too long); what is in it is passed over.")


def test_of_several_sources_one_that_is_not_there_is_told_in_its_turn(tmp_path, results):
    """Seen to fail: none of the others was analysed, as after a Retry of a run whose finished files were moved."""
    gone, video = tmp_path / "gone.mp4", touch(tmp_path / "a.mp4")
    assert find_videos([gone, video]) == [gone, video]
    jobs = list(plan_jobs([gone, video], results, model_version=lambda: "model-1", settings=Settings()))
    assert [(job.source.name, job.fault) for job in jobs] == [("gone.mp4", "there is no such file."), ("a.mp4", None)]
    with pytest.raises(ConfigError, match=r"gone\.mp4: there is no such file or folder; check the name\."):
        find_videos([gone, gone, tmp_path / "gone, too.mp4"])


def test_a_result_that_is_about_to_be_replaced_is_nobodys_but_stays(tmp_path, results):
    video = touch(tmp_path / "a.mp4")
    (job,) = plan_jobs([video], results, model_version=lambda: "model-1", settings=Settings())
    job.close()
    earlier = finish(results, job.video_id)
    (job,) = plan_jobs([video], results, model_version=lambda: "model-1", settings=Settings(max_fps=5))
    job.close()
    assert job.outdated == earlier
    assert read_video(results.rows("videos", job.video_id)) == dataclasses.replace(earlier, settings_hash="")
    assert plan([video], results) == [("a.mp4", False)]


def test_the_version_is_asked_for_when_a_videos_turn_comes(tmp_path, results):
    videos = [touch(tmp_path / name) for name in ("a.mp4", "b.mp4", "c.mp4")]
    for job in list(plan_jobs(videos, results, model_version=lambda: "model-1", settings=Settings())):
        finish(results, job.video_id)
    in_use = "model-1"
    jobs = plan_jobs(videos, results, model_version=lambda: in_use, settings=Settings())
    first = next(jobs)
    in_use = "model-2"
    second, third = jobs
    assert [job.model_version for job in (first, second, third)] == ["model-1", "model-2", "model-2"]
    assert [job.earlier is None for job in (first, second, third)] == [False, True, True]
