"""command -> what it cost: CPU seconds, wall seconds and peak memory of it and all its children"""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

_LOOK_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Usage:
    """What one command cost."""

    cpu_seconds: float
    """Of it and of all its children."""
    wall_seconds: float
    """From its start to its end."""
    peak_mb: float
    """The most that it and its children held at one moment; memory that they share counts once."""

    @property
    def cores(self) -> float:
        """How many were busy on average."""
        return self.cpu_seconds / self.wall_seconds


def run(command: Sequence[str | Path], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> Usage:
    """Run a command to its end.

    Raises:
        SystemExit: it failed; with what it said.
    """
    start = monotonic()
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stderr is not None
    peak_kb = 0
    ended = threading.Event()

    def look() -> None:
        nonlocal peak_kb
        while not ended.wait(_LOOK_SECONDS):
            peak_kb = max(peak_kb, _memory_kb(process.pid))

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    messages = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    ended.set()
    looking.join()
    if status:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{messages[-2000:]}")
    # Not usage.ru_maxrss, in which a process takes over that of the one it was forked from.
    return Usage(usage.ru_utime + usage.ru_stime, monotonic() - start, peak_kb / 1024)


def run_python(*arguments: str | Path, env: dict[str, str] | None = None) -> Usage:
    """Run this Python, as `run` does."""
    return run([sys.executable, *arguments], env=env)


def cpu_seconds_of(process: int) -> float:
    """What a running process and its running descendants have used so far."""
    ticks = 0
    for member in _family(process):
        with contextlib.suppress(OSError):
            # After the name in brackets; user and system time.
            ticks += sum(map(int, Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _memory_kb(process: int) -> int:
    total = 0
    for member in _family(process):
        with contextlib.suppress(OSError):
            rollup = Path(f"/proc/{member}/smaps_rollup").read_text()
            total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total


def _family(process: int) -> list[int]:
    """A process and all its descendants, whatever session they are in."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            # After the name in brackets: state, parent.
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    family = [process]
    for member in family:
        family += [child for child, parent in parents.items() if parent == member]
    return family
