"""a results folder of synthetic videos -> how long merging takes, and what a query takes before and after

python -m benchmarks.compaction [--videos 10000] [--faces 250]
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from ferflow.compaction import compact, take_out
from ferflow.emotions import EMOTIONS
from ferflow.merged_rows import Entry, Part, find_faces, write_part
from ferflow.rows import TABLES
from ferflow.sources import open_results
from ferflow.storage import Results

_QUERIES = {
    "duckdb, mean of a column": "duckdb.sql(\"select avg(happy) from '{faces}/*.parquet'\").fetchall()",
    "duckdb, one video": "duckdb.sql(\"select * from '{faces}/*.parquet' where video_id = '{video_id}'\").fetchall()",
    "pandas, two columns": "pandas.read_parquet('{faces}', columns=['video_id', 'happy'])",
    "pandas, videos": "pandas.read_parquet('{videos}')",
}


def main() -> None:
    """Make the folder, ask, merge, ask again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=10_000)
    parser.add_argument("--faces", type=int, default=250, help="of each video")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = open_results(Path(folder) / "results")
        video_ids = _fill(results, args.videos, args.faces)
        before = _ask(results, video_ids[len(video_ids) // 2])
        size_before = _size(results)

        memory_before = _peak_mb()
        started, cpu = time.perf_counter(), time.process_time()
        done = compact(results, older_than_days=0)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
        print(f"{done}")
        print(f"merged in {seconds:.0f} s ({cpu_seconds:.0f} CPU s), peak {memory_before:.0f} -> {_peak_mb():.0f} MB")
        print(f"size {size_before / 1e6:.0f} -> {_size(results) / 1e6:.0f} MB")
        after = _ask(results, video_ids[len(video_ids) // 2])
        for name, took in before.items():
            print(f"{name:26} {took:7.2f} s -> {after[name]:.2f} s")
        started = time.perf_counter()
        for video_id in video_ids[:: max(len(video_ids) // 50, 1)]:
            find_faces(results, video_id)
        print(f"find_faces of a merged video: {(time.perf_counter() - started) / 50 * 1000:.1f} ms")
        started = time.perf_counter()
        take_out(results, video_ids[0])
        print(f"take_out of the first of a big file: {time.perf_counter() - started:.1f} s")
        started = time.perf_counter()
        take_out(results, video_ids[1])
        print(f"take_out of the second: {(time.perf_counter() - started) * 1000:.1f} ms")


def _fill(results: Results, video_count: int, face_count: int) -> list[str]:
    rng = np.random.default_rng(0)
    video_ids = sorted(f"{rng.integers(2**63):016x}" for _ in range(video_count))
    described = {
        "source": "",
        "source_tag": None,
        "model_version": "m",
        "settings_hash": "s",
        "started_at": datetime.now(UTC).isoformat(),
        "info": {
            **{"width": 640, "height": 360, "frame_count": face_count, "duration_seconds": 10.0, "fps": 25.0},
            **{"has_audio": True, "warning": None},
        },
    }
    for video_id in video_ids:
        source = f"/videos/of some year/{video_id}.mp4"
        for table, count in (("faces", face_count), ("segments", 4), ("videos", 1)):
            columns = {
                field.name: _values(field, count, rng) for field in TABLES[table] if field.name not in ("video_id",)
            }
            columns |= {"video_id": [video_id] * count} | ({"source": [source] * count} if table != "segments" else {})
            rows = pa.table({name: columns[name] for name in TABLES[table].names}, schema=TABLES[table])
            analysis = described | {"video_id": video_id, "source": source} if table == "faces" else None
            write_part(results.rows(table, video_id), Part(Entry(video_id, count, "", 0.0), rows, analysis))
    os.sync()
    return video_ids


def _values(field: pa.Field, count: int, rng: np.random.Generator) -> object:
    if pa.types.is_dictionary(field.type):
        return pa.DictionaryArray.from_arrays(rng.integers(0, 7, count).astype(np.int8), pa.array(EMOTIONS))
    if pa.types.is_floating(field.type):
        return pa.array(rng.random(count), field.type)
    if pa.types.is_integer(field.type):
        return pa.array(np.arange(count), field.type)
    return pa.nulls(count, field.type)


def _ask(results: Results, video_id: str) -> dict[str, float]:
    took = {}
    for name, code in _QUERIES.items():
        code = code.format(faces=results.table("faces"), videos=results.table("videos"), video_id=video_id)
        timed = f"import time, duckdb, pandas\nt = time.perf_counter()\n{code}\nprint(time.perf_counter() - t)"
        took[name] = min(
            float(
                subprocess.run(
                    [sys.executable, "-c", timed], capture_output=True, text=True, check=True
                ).stdout.split()[-1]
            )
            for _ in range(3)
        )
    return took


def _size(results: Results) -> int:
    return sum(path.stat().st_size for table in TABLES for path in results.table(table).iterdir())


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
