"""a bucket's prefix <-> a folder of this machine with the same files, for code that needs a folder."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from ferflow.storage import fetched, list_files, part_file, reach, stat_file

_RECORD = ".mirror.json"


class Mirror:
    """Keeps a folder like a bucket's prefix, hidden files left out; what both changed is taken from the bucket."""

    def __init__(self, bucket: Path, parent: Path, *, last: tuple[str, ...] = ()) -> None:
        """Nothing is fetched yet.

        Args:
            bucket: the prefix.
            parent: where the folder is made, named after the prefix's address.
            last: names of files that make others count, and therefore are brought after these, in this order.
        """
        self.bucket = bucket
        self.folder = parent / hashlib.sha256(str(bucket).encode()).hexdigest()[:16]
        self._last = last
        self._pulled_at = 0.0

    def pull(self, *, older_than_seconds: float = 0.0) -> Path:
        """Bring what is new or changed in the bucket, remove what is gone there, and give the folder.

        Args:
            older_than_seconds: do nothing if the last time is not so long ago.

        Raises:
            ConfigError: there is no such bucket, or its key is missing or wrong.
            OSError: the store does not answer any more, or the disk is at fault.
        """
        if self.folder.is_dir() and time.monotonic() - self._pulled_at < older_than_seconds:
            return self.folder
        if not self._pulled_at:
            reach(self.bucket)
        with self._alone() as known:
            listed = {
                str(file.path).removeprefix(str(self.bucket)).strip("/"): file for file in list_files(self.bucket)
            }
            there = {name: file for name, file in listed.items() if not f"/{name}".count("/.")}
            for name in self._in_order(there):
                if known.get(name) != there[name].tag:
                    with part_file(self.folder / name) as part, fetched(there[name].path) as copy:
                        part.write_bytes(copy.read_bytes())
                        # On every machine the same, by which files are known again.
                        os.utime(part, (there[name].modified_at,) * 2)
                    known[name] = there[name].tag
            for name in set(known) - set(there):
                (self.folder / name).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    (self.folder / name).parent.rmdir()
                del known[name]
        self._pulled_at = time.monotonic()
        return self.folder

    def push(self, files: Iterable[Path]) -> None:
        """Send files of the folder to the bucket.

        Raises:
            OSError: the store does not answer.
        """
        with self._alone() as known:
            names = [file.relative_to(self.folder).as_posix() for file in files]
            for name in self._in_order(names):
                target = self.bucket / name
                with part_file(target) as part:
                    part.write_bytes((self.folder / name).read_bytes())
                known[name] = stat_file(target).tag

    def _in_order(self, names: Iterable[str]) -> list[str]:
        def rank(name: str) -> tuple[int, str]:
            last = name.rpartition("/")[2]
            return (self._last.index(last) + 1 if last in self._last else 0), name

        return sorted(names, key=rank)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[dict[str, str]]:
        """The tags of what was brought, while no other process brings or sends anything."""
        import fcntl

        self.folder.mkdir(parents=True, exist_ok=True)
        record = self.folder / _RECORD
        with (self.folder / ".mirror.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known: dict[str, str] = {}
            with contextlib.suppress(FileNotFoundError, ValueError):
                known = json.loads(record.read_text())
            try:
                yield known
            finally:
                with part_file(record) as part:
                    part.write_text(json.dumps(known))
