"""commands -> processes that live as long as this one, begun again when they end"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

_GRACE_SECONDS = 10.0
# From asking a process to end to ending it: a run of flows reports to the server what became of it.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 60.0
# Before a process that ended is begun again; doubled each time, until one has lived longer than the longest pause.

_LONGEST_LOG_BYTES = 20_000_000
# What is older is kept once more as long, in a file beside it.


@dataclass(frozen=True, slots=True)
class Service:
    """A process that is to run all the time."""

    name: str
    """What a person calls it, for example `the watcher`."""
    command: tuple[str, ...]
    """The program and its arguments."""
    environment: Mapping[str, str]
    """All of its environment."""
    log: Path
    """The file for what it writes."""


@dataclass(slots=True)
class _Running:
    service: Service
    process: "subprocess.Popen[bytes] | None" = None
    started_at: float = 0.0
    pause_seconds: float = _FIRST_PAUSE_SECONDS
    starts_at: float = field(default=0.0)


class Processes:
    """Services that run while this is entered, each the head of a process group of its own.

    They end with this process, also when it is killed: see `_Guard`.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        """Nothing is started yet; `say` is told in a sentence of every process that ended by itself."""
        self._say = say
        self._all: list[_Running] = []

    def __enter__(self) -> Self:
        self._guard = _Guard()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End them all, the last started first."""
        for running in reversed(self._all):
            if running.process is not None:
                _end(running.process)
        self._guard.dismiss()

    def start(self, service: Service) -> None:
        """Begin one."""
        running = _Running(service)
        self._all.append(running)
        self._begin(running)

    def tend(self) -> None:
        """Begin those again that ended by themselves, if their pause is over. To be called often."""
        now = time.monotonic()
        for running in self._all:
            _shorten(running.service.log)
            if running.process is not None and running.process.poll() is not None:
                if now - running.started_at > _LONGEST_PAUSE_SECONDS:
                    running.pause_seconds = _FIRST_PAUSE_SECONDS
                _end(running.process)  # What it may have started itself.
                self._guard.forget(running.process.pid)
                self._say(_obituary(running.service, running.process.returncode, running.pause_seconds))
                running.process = None
                running.starts_at = now + running.pause_seconds
                running.pause_seconds = min(2 * running.pause_seconds, _LONGEST_PAUSE_SECONDS)
            if running.process is None and now >= running.starts_at:
                self._begin(running)

    def _begin(self, running: _Running) -> None:
        service = running.service
        with service.log.open("ab") as log:
            running.process = subprocess.Popen(
                service.command,
                env=service.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        running.started_at = time.monotonic()
        self._guard.watch(running.process.pid)


class _Guard:
    """A process that ends groups of processes as soon as this one is gone, even if it was killed with -9.

    It reads from a pipe which groups there are. The system closes the pipe when this process ends.
    """

    def __init__(self) -> None:
        reading, self._writing = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                os.setsid()  # No Ctrl-C and no closed terminal reaches it.
                os.close(self._writing)
                nowhere = os.open(os.devnull, os.O_RDWR)
                for stream in range(3):
                    os.dup2(nowhere, stream)
                _keep_guard(reading)
                status = 0
            finally:
                os._exit(status)
        os.close(reading)

    def watch(self, group: int) -> None:
        """End this group too."""
        os.write(self._writing, b"+%d\n" % group)

    def forget(self, group: int) -> None:
        """This group is gone."""
        os.write(self._writing, b"-%d\n" % group)

    def dismiss(self) -> None:
        """Let it end what is left, and go."""
        os.close(self._writing)
        os.waitpid(self._pid, 0)


def _keep_guard(reading: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    with open(reading, "rb", buffering=0) as pipe:
        for line in iter(pipe.readline, b""):
            (groups.add if line[:1] == b"+" else groups.discard)(int(line[1:]))
    deadline = time.monotonic() + _GRACE_SECONDS
    for group in groups:
        _signal(group, signal.SIGTERM)
    while any(_signal(group, 0) for group in groups) and time.monotonic() < deadline:
        time.sleep(0.1)
    for group in groups:
        _signal(group, signal.SIGKILL)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and its group."""
    _signal(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_SECONDS)
    _signal(process.pid, signal.SIGKILL)
    process.wait()


def _signal(group: int, number: int) -> bool:
    """Send a signal to every process of a group; whether there is one."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _obituary(service: Service, status: int, pause_seconds: float) -> str:
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    return (
        f"{service.name[0].upper()}{service.name[1:]} {how} and is started again in {pause_seconds:.0f} s. "
        f"What it said last, in {service.log}: {_last_line(service.log)}"
    )


def _shorten(log: Path) -> None:
    """Who writes to it appends, so it goes on at the new beginning."""
    if log.stat().st_size > _LONGEST_LOG_BYTES:
        shutil.copyfile(log, log.with_name(f"{log.name}.old"))
        os.truncate(log, 0)


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - 4096, 0))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
