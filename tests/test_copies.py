"""Copies of a bucket's files on this machine: one of each, as many as have room, none taken from who reads it."""

import gc
import threading

import pytest
from prefect_server import eventually
from s3_server import forget_stores, in_trouble

from ferflow.storage import place, stat_file
from viewer.copies import Copies


@pytest.fixture
def objects(bucket):
    """Five objects of a thousand bytes."""
    made = [bucket / f"{number}.mp4" for number in range(5)]
    for number, path in enumerate(made):
        path.write_bytes(bytes([number]) * 1000)
    return made


@pytest.fixture
def copies(tmp_path):
    return Copies(tmp_path / "copies", most_bytes=2500)


def look_at(copies, path):
    """Fetch one, and hold it no longer."""
    copied = copies.take(stat_file(path)).wait()
    eventually(lambda: gc.collect() >= 0 and copied not in copies._held, "nobody to hold it")
    return copied


def test_a_copy_is_the_file_and_is_fetched_once(copies, objects):
    first = look_at(copies, objects[1])
    assert first.read_bytes() == objects[1].read_bytes()
    assert first.suffix == ".mp4"
    made_at = first.stat().st_ino
    assert look_at(copies, objects[1]).stat().st_ino == made_at


def test_what_was_looked_at_longest_ago_makes_room(copies, objects):
    first, second = look_at(copies, objects[0]), look_at(copies, objects[1])
    look_at(copies, objects[0])
    third = look_at(copies, objects[2])
    assert [path.exists() for path in (first, second, third)] == [True, False, True]


def test_what_somebody_looks_at_is_not_removed_and_the_next_one_still_comes(copies, objects):
    held = [copies.take(stat_file(path)) for path in objects]
    assert [copy.wait().read_bytes() for copy in held] == [path.read_bytes() for path in objects]
    paths = [copy.path for copy in held]
    held.clear()
    eventually(lambda: gc.collect() >= 0 and not copies._held, "nobody to hold them")
    look_at(copies, objects[4])
    assert sum(path.exists() for path in paths) == 5, "what is here already needs no room"
    objects[0].write_bytes(b"x" * 900)
    look_at(copies, objects[0])
    assert sum(path.exists() for path in paths) == 1


def test_one_that_is_larger_than_all_that_is_kept_comes_too(copies, objects):
    first = look_at(copies, objects[0])
    objects[1].write_bytes(b"x" * 10_000)
    assert look_at(copies, objects[1]).stat().st_size == 10_000
    assert not first.exists()


def test_an_object_that_was_replaced_is_another_one(copies, objects):
    look_at(copies, objects[0])
    objects[0].write_bytes(b"new")
    assert look_at(copies, objects[0]).read_bytes() == b"new"


def test_two_who_ask_at_once_share_one_that_is_on_its_way(copies, objects, s3_server, monkeypatch):
    asked, may_come = [], threading.Event()

    def hold_back(request):
        if request.startswith("GET") and "0.mp4" in request:
            asked.append(request)
            may_come.wait(60)

    with in_trouble(s3_server, [""], before=hold_back) as (url, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        forget_stores()
        file = stat_file(place(str(objects[0])))
        first, second = copies.take(file), copies.take(file)
        assert first is second
        assert not first.arrived.done()
        assert first.share == 0
        may_come.set()
        assert first.wait().read_bytes() == bytes(1000)
        assert first.share == 1
    forget_stores()
    assert len(asked) == 1


def test_one_that_does_not_arrive_is_asked_for_again(copies, objects):
    file = stat_file(objects[0])
    objects[0].unlink()
    failed = copies.take(file)
    with pytest.raises(FileNotFoundError):
        failed.wait()
    assert isinstance(failed.error, FileNotFoundError)
    objects[0].write_bytes(b"again")
    assert copies.take(file).wait().read_bytes() == b"again"
