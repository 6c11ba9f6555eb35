"""videos -> how far ferflow's rows are from those of the plain way that its speed was taken from

The plain way looks for faces in every frame of a video that is not cut, and scores them by the Keras model in float32.
What ferflow may differ from it by is what the plain way differs from itself when the picture is shifted by one pixel,
and a little more: the tolerances below. Ends with status 1 where the rows of all together are further away.

    python -m benchmarks.agreement VIDEO-OR-FOLDER [...]         # each as it is
    python -m benchmarks.agreement VIDEO --minutes 4             # repeated to this length, so that ferflow cuts it
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.classifiers import keras_classifier
from benchmarks.measure import run_python
from benchmarks.pipeline import repeat
from ferflow.emotions import EMOTIONS
from ferflow.errors import VideoError
from ferflow.faces import crop_gray, face_window, intersection_over_union
from ferflow.frames import VideoReader
from ferflow.looks import find_faces
from ferflow.records import Box
from ferflow.sources import find_videos
from models.store import find_model
from models.warm import face_finder, warm_classifier

Rows = Mapping[int, list[tuple[Box, np.ndarray]]]
"""The faces of each frame: box, and float (7,) probabilities."""

_SAME_PLACE = 0.4
_TOLERANCE = {"matched": 0.02, "too many": 0.02, "overlap": 0.02, "distance": 0.02, "same": 0.03}
"""By so much ferflow may be worse than the shifted picture, over all faces."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far some rows are from others, over the faces of the others."""

    faces: int
    """Of the others."""
    values: dict[str, float]
    """matched: share of the others' faces with one in the same place; too many: share of faces beyond those; overlap:
    mean intersection over union of the matched; distance: mean half of the L1 distance of their probabilities, 0 to 1;
    same: share of them with the same most probable emotion."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", metavar="VIDEO", nargs="+", type=Path)
    parser.add_argument("--minutes", type=float, help="repeat each video to this length")
    args = parser.parse_args()
    classify = keras_classifier(find_model("default"))
    measured: list[tuple[Agreement, Agreement]] = []
    print(f"{'video':40}{'':9}{'faces':>8}" + "".join(f"{name:>10}" for name in _TOLERANCE))
    with tempfile.TemporaryDirectory() as folder:
        for video in find_videos(args.videos):
            path = video
            if args.minutes:
                path = Path(folder) / f"long{video.suffix}"
                repeat(video, path, seconds=args.minutes * 60)
            try:
                plain = _plain_rows(path, classify)
            except VideoError as error:
                print(f"{video.name[:39]:40}{str(error).rpartition(': ')[2][:70]}")
                continue
            if not plain:
                print(f"{video.name[:39]:40}no face in it, ferflow: {sum(map(len, _rows_of_ferflow(path).values()))}")
                continue
            both = compare(plain, _plain_rows(path, classify, shift_px=1)), compare(plain, _rows_of_ferflow(path))
            measured.append(both)
            _print(video.name, *both)
    if not measured:
        raise SystemExit("No face was found in any of them.")
    shifted, ours = (_over_all(column) for column in zip(*measured, strict=True))
    _print("all", shifted, ours)
    if worse := _beyond(shifted, ours):
        raise SystemExit(f"ferflow's rows are further away than they may be: {', '.join(worse)}.")


def compare(plain: Rows, others: Rows) -> Agreement:
    """Match each face of `plain` with the one of the same frame that overlaps it most and is still free."""
    overlaps: list[float] = []
    distances: list[float] = []
    same = 0
    for index, faces in plain.items():
        rest = list(others.get(index, ()))
        for box, scores in faces:
            found = max(rest, key=lambda other: intersection_over_union(box, other[0]), default=None)
            if found is None or intersection_over_union(box, found[0]) <= _SAME_PLACE:
                continue
            rest = [other for other in rest if other is not found]
            overlaps.append(intersection_over_union(box, found[0]))
            distances.append(float(np.abs(scores - found[1]).sum()) / 2)
            same += int(scores.argmax() == found[1].argmax())
    count, matched = sum(map(len, plain.values())), len(overlaps)
    return Agreement(
        count,
        {
            "matched": matched / count,
            "too many": (sum(map(len, others.values())) - matched) / count,
            "overlap": statistics.fmean(overlaps) if matched else 0.0,
            "distance": statistics.fmean(distances) if matched else 1.0,
            "same": same / matched if matched else 0.0,
        },
    )


def _beyond(shifted: Agreement, ours: Agreement) -> list[str]:
    smaller_is_better = {"too many", "distance"}
    return [
        name
        for name, tolerance in _TOLERANCE.items()
        if (ours.values[name] - shifted.values[name]) * (1 if name in smaller_is_better else -1) > tolerance
    ]


def _over_all(column: Iterable[Agreement]) -> Agreement:
    """Each face counts the same, whatever video it is in."""
    column = list(column)
    faces = sum(agreement.faces for agreement in column)
    return Agreement(
        faces,
        {name: sum(one.faces * one.values[name] for one in column) / faces for name in _TOLERANCE},
    )


def _plain_rows(video: Path, classify: Callable[[np.ndarray], np.ndarray], *, shift_px: int = 0) -> Rows:
    """Every frame looked at, float32; of the picture moved to the right and down, its boxes moved back."""
    framing, size_px = warm_classifier("default").framing, warm_classifier("default").crop_size_px
    rows: dict[int, list[tuple[Box, np.ndarray]]] = {}
    boxes: list[tuple[int, Box]] = []
    crops: list[np.ndarray] = []

    def score() -> None:
        for (index, box), scores in zip(boxes, classify(np.stack(crops)) if crops else (), strict=True):
            rows.setdefault(index, []).append((box, scores))
        boxes.clear()
        crops.clear()

    with VideoReader(video) as reader:
        frames = reader.frames()
        if shift_px:
            frames = (replace(frame, image_rgb=_shifted(frame.image_rgb, shift_px)) for frame in frames)
        for frame, faces in find_faces(frames, face_finder(), most_seconds=Fraction(0)):
            for face in faces:
                box = face.box
                edges = box.x_min, box.y_min, box.x_max, box.y_max
                boxes.append((frame.index, Box(*(edge - shift_px for edge in edges))))
                crops.append(crop_gray(frame.image_rgb, face_window(face, framing), size_px=size_px))
            if len(crops) >= 64:
                score()
        score()
    return rows


def _shifted(image: np.ndarray, by_px: int) -> np.ndarray:
    height, width = image.shape[:2]
    padded = np.pad(image, ((by_px, 0), (by_px, 0), (0, 0)), mode="edge")
    return np.ascontiguousarray(padded[:height, :width])


def _rows_of_ferflow(video: Path) -> Rows:
    """What `ferflow analyze` writes."""
    with tempfile.TemporaryDirectory() as folder:
        run_python("-m", "flows.cli", "analyze", video, "--results", folder, "--no-prefect", "--no-annotate")
        table = pd.read_parquet(Path(folder) / "faces")
    boxes = table[["x_min", "y_min", "x_max", "y_max"]].to_numpy(float).tolist()
    scores = table[list(EMOTIONS)].to_numpy(float)
    rows: dict[int, list[tuple[Box, np.ndarray]]] = {}
    for index, box, of_face in zip(table["frame_index"].tolist(), boxes, scores, strict=True):
        rows.setdefault(index, []).append((Box(*box), of_face))
    return rows


def _print(title: str, shifted: Agreement, ours: Agreement) -> None:
    for name, agreement in (("shifted", shifted), ("ferflow", ours)):
        values = "".join(f"{agreement.values[key]:10.3f}" for key in _TOLERANCE)
        print(f"{title[:39]:40}{name:9}{agreement.faces:8}{values}", flush=True)


if __name__ == "__main__":
    main()
