"""two folders -> each has the other's name, in one step and while nobody is listing them

Linux only. Who lists a folder sees what it held before or what it holds after, and who opens a file of before finds it
gone. In between lies a moment in which a reader has the old list and has not looked at any of its files yet: pyarrow,
pandas and DuckDB pass over what is gone by then, as if it had never been there. So a moment is waited for in which the
folder has not been listed for a while.
"""

import ctypes
import errno
import os
import select
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_QUIET_SECONDS = 0.1
# Since the last listing; a reader looks at its first file within a hundredth of that unless the machine is very busy.
_PATIENCE_SECONDS = 3.0
# Writers wait meanwhile.
_OPENED, _READ, _CLOSED, _IS_FOLDER = 0x20, 0x01, 0x10, 0x40000000
_HERE, _EXCHANGE = -100, 2
_EVENT = struct.Struct("iIII")


def exchange_folders(one: Path, other: Path) -> None:
    """Give two folders of one disk each other's name.

    Args:
        one: nobody reads this one.
        other: people list this one.

    Raises:
        OSError: this system or disk cannot.
    """
    if sys.platform != "linux" or other.is_symlink():
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(other))
    libc: Any = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(other))
    watch = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        # Where no more watches are to be had, it goes without.
        if watch >= 0 and libc.inotify_add_watch(watch, os.fsencode(other), _OPENED | _READ | _CLOSED) >= 0:
            _wait_until_quiet(watch)
        if libc.renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(other))
    finally:
        if watch >= 0:
            os.close(watch)


def _wait_until_quiet(watch: int) -> None:
    """Wait until nobody has listed the folder for a while, or who just did has gone on to open its files."""
    began = listed_at = time.monotonic()
    listing_count, is_past_list = 0, False
    while (now := time.monotonic()) < began + _PATIENCE_SECONDS:
        for is_folder, mask in _events(watch):
            is_past_list = not is_folder
            if is_folder:
                listed_at = now
                listing_count += bool(mask & _OPENED) - bool(mask & _CLOSED)
        if now >= listed_at + _QUIET_SECONDS:
            return
        is_after_list = is_past_list and listing_count <= 0 and now >= listed_at + _QUIET_SECONDS / 3
        if is_after_list and now >= began + _PATIENCE_SECONDS / 3:
            return
        is_past_list = False
        select.select([watch], [], [], _QUIET_SECONDS / 10)


def _events(watch: int) -> Iterator[tuple[bool, int]]:
    """What happened since the last time: whether to the folder itself or to a file in it, and what."""
    try:
        events = os.read(watch, 65_536)
    except BlockingIOError:
        return
    start = 0
    while start < len(events):
        _, mask, _, name_length = _EVENT.unpack_from(events, start)
        yield bool(mask & _IS_FOLDER) and not name_length, mask
        start += _EVENT.size + name_length
