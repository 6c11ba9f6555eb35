"""a training between two epochs <-> one file: all that going on needs, whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ferflow.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch left behind."""

    number: int
    """Starts at 1."""
    train_loss: float
    """Mean loss on the augmented images: cross-entropy with the soft targets and, where no second answer is learned,
    what the network's layers add."""
    train_accuracy: float
    """Share of augmented images whose answer is the target's top class."""
    validation_loss: float
    """Log loss of the averaged weights on the validation labels."""
    validation_accuracy: float
    """Accuracy of the averaged weights on the validation labels."""
    seconds: float
    """Wall time."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A training after an epoch."""

    fingerprint: str
    """Names the recipe, the data and the start that the training depends on."""
    history: tuple[Epoch, ...]
    """The epochs so far."""
    weights: list[np.ndarray]
    """The network's, as the next step finds them, in the order of `get_weights`."""
    average: list[np.ndarray]
    """The running average of these."""
    best: list[np.ndarray]
    """The average as it was after the epoch of least validation loss."""
    optimizer: list[np.ndarray]
    """The optimizer's variables."""


_GROUPS = ("weights", "average", "best", "optimizer")


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the file; a process killed meanwhile leaves the one before."""
    arrays = {f"{group}_{index}": array for group in _GROUPS for index, array in enumerate(getattr(checkpoint, group))}
    history = json.dumps([dataclasses.asdict(epoch) for epoch in checkpoint.history])
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        # What no reading goes without comes last, so that it is missed if damage hides the end of the list.
        np.savez(file, **arrays, fingerprint=np.array(checkpoint.fingerprint), history=np.array(history))
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def read_checkpoint(path: Path, fingerprint: str) -> Checkpoint | None:
    """Read the file, or None where there is none.

    Raises:
        ConfigError: it belongs to another recipe, to other data or to another start, is damaged, or is no checkpoint.
    """
    remedy = "Remove this file to start afresh, or move it away to keep it."
    try:
        # NumPy does not look at the checksum of an array whose damaged head says that it is shorter.
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"{damaged} in it was changed")
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["fingerprint"]) != fingerprint:
                raise ConfigError(f"{path}: it belongs to another recipe or other data. {remedy}")
            groups = {
                group: [kept[f"{group}_{index}"] for index in range(sum(name.startswith(group) for name in kept.files))]
                for group in _GROUPS
            }
            history = tuple(Epoch(**epoch) for epoch in json.loads(str(kept["history"])))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error) or "it ends too early"
        raise ConfigError(f"{path}: it is no checkpoint of a training, or damaged ({reason}). {remedy}") from error
    return Checkpoint(fingerprint=fingerprint, history=history, **groups)
