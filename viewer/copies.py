"""a bucket's file -> a copy of it on this machine, fetched once while the page goes on, and kept while there is room"""

import hashlib
import os
import shutil
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from ferflow.storage import StoredFile, part_file, workspace

_FETCHED_AT_ONCE = 4


class Copy:
    """A file that can be read on this machine, now or when it has arrived; it stays as long as anybody holds this."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        """Nothing has arrived yet.

        Args:
            path: where the file is, or will be.
            size_bytes: its length.
        """
        self.path, self.size_bytes = path, size_bytes
        self.part: Path | None = None
        """Where its first bytes are."""
        self.arrived: Future[None] = Future()
        """Done when all of it is here, or it failed."""

    @property
    def error(self) -> BaseException | None:
        """Why it does not arrive; None if it is here, or still may."""
        return self.arrived.exception() if self.arrived.done() else None

    @property
    def share(self) -> float:
        """How much of it is here, 0 to 1."""
        if self.arrived.done():
            return 1.0
        try:
            return min((self.part.stat().st_size if self.part else 0) / max(self.size_bytes, 1), 1.0)
        except FileNotFoundError:  # Not begun, or it has its name by now.
            return 1.0 if self.path.exists() else 0.0

    def wait(self) -> Path:
        """The whole file.

        Raises:
            OSError: it cannot be fetched.
        """
        self.arrived.result()
        return self.path


def here(path: Path) -> Copy:
    """A file that lies on this machine anyway."""
    copy = Copy(path, path.stat().st_size)
    copy.arrived.set_result(None)
    return copy


class Copies:
    """Copies of files of buckets. Safe to be asked by many threads."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """Nothing is done yet.

        Args:
            folder: where they lie, each process's in a folder of its own.
            most_bytes: as much is kept of what nobody holds any more; what is held, and the next one, always has room.
        """
        self._folder, self._most_bytes = folder, most_bytes
        self._held: WeakValueDictionary[Path, Copy] = WeakValueDictionary()
        self._lock = threading.Lock()
        self._turns = threading.Semaphore(_FETCHED_AT_ONCE)

    def take(self, file: StoredFile) -> Copy:
        """The copy of a file of a bucket; if there is none it is begun to be fetched.

        Raises:
            OSError: the disk is not to be used.
        """
        folder = workspace(self._folder)
        name = hashlib.sha256(f"{file.path} {file.tag}".encode()).hexdigest()[:32]
        path = folder / f"{name}{file.path.suffix}"
        with self._lock:
            copy = self._held.get(path)
            if copy is not None and copy.error is None:
                return copy
            copy = self._held[path] = Copy(path, file.size_bytes)
            if path.exists():
                os.utime(path)  # Just looked at: kept longer than those that nobody looks at.
                copy.arrived.set_result(None)
            else:
                self._make_room(folder, file.size_bytes)
                # Without waiting for it when the page is stopped.
                threading.Thread(target=self._fetch, args=(file.path, copy), daemon=True).start()
            return copy

    def _make_room(self, folder: Path, size_bytes: int) -> None:
        """Remove those that nobody holds, those looked at longest ago first, until the next one has room."""
        kept = [(file, file.stat()) for file in folder.iterdir() if not file.name.startswith(".")]
        there = {file for file, _ in kept}
        coming = sum(copy.size_bytes for copy in self._held.values() if copy.path not in there)
        most = self._most_bytes - coming - sum(status.st_size for _, status in kept)
        room = min(most, shutil.disk_usage(folder).free - size_bytes)
        for file, status in sorted(kept, key=lambda pair: pair[1].st_mtime):
            if room >= 0:
                break
            if file not in self._held:
                file.unlink(missing_ok=True)
                room += status.st_size

    def _fetch(self, source: Any, copy: Copy) -> None:
        try:
            with self._turns, part_file(copy.path, folder=self._folder) as part:
                copy.part = part
                source.fs.get_file(source.path, str(part))
        except BaseException as error:  # Told to whoever waits.
            copy.arrived.set_exception(error)
        else:
            copy.arrived.set_result(None)
