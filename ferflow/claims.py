"""a results folder -> which process is at work on which video, so that no two are on the same.

A claim is a file that can be made only once. Its owner renews it while it lives. Is it not renewed for
CLAIM_SECONDS, or is its owner seen to be dead on this machine, the next one makes a claim of a higher number: made
only once too, so that of several who see the dead one only one gets it. This needs nothing of a store but that a file
can be made where none is and not otherwise, and clocks that agree to half a minute.
"""

import contextlib
import functools
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferflow.storage import Results, is_local, list_files, workspace

logger = logging.getLogger(__name__)

CLAIM_SECONDS = 120.0
"""A claim that has not been renewed for so long is free again; $FERFLOW_CLAIM_SECONDS says otherwise."""

_RENEWALS = 4
# In CLAIM_SECONDS: three may fail, as they do while a store does not answer.


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that claims, as another can recognise it."""

    name: str
    """Differs from process to process."""
    host: str
    """The machine, container and start of it within which process numbers mean something."""
    process_id: int
    """Number of the process there."""
    process_start: str
    """When it was started, as the machine counts: numbers are used again."""


def claim_lasts_seconds() -> float:
    """CLAIM_SECONDS, or what $FERFLOW_CLAIM_SECONDS says; the same on every host."""
    return float(os.environ.get("FERFLOW_CLAIM_SECONDS", CLAIM_SECONDS))


class Claims:
    """The claims of this process in one results folder."""

    def __init__(self, results: Results, *, claim_seconds: float | None = None, owner: Owner | None = None) -> None:
        self._folder = results.claims
        self._parts = results.parts
        self._seconds = claim_seconds or claim_lasts_seconds()
        self._owner = owner or this_process()
        self._held: dict[str, int] = {}
        self._lost: set[str] = set()
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        # A claim that was just given up must not be written once more.
        self._renewing: threading.Thread | None = None

    @contextlib.contextmanager
    def hold(self, video_id: str) -> Iterator[bool]:
        """Claim a video while the block runs; gives False where another is at work on it.

        Raises:
            OSError: nothing can be written to the results folder.
        """
        number = self._take(video_id)
        if number is None:
            yield False
            return
        with self._lock:
            self._held[video_id] = number
            if self._renewing is None:
                self._renewing = threading.Thread(target=self._renew, name="claims", daemon=True)
                self._renewing.start()
        try:
            yield True
        finally:
            with self._lock:
                del self._held[video_id]
                is_lost = video_id in self._lost
                self._lost.discard(video_id)
            if not is_lost:
                with self._writing:
                    # The lowest first: as long as one is there, the numbers before it are not given again.
                    for claim in sorted(self._claims(video_id)):
                        if claim <= number:
                            with contextlib.suppress(OSError):
                                self._path(video_id, claim).unlink()

    def is_held(self, video_id: str) -> bool:
        """Whether somebody who lives is at work on a video.

        Raises:
            OSError: the results folder is not to be read.
        """
        newest = max(self._claims(video_id), default=None)
        return newest is not None and not self._is_free(self._path(video_id, newest))

    def claimed(self) -> set[str]:
        """The videos on which there are claims, also of processes that died: a killed one may have finished its video
        and not have given up the claim. To hold such a video once removes it.

        Raises:
            OSError: the results folder is not to be read.
        """
        names = (file.path.name for file in list_files(self._folder))
        return {name.partition(".")[0] for name in names if not name.startswith(".")}

    def is_lost(self, video_id: str) -> bool:
        """Whether a claim that is held here was taken by another, because this process was not seen for long."""
        with self._lock:
            return video_id in self._lost

    def _take(self, video_id: str) -> int | None:
        numbers = self._claims(video_id)
        newest = max(numbers, default=-1)
        if newest >= 0 and not self._is_free(self._path(video_id, newest)):
            return None
        number = newest + 1
        if not _create(self._path(video_id, number), self._content(), parts=self._parts):
            return None
        # Since the look above, the newest may have been given up and its number given again: then neither keeps it.
        if not all(other == number or self._is_free(self._path(video_id, other)) for other in self._claims(video_id)):
            with contextlib.suppress(FileNotFoundError):
                self._path(video_id, number).unlink()
            return None
        if newest >= 0:
            logger.info("%s: taken over from a run that ended before it was finished", video_id)
        return number

    def _claims(self, video_id: str) -> list[int]:
        folder: Any = self._folder
        try:
            if is_local(self._folder):
                names = [path.name for path in folder.glob(f"{video_id}.*")]
            else:
                names = [name.rpartition("/")[2] for name in folder.fs.glob(f"{folder.path}/{video_id}.*")]
        except FileNotFoundError:
            return []
        return [int(name.rpartition(".")[2]) for name in names if name.rpartition(".")[2].isdigit()]

    def _path(self, video_id: str, number: int) -> Path:
        return self._folder / f"{video_id}.{number}"

    def _content(self) -> bytes:
        owner = self._owner
        return json.dumps(
            {
                "owner": owner.name,
                "host": owner.host,
                "process_id": owner.process_id,
                "process_start": owner.process_start,
                "renewed_at": time.time(),
            }
        ).encode()

    def _is_free(self, path: Path) -> bool:
        try:
            claim = json.loads(path.read_bytes())
            renewed_at = float(claim["renewed_at"])
        except FileNotFoundError:
            return True
        except (ValueError, KeyError, TypeError):
            # Cut off in the middle of being written: as old as the file.
            return False if not is_local(path) else time.time() - path.stat().st_mtime > self._seconds
        if time.time() - renewed_at > self._seconds:
            return True
        is_here: bool = claim["host"] == self._owner.host
        return is_here and _start_of(claim["process_id"]) != claim["process_start"]

    def _renew(self) -> None:
        while True:
            time.sleep(self._seconds / _RENEWALS)
            with self._lock:
                held = dict(self._held)
                if not held:
                    self._renewing = None
                    return
            for video_id, number in held.items():
                # Whatever a store or a disk may raise: the next turn tries again.
                with contextlib.suppress(Exception), self._writing:
                    # None at all: another took over, finished, and gave it up.
                    is_lost = max(self._claims(video_id), default=-1) != number
                    with self._lock:
                        if self._held.get(video_id) != number:
                            continue
                        if is_lost:
                            self._lost.add(video_id)
                            continue
                    _replace(self._path(video_id, number), self._content(), parts=self._parts)


@functools.cache
def this_process() -> Owner:
    """This process, as another can recognise it."""
    return Owner(uuid.uuid4().hex, _host(), os.getpid(), _start_of(os.getpid()))


def can_hold(results: Results) -> bool:
    """Whether claims can be made there: a store must refuse to make a file where one is, and some make it anew.

    Raises:
        OSError: nothing can be written to the results folder.
    """
    path = results.claims / f"try {uuid.uuid4().hex}"
    try:
        return _create(path, b"1", parts=results.parts) and not _create(path, b"2", parts=results.parts)
    finally:
        path.unlink(missing_ok=True)


def _host() -> str:
    # A container has process numbers of its own, under a name that may be given again.
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts += [
            Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            str(Path("/proc/self/ns/pid").readlink()),
        ]
    return " ".join(parts)


def _start_of(process_id: int) -> str:
    """When a process of this machine was started; empty where there is none or it cannot be told."""
    try:
        status = Path(f"/proc/{process_id}/stat").read_text()
    except OSError:
        return ""
    # After the name in brackets: the state, then numbers, of which the 20th is the start in clock ticks.
    fields = status.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def _create(path: Path, content: bytes, *, parts: Path) -> bool:
    """Make a file where none is; False if there is one."""
    if is_local(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written before it has its name: a process that is killed in between leaves no claim that tells no owner.
        part = workspace(parts) / uuid.uuid4().hex
        try:
            part.write_bytes(content)
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(part)
                return True
            return False
        except OSError:
            # A disk without links.
            return _create_directly(path, content)
        finally:
            part.unlink(missing_ok=True)
    bucket: Any = path
    try:
        bucket.fs.pipe_file(bucket.path, content, mode="create")
    except OSError:
        # Refused because there is one; it may be ours, where the store's answer was lost and the request sent again.
        with contextlib.suppress(FileNotFoundError):
            return bool(path.read_bytes() == content)
        raise
    return True


def _create_directly(path: Path, content: bytes) -> bool:
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def _replace(path: Path, content: bytes, *, parts: Path) -> None:
    if is_local(path):
        part = workspace(parts) / uuid.uuid4().hex
        part.write_bytes(content)
        part.replace(path)
    else:
        path.write_bytes(content)
