"""videos -> CPU seconds, frames a second and peak memory of `ferflow analyze` against a bare loop

The floor is the same decode, detect, batched classify and encode in one loop and nothing else: no tracks, no tables,
no drawing, no summary, no sound, one pass. What makes ferflow's own decoding and encoding cheaper (threads, pictures
handed over without a copy, memory that is kept) it has too. Both run as whole processes in alternation, start-up
included.

    python -m benchmarks.pipeline VIDEO [VIDEO ...] [--rounds 3]     # CPU, speed, and CPU by stage
    python -m benchmarks.pipeline VIDEO --stages                     # CPU by stage alone
    python -m benchmarks.pipeline VIDEO --minutes 1 30               # memory: the video repeated to these lengths
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av
import cv2
import numpy as np

from benchmarks.measure import Usage, run_python
from ferflow.child_process import CHILD_ENVIRONMENT
from ferflow.config import Settings
from ferflow.faces import crop_gray, face_window
from ferflow.frames import ENCODING, THREADED_FROM_PX, VideoReader
from ferflow.looks import find_faces
from ferflow.records import Frame
from ferflow.sources import open_results
from ferflow.stages import analyze_video, annotate_video, summarize_video
from ferflow.storage import content_id
from models.warm import face_finder, warm_classifier


def main() -> None:
    """Measure what the arguments name and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", metavar="VIDEO", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, in alternation")
    parser.add_argument("--minutes", type=float, nargs="+", help="repeat the first video to these lengths")
    parser.add_argument("--stages", action="store_true", help="print the CPU time by stage, in this process")
    parser.add_argument("--floor", action="store_true", help="run the bare loop on the videos, measure nothing")
    args = parser.parse_args()
    if args.floor:
        for video in args.videos:
            bare_loop(video, Path(os.devnull))
    elif args.stages:
        for video in args.videos:
            _print_stages(video)
    elif args.minutes:
        compare_memory(args.videos[0], args.minutes)
    else:
        compare_cpu(args.videos, args.rounds)
        print_stages(args.videos)


def run_floor(videos: Sequence[Path]) -> Usage:
    """The bare loop over some videos, in a process of its own with the environment of those that read videos."""
    return run_python("-m", "benchmarks.pipeline", "--floor", *videos, env={**CHILD_ENVIRONMENT, **os.environ})


def print_stages(videos: Sequence[Path]) -> None:
    """CPU milliseconds a frame by stage, measured in a process with the environment of those that read videos."""
    command = [sys.executable, "-m", "benchmarks.pipeline", "--stages", *map(str, videos)]
    subprocess.run(command, env={**CHILD_ENVIRONMENT, **os.environ}, check=True)


def compare_cpu(videos: list[Path], rounds: int) -> None:
    """Whole processes, floor and ferflow in turn."""
    print(
        f"{'video':44}{'frames':>7}{'floor CPU s':>13}{'ferflow CPU s':>15}{'ratio':>7}{'frames/s':>10}{'peak MB':>9}"
    )
    for video in videos:
        with VideoReader(video) as reader:
            frame_count = sum(1 for _ in reader.frames(size_wh=(16, 16)))
        floor, ours, seconds, peaks = [], [], [], []
        for _ in range(rounds):
            floor.append(run_floor([video]).cpu_seconds)
            with tempfile.TemporaryDirectory() as folder:
                usage = run_python("-m", "flows.cli", "analyze", video, "--results", folder, "--no-prefect")
            ours.append(usage.cpu_seconds)
            seconds.append(usage.wall_seconds)
            peaks.append(usage.peak_mb)
        ratio = statistics.median(mine / bare for mine, bare in zip(ours, floor, strict=True))
        print(
            f"{video.name[:42]:44}{frame_count:7}{statistics.median(floor):13.1f}{statistics.median(ours):15.1f}"
            f"{ratio:7.2f}{frame_count / statistics.median(seconds):10.0f}{max(peaks):9.0f}",
            flush=True,
        )


def compare_memory(video: Path, minutes: list[float]) -> None:
    """Peak memory by length of the video."""
    print(f"{'minutes':>8}{'peak MB':>9}{'CPU s':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for length in minutes:
            long = Path(folder) / f"{length:g}_minutes{video.suffix}"
            repeat(video, long, seconds=length * 60)
            results = f"{folder}/results"
            usage = run_python("-m", "flows.cli", "analyze", long, "--results", results, "--no-prefect")
            print(f"{length:8g}{usage.peak_mb:9.0f}{usage.cpu_seconds:8.0f}", flush=True)


def _print_stages(video: Path) -> None:
    """As `print_stages`, in this process, models warm; detector and codecs have threads of their own, so a stage is the
    difference between runs with and without it."""
    # As of a long video: of a clip that is to be annotated the frames are kept, and nothing is decoded again.
    classifier, settings = warm_classifier("default"), Settings(annotate=False)
    classifying = 0.0

    class TimedClassifier:
        version, crop_size_px, framing = classifier.version, classifier.crop_size_px, classifier.framing

        def classify(self, crops_gray: np.ndarray) -> np.ndarray:
            nonlocal classifying
            start = time.thread_time()
            scores = classifier.classify(crops_gray)
            classifying += time.thread_time() - start
            return scores

    def decode() -> int:
        with VideoReader(video) as reader:
            return sum(1 for _ in reader.frames())

    def detect() -> int:
        with VideoReader(video) as reader:
            return sum(1 for _ in find_faces(reader.frames(), face_finder()))

    def cpu(work: Callable[[], object]) -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    with tempfile.TemporaryDirectory() as folder:
        results = open_results(Path(folder))
        video_id = content_id(video)
        faces = results.rows("faces", video_id)
        frame_count = detect()
        decoding = cpu(decode)
        detecting = cpu(detect) - decoding
        analysis = cpu(
            lambda: analyze_video(
                video, results, video_id=video_id, detector=face_finder, classifier=TimedClassifier(), settings=settings
            )
        )
        annotation = cpu(lambda: annotate_video(video, faces, results, settings=settings))
        summary = cpu(lambda: summarize_video(faces, None, results, settings=settings))
        decoding_again = cpu(decode)
    stages = {
        "decode": decoding,
        "detect": detecting,
        "classify": classifying,
        "track, crop, write rows": analysis - decoding - detecting - classifying,
        "decode again": decoding_again,
        "draw, encode": annotation - decoding_again,
        "summary, timeline": summary,
        "together": analysis + annotation + summary,
    }
    print(f"\n{video.name}: CPU ms a frame")
    for name, seconds in stages.items():
        print(f"  {name:24}{1000 * seconds / frame_count:7.2f}")


def bare_loop(video: Path, target: Path) -> None:
    """The floor."""
    detector, classifier = face_finder(), warm_classifier("default")
    crops: list[np.ndarray] = []
    with av.open(str(video)) as source, av.open(str(target), "w", format="mp4") as output:
        decoder = source.streams.video[0]
        encoder = output.add_stream("libx264", rate=decoder.average_rate, options=ENCODING)
        if decoder.width * decoder.height >= THREADED_FROM_PX:
            decoder.thread_type = "AUTO"
        else:
            encoder.thread_count = 1
        encoder.width, encoder.height = decoder.width // 2 * 2, decoder.height // 2 * 2
        encoder.pix_fmt = "yuv420p"
        # As ferflow's own: `frames._encoded` says why.
        wrap = av.VideoFrame.from_numpy_buffer if encoder.height % 4 == 0 else av.VideoFrame.from_ndarray
        encoded: list[av.Packet] = []

        def frames() -> Iterator[Frame]:
            for index, picture in enumerate(source.decode(decoder)):
                image = np.ascontiguousarray(picture.to_ndarray(format="rgb24"))
                planes = cv2.cvtColor(image[: encoder.height, : encoder.width], cv2.COLOR_RGB2YUV_I420)
                encoded.extend(encoder.encode(wrap(planes, format="yuv420p")))
                yield Frame(index, index / decoder.average_rate, 1 / decoder.average_rate, image)

        for frame, faces in find_faces(frames(), detector):
            image = frame.image_rgb
            for face in faces:
                crops.append(crop_gray(image, face_window(face, classifier.framing), size_px=classifier.crop_size_px))
            if len(crops) >= 32:
                classifier.classify(np.stack(crops))
                crops.clear()
            output.mux(encoded)
            encoded.clear()
        if crops:
            classifier.classify(np.stack(crops))
        output.mux([*encoded, *encoder.encode(None)])


def repeat(video: Path, target: Path, *, seconds: float) -> None:
    """Repeat a video's pictures, copied bit by bit, until they last this long."""
    with av.open(str(target), "w") as output:
        offset = 0
        stream = None
        while stream is None or offset * stream.time_base < seconds:
            with av.open(str(video)) as source:
                track = source.streams.video[0]
                if stream is None:
                    stream = output.add_stream_from_template(track)
                end = 0
                for packet in source.demux(track):
                    if packet.dts is None or packet.pts is None:
                        continue
                    end = max(end, packet.pts + (packet.duration or 1))
                    packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, stream
                    time_base = packet.time_base
                    output.mux(packet)
                offset += end
                if offset * time_base >= seconds:
                    return


if __name__ == "__main__":
    main()
