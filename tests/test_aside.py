"""Out of the way: a file is moved, to another disk too; none is overwritten, none is lost."""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ferflow.aside import move_aside
from ferflow.storage import place

ROOT = Path(__file__).parents[1]


def test_a_file_is_moved_aside_and_none_is_overwritten(tmp_path):
    done = tmp_path / "done"
    for content in ("first", "second", "third"):
        (tmp_path / "a.mp4").write_text(content)
        move_aside(tmp_path / "a.mp4", done)
    assert {path.name: path.read_text() for path in done.iterdir()} == {
        "a.mp4": "first",
        "a (2).mp4": "second",
        "a (3).mp4": "third",
    }
    assert not (tmp_path / "a.mp4").exists()


@pytest.fixture
def other_disk(tmp_path) -> Iterator[Path]:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("one disk only")
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


def test_a_file_is_moved_to_another_disk_and_none_is_overwritten(tmp_path, other_disk):
    done = other_disk / "done"
    for content in ("first", "second", "third"):
        (tmp_path / "a.mp4").write_text(content)
        os.utime(tmp_path / "a.mp4", (1e9, 1e9))
        move_aside(tmp_path / "a.mp4", done)
        assert not (tmp_path / "a.mp4").exists()
    found = {path.name: (path.read_text(), path.stat().st_mtime) for path in done.iterdir()}
    assert found == {"a.mp4": ("first", 1e9), "a (2).mp4": ("second", 1e9), "a (3).mp4": ("third", 1e9)}


def during_the_copy(monkeypatch: pytest.MonkeyPatch, happen: Callable[[], object]) -> None:
    copy = shutil.copyfileobj

    def copy_and_more(source: Any, target: Any, length: int = 0) -> None:
        copy(source, target, length)
        happen()

    monkeypatch.setattr(shutil, "copyfileobj", copy_and_more)


@pytest.mark.fault("another video takes the name of one that is being moved to another disk")
def test_a_file_that_takes_the_name_of_one_that_is_moved_to_another_disk_stays(tmp_path, other_disk, monkeypatch):
    """Seen to fail: the new file was deleted in place of the old one."""
    source, new = tmp_path / "a.mp4", tmp_path / "new.part"
    source.write_text("old")
    new.write_text("new")
    during_the_copy(monkeypatch, lambda: new.replace(source))
    assert move_aside(source, other_disk / "done").read_text() == "old"
    assert source.read_text() == "new"


def test_a_file_that_is_written_to_while_it_is_moved_to_another_disk_stays(tmp_path, other_disk, monkeypatch):
    source = tmp_path / "a.mp4"
    source.write_text("begun")
    during_the_copy(monkeypatch, lambda: source.write_text("begun, and gone on with"))
    with pytest.raises(OSError, match="it was written to while it was copied"):
        move_aside(source, other_disk / "done")
    assert source.read_text() == "begun, and gone on with"
    assert list((other_disk / "done").iterdir()) == []


@pytest.mark.fault("kill -9 while a video is moved aside")
def test_of_a_move_that_was_killed_nothing_is_left_over(tmp_path, other_disk):
    """Seen to fail: without `_clear_abandoned` the killed one's copy stayed, and where that paid no heed to the lock it
    took the copy of one that lives."""
    source, done = tmp_path / "a.mp4", other_disk / "done"
    source.write_bytes(bytes(1 << 20))
    code = (
        "import pathlib, shutil, sys, time; from ferflow.aside import move_aside\n"
        "def begin(source, target, length):\n"
        "    target.write(source.read(1000)); target.flush(); print('ready', flush=True); time.sleep(600)\n"
        "shutil.copyfileobj = begin\n"
        "move_aside(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    )
    with subprocess.Popen([sys.executable, "-c", code, source, done], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (tmp_path / "b.mp4").write_text("another")
        move_aside(tmp_path / "b.mp4", done)
        assert len([path for path in done.iterdir() if path.name.startswith(".")]) == 1, "its process lives"
        process.kill()
    assert move_aside(source, done) == done / "a.mp4"
    assert sorted(path.name for path in done.iterdir()) == ["a.mp4", "b.mp4"]
    assert (done / "a.mp4").stat().st_size == 1 << 20


@pytest.mark.parametrize("can_refuse", [True, False], ids=["in one step", "on a disk that knows no such step"])
def test_a_file_that_cannot_be_moved_stays(tmp_path, monkeypatch, can_refuse):
    if not can_refuse:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    source, done = tmp_path / "a.mp4", tmp_path / "done"
    source.write_text("bytes")
    assert move_aside(source, done) == done / "a.mp4"
    source.write_text("more")
    assert move_aside(source, done) == done / "a (2).mp4"
    with pytest.raises(FileNotFoundError):
        move_aside(source, done)
    assert sorted(path.name for path in done.iterdir()) == ["a (2).mp4", "a.mp4"]


def test_an_object_is_moved_aside_within_its_bucket():
    inbox, done = place("memory://aside/inbox"), place("memory://aside/done")
    for content in (b"first", b"second"):
        (inbox / "a.mp4").write_bytes(content)
        move_aside(inbox / "a.mp4", done)
    assert not (inbox / "a.mp4").exists()
    assert {path.name: path.read_bytes() for path in done.iterdir()} == {"a.mp4": b"first", "a (2).mp4": b"second"}
