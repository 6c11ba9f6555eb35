"""a results folder of synthetic videos -> how long the page of all videos takes over it, with small files and merged

python -m benchmarks.viewer [--videos 10000] [--faces 1000] [--folder FOLDER]
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from ferflow.compaction import compact
from ferflow.emotions import EMOTIONS
from ferflow.merged_rows import Entry, Part, find_faces, write_part
from ferflow.rows import TABLES
from ferflow.sources import open_results
from ferflow.storage import Results

_AIMS = {
    "first opening": 10.0,
    "opening again, nothing changed": 0.01,
    "opening again, one video came": 0.5,
    "a page of 100": 0.1,
    "search by name, sorted": 0.1,
    "filter by emotion and folder": 0.1,
    "totals": 0.1,
    "totals of each folder": 0.1,
    "strips of 100": 0.5,
    "strips of 100 again": 0.01,
    "faces of one video": 0.5,
}
"""Seconds, each the most that a person should wait for it."""
_SEGMENTS = 40
_VIDEOS_PER_FOLDER = 250


def main() -> None:
    """Make the folder, measure, merge, measure again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=10_000)
    parser.add_argument("--faces", type=int, default=1000, help="of each video")
    parser.add_argument("--folder", type=Path, help="a results folder to be made and kept; it is merged afterwards")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        _measure(Results(args.measure))
        return
    with _folder(args.folder) as folder:
        is_new = not folder.exists()
        results = open_results(folder)
        if is_new:
            fill(results, args.videos, args.faces)
        _report(results, f"{args.videos:,} videos, {args.videos * args.faces:,} faces, a file each")
        compact(results, older_than_days=0)
        _report(results, "the same, merged")


@contextlib.contextmanager
def _folder(named: Path | None) -> Iterator[Path]:
    if named is not None:
        yield named
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "results"


def _report(results: Results, title: str) -> None:
    """In a process of its own, so that what it remembers is its own."""
    print(title, flush=True)
    subprocess.run([sys.executable, "-m", "benchmarks.viewer", "--measure", str(results.root)], check=True)


def _measure(results: Results) -> None:
    from viewer.library import Choice, Library

    library: Library
    memory_before = _peak_mb()

    def open_first() -> None:
        nonlocal library
        library = Library(results)
        library.refresh()

    took = {"first opening": _seconds(open_first), "opening again, nothing changed": _seconds(library.refresh)}
    some = library.videos(Choice(status="done"), count=100)
    new = "0" * 16
    row = {"video_id": new, "source": "/videos/new.mp4", "status": "failed", "face_count": 0, "processing_seconds": 0.0}
    row |= {"processed_at": datetime.now(UTC)}
    _write(results, "videos", new, pa.Table.from_pylist([row], schema=TABLES["videos"]))
    took["opening again, one video came"] = _seconds(library.refresh)
    results.rows("videos", new).unlink()
    folder = some[0].folder
    questions: dict[str, Callable[[], object]] = {
        "a page of 100": lambda: library.videos(Choice(), count=100),
        "search by name, sorted": lambda: library.videos(Choice(text="99"), "most faces"),
        "filter by emotion and folder": lambda: library.videos(Choice(emotion="happy", folder=folder)),
        "totals": lambda: library.totals(Choice()),
        "totals of each folder": lambda: library.folders(Choice()),
        "strips of 100": lambda: library.strips([video.video_id for video in some]),
        "strips of 100 again": lambda: library.strips([video.video_id for video in some]),
        "faces of one video": lambda: find_faces(results, some[0].video_id),
    }
    took |= {name: _seconds(question) for name, question in questions.items()}
    for name, seconds in took.items():
        print(f"  {name:32} {seconds:8.3f} s   aim {_AIMS[name]:g} s{'' if seconds <= _AIMS[name] else '   MISSED'}")
    print(f"  peak memory {memory_before:.0f} -> {_peak_mb():.0f} MB", flush=True)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _peak_mb() -> float:
    """Of this process alone; what `getrusage` says begins with its parent's."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def fill(results: Results, video_count: int, face_count: int) -> None:
    """Write every video's three small files; each emotion lasts a while, one video in fifty has failed."""
    rng = np.random.default_rng(0)
    now = datetime.now(UTC)
    for number in range(video_count):
        video_id = f"{rng.integers(2**63):016x}"
        source = f"/videos/session {number // _VIDEOS_PER_FOLDER:03}/{number:05}.mp4"
        has_failed = number % 50 == 49
        seconds = float(rng.uniform(20, 600))
        shares = rng.dirichlet(np.full(len(EMOTIONS), 0.4))
        row = {
            **{"video_id": video_id, "source": source, "status": "failed" if has_failed else "done"},
            "error": "this is a text file, not a video, whatever its name says." if has_failed else None,
            **{"duration_seconds": seconds, "frame_count": face_count, "fps": face_count / seconds},
            **{"width": 640, "height": 360, "has_audio": True, "face_count": face_count, "track_count": 2},
            "dominant_emotion": EMOTIONS[int(shares.argmax())],
            **{f"share_{emotion}": share for emotion, share in zip(EMOTIONS, shares, strict=True)},
            **{"model_version": "m", "settings_hash": "s", "processing_seconds": seconds / 3},
            "processed_at": now - timedelta(minutes=number),
        }
        _write(results, "videos", video_id, pa.Table.from_pylist([row], schema=TABLES["videos"]))
        if has_failed:
            continue
        edges = np.sort(rng.uniform(0, seconds, _SEGMENTS + 1))
        segments = {"start_seconds": edges[:-1], "end_seconds": edges[1:]}
        _write(results, "segments", video_id, _table("segments", video_id, _SEGMENTS, rng, segments))
        times = {"pts_seconds": np.linspace(0, seconds, face_count)}
        _write(results, "faces", video_id, _table("faces", video_id, face_count, rng, times), source)
    os.sync()


def _write(results: Results, table: str, video_id: str, rows: pa.Table, source: str | None = None) -> None:
    described = None if source is None else _described(video_id, source)
    write_part(results.rows(table, video_id), Part(Entry(video_id, len(rows), "", 0.0), rows, described))


def _described(video_id: str, source: str) -> dict[str, object]:
    info = {"width": 640, "height": 360, "frame_count": 1000, "duration_seconds": 60.0, "fps": 25.0}
    return {
        **{"video_id": video_id, "source": source, "source_tag": None, "model_version": "m", "settings_hash": "s"},
        **{"started_at": datetime.now(UTC).isoformat(), "info": info | {"has_audio": True, "warning": None}},
    }


def _table(table: str, video_id: str, count: int, rng: np.random.Generator, known: dict[str, np.ndarray]) -> pa.Table:
    schema = TABLES[table]
    columns = [known[field.name] if field.name in known else _values(field, video_id, count, rng) for field in schema]
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )


def _values(field: pa.Field, video_id: str, count: int, rng: np.random.Generator) -> object:
    if pa.types.is_dictionary(field.type):
        return pa.DictionaryArray.from_arrays(rng.integers(0, 7, count).astype(np.int8), pa.array(EMOTIONS))
    if pa.types.is_floating(field.type):
        return rng.random(count)
    if pa.types.is_integer(field.type):
        return np.arange(count) % 2 if field.name == "track_id" else np.arange(count)
    return [video_id] * count


if __name__ == "__main__":
    main()
