"""a file that somebody dropped on the page -> the watched inbox, under a safe name, complete or not at all"""

import contextlib
import hashlib
import os
import re
import threading
import time
import unicodedata
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import IO

from ferflow.child_process import Progress, call_apart
from ferflow.config import Settings
from ferflow.errors import VideoError
from ferflow.frames import VideoReader
from ferflow.merged_rows import find_video
from ferflow.storage import Results, content_id, is_local, part_file, place, temporary_folder, workspace
from ferflow.watch_settings import WatchSettings

SUFFIXES = (".mp4", ".mov", ".avi", ".flv", ".mkv", ".webm")
"""Kinds of files that the page takes."""

_MOST_BYTES_IN_NAME = 120
_CHUNK_BYTES = 1 << 20
_NOT_IN_NAMES = frozenset('<>:"|?*`')
# Mean something to a system, a shell or a page.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
# Letters, marks and one sign that show nothing: fillers of Hangul, inherent vowels of Khmer, a joiner, blank braille.

_SCRATCH = temporary_folder("ferflow-uploads")
_ABANDONED_SECONDS = 86_400.0
# A part of this age is of a page that was killed.

_placing = threading.Lock()
# Two files of one name that come into a bucket at once get two names.


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that was taken."""

    video_id: str
    """Hash of its bytes."""
    name: str
    """How it is called in the inbox."""


def take_upload(file: IO[bytes], name: str, watching: WatchSettings, results: Results) -> Upload:
    """Put a file into the first of the watched places, unless its bytes have been analysed or lie there already.

    Args:
        file: its bytes; not read beyond the size limit.
        name: what its owner calls it; anything.
        watching: where videos arrive, and how large they may be.
        results: where an earlier result may be.

    Raises:
        VideoError: it is too large, of another kind or no video; a sentence that begins with its name.
        OSError: the inbox cannot be written to.
    """
    safe = safe_name(name)
    if Path(safe).suffix not in SUFFIXES:
        raise VideoError(f"{safe}: this is no kind of video that is taken here; drop one of {' '.join(SUFFIXES)}.")
    video_id = _content_id(file, safe, watching.max_upload_mb)
    earlier = None
    with contextlib.suppress(VideoError):  # Damaged: as if it was not there.
        earlier = find_video(results, video_id)
    if earlier is not None and earlier.status == "done":
        return Upload(video_id, safe)
    inbox = place(watching.sources[0])
    for target in _targets(inbox, safe, video_id):
        if not target.exists():
            break
        # Written anew it would be another file to whoever reads it just now.
        if content_id(target) == video_id:
            return Upload(video_id, target.name)
    with _part_for(inbox) as part:
        _copy(file, part)
        _check(part, safe, watching.settings)
        # Chosen anew: meanwhile somebody may have taken the name.
        targets = _targets(inbox, safe, video_id)
        target = next(target for target in targets if _place(part, target) or content_id(target) == video_id)
    return Upload(video_id, target.name)


def safe_name(name: str) -> str:
    """A name that is one in every system and shows as what it is: no folders, no hidden and no invisible letters."""
    # Browsers send a quotation mark as %22 (HTML, multipart/form-data encoding).
    last = name.replace("%22", '"').replace("\\", "/").rpartition("/")[2]
    kept = [
        "_" if letter in _NOT_IN_NAMES else letter
        for letter in unicodedata.normalize("NFC", last)
        # Control, format (which turn the direction of writing), surrogate, private and unassigned ones.
        if letter not in _BLANK and not unicodedata.category(letter).startswith("C")
    ]
    stem, dot, suffix = " ".join("".join(kept).split()).rpartition(".")
    if not dot:
        stem, suffix = suffix, ""
    # Hidden files begin with a dot, half-copied ones with ~, and options with a dash.
    stem = stem.encode()[:_MOST_BYTES_IN_NAME].decode(errors="ignore").strip(" .~-")
    # Marks alone stand on nothing; some of them are to be seen nowhere.
    if all(unicodedata.category(letter).startswith("M") for letter in stem):
        stem = "video"
    return f"{stem}.{suffix.lower()}" if suffix else stem


def _targets(inbox: Path, name: str, video_id: str) -> Iterator[Path]:
    """What a video may be called in the inbox: as its owner calls it, or with its id behind."""
    yield inbox / name
    stem, suffix = f"{Path(name).stem}-{video_id}", Path(name).suffix
    yield inbox / f"{stem}{suffix}"
    yield from (inbox / f"{stem}-{number}{suffix}" for number in count(2))


@contextlib.contextmanager
def _part_for(inbox: Path) -> Iterator[Path]:
    """A file for what is not known to be whole: beside the others and hidden, so that the watch passes it over."""
    if is_local(inbox):
        inbox.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(inbox)
    part = (inbox if is_local(inbox) else workspace(_SCRATCH)) / f".{uuid.uuid4().hex}.part"
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _clear_abandoned(inbox: Path) -> None:
    """Remove what a page left behind that was killed."""
    for path in inbox.glob(".*.part"):
        with contextlib.suppress(OSError):
            if re.fullmatch(r"\.[0-9a-f]{32}", path.stem) and time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink()


def _place(part: Path, target: Path) -> bool:
    """Give a whole file its name, unless another has it."""
    if not is_local(target):
        with _placing:
            if target.exists():
                return False
            with part_file(target) as sent:
                part.replace(sent)
        return True
    try:
        os.link(part, target)
    except FileExistsError:
        return False
    except OSError:
        # A disk without hard links.
        try:
            target.open("xb").close()
        except FileExistsError:
            return False
        os.replace(part, target)
    return True


def _content_id(file: IO[bytes], name: str, max_mb: int) -> str:
    """Name the bytes as `storage.content_id` does; no more of them are read than are taken."""
    digest, left = hashlib.sha256(), max_mb * 1024 * 1024
    while chunk := file.read(_CHUNK_BYTES):
        left -= len(chunk)
        if left < 0:
            raise VideoError(
                f"{name}: this is larger than {max_mb:,} MB, which is as much as is taken here; copy it into the inbox "
                "folder instead, or raise max_upload_mb."
            )
        digest.update(chunk)
    file.seek(0)
    return digest.hexdigest()[:16]


def _copy(file: IO[bytes], part: Path) -> None:
    with part.open("wb") as written:
        while chunk := file.read(_CHUNK_BYTES):
            written.write(chunk)


def _check(part: Path, name: str, settings: Settings) -> None:
    """Make sure that a frame of it can be decoded, in a process that a damaged file may bring down."""
    try:
        call_apart(partial(_open, part), video=Path(name), settings=settings)
    except VideoError as error:
        raise VideoError(f"{name}: {str(error).removeprefix(f'{part}: ').removeprefix(f'{name}: ')}") from error


def _open(path: Path, *, progress: Progress) -> None:
    del progress  # There is one step.
    with VideoReader(path):
        pass
