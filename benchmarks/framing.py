"""labelled crops and labelled clips -> the framing that a network's crops should have

Two measurements. The detector looks at the training crops themselves and tells how much larger than its box they
are. Then clips whose file name says the emotion are scored with a range of framings around that.

    python -m benchmarks.framing --crops DATA/fer2013.tar.gz --clips VIDEOS
"""

import argparse
import itertools
import tarfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from benchmarks.clips import labelled_clips
from ferflow.emotions import EMOTIONS
from ferflow.faces import Framing, crop_gray, face_window
from ferflow.frames import VideoReader
from ferflow.records import Face
from models.face_detector import MediaPipeFaceDetector
from models.warm import warm_classifier

_CROP_PX, _MARGIN_PX = 240, 120
# Crops are enlarged and set in a margin, as a detector for whole pictures expects faces.
_SIDES = (0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6)
_DOWNS = (-0.1, -0.05, 0.0, 0.05, 0.1)


def main() -> None:
    """Print both measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=Path, required=True, help="a .tar.gz of square face crops")
    parser.add_argument("--clips", type=Path, required=True, help="a folder of videos named by their emotion")
    parser.add_argument("--model", default="default", help="emotion model, as in `ferflow analyze`")
    parser.add_argument("--sample", type=int, default=1500, help="crops to look at")
    args = parser.parse_args()
    with MediaPipeFaceDetector() as detector:
        measure_crops(args.crops, detector, args.sample)
        measure_clips(args.clips, detector, args.model)


def measure_crops(archive: Path, detector: MediaPipeFaceDetector, sample: int) -> None:
    """How much larger than the detector's box the crops are, and how much lower their centre is."""
    sides, downs, rolls = [], [], []
    for image in _training_crops(archive, sample):
        large = cv2.resize(image, (_CROP_PX, _CROP_PX), interpolation=cv2.INTER_CUBIC)
        framed = cv2.copyMakeBorder(large, *[_MARGIN_PX] * 4, cv2.BORDER_REPLICATE)
        faces = detector.detect(cv2.cvtColor(framed, cv2.COLOR_GRAY2RGB))
        if len(faces) != 1:
            continue
        box, (right, left) = faces[0].box, (faces[0].right_eye_xy, faces[0].left_eye_xy)
        box_px = (box.width + box.height) / 2
        sides.append(_CROP_PX / box_px)
        downs.append((_MARGIN_PX + _CROP_PX / 2 - (box.y_min + box.y_max) / 2) / box_px)
        rolls.append(np.degrees(np.arctan2(left[1] - right[1], left[0] - right[0])))
    print(f"{len(sides)} of {sample} training crops with one face")
    for name, values in {"side / box": sides, "lower / box": downs, "roll, degrees": rolls}.items():
        low, middle, high = np.percentile(values, (10, 50, 90))
        print(f"{name:15} median {middle:6.3f}   10 % to 90 %: {low:6.3f} to {high:6.3f}")


def measure_clips(folder: Path, detector: MediaPipeFaceDetector, model: str) -> None:
    """Score the clips with each framing: frames that are right, and mean probability of the intended emotion."""
    classifier = warm_classifier(model)
    size_px = classifier.crop_size_px
    labelled = [(path, EMOTIONS.index(emotion)) for path, emotion in labelled_clips(folder)]
    seen = [(label, list(_faces(path, detector))) for path, label in labelled]
    print(f"\n{len(seen)} clips; columns: crop's centre below the box's, in boxes; right frames % / mean probability %")
    for is_levelled in (True, False):
        print("levelled" if is_levelled else "as they lean", *(f"{down:>13}" for down in _DOWNS))
        for side in _SIDES:
            cells = []
            for down in _DOWNS:
                framing = Framing(side, down, is_levelled)
                right, probability = [], []
                for label, faces in seen:
                    crops = [crop_gray(image, face_window(face, framing), size_px=size_px) for image, face in faces]
                    scores = classifier.classify(np.stack(crops))
                    right.append((scores.argmax(axis=1) == label).mean())
                    probability.append(scores[:, label].mean())
                cells.append(f"{100 * np.mean(right):6.1f}/{100 * np.mean(probability):5.1f} ")
            print(f"side {side:4}  ", *cells)


def _training_crops(archive: Path, sample: int) -> Iterator[np.ndarray]:
    with tarfile.open(archive) as tar:
        crops = (member for member in tar if "Training" in member.name)
        for member in itertools.islice(crops, 0, 28_000, 28_000 // sample):
            file = tar.extractfile(member)
            assert file is not None
            yield cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_GRAYSCALE)


def _faces(path: Path, detector: MediaPipeFaceDetector) -> Iterator[tuple[np.ndarray, Face]]:
    with VideoReader(path) as reader:
        for frame in reader.frames(max_fps=5):
            for face in detector.detect(frame.image_rgb)[:1]:
                yield frame.image_rgb, face


if __name__ == "__main__":
    main()
