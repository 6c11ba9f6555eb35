"""folder: one way to list, identify and commit a file."""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

_ID_LENGTH = 16
# 64 bits: among a hundred million videos two share an id with a probability below one in three thousand.


@contextlib.contextmanager
def part_file(target: Path) -> Iterator[Path]:
    """Write a file so that it appears complete or not at all.

    Yields a path beside the target whose name begins with a dot and ends in `.part`, so that no reader of the
    folder takes it for a result; when the block ends well it is renamed to the target, otherwise removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{uuid.uuid4().hex}.part")
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
