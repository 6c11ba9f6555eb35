"""a video that has been dealt with -> the same file in another folder, out of the way"""

import contextlib
import ctypes
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ferflow.storage import is_local, lock_file, to_disk

_PART = ".ferflow-{}.part"
_NO_REPLACE = 1
_HERE = -100
# Linux's RENAME_NOREPLACE and AT_FDCWD.


def move_aside(path: Path, folder: Path) -> Path:
    """Move a file into a folder, under another number if one of its name is there; nothing is ever overwritten.

    Args:
        path: the file.
        folder: where it goes, in the same bucket if it is in one; made if it is not there.

    Returns:
        Where it is now.

    Raises:
        OSError: it cannot be moved; it stays where it was.
    """
    if not is_local(path) or not is_local(folder):
        bucket: Any = path
        target = next(target for target in _targets(path.name, folder) if not target.exists())
        bucket.fs.mv(bucket.path, getattr(target, "path", str(target)))
        return target
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return _place(path, path.name, folder)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    return _copy_aside(path, folder)


def _copy_aside(path: Path, folder: Path) -> Path:
    """Move a file to another disk. Where another takes its name meanwhile, that one stays."""
    _clear_abandoned(folder)
    part = folder / _PART.format(uuid.uuid4().hex)
    try:
        with path.open("rb") as source, part.open("xb") as copy:
            lock_file(copy)
            before = os.fstat(source.fileno())
            shutil.copyfileobj(source, copy, 1 << 20)
            copy.flush()
            shutil.copystat(path, part)
            os.fsync(copy.fileno())
            if not _is_same(before, os.fstat(source.fileno())):
                raise OSError(errno.EBUSY, "it was written to while it was copied", str(path))
        target = _place(part, path.name, folder)
        to_disk(folder)
    finally:
        part.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if _is_same(before, path.stat()):
            path.unlink()
    return target


def _place(path: Path, name: str, folder: Path) -> Path:
    """Rename a file to the first of its names that is free in a folder of the same disk."""
    for target in _targets(name, folder):
        with contextlib.suppress(FileExistsError):
            _rename(path, target)
            return target
    raise AssertionError("there is always one more number")


def _targets(name: str, folder: Path) -> Iterator[Path]:
    yield folder / name
    stem, suffix = Path(name).stem, Path(name).suffix
    number = 2
    while True:
        yield folder / f"{stem} ({number}){suffix}"
        number += 1


def _rename(path: Path, target: Path) -> None:
    """Rename a file, in one step, unless there is one of that name already.

    Raises:
        FileExistsError: there is.
        OSError: it cannot be renamed; EXDEV where the target is on another disk.
    """
    with contextlib.suppress(AttributeError):  # Not Linux.
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        if rename(_HERE, os.fsencode(path), _HERE, os.fsencode(target), _NO_REPLACE) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # Network disks know no such step.
            raise OSError(code, os.strerror(code), str(path), None, str(target))
    target.open("xb").close()  # The name is taken from now on, by whoever was first.
    try:
        os.replace(path, target)
    except BaseException:
        with contextlib.suppress(OSError):
            target.unlink()
        raise


def _is_same(before: os.stat_result, now: os.stat_result) -> bool:
    def told_by(status: os.stat_result) -> tuple[int, ...]:
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    return told_by(before) == told_by(now)


def _clear_abandoned(folder: Path) -> None:
    """Remove the copies that killed processes left unfinished; whoever lives holds a lock on its own."""
    for part in folder.glob(_PART.format("*")):
        with contextlib.suppress(OSError), part.open("rb+") as file:
            if lock_file(file):
                part.unlink()
