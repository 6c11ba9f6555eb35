"""a video that has been dealt with -> the same file in another folder, out of the way"""

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import Any

from ferflow.storage import is_local, part_file


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
    number = 1
    while True:
        name = path.name if number == 1 else f"{path.stem} ({number}){path.suffix}"
        target = folder / name
        if _is_moved(path, target):
            return target
        number += 1


def _is_moved(path: Path, target: Path) -> bool:
    """Whether that was possible: not where a file of the name is."""
    if not is_local(path) or not is_local(target):
        bucket: Any = path
        if target.exists():
            return False
        bucket.fs.mv(bucket.path, getattr(target, "path", str(target)))
        return True
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.open("xb").close()  # The name is taken from now on, by whoever was first.
    except FileExistsError:
        return False
    try:
        try:
            os.replace(path, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with part_file(target) as part:  # On another disk.
                shutil.copy2(path, part)
            path.unlink()
    except BaseException:
        if path.exists():
            with contextlib.suppress(OSError):
                target.unlink()
        raise
    return True
