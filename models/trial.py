"""a model directory from anybody -> nothing, if it can be used; found out in a process of its own.

A file that was tampered with may crash what reads it, take all memory or never come to an end. The trial's process has
limits of memory and time, and whoever asks for a trial need not load TensorFlow.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from ferflow.emotions import EMOTIONS
from ferflow.errors import ModelError
from models.emotion_classifier import DESCRIPTION_FILE, KERAS_FILE, EmotionModel, load_network, name_version

_MOST_SECONDS = 600
# 12 s of CPU, which a busy machine stretches.
_MOST_BYTES = 8 << 30
# TensorFlow and a model take 0.7 GB, and more where there are more processors.
_REFUSED = 3

_CROPS = 32
_MOST_APART = 0.03
# Mean over crops of the largest difference of a probability: 0.008 between float32 and int8, in mobile networks too.


def try_model(directory: Path) -> None:
    """Try whether a model can be used: it loads in both forms, these answer alike, and it is what it says it is.

    Raises:
        ModelError: one sentence on why not.
    """
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "KERAS_BACKEND": "tensorflow"}
    command = [sys.executable, "-m", "models.trial", str(directory.absolute())]
    try:
        run = subprocess.run(
            command,
            cwd=Path(__file__).parents[1],
            env=os.environ | quiet,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_MOST_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"{directory}: trying this model came to no end in {_MOST_SECONDS} s. Fetch or train the model again."
        ) from error
    if run.returncode == _REFUSED:
        raise ModelError(run.stdout.strip())
    if run.returncode:
        reason = _last_line(run.stderr) or f"status {run.returncode}"
        raise ModelError(
            f"{directory}: trying this model broke off ({reason}); a file is damaged or asks for too much memory. "
            "Fetch or train the model again."
        )


def check_model(directory: Path) -> None:
    """What `try_model` does, in this process.

    Raises:
        ModelError: one sentence on why not.
    """
    served = EmotionModel(directory)
    size_px = served.crop_size_px
    for value in (0, 128, 255):
        scores = served.classify(np.full((1, size_px, size_px), value, np.uint8))[0]
        _check_probabilities(directory, scores)
    network = load_network(directory)
    shapes = tuple(network.input_shape), tuple(network.output_shape)
    expected = (None, size_px, size_px, 1), (None, len(EMOTIONS))
    if shapes != expected:
        raise ModelError(
            f"{directory / KERAS_FILE}: it maps {shapes[0]} to {shapes[1]}, not {expected[0]} to {expected[1]}. "
            "Save the model again."
        )
    if served.version != name_version(served.description, network):
        raise ModelError(
            f"{directory / DESCRIPTION_FILE}: it calls itself {served.version}, but its weights are those of "
            f"{name_version(served.description, network)}. Save the model again."
        )
    crops = _make_crops(size_px)
    differences = np.abs(served.classify(crops) - np.asarray(network.predict_on_batch(crops[..., np.newaxis])))
    apart = float(differences.max(axis=1).mean())
    if not apart <= _MOST_APART:
        raise ModelError(
            f"{directory}: its two forms answer differently (probabilities {apart:.2f} apart, {_MOST_APART} is "
            "allowed). Save the model again."
        )


def _check_probabilities(directory: Path, scores: np.ndarray) -> None:
    if not (np.isfinite(scores).all() and scores.min() >= 0 and abs(scores.sum() - 1) < 1e-3):
        raise ModelError(
            f"{directory}: a grey picture gives {np.round(scores, 3).tolist()}, which are no probabilities. "
            "Train the model again."
        )


def _make_crops(size_px: int) -> np.ndarray:
    """Random pictures from coarse to fine, uint8 (n, size_px, size_px)."""
    rng = np.random.default_rng(0)
    crops = []
    for index in range(_CROPS):
        cells = (3, 6, 12, size_px)[index % 4]
        each = -(-size_px // cells)
        coarse = rng.integers(0, 256, (cells, cells)).astype(np.uint8)
        crops.append(np.kron(coarse, np.ones((each, each), np.uint8))[:size_px, :size_px])
    return np.stack(crops)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:200]


def main(directory: str) -> int:
    """Try one model within the limits; the sentence, if there is one, goes to standard output."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _MOST_BYTES if most == resource.RLIM_INFINITY else min(_MOST_BYTES, most)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, most))
    try:
        check_model(Path(directory))
    except ModelError as error:
        sys.stdout.write(f"{error}\n")
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
