"""a clip -> how long the page of a video takes over an hour of it: opening, and any frame with its faces

python -m benchmarks.moments VIDEO [--minutes 60] [--keep FOLDER]

The clip's pictures are encoded as an annotated video is, repeated, and given one face a frame. Aims: a frame in well
under half a second wherever it lies, and no memory that grows with the size of the file.
"""

import argparse
import contextlib
import resource
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.pipeline import repeat
from ferflow.config import load_settings
from ferflow.frames import VideoReader, read_frame_times, rewrite_video
from ferflow.merged_rows import find_faces, find_rows, find_video
from ferflow.records import Analysis, Box, Face, FaceRow, VideoInfo
from ferflow.rows import write_faces
from ferflow.sources import open_results
from ferflow.stages import summarize_video
from ferflow.storage import Results
from viewer.frames import faces_at, frame_jpeg

_VIDEO_ID = "0123456789abcdef"
_LOOKS = 30


def _fill(clip: Path, results: Results, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        drawn = Path(scratch) / "drawn.mp4"
        rewrite_video(clip, drawn, lambda frame: None)
        annotated = results.annotated("hour.mp4", _VIDEO_ID)
        annotated.parent.mkdir(parents=True, exist_ok=True)
        repeat(drawn, annotated, seconds=seconds)
    times = read_frame_times(annotated)
    steps = np.diff(times, append=times[-1] + times[1])
    with VideoReader(annotated) as reader:
        info = VideoInfo(
            width=reader.width,
            height=reader.height,
            frame_count=len(times),
            duration_seconds=float(times[-1] + steps[-1]),
            fps=float(reader.rate),
            has_audio=False,
            warning=None,
        )
    scores = np.random.default_rng(0).dirichlet([0.3] * 7, len(times) // 50 + 1)
    face = Face(Box(10, 10, 90, 90), (35, 40), (65, 40), 0.9)

    def rows() -> Iterator[FaceRow]:
        for index, (at, step) in enumerate(zip(times.tolist(), steps.tolist(), strict=True)):
            yield FaceRow(index, at, step, 0, face, tuple(scores[index // 50].tolist()))

    settings = load_settings(None)
    analysis = Analysis(_VIDEO_ID, "hour.mp4", "none", settings.settings_hash, datetime.now(UTC), info)
    path = results.rows("faces", _VIDEO_ID)
    write_faces(path, rows(), lambda: analysis, parts=results.parts)
    summarize_video(path, annotated, results, settings=settings)


def _say(what: str, began: float) -> None:
    print(f"{what:44} {1000 * (time.perf_counter() - began):8.0f} ms")


def main() -> None:
    """Make the results, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="make the results here, or use those that are here")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        results = open_results(folder)
        if find_video(results, _VIDEO_ID) is None:
            _fill(args.video, results, 60 * args.minutes)
        summary = find_video(results, _VIDEO_ID)
        assert summary is not None
        assert summary.info is not None
        annotated = results.root / str(summary.annotated_path)
        info = summary.info
        print(f"{info.width} x {info.height}, {info.frame_count:,} frames, {annotated.stat().st_size / 1e6:,.0f} MB")
        began = time.perf_counter()
        known = find_faces(results, _VIDEO_ID)
        find_rows(results, "segments", _VIDEO_ID)
        _say(f"opening: rows ({summary.face_count:,})", began)
        began = time.perf_counter()
        times = read_frame_times(annotated)
        _say("opening: when each frame appears", began)
        assert known is not None
        taken = []
        for index in np.random.default_rng(1).integers(len(times), size=_LOOKS).tolist():
            began = time.perf_counter()
            assert frame_jpeg(annotated, float(times[index])) is not None
            faces_at(known[0], known[0].probabilities.argmax(axis=1), float(times[index]))
            taken.append(time.perf_counter() - began)
        print(f"any frame and its faces, {_LOOKS} of them: median    {1000 * np.median(taken):8.0f} ms")
        print(f"{'':42} longest {1000 * max(taken):4.0f} ms")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:.0f} MB")


if __name__ == "__main__":
    main()
