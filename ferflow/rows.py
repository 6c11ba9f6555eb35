"""scored faces <-> Parquet: the schemas of the tables, and one video's file of each"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ferflow.emotions import EMOTIONS
from ferflow.errors import DataError, SourceError, VideoError
from ferflow.records import Analysis, FaceColumns, FaceRow, Segment, VideoInfo, VideoSummary
from ferflow.storage import checked_id, is_local, part_file

_EMOTION_TYPE = pa.dictionary(pa.int8(), pa.string())
_ROWS_AT_ONCE = 1024
# Rows kept before they are written: about 2 MB as Python objects, whatever the length of the video.
_ROWS_READ_AT_ONCE = 65_536
ANALYSIS_KEY = b"ferflow.analysis"
"""Where a faces file keeps how it came about."""


def _column(name: str, kind: pa.DataType, meaning: str) -> pa.Field:
    return pa.field(name, kind, metadata={"meaning": meaning})


FACES_SCHEMA = pa.schema(
    [
        _column("video_id", pa.string(), "hash of the file's bytes: the same video under another name has the same"),
        _column("source", pa.string(), "path of the video"),
        _column("frame_index", pa.int32(), "position among the decoded frames, from 0"),
        _column("pts_seconds", pa.float64(), "when the frame appears: its own time in the file, never index / fps"),
        _column("frame_seconds", pa.float64(), "how long the frame is shown"),
        _column("track_id", pa.int32(), "the person, within this video"),
        _column("x_min", pa.float32(), "left edge of the face in pixels of the video as it is seen"),
        _column("y_min", pa.float32(), "top edge"),
        _column("x_max", pa.float32(), "right edge, exclusive"),
        _column("y_max", pa.float32(), "bottom edge, exclusive"),
        _column("right_eye_x", pa.float32(), "the person's right eye"),
        _column("right_eye_y", pa.float32(), "the person's right eye"),
        _column("left_eye_x", pa.float32(), "the person's left eye"),
        _column("left_eye_y", pa.float32(), "the person's left eye"),
        _column("detection_score", pa.float32(), "how sure the detector is, 0 to 1"),
        *(_column(emotion, pa.float32(), "probability, 0 to 1; the seven sum to 1") for emotion in EMOTIONS),
        _column("emotion", _EMOTION_TYPE, "the most probable of the seven in this frame alone"),
        _column("model_version", pa.string(), "the weights that scored the face"),
    ]
)
"""One row a face a frame."""

SEGMENTS_SCHEMA = pa.schema(
    [
        _column("video_id", pa.string(), "as in `faces`"),
        _column("track_id", pa.int32(), "the person, within this video"),
        _column("emotion", _EMOTION_TYPE, "what the person shows during the segment"),
        _column("start_seconds", pa.float64(), "when it begins"),
        _column("end_seconds", pa.float64(), "when it ends"),
        _column("mean_probability", pa.float32(), "mean probability of this emotion over the segment, 0 to 1"),
        _column("model_version", pa.string(), "the weights that scored the faces"),
    ]
)
"""One row a stretch of time in which a person shows one emotion."""

VIDEOS_SCHEMA = pa.schema(
    [
        _column("video_id", pa.string(), "hash of the file's bytes"),
        _column("source", pa.string(), "path of the video"),
        _column("source_tag", pa.string(), "the file's length with its time, or the bucket's ETag: known again by it"),
        _column("status", pa.string(), "`done` or `failed`"),
        _column("error", pa.string(), "what is wrong with the file; for a `done` one what could not be read of it"),
        _column("duration_seconds", pa.float64(), "when the last frame ends"),
        _column("frame_count", pa.int32(), "frames that could be decoded"),
        _column("width", pa.int32(), "pixels across, as the video is seen"),
        _column("height", pa.int32(), "pixels down, as the video is seen"),
        _column("fps", pa.float64(), "frames a second, on average"),
        _column("has_audio", pa.bool_(), "whether there is a sound track"),
        _column("face_count", pa.int32(), "rows in `faces`"),
        _column("track_count", pa.int32(), "people, as far as they can be told apart by their place"),
        _column("dominant_emotion", pa.string(), "the emotion shown for the longest time; empty without faces"),
        *(
            _column(f"share_{emotion}", pa.float32(), "share of the time of all faces; the seven sum to 1")
            for emotion in EMOTIONS
        ),
        _column("annotated_path", pa.string(), "the annotated video, within the results folder"),
        _column("timeline_path", pa.string(), "the timeline picture, within the results folder"),
        _column("model_version", pa.string(), "the weights that scored the faces"),
        _column("settings_hash", pa.string(), "names the settings that it depends on; empty while it is done again"),
        _column("processed_at", pa.timestamp("us", tz="UTC"), "when the result was finished"),
        _column("processing_seconds", pa.float64(), "from the first frame read to the finished result"),
    ]
)
"""One row a video."""

_BOX_COLUMNS = ["x_min", "y_min", "x_max", "y_max"]
_PLAIN_COLUMNS = ["frame_index", "pts_seconds", "frame_seconds", "track_id"]
FACE_COLUMNS = [*_PLAIN_COLUMNS, *_BOX_COLUMNS, *EMOTIONS]
"""Columns that `face_columns` takes."""

TABLES = {"faces": FACES_SCHEMA, "videos": VIDEOS_SCHEMA, "segments": SEGMENTS_SCHEMA}
"""Every table by the name of its folder."""

COLUMNS_ONLY = "columns.parquet"
"""A part of each table without rows; it is also what a results folder is known by."""


def describe_tables() -> str:
    """The tables and their columns as Markdown, as the README shows them."""
    lines: list[str] = []
    for name, schema in TABLES.items():
        lines += [f"**`{name}/`**", "", "| column | type | meaning |", "|---|---|---|"]
        for field in schema:
            kind = "category" if pa.types.is_dictionary(field.type) else str(field.type)
            lines.append(f"| `{field.name}` | {kind} | {field.metadata[b'meaning'].decode()} |")
        lines.append("")
    return "\n".join(lines)


def write_empty_table(path: Path, schema: pa.Schema, *, parts: Path) -> None:
    """Write a file with the columns and no rows, so that a folder can be read before the first result is there."""
    with part_file(path, folder=parts) as part:
        pq.write_table(schema.empty_table(), part)


def write_faces(path: Path, rows: Iterable[FaceRow], describe: Callable[[], Analysis], *, parts: Path) -> None:
    """Write one video's faces as they come; the file appears when the last one is there.

    Args:
        path: the Parquet file.
        rows: the faces in order of time; memory does not grow with their number.
        describe: called after the last row: what is then known of the video, kept inside the file.
        parts: folder for the unfinished file, on the same disk.
    """
    with part_file(path, folder=parts) as part, pq.ParquetWriter(part, FACES_SCHEMA, compression="zstd") as writer:
        waiting = iter(rows)
        while batch := list(islice(waiting, _ROWS_AT_ONCE)):
            writer.write_table(_faces_table(batch, describe()))
        analysis = dataclasses.asdict(describe())
        writer.add_key_value_metadata({ANALYSIS_KEY: json.dumps(analysis, default=datetime.isoformat).encode()})


def read_faces(path: Path) -> tuple[FaceColumns, Analysis]:
    """Read what `write_faces` wrote."""
    # Read ahead and by several threads, an hour's rows would take 20 MB on top of what they are.
    with open_table(path, pre_buffer=not is_local(path)) as file:
        batches = file.iter_batches(_ROWS_AT_ONCE, columns=FACE_COLUMNS, use_threads=False)
        return face_columns(batches, count=file.metadata.num_rows), _analysis(file)


def face_columns(batches: Iterable[pa.RecordBatch], *, count: int) -> FaceColumns:
    """One video's rows of the faces table, so many in all, as arrays."""
    faces = FaceColumns(
        frame_index=np.empty(count, np.int32),
        pts_seconds=np.empty(count, np.float64),
        frame_seconds=np.empty(count, np.float64),
        track_id=np.empty(count, np.int32),
        boxes_xyxy=np.empty((count, len(_BOX_COLUMNS)), np.float32),
        probabilities=np.empty((count, len(EMOTIONS)), np.float32),
    )
    columns = {name: getattr(faces, name) for name in _PLAIN_COLUMNS}
    columns |= dict(zip(_BOX_COLUMNS, faces.boxes_xyxy.T, strict=True))
    columns |= dict(zip(EMOTIONS, faces.probabilities.T, strict=True))
    first = 0
    for batch in batches:
        for name, column in columns.items():
            column[first : first + batch.num_rows] = batch.column(name).to_numpy(zero_copy_only=False)
        first += batch.num_rows
    return faces


def read_analysis(path: Path) -> Analysis | None:
    """Read how a file of the faces table came about; None when there is no such file, or it is damaged."""
    try:
        with _damage_told(path), open_table(path) as file:
            return _analysis(file)
    except (FileNotFoundError, VideoError):
        return None


def stream_faces(path: Path, columns: Sequence[str]) -> tuple[Analysis, Iterator[np.ndarray]] | None:
    """Read some columns of what `write_faces` wrote, a piece at a time: memory does not grow with the length.

    Args:
        path: a file of the faces table.
        columns: their names; numbers only.

    Returns:
        How the faces came about, and pieces of the table in its order: structured arrays with the columns as fields.
        None for a file without faces.

    Raises:
        VideoError: the file is damaged.
    """
    damaged = f"{path}: this table is damaged; remove the file and analyse its video again."
    try:
        # Buffering reads the whole file ahead: with ten million rows in one, 910 MB of memory instead of 390.
        file = open_table(path, pre_buffer=False)
        if file.metadata.num_rows == 0:
            file.close()
            return None
        analysis = _analysis(file)
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise VideoError(damaged) from error

    def pieces() -> Iterator[np.ndarray]:
        with file:
            try:
                # One thread: the pieces are small, and starting more for each costs more than it saves.
                for batch in file.iter_batches(_ROWS_READ_AT_ONCE, columns=list(columns), use_threads=False):
                    yield face_records(batch, columns)
            except (pa.ArrowInvalid, OSError) as error:
                raise VideoError(damaged) from error

    return analysis, pieces()


def face_records(rows: pa.RecordBatch | pa.Table, columns: Sequence[str]) -> np.ndarray:
    """Some columns of the faces table, numbers only, as a structured array with the columns as fields."""
    records = np.empty(rows.num_rows, [(name, FACES_SCHEMA.field(name).type.to_pandas_dtype()) for name in columns])
    for name in columns:
        column = rows.column(name)
        records[name] = (
            column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(zero_copy_only=False)
        )
    return records


@contextlib.contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, KeyError, TypeError, ValueError, OSError) as error:
        # A disk's own errors have a number, a store's are of a kind of their own; Arrow's on odd bytes are neither.
        if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
            raise
        raise VideoError(f"{path}: this table is damaged; remove the file and analyse its video again.") from error


def open_table(path: Path, **options: Any) -> pq.ParquetFile:
    """Open a file of a table, in a folder or a bucket.

    Raises:
        SourceError: it is a link.
    """
    if is_local(path):
        # In a folder from a stranger it may lead to any table of this machine, and the viewer gives tables out.
        if path.is_symlink():
            raise SourceError(
                f"{path}: this is a link, and a table is read from its own files alone; put the file itself in its "
                "place, or remove the link and analyse its videos again."
            )
        return pq.ParquetFile(path, **options)
    bucket: Any = path
    return pq.ParquetFile(bucket.path, filesystem=bucket.fs, **options)


def _analysis(file: pq.ParquetFile) -> Analysis:
    return parse_analysis(json.loads(file.metadata.metadata[ANALYSIS_KEY]))


def parse_analysis(described: dict[str, Any]) -> Analysis:
    """Read how faces came about from what a file says of it."""
    described = dict(described)
    checked_id(described["video_id"])
    info = VideoInfo(**described.pop("info"))
    started_at = datetime.fromisoformat(described.pop("started_at"))
    return Analysis(**described, info=info, started_at=started_at)


def write_segments(path: Path, segments: Sequence[Segment], *, video_id: str, model_version: str, parts: Path) -> None:
    """Write one video's segments."""
    columns: dict[str, Any] = {
        "video_id": [video_id] * len(segments),
        **{field.name: [getattr(segment, field.name) for segment in segments] for field in dataclasses.fields(Segment)},
        "model_version": [model_version] * len(segments),
    }
    with part_file(path, folder=parts) as part:
        pq.write_table(pa.table(columns, schema=SEGMENTS_SCHEMA), part)


def write_video(path: Path, summary: VideoSummary, *, parts: Path) -> None:
    """Write one video's row: the last file of a video, so that its being there means that all the others are."""
    row = dataclasses.asdict(summary)
    info = row.pop("info") or dict.fromkeys(field.name for field in dataclasses.fields(VideoInfo)) | {"frame_count": 0}
    info.pop("warning")
    shares = row.pop("emotion_shares") or (None,) * len(EMOTIONS)
    row |= info | {f"share_{emotion}": share for emotion, share in zip(EMOTIONS, shares, strict=True)}
    with part_file(path, folder=parts) as part:
        pq.write_table(pa.Table.from_pylist([row], schema=VIDEOS_SCHEMA), part)


def write_rows(path: Path, rows: pa.Table) -> None:
    """Write some rows of a table for a person to take away: as Parquet, or as CSV if the name ends so."""
    if path.suffix == ".csv":
        import pyarrow.csv

        # CSV knows no categories.
        plain = [field.type.value_type if pa.types.is_dictionary(field.type) else field.type for field in rows.schema]
        names = rows.schema.names
        pyarrow.csv.write_csv(rows.cast(pa.schema(list(zip(names, plain, strict=True)))), path)
    else:
        pq.write_table(rows, path, compression="zstd")


def read_video(path: Path) -> VideoSummary | None:
    """Read what `write_video` wrote; None when there is no such file."""
    try:
        with open_table(path) as file:
            (row,) = file.read().to_pylist()
    except FileNotFoundError:
        return None
    return parse_video(row)


def parse_video(row: dict[str, Any]) -> VideoSummary:
    """Read one row of the videos table."""
    row = dict(row)
    checked_id(row["video_id"])
    shares = tuple(row.pop(f"share_{emotion}") for emotion in EMOTIONS)
    in_info = [field.name for field in dataclasses.fields(VideoInfo) if field.name != "warning"]
    info = {name: row.pop(name) for name in in_info}
    is_decoded = info["frame_count"] > 0
    return VideoSummary(
        **row,
        info=VideoInfo(**info, warning=row["error"] if is_decoded else None) if is_decoded else None,
        emotion_shares=None if shares[0] is None else shares,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class KnownSource:
    """What the videos table says of a file, for who wants to know whether it is done."""

    source: str
    """The file's path or address."""
    video_id: str
    """Hash of its bytes."""
    source_tag: str | None
    """By what it is known again, see `storage.StoredFile`."""
    status: str
    """`done` or `failed`."""
    model_version: str
    """The weights that scored the faces."""
    settings_hash: str
    """Names the settings that the result depends on."""
    processed_at: datetime
    """When the result was finished, UTC."""


def read_known_sources(path: Path) -> list[KnownSource]:
    """Read a file of the videos table for which sources are in it.

    Raises:
        FileNotFoundError: there is no such file any more.
        VideoError: it is damaged.
    """
    names = [field.name for field in dataclasses.fields(KnownSource)]
    with _damage_told(path), open_table(path) as file:
        there = set(file.schema_arrow.names)
        rows = file.read(columns=[name for name in names if name in there]).to_pylist()
        for row in rows:
            checked_id(row["video_id"])
    return [KnownSource(**dict.fromkeys(names) | row) for row in rows]


def read_text_columns(path: Path) -> dict[str, list[str]]:
    """Read anybody's Parquet table as text, its columns' names in small letters; what is missing is an empty text.

    Raises:
        DataError: it is no Parquet table.
    """
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: it cannot be read as a Parquet table ({error}). Save it again.") from error
    return {
        name.strip().casefold(): ["" if value is None else str(value) for value in table.column(index).to_pylist()]
        for index, name in enumerate(table.column_names)
    }


def _faces_table(rows: Sequence[FaceRow], analysis: Analysis) -> pa.Table:
    count = len(rows)
    probabilities = np.array([row.probabilities for row in rows], np.float32)
    boxes = np.array([dataclasses.astuple(row.face.box) for row in rows], np.float32)
    eyes = np.array([row.face.right_eye_xy + row.face.left_eye_xy for row in rows], np.float32)
    best = pa.DictionaryArray.from_arrays(probabilities.argmax(axis=1).astype(np.int8), pa.array(EMOTIONS))
    columns: dict[str, Any] = {
        "video_id": [analysis.video_id] * count,
        "source": [analysis.source] * count,
        "frame_index": [row.frame_index for row in rows],
        "pts_seconds": [row.pts_seconds for row in rows],
        "frame_seconds": [row.frame_seconds for row in rows],
        "track_id": [row.track_id for row in rows],
        **dict(zip(_BOX_COLUMNS, boxes.T, strict=True)),
        **dict(zip(("right_eye_x", "right_eye_y", "left_eye_x", "left_eye_y"), eyes.T, strict=True)),
        "detection_score": [row.face.score for row in rows],
        **dict(zip(EMOTIONS, probabilities.T, strict=True)),
        "emotion": best,
        "model_version": [analysis.model_version] * count,
    }
    return pa.table(columns, schema=FACES_SCHEMA)
