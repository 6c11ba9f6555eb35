"""folder of videos -> faces a frame and CPU time of each way to look for them

python -m benchmarks.detection VIDEOS [--every N]
"""

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from ferflow.errors import VideoError
from ferflow.faces import FaceDetector
from ferflow.frames import VideoReader
from models.detector_weights import detector_weights_paths
from models.face_detector import MediaPipeFaceDetector, VideoFaceFinder

WAYS = ("short", "sparse", "detect", "video")
SIZES_WH = {"256": (256, 256), "360p": (640, 360), "720p": (1280, 720), "1080p": (1920, 1080), "2160p": (3840, 2160)}
REPEATS = 40


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, help="a folder")
    parser.add_argument("--every", type=int, default=1, help="look at each n-th frame only")
    arguments = parser.parse_args()
    with MediaPipeFaceDetector() as detector, ExitStack() as models:
        alone = _alone(models)
        print("Faces a frame and CPU ms a frame: each model by itself at 0.5, detect() and VideoFaceFinder.\n")
        print(f"{'video':42}{'frames':>7}" + "".join(f"{way:>16}" for way in WAYS))
        for path in sorted(arguments.videos.iterdir()):
            try:
                print(_row(path, detector, alone, arguments.every))
            except VideoError as error:
                print(f"{path.name:42}{error}", file=sys.stderr)
        print("\nCPU ms a frame by size: one portrait, its face a fifth of the picture's height, moving.\n")
        print(f"{'size':>8}" + "".join(f"{way:>10}" for way in WAYS))
        for name, size_wh in SIZES_WH.items():
            print(f"{name:>8}" + "".join(f"{ms:10.1f}" for ms in _by_size(size_wh, detector, alone)))


def _row(path: Path, detector: MediaPipeFaceDetector, alone: dict[str, Callable[[np.ndarray], int]], every: int) -> str:
    ways = _ways(detector, alone)
    faces, seconds, frames = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0), 0
    with VideoReader(path) as reader:
        for frame in islice(reader.frames(), 0, None, every):
            frames += 1
            for name, count in ways.items():  # in alternation, so that a noisy machine is noisy for all
                start = time.process_time()
                faces[name] += count(frame.image_rgb)
                seconds[name] += time.process_time() - start
    cells = "".join(f"{faces[name] / frames:8.2f}{seconds[name] / frames * 1e3:6.1f}ms" for name in ways)
    return f"{path.name[:41]:42}{frames:7}{cells}"


def _by_size(
    size_wh: tuple[int, int], detector: MediaPipeFaceDetector, alone: dict[str, Callable[[np.ndarray], int]]
) -> list[float]:
    import skimage.data

    width, height = size_wh
    portrait = cv2.resize(skimage.data.astronaut(), (height, height), interpolation=cv2.INTER_AREA)
    scene = np.full((height, width, 3), 120, np.uint8)
    scene[:, (width - height) // 2 : (width - height) // 2 + height] = portrait
    ways = _ways(detector, alone)
    seconds = dict.fromkeys(ways, 0.0)
    for repeat in range(REPEATS):
        image = np.ascontiguousarray(np.roll(scene, repeat, axis=1))
        for name, count in ways.items():
            start = time.process_time()
            count(image)
            seconds[name] += time.process_time() - start
    return [seconds[name] / REPEATS * 1e3 for name in ways]


def _ways(
    detector: MediaPipeFaceDetector, alone: dict[str, Callable[[np.ndarray], int]]
) -> dict[str, Callable[[np.ndarray], int]]:
    def counted(finder: FaceDetector) -> Callable[[np.ndarray], int]:
        return lambda image_rgb: len(finder.detect(image_rgb))

    return {**alone, "detect": counted(detector), "video": counted(VideoFaceFinder(detector))}


def _alone(models: ExitStack) -> dict[str, Callable[[np.ndarray], int]]:
    """Each of MediaPipe's models as its own documentation uses it."""
    import mediapipe  # type: ignore[import-untyped]
    from mediapipe.tasks.python import BaseOptions, vision  # type: ignore[import-untyped]

    def counted(weights: Path) -> Callable[[np.ndarray], int]:
        options = vision.FaceDetectorOptions(base_options=BaseOptions(model_asset_path=str(weights)))
        model = models.enter_context(vision.FaceDetector.create_from_options(options))
        image_class, srgb = mediapipe.Image, mediapipe.ImageFormat.SRGB
        return lambda image_rgb: len(model.detect(image_class(image_format=srgb, data=image_rgb)).detections)

    return dict(zip(("short", "sparse"), map(counted, detector_weights_paths()), strict=True))


if __name__ == "__main__":
    main()
