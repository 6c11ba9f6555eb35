"""a function and its arguments -> what it gives, computed in a process of its own that may crash, hang or swell

What reads a stranger's video is C code, and a damaged file can bring down the process around it. So the process that
drives a batch reads no video itself:

    path = call_apart(partial(analyze_file, file, results), video=file, settings=settings, progress=progress)

calls `analyze_file(file, results, progress=...)` in a child process and gives what it returns or raises what it raises.
The function and its arguments travel by pickle: a function of a module, records, paths; never a picture.

A child is begun when none is idle, and kept, with all that it has loaded, for the calls that follow. Threads that call
at once have a child each. Children end with this process, however it ends.
"""

import atexit
import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, TypeVar

from ferflow.config import Settings
from ferflow.errors import FerflowError, ModelError, SourceError, VideoError

Progress = Callable[[int, int | None], None]
"""Called after every frame with the number of frames done and, if it is known, of all frames; by `call_apart` after the
first, after the last and some twenty times a second between."""

_T = TypeVar("_T")

_LOOK_SECONDS = 0.2
_STEP_SECONDS = 0.05
# To tell of each frame would take a tenth of all that a clip costs.
# So long after somebody stops a run, what computes is ended, even in the middle of a frame.
_GRACE_SECONDS = 5.0
_LEAST_BUSY_SHARE = 0.1
# Who says nothing and computes less than this waits for a disk, or was halted.
_ATTEMPTS = 2
# A process that dies may have been harmed by an earlier file, or by the machine: a new one tries once more.
_FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM}
# The system's own way out where memory is short, or a person's.

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Request:
    work: Callable[..., Any]
    memory_bytes: int
    log_level: int


@dataclass(frozen=True, slots=True)
class _Done:
    value: Any


@dataclass(frozen=True, slots=True)
class _Failed:
    error: BaseException


@dataclass(frozen=True, slots=True)
class _Step:
    done: int
    expected: int | None


@dataclass(frozen=True, slots=True)
class _Waiting:
    is_over: bool


class _Died(Exception):
    """A child ended in the middle of its work; says how, as the end of a sentence."""


def call_apart(work: Callable[..., _T], *, video: Path, settings: Settings, progress: Progress | None = None) -> _T:
    """Call a function in a child process, with a `progress` to tell how far it is.

    Args:
        work: a function of a module, which is imported there, or a `functools.partial` of one.
        video: the file that it is about, as messages name it.
        settings: how much memory and time it may take.
        progress: told, here, of the first and the last step that the function tells, of some between, and a few times
            a second of the last one again: what it raises ends the child and the call.

    Raises:
        VideoError: the child crashed, also a second time, or took more memory or time than the settings allow.
        SourceError: it waited all that time, as for a disk that hangs.
        ModelError: no child could be begun.
        BaseException: whatever the function raised.
    """
    request = _Request(
        work,
        memory_bytes=round(settings.max_memory_gb * 1e9),
        log_level=logging.getLogger("ferflow").getEffectiveLevel(),
    )
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with _child(video, is_new=attempt > 1) as child:
                answer = _converse(child, request, video, settings, progress)
        except _Died as died:
            if attempt == _ATTEMPTS:
                raise VideoError(
                    f"{video}: what reads it {died}, also when it was tried again, so it was given up; the file is "
                    "probably damaged."
                ) from died
            logger.warning("%s: what reads it %s; it is tried once more", video, died)
            continue
        if isinstance(answer, _Failed):
            raise answer.error
        value: _T = answer.value
        return value
    raise AssertionError("unreachable")


@contextlib.contextmanager
def outside_limits() -> Iterator[None]:
    """In a child: what happens in this block, such as sending or moving a large file, is not held against the video."""
    if _parent is None:
        yield
        return
    _parent(_Waiting(is_over=False))
    try:
        yield
    finally:
        _parent(_Waiting(is_over=True))


def end_children() -> None:
    """End the idle children; what is called afterwards has a new one. Called when the process ends."""
    with _lock:
        children = [*_idle]
        _idle.clear()
    for child in children:
        child.connection.close()
    for child in children:
        child.end(_GRACE_SECONDS)


atexit.register(end_children)

CHILD_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(384 << 20),
    "OPENCV_FOR_THREADS_NUM": "1",
}
"""What the libraries of a process that reads videos are told, unless the environment tells them something else.

A frame's memory is used for the next one, and that of a clip's frames for the next clip's. The C library would give it
back to the system, which clears every page that is asked for again: 2.3 of 14.4 ms a frame of 1080p, 0.15 of 5.6 ms a
frame of clips. OpenCV's threads wait for each other in a loop: 0.4 of 8.2 ms a frame of clips (benchmarks/LOG.md).
"""


class _Child:
    """A process that computes what it is asked, one request after the other."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        # Nothing is ever written to it. The system closes it when this process is gone, and the other end notices.
        watched, self._lifeline = Pipe(duplex=False)
        numbers = theirs.fileno(), watched.fileno()
        self._process = subprocess.Popen(
            # -P: nothing is imported from the folder that a person happens to stand in.
            [sys.executable, "-P", "-c", f"from ferflow.child_process import serve; serve{numbers}"],
            pass_fds=numbers,
            env=CHILD_ENVIRONMENT | os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
            stdin=subprocess.DEVNULL,
            # Ctrl-C, and what ends this process's group, is for this process to hear.
            start_new_session=True,
        )
        theirs.close()
        watched.close()
        self.video: Path | None = None
        """What it was asked about last; frames of it may be kept there (`ferflow.kept_frames`)."""

    def end(self, grace_seconds: float = 0.0) -> int:
        """End the process, which may still tidy up; gives its exit status, negative for a signal."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_seconds)
        self._process.kill()
        status = self._process.wait()
        self.connection.close()
        self._lifeline.close()
        return status

    def busy_seconds(self) -> float:
        """How much processor time it has taken; grows without end where the system does not tell."""
        try:
            status = Path(f"/proc/{self._process.pid}/stat").read_text()
        except OSError:
            return time.monotonic()
        # After the name in brackets: the state, then numbers, of which the 11th and 12th are ticks of the clock.
        return sum(map(int, status.rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")

    def ask(self, request: _Request) -> None:
        """Let it compute something."""
        with self._death_told():
            self.connection.send(request)

    def hear(self) -> object:
        """What it says; None if it says nothing for a moment."""
        with self._death_told():
            return self.connection.recv() if self.connection.poll(_LOOK_SECONDS) else None

    @contextlib.contextmanager
    def _death_told(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:  # OSError also where it ends in the middle of a message.
            status = self.end(_GRACE_SECONDS)
            if status >= 0:
                raise ModelError(
                    f"the process that analyses videos ended with status {status}; what it wrote before says why. If "
                    "it names a module, install ferflow again."
                ) from error
            name = signal.Signals(-status).name
            raise _Died(f"was ended by {name}" if -status in _FROM_OUTSIDE else f"crashed ({name})") from error


_idle: list[_Child] = []
_lock = threading.Lock()


@contextlib.contextmanager
def _child(video: Path, *, is_new: bool) -> Iterator[_Child]:
    """A child for one request, the one that knows the video if it is idle; after a bad end it is not used again."""
    with _lock:
        known = (child for child in _idle if child.video == video)
        child = None if is_new or not _idle else next(known, _idle[-1])
        if child is not None:
            _idle.remove(child)
    child = child or _Child()
    child.video = video
    try:
        yield child
    except BaseException:
        child.end()
        raise
    with _lock:
        _idle.append(child)


def _converse(
    child: _Child, request: _Request, video: Path, settings: Settings, progress: Progress | None
) -> _Done | _Failed:
    """Ask a child and listen to it until it has answered."""
    step = _Step(0, None)
    total_seconds = silent_seconds = busy_before = 0.0
    is_counted = True
    child.ask(request)
    while True:
        began = time.monotonic()
        message = child.hear()
        if message is None and silent_seconds == 0:
            busy_before = child.busy_seconds()
        if is_counted:
            # Not more than was to be waited: this process may have been halted.
            seconds = min(time.monotonic() - began, _LOOK_SECONDS)
            total_seconds, silent_seconds = total_seconds + seconds, silent_seconds + seconds
        match message:
            case _Failed(MemoryError()):
                raise _Died(f"asks for more than {settings.max_memory_gb:g} GB of memory")
            case _Done() | _Failed() as answer:
                return answer
            case _Step() as step:
                silent_seconds = 0.0
                if progress is not None:
                    progress(step.done, step.expected)
            case _Waiting(is_over):
                is_counted, silent_seconds = is_over, 0.0
            case logging.LogRecord() as record:
                hearer = logging.getLogger(record.name)
                if hearer.isEnabledFor(record.levelno):
                    hearer.handle(record)
            case None:
                if progress is not None:
                    progress(step.done, step.expected)
        is_waiting = (
            silent_seconds > settings.patience_seconds
            and child.busy_seconds() - busy_before < _LEAST_BUSY_SHARE * silent_seconds
        )
        _check_time(video, settings, step.done, total_seconds, silent_seconds, is_waiting=is_waiting)


def _check_time(
    video: Path, settings: Settings, done: int, total_seconds: float, silent_seconds: float, *, is_waiting: bool
) -> None:
    after = f"after frame {done}" if done else "before the first frame"
    if is_waiting:
        raise SourceError(
            f"{video}: nothing has come of it for {settings.patience_seconds:g} s {after}, so it was given up; what "
            "reads it was waiting, probably for the disk. The next run tries it again."
        )
    if silent_seconds > settings.patience_seconds:
        raise VideoError(
            f"{video}: nothing has come of it for {settings.patience_seconds:g} s {after}, so it was given up; the "
            "file is probably damaged. For more time raise patience_seconds, and analyse it again with --force."
        )
    if total_seconds > settings.patience_seconds + settings.max_seconds_per_frame * done:
        raise VideoError(
            f"{video}: it takes more than {settings.max_seconds_per_frame:g} s a frame, so it was given up {after}. "
            "For more time raise max_seconds_per_frame, and analyse it again with --force."
        )


# From here on: what happens in the child.

_parent: Callable[[object], None] | None = None
"""Sends the parent a message; None in a process that is nobody's child."""


def serve(talk: int, lifeline: int) -> None:
    """Be a child: do what is asked until the parent hangs up.

    Args:
        talk: number of the open file for requests and answers.
        lifeline: number of the open file that is closed when the parent is gone.
    """
    global _parent
    import fcntl

    # The system itself then sends SIGIO, which ends this process, whatever it is in the middle of.
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    connection, watched = Connection(talk), Connection(lifeline, writable=False)
    if watched.poll():
        return  # The parent was gone before that.
    sending = threading.Lock()

    def send(message: object) -> None:
        try:
            with sending:
                connection.send(message)
        except ConnectionError:
            os._exit(1)  # Nobody is there to hear it.

    _parent = send
    sys.meta_path.insert(0, _WithoutPandas())
    logging.getLogger().addHandler(_log_handler())
    while True:
        try:
            request = connection.recv()
        except (EOFError, ConnectionError):
            return
        send(_answer(request))


class _WithoutPandas:
    """PyArrow imports pandas, for half a CPU second, to ask whether what it is given is pandas's. Here nothing is."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("pandas is not used here.", name=name)


def _answer(request: _Request) -> _Done | _Failed:
    _limit_memory(request.memory_bytes)
    logging.getLogger().setLevel(request.log_level)
    steps = _Steps()
    try:
        return _Done(request.work(progress=steps.tell))
    except BaseException as error:
        return _Failed(_sendable(error))
    finally:
        steps.tell_last()


class _Steps:
    """Tells the parent of the first step, of the last, and of some between."""

    def __init__(self) -> None:
        self._told_at = -_STEP_SECONDS
        self._untold: _Step | None = None

    def tell(self, done: int, expected: int | None) -> None:
        self._untold = _Step(done, expected)
        if time.monotonic() - self._told_at >= _STEP_SECONDS:
            self.tell_last()

    def tell_last(self) -> None:
        assert _parent is not None
        if self._untold is not None:
            _parent(self._untold)
            self._told_at, self._untold = time.monotonic(), None


def _limit_memory(most_bytes: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = most_bytes if most == resource.RLIM_INFINITY else min(most_bytes, most)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, most))


def _sendable(error: BaseException) -> BaseException:
    """The error, with where it came from if nobody foresaw it; one of another kind if it cannot travel."""
    lines = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    if not isinstance(error, FerflowError):
        error.add_note(f"In the child process:\n{lines}")
    return error


def _log_handler() -> logging.Handler:
    """What is logged is logged by the parent."""
    from logging.handlers import QueueHandler

    class ToParent(QueueHandler):
        def enqueue(self, record: logging.LogRecord) -> None:
            assert _parent is not None
            _parent(record)

    return ToParent(queue=None)  # type: ignore[arg-type]
