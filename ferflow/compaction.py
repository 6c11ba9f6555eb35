"""a results folder's many small files of past days -> a few big ones, while readers and writers go on

A table of a folder of this machine is exchanged whole: beside it a folder is filled with hard links to all files that
stay and with the big ones, and Linux swaps the two in one step. Who lists the table sees either the one or the other.
A query that listed it just before fails because a file is gone, and is to be repeated. Readers of `merged_rows` are
waited for and never meet this.

A bucket has no such step, nor have Windows, macOS and some network disks: there the big file is added first and the
small ones are deleted after it. Who reads in that second may see rows twice, but for `merged_rows.read_table`. What is
left in between by a process that was killed is put right by the next.

Files of an earlier version lack columns that came later, and DuckDB and Polars refuse to read them beside newer ones.
Merged, all have the same columns; a table's `columns.parquet` gets them last, and thereby tells that no file lacks any.
"""

import contextlib
import errno
import logging
import os
import shutil
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from ferflow.claims import Claims
from ferflow.errors import VideoError
from ferflow.exchange import exchange_folders
from ferflow.merged_rows import (
    PREFIX,
    Part,
    find_places,
    lacks_columns,
    list_big,
    read_entries,
    read_part,
    split_big,
    write_big,
    write_big_anew,
    write_part,
)
from ferflow.rows import COLUMNS_ONLY, TABLES, write_empty_table
from ferflow.storage import (
    SCRATCH,
    Results,
    StoredFile,
    checked_id,
    holding_tables,
    is_local,
    list_files,
    part_file,
    stat_file,
    temporary_folder,
    to_disk,
    workspace,
)

logger = logging.getLogger(__name__)

_CLAIM = "compact-results"
# Merging and taking apart, one at a time in a results folder.
_TABLES = ("segments", "faces", "videos")
# By the files of the last one it is known which videos are finished: those go last.
_SMALL_BYTES = 16_000_000
_READ_AT_ONCE = 8
# A bucket answers many at once; together no more than 128 MB.
_SINGLY_TO_DISK = 20
# Files; for more of them it is quicker to have the machine write all that it still keeps.
_LOOK_SECONDS = 0.1
_LISTING_SECONDS = 10.0
# A folder that was swapped out is kept so long, for who is in the middle of listing it.
_NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.ENOLCK, errno.EMLINK}


@dataclass(frozen=True, slots=True)
class Compacted:
    """What a compaction did."""

    small_files: int = 0
    """How many were merged."""
    big_files: int = 0
    """Into how many."""
    days: int = 0
    """Of how many days, UTC."""
    left: tuple[str, ...] = ()
    """A sentence for each file or day that was left as it is."""


def compact(results: Results, *, older_than_days: int = 1, today: date | None = None) -> Compacted | None:
    """Merge the small files of past days; a second call has nothing to do.

    Videos that another process is at work on are left alone, and so is a day of which one is begun meanwhile.

    Args:
        results: the folder or bucket.
        older_than_days: 1 for all days before today, 2 for those before yesterday; 0 for today's too. Days are UTC.
        today: which day that is; None asks the clock.

    Returns:
        What was done; None if another process is merging.

    Raises:
        OSError: the results are at fault, or the disk is full. Nothing is lost; the next call goes on.
    """
    before = (today or datetime.now(UTC).date()) - timedelta(days=older_than_days - 1)
    claims = Claims(results)
    done: defaultdict[date, int] = defaultdict(int)
    big_files = 0
    left: list[str] = []
    earlier = [table for table in _TABLES if _lacks_columns(results.table(table) / COLUMNS_ONLY, table)]
    with claims.hold(_CLAIM) as is_ours:
        if not is_ours:
            return None
        for table in _TABLES:
            left += _put_right(results, table, claims)
        days = _past_days(results, before)
    left_days: set[date] = set()
    for table in _TABLES:
        for day, files in _by_day(results, table, days):
            is_alone = len(files) < 2 and not (table in earlier and _lacks_columns(files[0].path, table))
            if day in left_days or is_alone:
                continue
            with _turn(claims):
                merged = _merge_day(results, table, day, files, claims, left)
            if merged is None:
                left_days.add(day)
                left.append(
                    f"{results.root}: the files of {day} are left for the next time: a video is being done again."
                )
            else:
                done[day] += merged.small_files
                big_files += merged.big_files
    for table in earlier:
        folder = results.table(table)
        files_there = [*list_big(folder), *(file.path for _, file in _small_files(folder))]
        if not any(_lacks_columns(path, table) for path in files_there):
            write_empty_table(folder / COLUMNS_ONLY, TABLES[table], parts=results.parts)
    return Compacted(sum(done.values()), big_files, sum(map(bool, done.values())), tuple(left))


def take_out(results: Results, video_id: str) -> None:
    """See to it that a video's rows are in files of its own again, because they are about to be replaced.

    To be called by who holds the claim on the video. The big files that hold it are taken apart as a whole, so that
    this is done once and not for each of their videos. Waits for a day's merging to end.

    Raises:
        OSError: the results are at fault.
        SourceError: the big file is damaged, or one that may be it.
    """
    claims = Claims(results)
    while found := _find_merged(results, video_id):
        with _turn(claims):
            for table, path in found:
                with contextlib.suppress(FileNotFoundError):
                    _take_apart(results, table, path, claims)


@contextlib.contextmanager
def _turn(claims: Claims) -> Iterator[None]:
    """Wait for one's turn to change big files."""
    while True:
        with claims.hold(_CLAIM) as is_ours:
            if is_ours:
                yield
                break
        time.sleep(_LOOK_SECONDS)
    time.sleep(2 * _LOOK_SECONDS)  # Others have theirs.


def _find_merged(results: Results, video_id: str) -> list[tuple[str, Path]]:
    # While no table is exchanged: one that is would have looked for our claim before and have it in a moment.
    with holding_tables(results.root):
        # The other way round than they are merged: of a video in small files everywhere else, the last is one too, and
        # so the next compaction knows its day.
        places = find_places(results, video_id)
        return [(table, places[table].path) for table in reversed(_TABLES) if table in places]


def _past_days(results: Results, before: date) -> dict[str, date]:
    """The finished videos that have small files, and the day on which each was finished."""
    claimed = Claims(results).claimed()
    return {
        video_id: day
        for video_id, file in _small_files(results.table("videos"))
        if (day := datetime.fromtimestamp(file.modified_at, UTC).date()) < before and video_id not in claimed
    }


def _lacks_columns(path: Path, table: str) -> bool:
    # What is damaged is told of where it is to be merged.
    with contextlib.suppress(FileNotFoundError, VideoError):
        return lacks_columns(path, table)
    return False


def _by_day(results: Results, table: str, days: Mapping[str, date]) -> list[tuple[date, list[StoredFile]]]:
    files: defaultdict[date, list[tuple[str, StoredFile]]] = defaultdict(list)
    for video_id, file in _small_files(results.table(table)):
        if video_id in days and file.size_bytes <= _SMALL_BYTES:
            files[days[video_id]].append((video_id, file))
    return [(day, [file for _, file in sorted(files[day], key=lambda named: named[0])]) for day in sorted(files)]


def _small_files(folder: Path) -> Iterator[tuple[str, StoredFile]]:
    for file in list_files(folder):
        path = file.path
        if path.parent == folder and path.suffix == ".parquet":
            with contextlib.suppress(ValueError):
                yield checked_id(path.stem), file


def _merge_day(
    results: Results, table: str, day: date, files: Sequence[StoredFile], claims: Claims, left: list[str]
) -> Compacted | None:
    """Merge one day's files of a table; None if one of them was changed meanwhile or is about to be."""
    folder = results.table(table)
    merged: dict[str, str] = {}
    with _scratch(results) as scratch:
        paths = []
        parts = _read_parts(files, table, left)
        for path, entries in write_big(table, parts, lambda: _new_big(scratch, day)):
            paths.append(path)
            merged |= {f"{entry.video_id}.parquet": entry.tag for entry in entries}
        if len(merged) < min(2, len(files)):
            return Compacted()

        def is_unchanged() -> bool:
            # The claims are looked at last: who has none yet will see the big file before it writes.
            tags = _tags(folder, merged)
            claimed = claims.claimed()
            return (
                tags == merged and not claims.is_lost(_CLAIM) and not any(Path(name).stem in claimed for name in merged)
            )

        if not _exchange_files(results, table, paths, list(merged), is_unchanged):
            return None
    logger.info("%s: %d files of %s are %d now", folder, len(merged), day, len(paths))
    return Compacted(len(merged), len(paths), 1)


def _read_parts(files: Sequence[StoredFile], table: str, left: list[str]) -> Iterator[Part]:
    def read(file: StoredFile) -> bytes | None:
        try:
            return file.path.read_bytes()
        except FileNotFoundError:
            return None

    waiting = iter(files)
    with ThreadPoolExecutor(_READ_AT_ONCE, thread_name_prefix="small-file") as pool:
        while some := list(islice(waiting, _READ_AT_ONCE)):
            # A disk is read by one thread as fast.
            contents = map(read, some) if is_local(some[0].path) else pool.map(read, some)
            for file, content in zip(some, contents, strict=True):
                if content is not None:
                    try:
                        yield read_part(file, table, content)
                    except VideoError as error:
                        left.append(str(error))


def _tags(folder: Path, names: Mapping[str, str]) -> dict[str, str]:
    if not is_local(folder):
        return {file.path.name: file.tag for file in list_files(folder) if file.path.name in names}
    found = {}
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            found[name] = stat_file(folder / name).tag
    return found


def _put_right(results: Results, table: str, claims: Claims) -> list[str]:
    """Deal with what a killed process left: videos that stand in a big file and in another file too."""
    folder = results.table(table)
    left = []
    small: dict[str, StoredFile] | None = None
    seen: dict[str, str] = {}
    waiting = list_big(folder)
    while waiting:
        path = waiting.pop(0)
        small = dict(_small_files(folder)) if small is None else small
        try:
            tags = {entry.video_id: entry.tag for entry in read_entries(path)}
            doubled = {video_id: tag for video_id, tag in tags.items() if video_id in small}
            is_merged = all(small[video_id].tag == tag for video_id, tag in doubled.items())
            if tags and tags.items() <= seen.items():
                # Another has the same rows: one was written anew, and the other was to be deleted.
                _delete(results, [path])
            elif not seen.keys().isdisjoint(tags):
                # In two big ones: begin anew with what comes out of this one.
                _take_apart(results, table, path, claims)
                small, seen, waiting = None, {}, list_big(folder)
            elif is_merged and claims.claimed().isdisjoint(doubled):
                _delete(results, [folder / f"{video_id}.parquet" for video_id in doubled])
                seen |= tags
                if _lacks_columns(path, table):
                    _write_anew(results, table, path, claims)
            else:
                # The small files are newer, or are about to be.
                _take_apart(results, table, path, claims)
        except VideoError as error:
            left.append(str(error))
    return left


def _take_apart(results: Results, table: str, path: Path, claims: Claims) -> None:
    with _scratch(results) as scratch:
        paths = []
        for part in split_big(path):
            paths.append(scratch / f"{part.entry.video_id}.parquet")
            write_part(paths[-1], part)
            # It belongs to the day on which it was made, and pictures made after it are still newer.
            os.utime(paths[-1], (part.entry.modified_at, part.entry.modified_at))
        _put_in_place_of(results, table, path, paths, claims)


def _write_anew(results: Results, table: str, path: Path, claims: Claims) -> None:
    """Give a big file the columns that it lacks."""
    day = path.name.removeprefix(PREFIX)[: len("2026-01-01")]
    with _scratch(results) as scratch:
        new = write_big_anew(table, path, lambda: _new_big(scratch, day))
        _put_in_place_of(results, table, path, [new_path for new_path, _ in new], claims)


def _new_big(scratch: Path, day: date | str) -> Path:
    return scratch / f"{PREFIX}{day}-{uuid.uuid4().hex[:12]}.parquet"


def _put_in_place_of(results: Results, table: str, path: Path, new: Sequence[Path], claims: Claims) -> None:
    _exchange_files(results, table, new, [path.name], lambda: path.exists() and not claims.is_lost(_CLAIM))


def _exchange_files(
    results: Results, table: str, add: Sequence[Path], remove: Sequence[str], is_right: Callable[[], bool]
) -> bool:
    """Replace files of a table by others with the same rows; a file that is there already stays as it is.

    Args:
        results: whose table.
        table: its name.
        add: files of this machine, under their own names.
        remove: names.
        is_right: asked at the last moment whether this is still to be done.

    Returns:
        Whether it was done.
    """
    if is_local(results.root):
        if len(add) > _SINGLY_TO_DISK:
            os.sync()
        else:
            for path in add:
                to_disk(path)
        try:
            return _exchange_folder(results, table, add, set(remove), is_right)
        except ImportError:
            pass
        except OSError as error:
            if error.errno not in _NO_EXCHANGE:
                raise
    folder = results.table(table)
    added = [path for path in add if not (folder / path.name).exists()]
    for path in added:
        with part_file(folder / path.name, folder=results.parts) as part:
            shutil.copy2(path, part)
    if not is_right():
        _delete(results, [folder / path.name for path in added])
        return False
    _delete(results, [folder / name for name in remove])
    return True


def _exchange_folder(
    results: Results, table: str, add: Sequence[Path], remove: set[str], is_right: Callable[[], bool]
) -> bool:
    folder = results.table(table)
    fresh = workspace(results.root / ".compaction") / uuid.uuid4().hex
    try:
        fresh.mkdir()
        status = folder.stat()
        shutil.copymode(folder, fresh)
        with contextlib.suppress(PermissionError):
            os.chown(fresh, status.st_uid, status.st_gid)
        with holding_tables(results.root, alone=True):
            if not is_right():
                return False
            for entry in os.scandir(folder):
                if entry.name not in remove:
                    os.link(entry.path, fresh / entry.name, follow_symlinks=False)
            for path in add:
                with contextlib.suppress(FileExistsError):
                    os.link(path, fresh / path.name)
            to_disk(fresh)
            exchange_folders(fresh, folder)
        to_disk(results.root)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    # Not a daemon: a process that ends waits for it.
    threading.Timer(_LISTING_SECONDS, shutil.rmtree, [fresh], {"ignore_errors": True}).start()
    return True


def _delete(results: Results, paths: Sequence[Path]) -> None:
    if not paths:
        return
    if is_local(results.root):
        with holding_tables(results.root):
            for path in paths:
                path.unlink(missing_ok=True)
        return
    bucket: Any = results.root
    with contextlib.suppress(FileNotFoundError):
        bucket.fs.rm([path.path for path in paths])  # type: ignore[attr-defined]


@contextlib.contextmanager
def _scratch(results: Results) -> Iterator[Path]:
    """A folder for unfinished files: on the disk of a results folder, or on this machine's for a bucket."""
    parent = results.root / ".compaction" if is_local(results.root) else temporary_folder(SCRATCH)
    folder = workspace(parent) / uuid.uuid4().hex
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
