"""folder: one way to list, identify and commit a file; where each result lies."""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ID_LENGTH = 16
# 64 bits: among a hundred million videos two share an id with a probability below one in three thousand.


@dataclass(frozen=True, slots=True)
class Results:
    """A results folder: where each file of each video lies in it."""

    root: Path
    """The folder that `--results` names."""

    @property
    def parts(self) -> Path:
        """Unfinished files; hidden, so that no reader of a table meets one."""
        return self.root / ".parts"

    def table(self, name: str) -> Path:
        """Folder of a table: `faces`, `videos` or `segments`."""
        return self.root / name

    def rows(self, table: str, video_id: str) -> Path:
        """One video's part of a table."""
        return self.table(table) / f"{video_id}.parquet"

    def annotated(self, source: str, video_id: str) -> Path:
        """The annotated video, named so that a person recognises it and no two share a name."""
        return self.root / "annotated" / f"{_readable(source)}-{video_id[:8]}.mp4"

    def timeline(self, source: str, video_id: str) -> Path:
        """The timeline picture, named like the annotated video."""
        return self.root / "timelines" / f"{_readable(source)}-{video_id[:8]}.png"


@contextlib.contextmanager
def part_file(target: Path, *, folder: Path | None = None) -> Iterator[Path]:
    """Write a file so that it appears complete or not at all.

    Yields a path whose name ends in `.part`, in `folder` (on the target's disk) or else, hidden, beside the
    target; when the block ends well it is renamed to the target, otherwise removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    part = (folder or target.parent) / f".{uuid.uuid4().hex}.part"
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def content_id(path: Path) -> str:
    """Name a file by its bytes: the first 16 hexadecimal digits of their SHA-256.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_ID_LENGTH]


def unreadable_id(path: Path) -> str:
    """Name a file whose bytes cannot be read, by its path."""
    return hashlib.sha256(b"unreadable:" + os.fsencode(path)).hexdigest()[:_ID_LENGTH]


def utf8(text: str) -> str:
    """A path or a message about it as text that every table and terminal takes; odd bytes of a name become `\\xe9`."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _readable(source: str) -> str:
    """A file's name without its ending; short enough for any disk with what is added to it."""
    return Path(source).stem.encode()[:180].decode(errors="ignore")
