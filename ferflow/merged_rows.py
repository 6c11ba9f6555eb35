"""many videos' files of a table <-> one big file that holds them all, and each of them in it

A big file's name begins with `compact-`, is never given again, and its content never changes. Its rows are in the order
of the videos' ids, and it says which rows are whose.
"""

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ferflow.errors import SourceError, VideoError
from ferflow.records import Analysis, FaceColumns, VideoSummary
from ferflow.rows import (
    ANALYSIS_KEY,
    FACE_COLUMNS,
    TABLES,
    face_columns,
    face_records,
    open_table,
    parse_analysis,
    parse_video,
    read_faces,
    read_video,
    stream_faces,
)
from ferflow.storage import Results, StoredFile, checked_id, holding_tables, is_local

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

PREFIX = "compact-"
"""How the names of big files begin."""

MOST_VIDEOS = 500
"""In one big file: as many are written anew where one of them is taken out."""

_CONTENTS_KEY, _ANALYSES_KEY = b"ferflow.merged", b"ferflow.analyses"
_ROWS_IN_GROUP = 131_072
# About 10 MB. A reader skips a group by the least and the greatest video_id in it.
_FILE_BYTES = 256_000_000
_MOST_ROWS = 1_000_000
# In a file that is taken for a small one: 130 MB in memory.
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Entry:
    """One video in a big file."""

    video_id: str
    """Hash of the video's bytes."""
    row_count: int
    """How many of the rows are its own; they follow those of the entries before."""
    tag: str
    """What the small file was known by when it was read, see `storage.StoredFile`."""
    modified_at: float
    """When the small file was last changed, seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Part:
    """One video's rows of a table on the way from one file to another."""

    entry: Entry
    """Which video."""
    rows: pa.Table
    """Its rows."""
    analysis: dict[str, Any] | None
    """What its faces file says of how they came about."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a video's rows are."""

    path: Path
    """The big file."""
    first_row: int
    """The first of them."""
    row_count: int
    """How many."""


def is_big(path: Path) -> bool:
    """Whether a file of a table holds many videos."""
    return path.name.startswith(PREFIX) and path.suffix == ".parquet"


def list_big(folder: Path) -> list[Path]:
    """The big files of a table, in order of their names."""
    bucket: Any = folder
    if is_local(folder):
        found = list(folder.glob(f"{PREFIX}*.parquet"))
    else:
        names = bucket.fs.find(bucket.path, maxdepth=1, prefix=PREFIX)
        found = [folder / name.rpartition("/")[2] for name in names]
    return sorted(filter(is_big, found))


def read_part(file: StoredFile, table: str, content: bytes) -> Part:
    """Read one video's file of a table.

    Args:
        file: which.
        table: name of the table.
        content: its bytes.

    Raises:
        VideoError: it is damaged, or holds more than a big file could give back.
    """
    schema = TABLES[table]
    try:
        with pq.ParquetFile(pa.BufferReader(content)) as opened:
            if opened.metadata.num_rows > _MOST_ROWS:
                raise VideoError(f"{file.path}: it has {opened.metadata.num_rows:,} rows and stays a file of its own.")
            unknown = set(opened.schema_arrow.names) - set(schema.names)
            if unknown:
                raise VideoError(
                    f"{file.path}: it has columns that this version of ferflow does not know ({', '.join(unknown)}), "
                    "and stays as it is."
                )
            rows = opened.read(use_threads=False)
            described = json.loads((opened.metadata.metadata or {}).get(ANALYSIS_KEY, b"null"))
        ids = set(rows["video_id"].unique().to_pylist())
        if described is not None:
            ids.add(described["video_id"])
        if ids - {file.path.stem}:
            # Of a stranger: merged with the others it would make all of them unreadable.
            raise ValueError("rows of another video")
        rows = _with_all_columns(rows, schema)
    except (pa.ArrowException, KeyError, TypeError, ValueError, OSError) as error:
        raise VideoError(f"{file.path}: this table is damaged; remove the file and analyse its video again.") from error
    return Part(Entry(file.path.stem, len(rows), file.tag, file.modified_at), rows, described)


def _with_all_columns(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same rows with the schema's columns; those that they lack are empty."""
    columns = [
        rows[field.name].cast(field.type) if field.name in rows.column_names else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def write_part(path: Path, part: Part) -> None:
    """Write one video's rows as a file of its own, as they were before they were merged."""
    with pq.ParquetWriter(path, part.rows.schema, compression="zstd") as writer:
        writer.write_table(part.rows, row_group_size=_ROWS_IN_GROUP)
        if part.analysis is not None:
            writer.add_key_value_metadata({ANALYSIS_KEY: json.dumps(part.analysis).encode()})


def write_big(table: str, parts: Iterator[Part], new_path: Callable[[], Path]) -> Iterator[tuple[Path, list[Entry]]]:
    """Write videos' rows into as few files as keep below 256 MB and 500 videos; memory does not grow with them.

    Args:
        table: name of the table.
        parts: the videos in the order of their ids.
        new_path: names a file of this machine.

    Yields:
        Each file, with what is in it.
    """
    part = next(parts, None)
    while part is not None:
        path = new_path()
        with _BigFile(path, TABLES[table]) as file:
            while part is not None and not file.is_full:
                file.add(part)
                part = next(parts, None)
        yield path, file.entries


def lacks_columns(path: Path, table: str) -> bool:
    """Whether a file of a table was written before all of the table's columns were there.

    Raises:
        SourceError: it is damaged.
        FileNotFoundError: it is gone.
    """
    with _damage_told(path), open_table(path) as file:
        # One with columns of a later version is left to that.
        return set(file.schema_arrow.names) < set(TABLES[table].names)


def write_big_anew(table: str, path: Path, new_path: Callable[[], Path]) -> Iterator[tuple[Path, list[Entry]]]:
    """Write what is in a big file once more, with the columns that it lacks, empty; see `write_big`.

    Raises:
        SourceError: it is damaged.
        FileNotFoundError: it is gone.
    """

    def parts() -> Iterator[Part]:
        for part in split_big(path):
            with _damage_told(path):
                rows = _with_all_columns(part.rows, TABLES[table])
            yield replace(part, rows=rows)

    return write_big(table, parts(), new_path)


class _BigFile:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.entries: list[Entry] = []
        self._analyses: list[dict[str, Any] | None] = []
        self._path = path
        self._schema = schema
        self._waiting: list[pa.Table] = []
        self._waiting_count = 0

    def __enter__(self) -> "_BigFile":
        self._writer = pq.ParquetWriter(self._path, self._schema, compression="zstd")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._write(self._waiting_count)
            columns = zip(*[(e.video_id, e.row_count, e.tag, e.modified_at) for e in self.entries], strict=True)
            described = {_CONTENTS_KEY: json.dumps(list(columns)).encode()}
            if any(self._analyses):
                described[_ANALYSES_KEY] = json.dumps(self._analyses).encode()
            self._writer.add_key_value_metadata(described)
        self._writer.close()

    @property
    def is_full(self) -> bool:
        return len(self.entries) >= MOST_VIDEOS or self._path.stat().st_size >= _FILE_BYTES

    def add(self, part: Part) -> None:
        self.entries.append(part.entry)
        self._analyses.append(part.analysis)
        self._waiting.append(part.rows)
        self._waiting_count += len(part.rows)
        if self._waiting_count >= _ROWS_IN_GROUP:
            self._write(self._waiting_count - self._waiting_count % _ROWS_IN_GROUP)

    def _write(self, count: int) -> None:
        rows = pa.concat_tables(self._waiting).unify_dictionaries().combine_chunks()
        self._writer.write_table(rows.slice(0, count), row_group_size=_ROWS_IN_GROUP)
        self._waiting = [rows.slice(count)]
        self._waiting_count -= count


def read_entries(path: Path) -> list[Entry]:
    """Read which videos are in a big file.

    Raises:
        SourceError: it is damaged.
        FileNotFoundError: it is gone.
    """
    with _damage_told(path), open_table(path) as file:
        return _entries(file)


def split_big(path: Path) -> Iterator[Part]:
    """Read a big file video by video.

    Raises:
        SourceError: it is damaged.
        FileNotFoundError: it is gone.
    """
    with _damage_told(path), open_table(path, pre_buffer=False) as file:
        rows = _Rows(file, file.schema_arrow.names)
        first = 0
        for entry, analysis in zip(_entries(file), _analyses(file), strict=True):
            yield Part(entry, rows.read(first, entry.row_count), analysis)
            first += entry.row_count


def find_big(folder: Path, video_id: str) -> Place | None:
    """Find the big file of a table that holds a video.

    Args:
        folder: the folder of the table.
        video_id: hash of the video's bytes.

    Raises:
        SourceError: a big file is damaged, and the video is in no other.
    """
    look_again, damage = True, None
    for attempt in range(2):
        with _known_lock:
            known = _known.get(folder)
            if known is None or attempt:
                known, damage = _look(folder, known or {})
                _known[folder] = known
                look_again = False
        for path, contents in known.items():
            index = int(np.searchsorted(contents.video_ids, video_id.encode()))
            if index < len(contents.video_ids) and contents.video_ids[index] == video_id.encode():
                if path.exists():
                    first, end = contents.first_rows[index : index + 2].tolist()
                    return Place(path, first, end - first)
                look_again = True
        if not look_again:
            break
    if damage is not None:
        raise damage
    return None


def find_places(results: Results, video_id: str) -> dict[str, Place]:
    """Where a video's rows stand in big files, by the table.

    Raises:
        SourceError: a big file is damaged that may hold the video: the big files of another table do, or each table has
            a damaged one. Of a video that failed there are rows in one table only, so that it is taken for a new one.
    """
    places: dict[str, Place] = {}
    damages: list[SourceError] = []
    for table in TABLES:
        try:
            place = find_big(results.table(table), video_id)
            places |= {} if place is None else {table: place}
        except SourceError as error:
            damages.append(error)
    if damages and (places or len(damages) == len(TABLES)):
        raise damages[0]
    for damage in damages:
        _warn_once(str(damage))
    return places


@cache
def _warn_once(sentence: str) -> None:
    logger.warning("%s", sentence)


@dataclass(frozen=True, slots=True)
class _Contents:
    """What a process keeps of each big file: 24 bytes a video."""

    video_ids: np.ndarray
    """bytes (n,), in order."""
    first_rows: np.ndarray
    """int64 (n + 1,), of each video, and the number of rows."""


_known: dict[Path, dict[Path, _Contents]] = {}
# By the table's folder, then by file.
_known_lock = threading.Lock()


def _look(folder: Path, known: dict[Path, _Contents]) -> tuple[dict[Path, _Contents], SourceError | None]:
    found, damage = {}, None
    for path in list_big(folder):
        try:
            found[path] = known.get(path) or _contents(read_entries(path))
        except FileNotFoundError:
            pass
        except SourceError as error:
            damage = error
    return found, damage


def _contents(entries: Sequence[Entry]) -> _Contents:
    return _Contents(
        np.array([entry.video_id.encode() for entry in entries]),
        np.cumsum([0, *(entry.row_count for entry in entries)], dtype=np.int64),
    )


def find_video(results: Results, video_id: str) -> VideoSummary | None:
    """A video's row of the videos table, wherever it stands; None if it has none.

    Raises:
        VideoError: the row's file is damaged, or one that may hold it.
    """
    small = results.rows("videos", video_id)
    with holding_tables(results.root), _damage_told(small):
        # The small one counts where both are there. In a bucket it may come back while the big ones are looked through.
        return read_video(small) or _find_merged_video(results, video_id) or read_video(small)


def _find_merged_video(results: Results, video_id: str) -> VideoSummary | None:
    for _ in range(_ATTEMPTS):
        try:
            place = find_big(results.table("videos"), video_id)
        except SourceError:
            place = find_places(results, video_id).get("videos")
        if place is None:
            return None
        with contextlib.suppress(FileNotFoundError):
            return _videos(place.path)[place.first_row]
    return None


@lru_cache(maxsize=16)
def _videos(path: Path) -> tuple[VideoSummary, ...]:
    with _damage_told(path), open_table(path) as file:
        return tuple(map(parse_video, file.read().to_pylist()))


def find_faces(results: Results, video_id: str) -> tuple[FaceColumns, Analysis] | None:
    """A video's faces and how they came about, wherever they stand; None if there are none.

    Raises:
        VideoError: a file is damaged.
    """

    def read_big(file: pq.ParquetFile, place: Place) -> tuple[FaceColumns, Analysis]:
        rows = _Rows(file, FACE_COLUMNS).read(place.first_row, place.row_count)
        ids = [entry.video_id for entry in _entries(file)]
        described = _analyses(file)[ids.index(video_id)]
        assert described is not None
        return face_columns(rows.to_batches(), count=rows.num_rows), parse_analysis(described)

    return _find(results, "faces", video_id, read_faces, read_big)


def find_rows(results: Results, table: str, video_id: str) -> pa.Table | None:
    """A video's rows of a table with all its columns, wherever they stand; None if the table does not know it.

    Columns that are none of the table's are left out: somebody else may have put anything there.

    Raises:
        VideoError: a file is damaged, or is a link.
    """

    def columns(file: pq.ParquetFile) -> list[str]:
        return [name for name in file.schema_arrow.names if name in TABLES[table].names]

    def read_small(path: Path) -> pa.Table:
        with open_table(path) as file:
            return file.read(columns(file))

    def read_big(file: pq.ParquetFile, place: Place) -> pa.Table:
        return _Rows(file, columns(file)).read(place.first_row, place.row_count)

    return _find(results, table, video_id, read_small, read_big)


def _find(
    results: Results,
    table: str,
    video_id: str,
    read_small: Callable[[Path], _T],
    read_big: Callable[[pq.ParquetFile, Place], _T],
) -> _T | None:
    """What is read of a video from its own file, or else from where it stands in a merged one."""
    small = results.rows(table, video_id)
    for attempt in range(_ATTEMPTS):
        with holding_tables(results.root), contextlib.suppress(FileNotFoundError), _damage_told(small):
            return read_small(small)
        place = find_big(results.table(table), video_id)
        if place is None and attempt:
            return None
        if place is None:
            continue  # It may have become a small one again meanwhile.
        with (
            contextlib.suppress(FileNotFoundError),
            _damage_told(place.path),
            open_table(place.path, pre_buffer=False) as file,
        ):
            return read_big(file, place)
    return None


def stream_videos(path: Path, columns: Sequence[str]) -> Iterator[tuple[Analysis, Iterator[np.ndarray]]]:
    """Read some columns of a file of the faces table, of one video or of many, a piece at a time.

    Args:
        path: the file.
        columns: their names; numbers only.

    Yields:
        Of each video that has faces: how they came about, and pieces of its rows as `rows.stream_faces` gives them, to
        be read before the next video is asked for.

    Raises:
        VideoError: the file is damaged.
    """
    if not is_big(path):
        opened = stream_faces(path, columns)
        if opened is not None:
            yield opened
        return
    with _damage_told(path), open_table(path, pre_buffer=False) as file:
        rows = _Rows(file, columns)
        first = 0
        for entry, described in zip(_entries(file), _analyses(file), strict=True):
            if entry.row_count and described is not None:
                yield parse_analysis(described), iter([face_records(rows.read(first, entry.row_count), columns)])
            first += entry.row_count


def read_table(results: Results, table: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a whole table so that no row is in it twice or missing, also while another process merges its files.

    pandas, DuckDB and others may see rows twice in the second in which a bucket's files are merged; this does not.

    Args:
        results: the folder or bucket.
        table: `faces`, `segments` or `videos`.
        columns: names of those to read; None for all.

    Raises:
        VideoError: a big file is damaged.
    """
    folder = results.table(table)
    for _ in range(_ATTEMPTS):
        with holding_tables(results.root), contextlib.suppress(FileNotFoundError):
            return _read_once(folder, TABLES[table], columns)
    with holding_tables(results.root):
        return _read_once(folder, TABLES[table], columns)


def _read_once(folder: Path, schema: pa.Schema, columns: Sequence[str] | None) -> pa.Table:
    import pyarrow.dataset as ds

    bucket: Any = folder
    if is_local(folder):
        files = [path for path in folder.glob("*.parquet") if not path.name.startswith(".")]
        filesystem = None
    else:
        files = [folder / name.rpartition("/")[2] for name in bucket.fs.glob(f"{bucket.path}/*.parquet")]
        filesystem = bucket.fs
    small = {path.stem for path in files if not is_big(path)}
    clean: list[Path] = [path for path in files if not is_big(path)]
    tables = []

    def dataset(paths: Sequence[Any]) -> Any:
        names = [str(path) if is_local(path) else path.path for path in paths]
        return ds.dataset(names, schema=schema, format="parquet", filesystem=filesystem)

    seen: set[str] = set()
    for path in sorted(filter(is_big, files)):
        ids = [entry.video_id for entry in read_entries(path)]
        doubled = [video_id for video_id in ids if video_id in small or video_id in seen]
        seen.update(ids)
        if doubled:
            tables.append(dataset([path]).to_table(columns, filter=~ds.field("video_id").isin(doubled)))
        else:
            clean.append(path)
    return pa.concat_tables([dataset(clean).to_table(columns), *tables])


class _Rows:
    """Rows of a file by their number; a row group is decoded once as long as they are asked for in order."""

    def __init__(self, file: pq.ParquetFile, columns: Sequence[str]) -> None:
        self._file = file
        self._columns = list(columns)
        counts = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        self._starts = np.cumsum([0, *counts])
        self._group = -1
        self._rows = file.schema_arrow.empty_table().select(self._columns)

    def read(self, first: int, count: int) -> pa.Table:
        pieces = [self._rows.slice(0, 0)]
        end = first + count
        while first < end:
            group = int(np.searchsorted(self._starts, first, side="right")) - 1
            if group != self._group:
                self._rows = self._file.read_row_group(group, columns=self._columns, use_threads=False)
                self._group = group
            offset = first - int(self._starts[group])
            pieces.append(self._rows.slice(offset, end - first))
            first += len(pieces[-1])
        return pa.concat_tables(pieces).unify_dictionaries()


def _entries(file: pq.ParquetFile) -> list[Entry]:
    entries = [Entry(*entry) for entry in zip(*json.loads(file.metadata.metadata[_CONTENTS_KEY]), strict=True)]
    for entry in entries:
        checked_id(entry.video_id)
    if sum(entry.row_count for entry in entries) != file.metadata.num_rows:
        raise ValueError("it has other rows than it says")
    return entries


def _analyses(file: pq.ParquetFile) -> list[dict[str, Any] | None]:
    described = file.metadata.metadata.get(_ANALYSES_KEY)
    return [None] * len(_entries(file)) if described is None else json.loads(described)


@contextlib.contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, ConnectionError, PermissionError):
        raise
    except (pa.ArrowException, KeyError, TypeError, ValueError, OSError) as error:
        # It says nothing of any video: what may be in it waits until it is mended.
        raise SourceError(
            f"{path}: this table is damaged; put a copy of the file back, or remove it and analyse its videos again."
        ) from error
