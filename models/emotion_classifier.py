"""model directory <-> EmotionClassifier: a trained network saved so that it describes itself, and served by LiteRT.

A model directory holds

    model.keras     the network as Keras saves it, in float32, safe to load: to train on, to look into
    model.tflite    the same graph for LiteRT, its weights in float16: what classifies
    model.json      what it is and where it came from (`ModelDescription`)

Serving does not import TensorFlow: that costs 8 CPU seconds, more than a whole short clip.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ferflow.emotions import EMOTIONS
from ferflow.errors import ModelError
from ferflow.faces import Framing
from models.quiet import without_chatter

if TYPE_CHECKING:
    import keras

KERAS_FILE = "model.keras"
LITERT_FILE = "model.tflite"
DESCRIPTION_FILE = "model.json"

# 1 thread, ms of CPU a face: 3.4 alone, 3.2 in batches of 32 and 3.4 of 64; a larger one only takes more memory.
_BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """All that a model directory says of itself, stored as model.json."""

    name: str
    """What the recipe calls it."""
    crop_size_px: int
    """Side of the square grey crops that it reads."""
    temperature: float
    """What the saved graph divides its logits by, so that a probability of 0.8 is right 8 times in 10."""
    framing: Framing
    """How much of a face belongs in a crop."""
    commit: str | None
    """The commit whose code trained it; None where that is not known."""
    recipe: Mapping[str, Any]
    """Every setting of the training."""
    data: Mapping[str, Any]
    """sha256 of the training data and what each split holds."""
    metrics: Mapping[str, Any]
    """Measured on each split with the network as it is saved."""
    history: Sequence[Mapping[str, Any]]
    """What each epoch of the training left."""
    emotions: tuple[str, ...] = EMOTIONS
    """Its classes in the order of its outputs."""
    version: str = ""
    """Name and the first 8 digits of the sha256 of the weights and the temperature; given by `save_model`."""
    class_biases: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What the calibration added to each class's logit, after the temperature; the saved weights contain it."""
    keras_version: str = ""
    """What wrote model.keras; given by `save_model`."""
    sha256: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Of each file beside model.json; given by `save_model`."""


class EmotionModel:
    """A model directory as an `EmotionClassifier`.

    Calls from several threads are answered one after the other; threads that should compute at once hold one each.
    """

    def __init__(self, directory: Path, *, num_threads: int = 1) -> None:
        """Load a model.

        Args:
            directory: a model directory.
            num_threads: how many threads one call may use. Many processes with one each are faster than one with many.

        Raises:
            ModelError: a file is missing or not the one that model.json names, or the classes are not EMOTIONS.
        """
        self.description = read_description(directory)
        self.version = self.description.version
        self.crop_size_px = self.description.crop_size_px
        self.framing = self.description.framing
        content = _read_checked(directory, LITERT_FILE, self.description)

        from ai_edge_litert.interpreter import Interpreter

        try:
            with without_chatter():
                self._interpreter = Interpreter(model_content=content, num_threads=num_threads)
            self._input = self._interpreter.get_input_details()[0]
            self._output = self._interpreter.get_output_details()[0]
        except (ValueError, RuntimeError, IndexError) as error:
            raise ModelError(
                f"{directory / LITERT_FILE}: LiteRT cannot load it ({error}). Save the model again."
            ) from error
        expected = [-1, self.crop_size_px, self.crop_size_px, 1], [-1, len(EMOTIONS)]
        actual = self._input["shape_signature"].tolist(), self._output["shape_signature"].tolist()
        if actual[0] != expected[0] or actual[1][-1:] != expected[1][-1:]:
            raise ModelError(
                f"{directory / LITERT_FILE}: it maps {actual[0]} to {actual[1]}, not {expected[0]} to {expected[1]}. "
                "Save the model again."
            )
        with without_chatter():
            self._allocate(_BATCH_SIZE)
        self._lock = threading.Lock()

    def classify(self, crops_gray: np.ndarray) -> np.ndarray:
        """Score crops, uint8 (n, crop_size_px, crop_size_px) -> float32 (n, 7) in the order of EMOTIONS, rows sum to 1.

        Raises:
            ValueError: the crops are of another size or type.
        """
        size_px = self.crop_size_px
        if crops_gray.ndim != 3 or crops_gray.shape[1:] != (size_px, size_px) or crops_gray.dtype != np.uint8:
            raise ValueError(f"crops are {crops_gray.dtype} {crops_gray.shape}, not uint8 (n, {size_px}, {size_px})")
        scores = np.empty((len(crops_gray), len(EMOTIONS)), np.float32)
        with self._lock:
            for start in range(0, len(crops_gray), _BATCH_SIZE):
                batch = crops_gray[start : start + _BATCH_SIZE, ..., np.newaxis]
                if len(batch) != self._loaded_batch_size:
                    self._allocate(len(batch))
                self._interpreter.set_tensor(self._input["index"], batch)
                self._interpreter.invoke()
                scores[start : start + len(batch)] = self._interpreter.get_tensor(self._output["index"])
        return scores

    def _allocate(self, batch_size: int) -> None:
        shape = (batch_size, self.crop_size_px, self.crop_size_px, 1)
        self._interpreter.resize_tensor_input(self._input["index"], shape)
        self._interpreter.allocate_tensors()
        self._loaded_batch_size = batch_size


def save_model(parent: Path, network: keras.Model, *, description: ModelDescription) -> Path:
    """Write a model directory; it appears complete or not at all.

    Args:
        parent: where model directories lie; made if missing. One of the same version there is replaced.
        network: in float32, from uint8 (n, size, size, 1) to probabilities, its temperature inside.
        description: all but what the files themselves decide (version, Keras' version, sha256).

    Returns:
        The new directory, `parent / version`.
    """
    import keras

    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=parent) as part_name:
        part = Path(part_name) / "model"
        part.mkdir()
        network.save(part / KERAS_FILE)
        (part / LITERT_FILE).write_bytes(export_litert(network))
        weights = hashlib.sha256(repr(description.temperature).encode())
        for array in network.get_weights():
            weights.update(array.tobytes())
        sha256 = {file: hashlib.sha256((part / file).read_bytes()).hexdigest() for file in (KERAS_FILE, LITERT_FILE)}
        described = dataclasses.replace(
            description,
            version=f"{description.name}-{weights.hexdigest()[:8]}",
            keras_version=keras.__version__,
            sha256=sha256,
        )
        text = json.dumps(dataclasses.asdict(described), indent=2, ensure_ascii=False)
        (part / DESCRIPTION_FILE).write_text(text + "\n", encoding="utf-8")
        directory = parent / described.version
        if directory.exists():
            os.replace(directory, Path(part_name) / "replaced")
        os.replace(part, directory)
    return directory


def export_litert(network: keras.Model) -> bytes:
    """Convert a Keras network for LiteRT: weights in float16, arithmetic in float32, any number of faces a call."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    # The converter prints the signature and every variable's address.
    with contextlib.redirect_stdout(io.StringIO()):
        content: bytes = converter.convert()
    return content


def load_network(directory: Path) -> keras.Model:
    """Load the Keras form of a model, to train on or to look into; nothing in the file can run code.

    Raises:
        ModelError: a file is missing, damaged or does not fit this version.
    """
    description = read_description(directory)
    _read_checked(directory, KERAS_FILE, description)
    import keras

    try:
        network: keras.Model = keras.saving.load_model(directory / KERAS_FILE, compile=False, safe_mode=True)
    except (ValueError, TypeError, OSError) as error:
        raise ModelError(
            f"{directory / KERAS_FILE}: Keras {keras.__version__} cannot load what {description.keras_version} wrote "
            f"({error}). Install that version or train the model again."
        ) from error
    return network


def read_description(directory: Path) -> ModelDescription:
    """Read what a model directory says of itself.

    Raises:
        ModelError: there is no such directory, its model.json is damaged, or its classes are not EMOTIONS.
    """
    path = directory / DESCRIPTION_FILE
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        fields = {
            field.name: table[field.name]
            for field in dataclasses.fields(ModelDescription)
            if field.name != "class_biases" or field.name in table
        }
        fields |= {"emotions": tuple(table["emotions"]), "framing": Framing(**table["framing"])}
        description = ModelDescription(**fields)
    except OSError as error:
        raise ModelError(
            f"{directory}: it holds no readable {DESCRIPTION_FILE} ({error.strerror}). Name a model directory."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise ModelError(f"{path}: it is damaged ({error}). Fetch or train the model again.") from error
    except KeyError as error:
        raise ModelError(f"{path}: it does not say {error}. Train the model again with this version.") from error
    if description.emotions != EMOTIONS:
        raise ModelError(
            f"{directory}: it was trained for {', '.join(description.emotions)}, but this version knows "
            f"{', '.join(EMOTIONS)}, in this order. Train it again or use another."
        )
    return description


def _read_checked(directory: Path, file: str, description: ModelDescription) -> bytes:
    path = directory / file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: it cannot be read ({error.strerror}). Fetch or train the model again.") from error
    if hashlib.sha256(content).hexdigest() != description.sha256.get(file):
        raise ModelError(
            f"{path}: it is not the file that {DESCRIPTION_FILE} describes. Fetch or train the model again."
        )
    return content
