"""What the process at work tells of a video is what a page reads, and it is gone when the work ends."""

import dataclasses
import json
import time

import pytest

from ferflow import progress
from ferflow.progress import AtWork, Teller, find_progress, list_progress
from ferflow.storage import Results


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "_EVERY_SECONDS", 0.0)
    return Results(tmp_path)


def test_a_share_of_two_stages_is_told(results):
    Teller(results, "a" * 16, "/inbox/a.mp4", stages=("faces", "drawing")).tell("drawing", 50, 100)
    (found,) = list_progress(results)
    assert found == find_progress(results, "a" * 16)
    assert (found.source, found.share, found.stage) == ("/inbox/a.mp4", 0.75, "drawing")
    assert (found.frames_done, found.frames_expected) == (50, 100)


def test_the_time_left_follows_from_the_time_taken():
    state = AtWork("a", "a.mp4", 0.25, "faces", 1, 2, began_at=100.0, told_at=110.0)
    assert state.seconds_left == 30.0
    assert dataclasses.replace(state, share=0.0).seconds_left is None


def test_nothing_is_left_when_the_work_ends(results):
    teller = Teller(results, "a" * 16, "a.mp4", stages=("faces",))
    teller.tell("faces", 1, None)
    assert find_progress(results, "a" * 16).share == 0.0
    teller.end()
    assert list_progress(results) == []


def test_of_a_short_clip_nothing_is_told(tmp_path):
    teller = Teller(Results(tmp_path), "a" * 16, "a.mp4", stages=("faces",))
    teller.tell("faces", 1, 10)
    teller.end()
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_is_told_less_often_the_longer_it_takes(tmp_path):
    # A place whose kind is not that of a folder, as a bucket's is not.
    teller = Teller(Results(tmp_path), "a" * 16, "a.mp4", stages=("faces",))
    teller._parts = None
    began = teller._began_at
    pauses = [teller._pause_seconds(began + seconds) for seconds in (0, 300, 7200)]
    assert pauses == [pytest.approx(5), pytest.approx(30), pytest.approx(120)]


def test_what_a_killed_process_left_is_not_shown(results):
    Teller(results, "a" * 16, "a.mp4", stages=("faces",)).tell("faces", 1, 10)
    (path,) = (results.root / ".progress").iterdir()
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"told_at": time.time() - 3600}))
    assert list_progress(results) == []
    path.write_text("{")
    assert list_progress(results) == []
