"""a file's length, its first bytes and its last -> whether more of it may be on its way, as while it is being copied"""

import os
import struct
from itertools import repeat
from pathlib import Path
from typing import IO

_ASF, _ASF_FILE_PROPERTIES = b"0&\xb2u\x8ef\xcf\x11", b"\xa1\xdc\xab\x8cG\xa9\xcf\x11"
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
_BOX_KINDS = frozenset({b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"})
# With one of these a file of the MP4 family begins.
_MOST_PARTS = 100_000
# Boxes that are looked at, in 0.2 s: of a recording in pieces of a second they are 14 hours.


def may_grow(path: Path) -> bool:
    """Whether there is less of a video file than it says itself, or it is of a kind that does not tell its end.

    Reads a few bytes here and there, whatever the file holds.

    Raises:
        OSError: the file is gone.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(4096)
            if head[4:8] in _BOX_KINDS:
                return _mp4_may_grow(file, size)
            if head.startswith(b"RIFF"):
                return _avi_may_grow(file, size)
            if head.startswith(_EBML):
                return _matroska_may_grow(file, size)
            if head.startswith(_ASF):
                return _asf_may_grow(head, size)
            file.seek(max(size - 4, 0))
            if head.startswith(b"GIF8"):
                return not file.read().endswith(b"\0;")
            if head.startswith(b"\0\0\1\xba"):  # MPEG; its end code is usual and not necessary.
                return file.read() != b"\0\0\1\xb9"
        return True
    except PermissionError:
        return True


def _mp4_may_grow(file: IO[bytes], size: int) -> bool:
    """It is a row of boxes, among them moov, the index, and mdat, the pictures, in any order."""
    missing, at = {b"moov", b"mdat"}, 0
    for _ in repeat(None, _MOST_PARTS):
        if at >= size:
            return at > size or bool(missing)
        file.seek(at)
        header = file.read(16)
        length, kind = struct.unpack(">I4s", header[:8]) if len(header) >= 8 else (2, b"")
        missing.discard(kind)
        if length == 1 and len(header) == 16:
            (length,) = struct.unpack(">Q", header[8:])
        if length < 8:  # 0 says that it reaches to the end, wherever that is; or a disk was reserved in advance.
            return True
        at += length
    return True


def _avi_may_grow(file: IO[bytes], size: int) -> bool:
    """It is one chunk, or several for more than 1 GB; while one is being recorded its length is 0 or all ones."""
    at = 0
    for _ in repeat(None, _MOST_PARTS):
        if at >= size:
            return False
        file.seek(at)
        header = file.read(8)
        if not header.startswith(b"RIFF"):
            return False
        length = int.from_bytes(header[4:], "little")
        if length == 0 or at + 8 + length > size:
            return True
        at += 8 + length + length % 2
    return True


def _matroska_may_grow(file: IO[bytes], size: int) -> bool:
    """It is a header and a segment, each with its length; the segment's may be unknown."""
    file.seek(len(_EBML))
    try:
        file.seek(_number(file) or 0, os.SEEK_CUR)
        if file.read(len(_SEGMENT)) != _SEGMENT:
            return True
        length = _number(file)
    except EOFError:
        return True
    return length is None or file.tell() + length > size


def _asf_may_grow(head: bytes, size: int) -> bool:
    """Its properties say how long the file is; 0 while it is being recorded."""
    at = head.find(_ASF_FILE_PROPERTIES)
    told = int.from_bytes(head[at + 40 : at + 48], "little")
    return at < 0 or not 0 < told <= size


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
