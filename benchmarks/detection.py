"""folder of videos -> faces a frame and CPU time of each way to look for them

python -m benchmarks.detection VIDEOS [--every N]
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ferflow.errors import VideoError
from ferflow.frames import VideoReader
from ferflow.looks import find_faces
from ferflow.records import Frame
from models.detector_weights import detector_weights_paths
from models.face_detector import MediaPipeFaceDetector, VideoFaceFinder

Alone = Callable[[np.ndarray], Sequence[object]]
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
        print("Faces a frame and CPU ms a frame: each model at 0.5, detect(), and as in a video.\n")
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


class _Way:
    """A way to look for faces; counts the faces and the CPU seconds that it took."""

    def __init__(self, detect: Callable[[np.ndarray], Sequence[object]]) -> None:
        self._detect = detect
        self.faces = 0
        self.seconds = 0.0

    def detect(self, image_rgb: np.ndarray) -> Any:
        start = time.process_time()
        found = self._detect(image_rgb)
        self.seconds += time.process_time() - start
        self.faces += len(found)
        return found


def _row(path: Path, detector: MediaPipeFaceDetector, alone: dict[str, Alone], every: int) -> str:
    ways = _ways(detector, alone)
    video = ways["video"]
    frames = 0

    def seen() -> Iterator[Frame]:
        nonlocal frames
        with VideoReader(path) as reader:
            for frame in islice(reader.frames(), 0, None, every):
                frames += 1
                for way in ways.values():  # in alternation, so that a noisy machine is noisy for all
                    if way is not video:
                        way.detect(frame.image_rgb)
                yield frame

    video.faces = sum(len(faces) for _, faces in find_faces(seen(), video))
    cells = "".join(f"{way.faces / frames:8.2f}{way.seconds / frames * 1e3:6.1f}ms" for way in ways.values())
    return f"{path.name[:41]:42}{frames:7}{cells}"


def _by_size(size_wh: tuple[int, int], detector: MediaPipeFaceDetector, alone: dict[str, Alone]) -> list[float]:
    import skimage.data

    width, height = size_wh
    portrait = cv2.resize(skimage.data.astronaut(), (height, height), interpolation=cv2.INTER_AREA)
    scene = np.full((height, width, 3), 120, np.uint8)
    scene[:, (width - height) // 2 : (width - height) // 2 + height] = portrait
    ways = _ways(detector, alone)
    for repeat in range(REPEATS):
        image = np.ascontiguousarray(np.roll(scene, repeat, axis=1))
        for way in ways.values():
            way.detect(image)
    return [way.seconds / REPEATS * 1e3 for way in ways.values()]


def _ways(detector: MediaPipeFaceDetector, alone: dict[str, Alone]) -> dict[str, _Way]:
    ways = {**alone, "detect": detector.detect, "video": VideoFaceFinder(detector).detect}
    return {name: _Way(detect) for name, detect in ways.items()}


def _alone(models: ExitStack) -> dict[str, Alone]:
    """Each of MediaPipe's models as its own documentation uses it."""
    import mediapipe  # type: ignore[import-untyped]
    from mediapipe.tasks.python import BaseOptions, vision  # type: ignore[import-untyped]

    def looking(weights: Path) -> Alone:
        options = vision.FaceDetectorOptions(base_options=BaseOptions(model_asset_path=str(weights)))
        model = models.enter_context(vision.FaceDetector.create_from_options(options))
        image_class, srgb = mediapipe.Image, mediapipe.ImageFormat.SRGB
        return lambda image_rgb: model.detect(image_class(image_format=srgb, data=image_rgb)).detections

    return dict(zip(("short", "sparse"), map(looking, detector_weights_paths()), strict=True))


if __name__ == "__main__":
    main()
