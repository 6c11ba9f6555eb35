"""What reads a video may crash, hang, swell or be killed: its caller lives, and says what happened in a sentence."""

import ctypes
import logging
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ferflow import child_process
from ferflow.child_process import call_apart, end_children
from ferflow.config import Settings
from ferflow.errors import SourceError, Stopped, VideoError

CLIP = Path("clip.mp4")
HERE = Path(__file__).parent


# What the children do; they import it from this file.


def who(*, progress) -> int:
    return os.getpid()


def count(steps: int, *, progress) -> int:
    for done in range(1, steps + 1):
        progress(done, steps)
    return steps


def refuse(text: str, *, progress) -> None:
    raise VideoError(text)


def stumble(*, progress) -> None:
    raise ZeroDivisionError("nobody thought of this")


def crash(*, progress) -> None:
    """As C code does that follows a damaged pointer."""
    ctypes.string_at(0)


def crash_once(mark: Path, *, progress) -> str:
    if mark.exists():
        return "well"
    mark.touch()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def die_while_talking(*, progress) -> None:
    """A message of 100 kB is announced, and ends after its beginning."""
    talk = int(sys.orig_argv[-1].partition("serve(")[2].partition(",")[0])
    os.write(talk, struct.pack("!i", 100_000) + b"begin")
    os.kill(os.getpid(), signal.SIGKILL)


def hang(*, progress) -> None:
    progress(3, 10)
    # In C code that holds the interpreter's lock: no thread of Python could help.
    ctypes.PyDLL(None).sleep(600)


def go_round(*, progress) -> None:
    progress(3, 10)
    while True:
        pass


def dawdle(*, progress) -> None:
    for done in range(1, 1000):
        time.sleep(0.3)
        progress(done, 1000)


def swell(*, progress) -> int:
    return len(bytearray(3 << 30))


def say(*, progress) -> None:
    logging.getLogger("ferflow.frames").warning("its sound is %s", "damaged")


def call(work, **settings):
    return call_apart(work, video=CLIP, settings=Settings(**settings))


def test_a_child_is_kept_for_the_next_call():
    first = call(who)
    assert first != os.getpid()
    assert call(who) == first


def test_threads_have_a_child_each():
    together = threading.Barrier(3, timeout=60)

    def work() -> None:
        def meet(done: int, expected: int | None) -> None:
            if done == 1:
                together.wait()

        call_apart(partial(count, 1), video=CLIP, settings=Settings(), progress=meet)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(child_process._idle) >= 3


def test_a_video_is_given_to_the_child_that_knows_it():
    videos = [Path("a.mp4"), Path("b.mp4")]
    together = threading.Barrier(2, timeout=60)

    def meet(done: int, expected: int | None) -> None:
        if done == 1:
            together.wait()

    def ask(work: Callable[..., int], video: Path, **options: Any) -> int:
        return call_apart(work, video=video, settings=Settings(), **options)

    work = partial(count, 1)
    at_once = [threading.Thread(target=ask, args=(work, video), kwargs={"progress": meet}) for video in videos]
    for thread in at_once:
        thread.start()
    for thread in at_once:
        thread.join()
    first, second = (ask(who, video) for video in videos)
    assert first != second
    assert [ask(who, video) for video in reversed(videos)] == [second, first]


def test_the_first_and_the_last_step_are_heard_and_some_between_in_order():
    steps = []
    call_apart(partial(count, 50_000), video=CLIP, settings=Settings(), progress=lambda *step: steps.append(step))
    done = [step[0] for step in steps if step != (0, None)]
    assert (done[0], done[-1]) == (1, 50_000)
    assert done == sorted(set(done))
    assert len(done) < 5_000


def test_what_is_raised_there_is_raised_here_and_the_child_goes_on():
    """Seen to fail: without the note of `_sendable` nobody learnt where an error came from."""
    child = call(who)
    with pytest.raises(VideoError, match="this is no video"):
        call(partial(refuse, "this is no video"))
    with pytest.raises(ZeroDivisionError, match="nobody thought of this") as raised:
        call(stumble)
    assert "in stumble" in raised.value.__notes__[0], "where it came from"
    assert call(who) == child


@pytest.mark.fault("what reads a video crashes in C", "tried again in a new process, then a sentence")
def test_a_crash_is_tried_once_more_and_then_a_sentence(caplog):
    """Seen to fail with `_ATTEMPTS` at 1, as the next."""
    with pytest.raises(VideoError) as raised:
        call(crash)
    assert str(raised.value) == (
        "clip.mp4: what reads it crashed (SIGSEGV), also when it was tried again, so it was given up; "
        "the file is probably damaged."
    )
    assert "crashed (SIGSEGV); it is tried once more" in caplog.text


@pytest.mark.fault("what reads a video is killed once, from outside", "the video is done by a new process")
def test_a_child_that_was_killed_from_outside_costs_nothing(tmp_path):
    """Seen to fail: without the second try the video had failed."""
    assert call(partial(crash_once, tmp_path / "mark")) == "well"


@pytest.mark.fault("what reads a video dies in the middle of a message", "a sentence")
def test_a_child_that_dies_in_the_middle_of_a_message_is_a_sentence():
    """Seen to fail: it was an OSError, by which the whole run ended."""
    with pytest.raises(VideoError, match="what reads it was ended by SIGKILL, also when it was tried again"):
        call(die_while_talking)


def test_a_fault_of_who_listens_is_not_held_against_the_video():
    """Seen to fail: it was taken for the child's end, and the video was called damaged."""

    def lose(done: int, expected: int | None) -> None:
        raise ConnectionResetError("the bucket is away")

    began = time.monotonic()
    with pytest.raises(ConnectionResetError, match="the bucket is away"):
        call_apart(partial(count, 5), video=CLIP, settings=Settings(), progress=lose)
    assert time.monotonic() - began < 20


def test_no_file_of_another_thread_is_closed_when_a_child_is_ended_twice():
    """Seen to fail: the number of the lifeline was closed twice, and by then was another file's."""
    child = child_process._Child()
    child.end()
    reused = [os.open(os.devnull, os.O_RDONLY) for _ in range(10)]
    child.end()
    for number in reused:
        os.close(number)


@pytest.mark.fault("what reads a video hangs in C, or is too slow")
def test_what_hangs_is_given_up(record_property):
    """Seen to fail: without the first half of `_check_time` only the length of the video ended it."""
    call(who)  # Beginning a child takes time, too.
    began = time.monotonic()
    with pytest.raises(VideoError, match=r"^clip\.mp4: nothing has come of it for 1 s after frame 3, .* damaged\."):
        call(go_round, patience_seconds=1)
    record_property("figures", f"it hangs: a sentence after {time.monotonic() - began:.1f} s, of 1 s of patience")


@pytest.mark.fault("a disk hangs for longer than patience_seconds")
def test_what_waits_is_given_up_and_not_held_against_the_video():
    """Seen to fail: a video whose reader was halted for a while was called damaged, for ever."""
    call(who)
    with pytest.raises(SourceError, match=r"^clip\.mp4: nothing has come of it for 1 s after frame 3, .* for the disk"):
        call(hang, patience_seconds=1)


@pytest.mark.fault("what reads a video hangs in C, or is too slow")
def test_what_takes_too_long_by_its_length_is_given_up(record_property):
    """Seen to fail: without the second half of `_check_time` it went on for ever."""
    call(who)
    with pytest.raises(
        VideoError, match=r"it takes more than 0\.1 s a frame, so it was given up after frame \d"
    ) as told:
        call(dawdle, patience_seconds=1, max_seconds_per_frame=0.1)
    after = str(told.value).partition("given up ")[2].partition(".")[0]
    record_property("figures", f"0.3 s a frame where 0.1 are allowed: a sentence {after}")


def test_time_that_the_caller_takes_is_not_held_against_the_video():
    """Seen to fail: with all the time counted since the beginning it was given up after the second frame."""

    def slow(done: int, expected: int | None) -> None:
        time.sleep(0.4)

    settings = Settings(patience_seconds=1, max_seconds_per_frame=0.01)
    assert call_apart(partial(count, 5), video=CLIP, settings=settings, progress=slow) == 5


@pytest.mark.fault("what reads a video asks for 3 GB", "refused where 1 GB is allowed, granted where 8 are")
def test_what_swells_is_given_up():
    """Seen to fail: without `_limit_memory` it had its 3 GB."""
    with pytest.raises(VideoError, match="asks for more than 1 GB of memory, also when it was tried again"):
        call(swell, max_memory_gb=1)
    assert call(swell) == 3 << 30


def test_what_is_logged_there_is_logged_here(caplog):
    """Seen to fail where `_converse` passed its records over."""
    call(say)
    assert ("ferflow.frames", logging.WARNING, "its sound is damaged") in caplog.record_tuples


def test_who_stops_it_does_not_wait_for_what_hangs():
    """Seen to fail: where the last step was not told again, nobody was asked until the patience was over."""
    call(who)
    told = []

    def stop(done: int, expected: int | None) -> None:
        told.append(done)
        if told.count(3) > 2:  # By then it hangs.
            raise Stopped("stopped")

    began = time.monotonic()
    with pytest.raises(Stopped):
        call_apart(hang, video=CLIP, settings=Settings(patience_seconds=30), progress=stop)
    assert time.monotonic() - began < 20


def is_alive(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.fault("a run is killed while what reads a video hangs", "0 processes left")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_that_hangs_ends_with_its_parent(how, tmp_path):
    """Seen to fail: without O_ASYNC on the lifeline it lived on."""
    program = (
        "import sys; from pathlib import Path; from functools import partial\n"
        "from ferflow.child_process import call_apart; from ferflow.config import Settings\n"
        "from test_child_process import hang_and_tell\n"
        "call_apart(partial(hang_and_tell, Path(sys.argv[1])), video=Path('a'), settings=Settings())\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parent}"}
    told = tmp_path / "child"
    parent = subprocess.Popen([sys.executable, "-c", program, str(told)], env=environment)
    deadline = time.monotonic() + 60
    while not (told.exists() and told.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    child = int(told.read_text())
    assert is_alive(child)
    parent.send_signal(how)
    parent.wait(10)
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(child)


def test_a_child_whose_parent_dies_while_it_begins_ends_too(tmp_path):
    """Seen to fail: the system tells only of what happens from O_ASYNC on, so it lived on."""
    program = (
        "import os, sys; from functools import partial; from pathlib import Path\n"
        "from ferflow.child_process import _Child, _Request; from test_child_process import hang_and_tell\n"
        "child = _Child()\n"
        "child.connection.send(_Request(partial(hang_and_tell, Path(sys.argv[1])), 1 << 40, 30))\n"
        "Path(sys.argv[2]).write_text(str(child._process.pid))\n"
        "os._exit(0)\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parent}"}
    began, child = tmp_path / "began", tmp_path / "child"
    subprocess.run([sys.executable, "-c", program, began, child], env=environment, check=True)
    deadline = time.monotonic() + 60
    while is_alive(int(child.read_text())) and not began.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    if began.exists():
        os.kill(int(child.read_text()), signal.SIGKILL)
    assert not began.exists()


def hang_and_tell(told: Path, *, progress) -> None:
    told.write_text(str(os.getpid()))
    ctypes.PyDLL(None).sleep(600)


def test_idle_children_end_when_they_are_sent_home():
    child = call(who)
    end_children()
    assert not is_alive(child)
