"""videos -> what decoding and encoding a frame costs with FFmpeg's threads and without: CPU and wall milliseconds

python -m benchmarks.threads VIDEO [VIDEO ...] [--rounds 5]

Each way in turn, the medians of the rounds. The pictures are encoded as annotated videos are.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np

from ferflow.frames import ENCODING, VideoReader

_FRAMES = 300
# Of each video, at most: 0.9 GB at 1920 x 1080.


def main() -> None:
    """Measure what the arguments name and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", metavar="VIDEO", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5, help="of each way, in alternation")
    args = parser.parse_args()
    for video in args.videos:
        compare(video, args.rounds)


def compare(video: Path, rounds: int) -> None:
    """A line for each way."""
    planes = _planes(video)
    ways: dict[str, Callable[[], None]] = {
        "decode, one thread": lambda: _decode(video, len(planes), "NONE"),
        "decode, slices in threads (FFmpeg's own)": lambda: _decode(video, len(planes), "SLICE"),
        "decode, frames in threads": lambda: _decode(video, len(planes), "AUTO"),
        "encode, one thread": lambda: _encode(planes, 1),
        "encode, as many as x264 chooses": lambda: _encode(planes, 0),
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            cpu, wall = time.process_time(), time.perf_counter()
            way()
            taken[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    height, width = planes[0].shape[0] * 2 // 3, planes[0].shape[1]
    print(f"\n{video.name}: {width} x {height}, {len(planes)} frames{'CPU ms':>16}{'wall ms':>10}")
    for name, times in taken.items():
        cpu, wall = (1000 * statistics.median(column) / len(planes) for column in zip(*times, strict=True))
        print(f"  {name:44}{cpu:10.2f}{wall:10.2f}", flush=True)


def _planes(video: Path) -> list[np.ndarray]:
    with VideoReader(video) as reader:
        size_wh = reader.width // 2 * 2, reader.height // 2 * 2
        frames = (frame for frame, _ in zip(reader.frames(size_wh=size_wh), range(_FRAMES), strict=False))
        return [cv2.cvtColor(frame.image_rgb, cv2.COLOR_RGB2YUV_I420) for frame in frames]


def _decode(video: Path, count: int, thread_type: str) -> None:
    with av.open(str(video)) as source:
        stream = source.streams.video[0]
        stream.thread_type = thread_type
        for number, _ in enumerate(source.decode(stream), start=1):
            if number == count:
                return


def _encode(planes: list[np.ndarray], thread_count: int) -> None:
    with av.open(os.devnull, "w", format="mp4") as output:
        encoder = output.add_stream("libx264", rate=25, options=ENCODING)
        encoder.thread_count = thread_count
        encoder.width, encoder.height, encoder.pix_fmt = planes[0].shape[1], planes[0].shape[0] * 2 // 3, "yuv420p"
        for image in planes:
            output.mux(encoder.encode(av.VideoFrame.from_ndarray(image, format="yuv420p")))
        output.mux(encoder.encode(None))


if __name__ == "__main__":
    main()
