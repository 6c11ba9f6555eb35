"""a results folder -> its videos, found, sorted and counted, each with a strip of its emotions over time

DuckDB reads the Parquet files. The row of each video is kept in memory, 500 bytes a video; a file is read again only
when it changed, and the folder is listed again only when something came or went. Of `segments` only what belongs to
the videos that are shown is read, of `faces` nothing.
"""

import contextlib
import glob
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ferflow.emotions import EMOTIONS
from ferflow.errors import VideoError
from ferflow.merged_rows import find_big
from ferflow.mirror import Mirror
from ferflow.rows import COLUMNS_ONLY
from ferflow.storage import Results, holding_tables, is_local
from models.wheels import cache_folder

Status = Literal["done", "failed", "without a face"]
Order = Literal["newest", "oldest", "name", "longest", "most faces", "slowest"]
STATUSES: tuple[Status, ...] = get_args(Status)
ORDERS: tuple[Order, ...] = get_args(Order)

_ORDER_BY: dict[Order, str] = {
    "newest": "processed_us desc",
    "oldest": "processed_us",
    "name": "lower(name), folder",
    "longest": "duration_seconds desc nulls last",
    "most faces": "face_count desc",
    "slowest": "processing_seconds desc",
}
_COLUMNS = {
    **{"video_id": "varchar", "source": "varchar", "status": "varchar", "error": "varchar"},
    **{"duration_seconds": "double", "fps": "double", "face_count": "integer", "track_count": "integer"},
    **{"dominant_emotion": "varchar", "processed_at": "timestamptz", "processing_seconds": "double"},
    **{f"share_{emotion}": "float" for emotion in EMOTIONS},
}
_SETTLED_SECONDS = 2.0
# A folder that was changed more recently may change again without its time telling.
_BUCKET_SECONDS = 15.0
# Between two looks into a bucket.
_FILES_AT_ONCE = 500
_STRIP_MOMENTS = 160
_MOST_STRIPS = 2_000
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Choice:
    """Which videos are wanted; without anything all are."""

    text: str = ""
    """Part of the file's name, in small or capital letters."""
    status: Status | None = None
    """Only these."""
    emotion: str | None = None
    """Only those in which this emotion was shown for the longest time."""
    folder: str = ""
    """Only those whose file lies in this folder or below it."""


@dataclass(frozen=True, slots=True)
class ListedVideo:
    """A video in the table of all videos."""

    video_id: str
    """Hash of the file's bytes."""
    name: str
    """The file's name."""
    folder: str
    """Where it lay."""
    status: Status
    """What became of it."""
    error: str | None
    """What is wrong with the file, or for one that is done what could not be read of it."""
    duration_seconds: float | None
    """Its length; None if it could not be read."""
    face_count: int
    """Faces found, over all frames."""
    track_count: int
    """People, as far as they can be told apart."""
    dominant_emotion: str | None
    """The emotion shown for the longest time; None without faces."""
    dominant_share: float | None
    """Its share of the time of all faces, 0 to 1."""
    processed_at: datetime
    """When the result was finished, UTC."""
    processing_seconds: float
    """How long that took."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What some videos come to."""

    folder: str
    """The folder they lay in; empty for those of many."""
    videos: int
    """How many."""
    failed: int
    """Those that could not be analysed."""
    without_face: int
    """Those in which no face was found."""
    duration_seconds: float
    """Their length together."""
    face_count: int
    """Faces found, over all frames."""
    processing_seconds: float
    """How long they took together."""
    emotion_shares: tuple[float, ...] | None
    """The videos' shares in the order of EMOTIONS, each video counting by the time of its faces; None without faces."""


class Library:
    """The videos of a results folder. Safe to be asked by many threads."""

    def __init__(self, results: Results) -> None:
        """Nothing is read yet; of a bucket's tables `videos` and `segments` this machine keeps a copy."""
        import duckdb

        self._results = results
        self._mirrors = {
            table: Mirror(results.table(table), cache_folder() / "tables")
            for table in ("videos", "segments")
            if not is_local(results.root)
        }
        self._lock = threading.Lock()
        self._state: tuple[int, int] | None = None
        self._files: dict[str, tuple[int, int]] = {}
        self._strips: dict[str, np.ndarray] = {}
        self.damaged: tuple[Path, ...] = ()
        """Files of the videos table that cannot be read."""
        self._threads = min(os.cpu_count() or 1, 4)
        self._database = duckdb.connect(config={"threads": self._threads})
        columns = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
        self._database.execute(f"create table rows (file varchar, {columns})")
        self._show()

    def refresh(self) -> bool:
        """Read what came, changed or went since the last time, and tell whether anything did.

        Raises:
            ConfigError: there is no such bucket, or its key is missing or wrong.
            OSError: the results are not to be read.
        """
        with self._lock, self._reading("videos") as folder:
            status = folder.stat()
            state = status.st_ino, status.st_mtime_ns
            if state == self._state:
                return False
            # A link may lead to any table of this machine, as `ferflow.rows.open_table` says.
            files = {
                entry.name: (entry.stat().st_mtime_ns, entry.stat().st_size)
                for entry in os.scandir(folder)
                if entry.name.endswith(".parquet")
                and not entry.name.startswith(".")
                and entry.is_file(follow_symlinks=False)
            }
            changed = [name for name, tag in files.items() if self._files.get(name) != tag]
            gone = [name for name in self._files if name not in files or name in changed]
            if changed or gone:
                self._exchange(folder, changed, gone)
            self._files = files
            self._state = state if time.time() - status.st_mtime > _SETTLED_SECONDS else None
            return bool(changed or gone)

    def videos(self, choice: Choice, order: Order = "newest", *, first: int = 0, count: int = 50) -> list[ListedVideo]:
        """Some of the videos that are wanted.

        Args:
            choice: which.
            order: which come first.
            first: so many are passed over.
            count: no more than so many.
        """
        where, values = _where(choice)
        found = self._ask(
            "select video_id, name, folder, shown_status, error, duration_seconds, face_count, track_count,"
            " dominant_emotion, dominant_share, processed_us, processing_seconds"
            f" from videos {where} order by {_ORDER_BY[order]}, video_id limit $count offset $first",
            {**values, "count": count, "first": first},
        )
        return [ListedVideo(*(*row[:-2], datetime.fromtimestamp(row[-2] / 1e6, UTC), row[-1])) for row in found]

    def totals(self, choice: Choice) -> Totals:
        """What the videos that are wanted come to."""
        where, values = _where(choice)
        (row,) = self._ask(f"select '', {_SUMS} from videos {where}", values)
        return _totals(row)

    def folders(self, choice: Choice) -> list[Totals]:
        """What they come to, folder by folder in order of their names."""
        where, values = _where(choice)
        rows = self._ask(f"select folder, {_SUMS} from videos {where} group by folder order by folder", values)
        return [_totals(row) for row in rows]

    def strips(self, video_ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Who showed what over the time of each of these videos, cut into equal moments.

        Args:
            video_ids: of videos with faces; for others it is looked in vain.

        Returns:
            float32 (moments, 7) each, for how much of the moment the emotion was shown, over all people.

        Raises:
            ConfigError: there is no such bucket, or its key is missing or wrong.
            OSError: the results are not to be read.
        """
        known = self._strips
        missing = [video_id for video_id in video_ids if video_id not in known]
        if missing:
            nobody = np.zeros((_STRIP_MOMENTS, len(EMOTIONS)), np.float32)
            known = dict.fromkeys(missing, nobody) | self._find_strips(missing) | known
            self._strips = known if len(known) < _MOST_STRIPS else {}
        return {video_id: known[video_id] for video_id in video_ids}

    def _find_strips(self, video_ids: Sequence[str]) -> dict[str, np.ndarray]:
        with self._reading("segments") as folder:
            paths = {folder / f"{video_id}.parquet": None for video_id in video_ids}
            for path, video_id in zip(list(paths), video_ids, strict=True):
                if path.is_symlink() or not path.is_file():
                    del paths[path]
                    with contextlib.suppress(VideoError):  # A damaged file: its videos have no strip.
                        place = find_big(folder, video_id)
                        paths |= {} if place is None else {place.path: None}
            return self._read_strips(list(paths), video_ids)

    def _read_strips(self, paths: Sequence[Path], video_ids: Sequence[str]) -> dict[str, np.ndarray]:
        import duckdb

        if not paths:
            return {}
        asked = {"files": _names(paths), "video_ids": list(video_ids)}
        try:
            rows = self._database.cursor().execute(_STRIPS, asked).fetchnumpy()
        except duckdb.Error:
            # A damaged one among them: the others are shown.
            if len(paths) == 1:
                return {}
            half = len(paths) // 2
            return self._read_strips(paths[:half], video_ids) | self._read_strips(paths[half:], video_ids)
        shown = np.column_stack([rows[emotion] for emotion in EMOTIONS])
        strips: dict[str, np.ndarray] = {}
        for video_id in set(rows["video_id"].tolist()):
            mine = rows["video_id"] == video_id
            strips[video_id] = np.zeros((_STRIP_MOMENTS, len(EMOTIONS)), np.float32)
            strips[video_id][rows["moment"][mine]] = shown[mine]
        return strips

    @contextlib.contextmanager
    def _reading(self, table: str) -> Iterator[Path]:
        """A folder of this machine with a table's files, that is not exchanged meanwhile."""
        if table not in self._mirrors:
            with holding_tables(self._results.root):
                yield self._results.table(table)
            return
        for attempt in range(_ATTEMPTS):
            try:
                folder = self._mirrors[table].pull(older_than_seconds=_BUCKET_SECONDS)
                break
            except FileNotFoundError:  # Merged between the listing and the fetching.
                if attempt == _ATTEMPTS - 1:
                    raise
        yield folder

    def _exchange(self, folder: Path, changed: Sequence[str], gone: Sequence[str]) -> None:
        """Replace the rows of some files; whoever asks meanwhile gets the old ones."""
        # Read before anything is written, because an error inside a transaction ends it.
        chunks = [
            [folder / name for name in changed[at : at + _FILES_AT_ONCE]]
            for at in range(0, len(changed), _FILES_AT_ONCE)
        ]
        with ThreadPoolExecutor(self._threads) as pool:
            pieces = [piece for pieces in pool.map(self._read_rows, chunks) for piece in pieces]
        # A damaged file that did not change is as it was.
        damaged = [path for path in self.damaged if path.name not in gone]
        self._database.execute("begin transaction")
        try:
            self._database.execute("delete from rows where file in $gone", {"gone": list(gone)})
            for piece in pieces:
                if isinstance(piece, Path):
                    damaged.append(piece)
                else:
                    self._database.register("came", piece)
                    self._database.execute("insert into rows by name select * from came")
                    self._database.unregister("came")
            self._show()
            self._database.execute("commit")
        except BaseException:
            self._database.execute("rollback")
            raise
        self.damaged = tuple(damaged)
        # What was done again has another one.
        self._strips = {}

    def _read_rows(self, paths: Sequence[Path]) -> list[Any]:
        """The rows of some files as an Arrow table, and the path of each file that is damaged."""
        import duckdb

        # Files of an earlier version lack columns; to look at all files for their columns takes twice as long.
        columns = paths[0].parent / COLUMNS_ONLY
        with_columns = [*paths] if columns.is_symlink() else [*paths, columns]
        for paths_read, by_name in ((paths, "false"), (with_columns, "true")):
            with contextlib.suppress(duckdb.Error):
                rows = self._database.cursor().sql(
                    f"select parse_filename(filename) as file, {', '.join(_COLUMNS)}"
                    f" from read_parquet($files, union_by_name = {by_name}, filename = true)",
                    params={"files": _names(paths_read)},
                )
                return [rows.to_arrow_table()]
        if len(paths) == 1:
            return list(paths)
        half = len(paths) // 2
        return self._read_rows(paths[:half]) + self._read_rows(paths[half:])

    def _show(self) -> None:
        """Make the table that is asked of the files' rows: each video once, a file of its own before a big one."""
        shares = ", ".join(f"share_{emotion}" for emotion in EMOTIONS)
        self._database.execute(
            "create or replace table videos as select *,"
            " regexp_extract(source, '[^/\\\\]*$') as name,"
            " rtrim(source[:length(source) - length(name)], '/\\') as folder,"
            " case when status = 'failed' then 'failed' when face_count = 0 then 'without a face' else 'done' end"
            " as shown_status,"
            f" greatest({shares}) as dominant_share,"
            " epoch_us(processed_at) as processed_us,"
            # How long faces were seen: each for as long as a frame is shown.
            " face_count / nullif(fps, 0) as face_seconds"
            " from rows qualify row_number() over"
            " (partition by video_id order by starts_with(file, 'compact-'), processed_at desc) = 1"
        )

    def _ask(self, query: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        return self._database.cursor().execute(query, values).fetchall()


_SUMS = (
    "count(*), count(*) filter (shown_status = 'failed'), count(*) filter (shown_status = 'without a face'),"
    " coalesce(sum(duration_seconds), 0), coalesce(sum(face_count), 0)::bigint, coalesce(sum(processing_seconds), 0), "
) + ", ".join(f"sum(share_{emotion} * face_seconds)" for emotion in EMOTIONS)

# Each segment is cut where the strip's moments begin. What a person showed for longest in a moment counts for it, so
# that a change is a clean edge; then the people are added up.
_STRIPS = f"""
with pieces as (
    select segments.video_id, track_id, emotion::varchar as emotion,
        start_seconds / duration_seconds * {_STRIP_MOMENTS} as first,
        least(end_seconds / duration_seconds, 1) * {_STRIP_MOMENTS} as last
    from read_parquet($files) as segments join videos using (video_id)
    where segments.video_id in $video_ids and duration_seconds > 0
), cut as (
    select *, unnest(range(floor(first)::bigint, ceil(last)::bigint)) as moment from pieces
), people as (
    select video_id, moment, track_id, emotion, sum(least(last, moment + 1) - greatest(first, moment)) as covered
    from cut group by video_id, moment, track_id, emotion
    qualify row_number() over (partition by video_id, moment, track_id order by covered desc, emotion) = 1
)
select video_id, moment, {
    ", ".join(f"coalesce(sum(covered) filter (emotion = '{emotion}'), 0) as {emotion}" for emotion in EMOTIONS)
} from people group by video_id, moment
"""


def _where(choice: Choice) -> tuple[str, dict[str, object]]:
    conditions: list[str] = []
    values: dict[str, object] = {}
    if choice.text.strip():
        conditions.append("contains(lower(name), lower($text))")
        values["text"] = choice.text.strip()
    if choice.status is not None:
        conditions.append("shown_status = $status")
        values["status"] = choice.status
    if choice.emotion is not None:
        conditions.append("dominant_emotion = $emotion")
        values["emotion"] = choice.emotion
    if choice.folder:
        conditions.append("(folder = $folder or starts_with(folder, $below))")
        values |= {"folder": choice.folder, "below": f"{choice.folder}/"}
    return ("where " + " and ".join(conditions) if conditions else ""), values


def _totals(row: tuple[Any, ...]) -> Totals:
    counts, seconds = row[: -len(EMOTIONS)], [value or 0.0 for value in row[-len(EMOTIONS) :]]
    total = sum(seconds)
    return Totals(*(*counts, tuple(value / total for value in seconds) if total else None))


def _names(paths: Sequence[Path]) -> list[str]:
    """Names as DuckDB takes them, which would read a * or [ in one as a pattern."""
    return [glob.escape(str(path)) for path in paths]
