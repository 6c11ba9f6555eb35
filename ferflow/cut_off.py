"""a file's length and its first bytes -> whether it ends before its own end, as one does that is still being copied"""

import os
import struct
from functools import partial
from pathlib import Path
from typing import IO

from ferflow.child_process import Progress, call_apart
from ferflow.config import load_settings
from ferflow.errors import VideoError
from ferflow.frames import VideoReader

_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
_BOX_KINDS = frozenset({b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"})
# With one of these a file of the MP4 family begins.


def ends_early(path: Path) -> bool:
    """Whether there is less of a video file than it says itself, or too little to open it.

    Of a format that does not say how long it is only the beginning can be judged.

    Raises:
        OSError: the file is gone.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(12)
            if head[4:8] in _BOX_KINDS:
                return _mp4_ends_early(file, size)
            if head.startswith(b"RIFF"):
                return _avi_ends_early(file, size)
            if head.startswith(_EBML) and (answer := _matroska_ends_early(file, size)) is not None:
                return answer
        # It may crash what opens it.
        call_apart(partial(_open, path), video=path, settings=load_settings(None))
        return False
    except (VideoError, PermissionError):
        return True


def _open(path: Path, *, progress: Progress) -> None:
    del progress
    with VideoReader(path):
        pass


def _mp4_ends_early(file: IO[bytes], size: int) -> bool:
    """It is a row of boxes, among them moov, the index, and mdat, the pictures, in any order."""
    kinds, at = set(), 0
    while at < size:
        file.seek(at)
        header = file.read(16)
        length, kind = struct.unpack(">I4s", header[:8]) if len(header) >= 8 else (2, b"")
        kinds.add(kind)
        if length == 1 and len(header) == 16:
            (length,) = struct.unpack(">Q", header[8:])
        if length == 0 and kind == b"mdat":  # To the end of the file, wherever that is.
            break
        if length < 8:  # None; zeros stand where a disk was reserved in advance.
            return True
        at += length
    return at > size or not {b"moov", b"mdat"} <= kinds


def _avi_ends_early(file: IO[bytes], size: int) -> bool:
    """It is one chunk, or several for more than 1 GB; while one is being recorded its length is 0 or all ones."""
    at = 0
    while at < size:
        file.seek(at)
        header = file.read(8)
        if not header.startswith(b"RIFF"):
            return False
        length = int.from_bytes(header[4:], "little")
        if length == 0 or at + 8 + length > size:
            return True
        at += 8 + length + length % 2
    return False


def _matroska_ends_early(file: IO[bytes], size: int) -> bool | None:
    """It is a header and a segment, each with its length; None where the segment's is not told."""
    file.seek(len(_EBML))
    try:
        file.seek(_number(file) or 0, os.SEEK_CUR)
        if file.read(len(_SEGMENT)) != _SEGMENT:
            return None
        length = _number(file)
    except EOFError:
        return True
    return None if length is None else file.tell() + length > size


def _number(file: IO[bytes]) -> int | None:
    """A number of as many bytes as the first has leading zeros, plus one; None where all ones say it is unknown."""
    first = file.read(1)
    extra = 8 - int.from_bytes(first, "big").bit_length()
    rest = file.read(extra)
    if len(first + rest) <= extra:
        raise EOFError
    bits = 7 * (extra + 1)
    number = int.from_bytes(first + rest, "big") & ((1 << bits) - 1)
    return None if number == (1 << bits) - 1 else number
