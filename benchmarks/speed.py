"""videos -> what ferflow costs: beside other packages, beside a bare loop, and as the work grows

Whole processes from start to files written, in alternation: ferflow with its defaults, the packages of
`benchmarks.peers` with theirs and the bare loop of `benchmarks.pipeline`.

    python -m benchmarks.speed VIDEOS            # every table, an hour
    python -m benchmarks.speed VIDEOS --quick    # the same tables from short material, some minutes
    python -m benchmarks.speed VIDEOS --only b   # one of them
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import cycle, islice
from pathlib import Path
from typing import TypeVar

import av
import cv2
import numpy as np

from benchmarks.measure import Usage, cpu_seconds_of, run_python
from benchmarks.peers import Peer, find_peers
from benchmarks.pipeline import print_stages, repeat, run_floor
from ferflow.frames import VideoReader
from flows.up_command import with_settings

_FACES = (
    "justinshenk_fer_woman2.mp4",
    "pyfeat_WolfgangLanger_Pexels.mp4",
    "mead_M003_level_1_happy_024.mp4",
    "mead_W015_level_1_neutral_030.mp4",
    "liveportrait_d13.mp4",
    "justinshenk_fer_test.mp4",
    "lipnet_GRID_bbaf2n.mpg",
    "happy_then_angry_same_track.mp4",
)
"""Of the folder of videos those that are cut into clips: one or two people each."""
_COLD, _LONG_360P, _LONG_1080P = _FACES[0], _FACES[0], _FACES[2]
_SHORT_SIDE_PX = 360
_FLOOR, _OURS = "bare loop", "ferflow"
_STAGES_SECONDS = 30.0
# Of a long video, to see where its time goes: what is done once a video hardly counts.
_FLUSH_SECONDS = 10.0
# After so long Prefect's server has written down what a run told it.

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much material each table is made from."""

    rounds: int
    cold_seconds: int
    clips: int
    peer_clips: int
    long_minutes: tuple[float, float]
    peer_minutes: float
    clip_counts: tuple[int, ...]
    lengths_minutes: tuple[float, ...]
    face_counts: tuple[int, ...]
    """Square numbers: as many across as down."""


_WHOLE = Sizes(3, 15, 200, 40, (30, 10), 2, (1, 10, 100, 1000), (1, 10, 60), (1, 4, 16))
_QUICK = Sizes(1, 15, 4, 4, (0.25, 0.07), 0.25, (1, 4), (0.25, 0.5), (1, 4))


def main() -> None:
    """Print the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, help="the folder of videos")
    parser.add_argument("--quick", action="store_true", help="short material")
    parser.add_argument("--only", nargs="+", choices=sorted(_TABLES), default=sorted(_TABLES), help="which tables")
    parser.add_argument("--without-peers", action="store_true", help="leave the other packages out")
    args = parser.parse_args()
    if not args.videos.is_dir():
        parser.error(f"{args.videos}: there is no such folder.")
    sizes = _QUICK if args.quick else _WHOLE
    with tempfile.TemporaryDirectory(prefix="ferflow-bench-") as name:
        bench = Bench(args.videos, Path(name), sizes, [] if args.without_peers else find_peers())
        for table in args.only:
            _TABLES[table](bench)


@dataclass(frozen=True, slots=True)
class Bench:
    """Where the material is, and what is run on it."""

    videos: Path
    scratch: Path
    sizes: Sizes
    peers: Sequence[Peer]
    """The other packages."""

    def ours(self, files: Sequence[Path], *, prefect: bool = False) -> Usage:
        """`ferflow analyze` into an empty folder."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            way = "--prefect" if prefect else "--no-prefect"
            return run_python("-m", "flows.cli", "analyze", *files, "--results", folder, way)

    def floor(self, files: Sequence[Path]) -> Usage:
        """The bare loop."""
        return run_floor(files)

    def compare(self, title: str, files: Sequence[Path], *, rounds: int, peer_files: Sequence[Path] = ()) -> None:
        """A line for each, and the ratios; the other packages may be given less, and count by the frame."""
        frames, peer_frames = _frame_count(files), _frame_count(peer_files or files)
        usages: dict[str, list[Usage]] = {name: [] for name in (*(peer.name for peer in self.peers), _FLOOR, _OURS)}
        for _ in range(rounds):
            for peer in self.peers:
                with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
                    usages[peer.name].append(peer.analyze(peer_files or files, Path(folder)))
            usages[_FLOOR].append(self.floor(files))
            usages[_OURS].append(self.ours(files))
        print(f"\n{title}: {len(files)} video(s), {frames} frames")
        print(f"{'':12}{'CPU s':>9}{'wall s':>9}{'cores':>7}{'peak MB':>9}{'CPU ms a frame':>16}{'ferflow':>10}")
        ours = _median(usages[_OURS])
        for name, of_name in usages.items():
            usage, count = _median(of_name), frames if name in (_FLOOR, _OURS) else peer_frames
            times = (usage.cpu_seconds / count) / (ours.cpu_seconds / frames)
            faster = (usage.wall_seconds / count) / (ours.wall_seconds / frames)
            print(
                f"{name:12}{usage.cpu_seconds:9.1f}{usage.wall_seconds:9.1f}{usage.cores:7.2f}{usage.peak_mb:9.0f}"
                f"{1000 * usage.cpu_seconds / count:16.1f}"
                + ("" if name == _OURS else f"   {times:.2f} times fewer CPU seconds, {faster:.2f} wall"),
                flush=True,
            )


def cold(bench: Bench) -> None:
    """(a) One clip of 15 s from a cold start."""
    clip = bench.scratch / "cold.mp4"
    repeat(bench.videos / _COLD, clip, seconds=bench.sizes.cold_seconds)
    bench.compare("(a) one clip, cold start", [clip], rounds=bench.sizes.rounds)


def many(bench: Bench) -> None:
    """(b) Many short clips in one run."""
    clips = _clips(bench, bench.sizes.clips)
    bench.compare("(b) short clips in one run", clips, rounds=1, peer_files=clips[: bench.sizes.peer_clips])


def long(bench: Bench) -> None:
    """(c) Long videos, and where their time goes."""
    for name, minutes in zip((_LONG_360P, _LONG_1080P), bench.sizes.long_minutes, strict=True):
        whole, part = bench.scratch / f"long_{name}", bench.scratch / f"part_{name}"
        repeat(bench.videos / name, whole, seconds=minutes * 60)
        repeat(bench.videos / name, part, seconds=min(bench.sizes.peer_minutes, minutes) * 60)
        bench.compare(f"(c) {minutes:g} minutes of {name}", [whole], rounds=1, peer_files=[part])
        piece = bench.scratch / f"stages_{name}"
        repeat(bench.videos / name, piece, seconds=min(_STAGES_SECONDS, minutes * 60))
        print_stages([piece])


def growth(bench: Bench) -> None:
    """(d) How the cost grows with the number of clips, with the length and with the faces."""
    print(f"\n(d) growth\n{'':24}{'CPU s':>9}{'wall s':>9}{'peak MB':>9}{'CPU ms a frame':>16}")

    def line(title: str, files: Sequence[Path]) -> None:
        usage = bench.ours(files)
        print(
            f"{title:24}{usage.cpu_seconds:9.1f}{usage.wall_seconds:9.1f}{usage.peak_mb:9.0f}"
            f"{1000 * usage.cpu_seconds / _frame_count(files):16.1f}",
            flush=True,
        )

    clips = _clips(bench, max(bench.sizes.clip_counts))
    for count in bench.sizes.clip_counts:
        line(f"{count} clips", clips[:count])
    for minutes in bench.sizes.lengths_minutes:
        path = bench.scratch / "growing.mp4"
        repeat(bench.videos / _LONG_360P, path, seconds=minutes * 60)
        line(f"{minutes:g} minutes", [path])
    for count in bench.sizes.face_counts:
        line(f"{count} faces a frame", [_crowd(bench, count)])


def prefect_share(bench: Bench) -> None:
    """(e) What Prefect adds."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from prefect_server import serve_prefect

    clips = _clips(bench, bench.sizes.clips)
    without = bench.ours(clips)
    # The server with the settings of `ferflow up`.
    with serve_prefect(bench.scratch / "prefect", **with_settings({})) as server:
        os.environ["PREFECT_API_URL"] = server.url
        idle, _ = _used_by(server.process.pid, lambda: time.sleep(_FLUSH_SECONDS))
        serving, under = _used_by(server.process.pid, lambda: bench.ours(clips, prefect=True))
        flushing, _ = _used_by(server.process.pid, lambda: time.sleep(_FLUSH_SECONDS))
        serving += flushing - idle * (under.wall_seconds / _FLUSH_SECONDS + 1)
        del os.environ["PREFECT_API_URL"]
    print(f"\n(e) Prefect's share: {len(clips)} clips")
    print(f"{'':20}{'CPU s':>9}{'wall s':>9}{'its server CPU s':>18}")
    print(f"{'without a server':20}{without.cpu_seconds:9.1f}{without.wall_seconds:9.1f}")
    print(f"{'under Prefect':20}{under.cpu_seconds:9.1f}{under.wall_seconds:9.1f}{serving:18.1f}")
    print(
        f"share of the wall time: {1 - without.wall_seconds / under.wall_seconds:.1%}, "
        f"of the CPU time: {1 - without.cpu_seconds / (under.cpu_seconds + serving):.1%}",
        flush=True,
    )


def _used_by(process: int, work: Callable[[], _T]) -> tuple[float, _T]:
    """CPU seconds that a process takes while some work is done, and what came of the work."""
    before = cpu_seconds_of(process)
    result = work()
    return cpu_seconds_of(process) - before, result


_TABLES: dict[str, Callable[[Bench], None]] = {"a": cold, "b": many, "c": long, "d": growth, "e": prefect_share}


def _clips(bench: Bench, count: int) -> list[Path]:
    """So many clips of 2 to 5 seconds, 360 pixels high, cut from the videos; no two the same."""
    folder = bench.scratch / "clips"
    folder.mkdir(exist_ok=True)
    sources = [bench.videos / name for name in _FACES]
    distinct = []
    cuts = islice(zip(cycle(sources), cycle((2, 3, 4, 5, 3)), strict=False), min(count, 40))
    for number, (source, seconds) in enumerate(cuts):
        path = folder / f"cut_{number:02}_{source.stem}.mp4"
        if not path.exists():
            _cut(source, path, start_seconds=number % 3 / 2, seconds=seconds)
        distinct.append(path)
    clips = []
    for number in range(count):
        original = distinct[number % len(distinct)]
        clip = folder / f"clip_{number:04}_{original.stem}.mp4"
        if not clip.exists():
            shutil.copy(original, clip)
            with clip.open("ab") as file:  # Players pass over what follows the last box that they know.
                file.write((16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big"))
        clips.append(clip)
    return clips


def _cut(source: Path, target: Path, *, start_seconds: float, seconds: float) -> None:
    with VideoReader(source) as reader:
        scale = _SHORT_SIDE_PX / min(reader.width, reader.height)
        size_wh = round(reader.width * scale / 2) * 2, round(reader.height * scale / 2) * 2
        pictures = (frame.image_rgb for frame in reader.frames(size_wh=size_wh) if start_seconds <= frame.pts)
        _write(target, islice(pictures, round(seconds * reader.rate)), reader.rate)


def _crowd(bench: Bench, count: int) -> Path:
    """Twenty seconds of so many people side by side in 1280 x 720 pixels."""
    path, across = bench.scratch / f"{count}_faces.mp4", round(count**0.5)
    with VideoReader(bench.videos / _COLD) as reader:
        size_wh = 1280 // across, 720 // across
        tiles = (cv2.resize(frame.image_rgb, size_wh, interpolation=cv2.INTER_AREA) for frame in reader.frames())
        _write(path, (np.tile(tile, (across, across, 1)) for tile in tiles), reader.rate)
    return path


def _write(path: Path, images: Iterable[np.ndarray], rate: Fraction) -> None:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "20"})
        for number, image in enumerate(images):
            if not number:
                stream.width, stream.height, stream.pix_fmt = *image.shape[1::-1], "yuv420p"
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        output.mux(stream.encode(None))


def _frame_count(files: Iterable[Path]) -> int:
    def count(path: Path) -> Iterator[int]:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            yield stream.frames or sum(1 for _ in container.decode(stream))

    return sum(number for path in files for number in count(path))


def _median(usages: Sequence[Usage]) -> Usage:
    return Usage(
        statistics.median(usage.cpu_seconds for usage in usages),
        statistics.median(usage.wall_seconds for usage in usages),
        max(usage.peak_mb for usage in usages),
    )


if __name__ == "__main__":
    main()
