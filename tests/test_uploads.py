"""A dropped file reaches the inbox under a safe name, whole or not at all."""

import errno
import io
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferflow.errors import VideoError
from ferflow.sources import list_videos, open_results
from ferflow.storage import content_id
from ferflow.watch_settings import load_watch_settings
from viewer.uploads import safe_name, take_upload

KINDS = ".mp4 .mov .avi .flv .mkv .webm"


@pytest.mark.fault("an upload called ../../etc/passwd.mp4 and the like", "a name that harms nothing")
@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("talk.mp4", "talk.mp4"),
        ("Gespräch mit Zoë 3.MP4", "Gespräch mit Zoë 3.mp4"),
        ("../../etc/passwd.mp4", "passwd.mp4"),
        ("C:\\Users\\me\\talk.mov", "talk.mov"),
        ("<script>alert('x')</script>.mp4", "script_.mp4"),
        ('a<b>"c"|d?*.mp4', "a_b__c__d__.mp4"),
        ("a %22b%22.mp4", "a _b_.mp4"),
        (".hidden.mp4", "hidden.mp4"),
        ("~tmp.mp4", "tmp.mp4"),
        ("-rf.mp4", "rf.mp4"),
        ("gpj\u202e4pm.exe.mp4", "gpj4pm.exe.mp4"),
        ("a\x00b\nc\u200b.mp4", "abc.mp4"),
        ("   .mp4", "video.mp4"),
        ("…/..mp4", "video.mp4"),
        ("\u3164\u115f \u1160\uffa0\u2800.mp4", "video.mp4"),
        ("\ufe0f\u034f.mp4", "video.mp4"),
        ("a\u3164\u115f\u1160b\uffa0\u2800c\u17b4.mp4", "abc.mp4"),
        ("한글 Zoë.mp4", "한글 Zoë.mp4"),
        ("x" * 300 + ".mp4", "x" * 120 + ".mp4"),
        ("日本語" * 60 + ".webm", "日本語" * 13 + "日.webm"),
    ],
)
def test_a_name_becomes_one_that_harms_nothing(name, safe):
    """Seen to fail: without `rpartition` in `safe_name` the folders stayed in the name, /../etc/passwd.mp4; without
    `strip` it was hidden; without `encode()[:...]` it stayed too long."""
    assert safe_name(name) == safe


@pytest.mark.fault("any text as the name of an upload", "100 texts: 0 files outside the inbox")
@given(
    st.lists(st.sampled_from(["/", "../", "\\", "%22", ".", "~", "-", "\0", "\u202e", ".mp4"]) | st.text()).map("".join)
)
def test_no_name_leaves_the_inbox_or_hides_in_it(name):
    """Seen to fail: without `rpartition` in `safe_name` a slash stayed in the name (of 100 texts without the signs
    named here none held one), without `strip` a dot began it, without `category` an escape sign was left in it."""
    safe = safe_name(name)
    assert safe
    assert Path(safe).name == safe
    assert safe.isprintable()
    assert not safe.startswith((".", "~", "-"))
    assert len(safe.encode()) < 255 or len(safe.rpartition(".")[2]) > 100


@pytest.fixture
def place(tmp_path):
    (tmp_path / "inbox").mkdir()
    watching = load_watch_settings(None, sources=[str(tmp_path / "inbox")], results=str(tmp_path / "results"))
    return watching, open_results(tmp_path / "results"), tmp_path / "inbox"


def test_a_video_lands_whole_under_its_name(place, make_video, tmp_path):
    watching, results, inbox = place
    video = make_video(tmp_path / "made" / "a.mp4", frame_count=2)
    with video.open("rb") as file:
        upload = take_upload(file, "../Talk.MP4", watching, results)
    assert (upload.name, upload.video_id) == ("Talk.mp4", content_id(video))
    assert [(found.path.name, found.size_bytes) for found in list_videos(inbox)] == [("Talk.mp4", video.stat().st_size)]


def test_another_video_of_the_same_name_replaces_none_and_the_same_one_lies_there_once(place, make_video, tmp_path):
    watching, results, inbox = place
    written = []
    for frame_count in (2, 3, 2, 3):
        video = make_video(tmp_path / "made" / "a.mp4", frame_count=frame_count)
        with video.open("rb") as file:
            upload = take_upload(file, "talk.mp4", watching, results)
        written.append((upload.name, (inbox / upload.name).stat().st_mtime_ns))
    other = make_video(tmp_path / "made" / "b.mp4", frame_count=3)
    assert [name for name, _ in written[:2]] == ["talk.mp4", f"talk-{content_id(other)}.mp4"]
    assert written[2:] == written[:2], "what lies there is not written anew, perhaps while it is analysed"
    assert len(list(inbox.iterdir())) == 2


class Slow(io.BytesIO):
    """A file during whose copying something happens."""

    def __init__(self, content, happens):
        super().__init__(content)
        self.happens, self.is_read_again = happens, False

    def seek(self, *place):
        self.is_read_again = True
        return super().seek(*place)

    def read(self, size=-1):
        if self.is_read_again:
            self.happens()
        return super().read(size)


@pytest.mark.fault(
    "a file is copied into the inbox under the name of an upload that comes in", "2 disks: none overwritten"
)
@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_arrives_under_its_name_meanwhile_is_not_overwritten(
    place, make_video, tmp_path, monkeypatch, has_links
):
    """Seen to fail: with `os.replace` for the link, and on a disk without links also without the empty file that takes
    the name first, the upload lay where the copied file had been."""
    if not has_links:

        def link(source, target):
            raise PermissionError(errno.EPERM, "Operation not permitted", target)

        monkeypatch.setattr(os, "link", link)
    watching, results, inbox = place
    video = make_video(tmp_path / "made" / "a.mp4", frame_count=2)
    file = Slow(video.read_bytes(), lambda: (inbox / "talk.mp4").write_bytes(b"of somebody else"))
    upload = take_upload(file, "talk.mp4", watching, results)
    assert (inbox / "talk.mp4").read_bytes() == b"of somebody else"
    assert upload.name == f"talk-{content_id(video)}.mp4"
    assert (inbox / upload.name).read_bytes() == video.read_bytes()
    assert len(list(inbox.iterdir())) == 2


def test_an_upload_that_hangs_holds_up_no_other(place, make_video, tmp_path):
    watching, results, inbox = place
    videos = [make_video(tmp_path / "made" / f"{count}.mp4", frame_count=count) for count in (2, 3)]
    reached, go_on = threading.Event(), threading.Event()

    def hang():
        reached.set()
        assert go_on.wait(60)

    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(take_upload, Slow(videos[0].read_bytes(), hang), "a.mp4", watching, results)
        assert reached.wait(60)
        with ThreadPoolExecutor(1) as other:
            taken = other.submit(take_upload, io.BytesIO(videos[1].read_bytes()), "b.mp4", watching, results)
            try:
                assert taken.result(60).name == "b.mp4"
            finally:
                go_on.set()
        assert hanging.result(60).name == "a.mp4"
    assert sorted(path.name for path in inbox.iterdir()) == ["a.mp4", "b.mp4"]


def test_what_a_killed_upload_left_goes_at_the_next_one_when_it_is_a_day_old(place, make_video, tmp_path):
    watching, results, inbox = place
    kept, gone = [inbox / f".{letter * 32}.part" for letter in "ab"]
    others = inbox / ".download.mp4.part"
    for path in (kept, gone, others):
        path.write_bytes(b"half")
    for path in (gone, others):
        os.utime(path, (time.time() - 100_000,) * 2)
    video = make_video(tmp_path / "made" / "a.mp4", frame_count=2)
    with video.open("rb") as file:
        take_upload(file, "a.mp4", watching, results)
    assert {path.name for path in inbox.iterdir()} == {"a.mp4", kept.name, others.name}


def test_a_damaged_result_does_not_keep_its_video_out(place, make_video, tmp_path):
    watching, results, inbox = place
    video = make_video(tmp_path / "made" / "a.mp4", frame_count=2)
    results.rows("videos", content_id(video)).write_bytes(b"PAR1 no more")
    with video.open("rb") as file:
        take_upload(file, "talk.mp4", watching, results)
    assert [path.name for path in inbox.iterdir()] == ["talk.mp4"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("notes.txt", b"text", f"this is no kind of video that is taken here; drop one of {KINDS}."),
        ("video", b"text", f"this is no kind of video that is taken here; drop one of {KINDS}."),
        ("empty.mp4", b"", "the file is empty (0 bytes); copy or record it again."),
        ("text.mp4", b"no pictures" * 50, "this is a text file, not a video, whatever its name says."),
        ("noise.mkv", bytes(range(256)), "this is not a video in any known format, or its beginning is damaged."),
        (
            "large.mp4",
            b"0" * (1024 * 1024 + 1),
            "this is larger than 1 MB, which is as much as is taken here; copy it into the inbox folder instead, or "
            "raise max_upload_mb.",
        ),
    ],
)
def test_what_is_no_video_is_refused_in_a_sentence_and_leaves_nothing(place, name, content, sentence):
    watching, results, inbox = place
    watching = watching.model_copy(update={"max_upload_mb": 1})
    with pytest.raises(VideoError) as refused:
        take_upload(io.BytesIO(content), name, watching, results)
    assert str(refused.value) == f"{name}: {sentence}"
    assert list(inbox.iterdir()) == []


def test_a_bucket_takes_it_as_one_object(bucket, make_video, tmp_path):
    watching = load_watch_settings(None, sources=[str(bucket / "inbox")], results=str(bucket / "results"))
    results = open_results(bucket / "results")
    video = make_video(tmp_path / "a.mp4", frame_count=2)
    with video.open("rb") as file:
        upload = take_upload(file, "a.mp4", watching, results)
    assert [found.path.name for found in list_videos(bucket / "inbox")] == ["a.mp4"]
    assert upload.video_id == content_id(video)
