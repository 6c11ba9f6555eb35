"""model directory <-> EmotionClassifier: a trained network saved so that it describes itself, and served by LiteRT.

A model directory holds

    model.keras     the network as Keras saves it, in float32, safe to load: to train on, to look into
    model.tflite    the same graph for LiteRT, its weights in int8: what classifies
    model.json      what it is and where it came from (`ModelDescription`)

Serving does not import TensorFlow: that costs 8 CPU seconds, more than a whole short clip.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import io
import json
import os
import re
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ferflow.emotions import EMOTIONS
from ferflow.errors import ModelError
from ferflow.faces import Framing, resize_faces
from models.keras_file import check_keras_file
from models.quiet import without_chatter

if TYPE_CHECKING:
    import keras

KERAS_FILE = "model.keras"
LITERT_FILE = "model.tflite"
DESCRIPTION_FILE = "model.json"

# Ten times what the project's own models take. What claims more is not read into memory to find out why.
_MOST_BYTES = {KERAS_FILE: 200_000_000, LITERT_FILE: 100_000_000, DESCRIPTION_FILE: 10_000_000}
_CROP_SIZES_PX = range(16, 513)

# 1 thread: alone a face takes 6 % more than in batches of 32, in batches of 64 no less; those only take more memory.
_BATCH_SIZE = 32
_SERVED_IN, _ONCE_SERVED_IN = "int8", "float16"


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
    """Name and the first 8 digits of the sha256 of weights, temperature and served form; given by `save_model`."""
    class_biases: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What the calibration added to each class's logit, after the temperature; the saved weights contain it."""
    keras_version: str = ""
    """What wrote model.keras; given by `save_model`."""
    sha256: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Of each file beside model.json; given by `save_model`."""
    saved_at: str = ""
    """When, in UTC and ISO 8601; given by `save_model`, empty in models older than this field."""
    served_in: str = _ONCE_SERVED_IN
    """Numbers that the weights are in as they are served; given by `save_model`, float16 in older models."""
    notes: Sequence[str] = dataclasses.field(default_factory=list)
    """What its makers know of it beyond all this, a sentence or more each, written into model.json by hand; the model
    card repeats them."""


_OPTIONAL = {"class_biases", "saved_at", "served_in", "notes"}
# Older models do not say these.


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
            ModelError: a file is missing or not the one that model.json names, it needs what LiteRT does not have, or
                the classes are not EMOTIONS.
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
            raise ModelError(_why_litert_refuses(directory, error)) from error
        expected = [-1, self.crop_size_px, self.crop_size_px, 1], [-1, len(EMOTIONS)]
        actual = self._input["shape_signature"].tolist(), self._output["shape_signature"].tolist()
        if actual[0] != expected[0] or actual[1][-1:] != expected[1][-1:]:
            raise ModelError(
                f"{directory / LITERT_FILE}: it maps {actual[0]} to {actual[1]}, not {expected[0]} to {expected[1]}. "
                "Save the model again."
            )
        if (self._input["dtype"], self._output["dtype"]) != (np.uint8, np.float32):
            raise ModelError(
                f"{directory / LITERT_FILE}: it maps {self._input['dtype'].__name__} to "
                f"{self._output['dtype'].__name__}, not uint8 to float32. Save the model again."
            )
        try:
            with without_chatter():
                self._allocate(_BATCH_SIZE)
        except (ValueError, RuntimeError) as error:
            raise ModelError(_why_litert_refuses(directory, error)) from error
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

    def classify_photos(self, faces_gray: np.ndarray) -> np.ndarray:
        """Score pictures of faces of any one side, uint8 (n, side, side), as `classify` does."""
        return self.classify(resize_faces(faces_gray, self.crop_size_px))

    def _allocate(self, batch_size: int) -> None:
        shape = (batch_size, self.crop_size_px, self.crop_size_px, 1)
        self._interpreter.resize_tensor_input(self._input["index"], shape)
        self._interpreter.allocate_tensors()
        self._loaded_batch_size = batch_size


def _why_litert_refuses(directory: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())
    if found := re.search(r"custom op\w*: *(\w+)|(Flex\w+|Select TensorFlow op)", reason):
        name = found[1] or found[2]
        return (
            f"{directory / LITERT_FILE}: it needs an operation that LiteRT does not have ({name}). ferflow runs "
            "built-in operations only; train the model again with ordinary layers."
        )
    return f"{directory / LITERT_FILE}: LiteRT cannot load it ({reason[:300]}). Save the model again."


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
    description = dataclasses.replace(description, served_in=_SERVED_IN)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=parent) as part_name:
        part = Path(part_name) / "model"
        part.mkdir()
        network.save(part / KERAS_FILE)
        (part / LITERT_FILE).write_bytes(export_litert(network))
        sha256 = {file: hashlib.sha256((part / file).read_bytes()).hexdigest() for file in (KERAS_FILE, LITERT_FILE)}
        described = dataclasses.replace(
            description,
            version=name_version(description, network),
            keras_version=keras.__version__,
            sha256=sha256,
            saved_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        text = json.dumps(dataclasses.asdict(described), indent=2, ensure_ascii=False)
        (part / DESCRIPTION_FILE).write_text(text + "\n", encoding="utf-8")
        directory = parent / described.version
        if directory.exists():
            os.replace(directory, Path(part_name) / "replaced")
        os.replace(part, directory)
    return directory


def name_version(description: ModelDescription, network: keras.Model) -> str:
    """Name a network by its recipe's name, its weights, its temperature and the form in which it is served."""
    weights = hashlib.sha256(repr(description.temperature).encode())
    if description.served_in != _ONCE_SERVED_IN:
        weights.update(description.served_in.encode())
    for array in network.get_weights():
        weights.update(array.tobytes())
    return f"{description.name}-{weights.hexdigest()[:8]}"


def export_litert(network: keras.Model) -> bytes:
    """Convert a Keras network for LiteRT: int8 convolutions, any number of faces a call.

    What goes into a convolution is put into int8 while it computes, each face by its own range, so that a face's scores
    do not depend on the others of its batch, and no images are needed to find ranges beforehand (LiteRT's "dynamic
    range quantization"). Where the processor multiplies int8 (AVX512-VNNI) that takes a third of the time. Depthwise
    convolutions stay in float: in int8 they take longer.
    """
    import tensorflow as tf
    from ai_edge_quantizer import qtyping, quantizer

    # The converter prints the signature and every variable's address, the quantizer how far it is.
    unwanted = io.StringIO()
    with contextlib.redirect_stdout(unwanted), contextlib.redirect_stderr(unwanted):
        in_float: bytes = tf.lite.TFLiteConverter.from_keras_model(network).convert()
        quantizing = quantizer.Quantizer(in_float)
        convolutions = qtyping.TFLOperationName.CONV_2D
        quantizing.add_dynamic_config(regex=".*", operation_name=convolutions, num_bits=8)
        quantized = quantizing.quantize(enable_progress_bar=False, enable_progress_report=False).quantized_model
    assert quantized is not None
    return bytes(quantized)


def load_network(directory: Path) -> keras.Model:
    """Load the Keras form of a model, to train on or to look into; nothing in the file can run code.

    Raises:
        ModelError: a file is missing, damaged, written by a newer Keras, or holds anything but ordinary layers.
    """
    description = read_description(directory)
    path = directory / KERAS_FILE
    _read_checked(directory, KERAS_FILE, description)
    check_keras_file(path)
    _check_keras_version(path, description.keras_version)
    import keras

    try:
        network: keras.Model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras and TensorFlow raise all kinds for a file that was tampered with.
        raise ModelError(
            f"{path}: Keras {keras.__version__} cannot load what {description.keras_version} wrote "
            f"({_shorten(error)}). Install that version or train the model again."
        ) from error
    return network


def read_description(directory: Path) -> ModelDescription:
    """Read what a model directory says of itself.

    Raises:
        ModelError: there is no such directory, its model.json is damaged or claims what cannot be, or its classes are
            not EMOTIONS.
    """
    path = directory / DESCRIPTION_FILE
    try:
        table = json.loads(_read(path).decode())
        fields = {
            field.name: table[field.name]
            for field in dataclasses.fields(ModelDescription)
            if field.name not in _OPTIONAL or field.name in table
        }
        fields |= {"emotions": tuple(table["emotions"]), "framing": Framing(**table["framing"])}
        description = ModelDescription(**fields)
    except OSError as error:
        raise ModelError(
            f"{directory}: it holds no readable {DESCRIPTION_FILE} ({error.strerror}). Name a model directory."
        ) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"{path}: it is damaged ({error}). Fetch or train the model again.") from error
    except KeyError as error:
        raise ModelError(f"{path}: it does not say {error}. Train the model again with this version.") from error
    if description.emotions != EMOTIONS:
        raise ModelError(
            f"{directory}: it was trained for {_shorten(', '.join(map(str, description.emotions)))}, but this version "
            f"knows {', '.join(EMOTIONS)}, in this order. Train it again or use another."
        )
    for name, wanted, is_met in _demands(description):
        if not is_met:
            value = _shorten(repr(getattr(description, name)))
            raise ModelError(f"{path}: {name} is {value}, but it must be {wanted}. Fetch or train the model again.")
    return description


def is_plain_name(text: object) -> bool:
    """Whether a version can name a folder on any disk and lead nowhere else."""
    return (
        isinstance(text, str) and text != "default" and re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", text, re.A) is not None
    )


def _demands(description: ModelDescription) -> list[tuple[str, str, bool]]:
    """What each field must be, in words, and whether it is; the file may be from anybody."""
    framing, size_px = description.framing, description.crop_size_px
    sides = f"a whole number from {_CROP_SIZES_PX.start} to {_CROP_SIZES_PX[-1]}"
    plain = "letters, digits, '.', '-' and '_', at most 100"
    is_framing = (
        _is_number(framing.side_per_box, 0.1, 10)
        and _is_number(framing.down_per_box, -5, 5)
        and isinstance(framing.is_levelled, bool)
    )
    mappings = ("recipe", "data", "metrics", "class_biases", "sha256")
    return [
        ("name", plain, is_plain_name(description.name)),
        ("version", plain, is_plain_name(description.version)),
        ("crop_size_px", sides, type(size_px) is int and size_px in _CROP_SIZES_PX),
        ("temperature", "a number above 0", _is_number(description.temperature, 1e-6, 1e6)),
        ("framing", "two moderate numbers and true or false", is_framing),
        ("commit", "a text or null", description.commit is None or isinstance(description.commit, str)),
        ("keras_version", "a version like 3.15.1", _release(description.keras_version) is not None),
        ("history", "a list", isinstance(description.history, list)),
        ("saved_at", "a text", isinstance(description.saved_at, str)),
        (
            "notes",
            "a list of texts",
            isinstance(description.notes, list) and all(isinstance(note, str) for note in description.notes),
        ),
        *((name, "a table", isinstance(getattr(description, name), dict)) for name in mappings),
    ]


def _is_number(value: object, least: float, most: float) -> bool:
    return type(value) in (int, float) and least <= value <= most  # type: ignore[operator]


def _release(version: object) -> tuple[int, int] | None:
    found = re.match(r"(\d{1,4})\.(\d{1,4})(?!\d)", version) if isinstance(version, str) else None
    return None if found is None else (int(found[1]), int(found[2]))


def _check_keras_version(path: Path, wrote: str) -> None:
    ours = importlib.metadata.version("keras")
    wrote_release, our_release = _release(wrote), _release(ours)
    if wrote_release is None or our_release is None or wrote_release > our_release:
        raise ModelError(
            f"{path}: Keras {wrote} wrote it, which is newer than the {ours} that is installed. Install that version "
            "or a newer one, or save the model with this one."
        )


def _shorten(reason: object) -> str:
    text = " ".join(str(reason).split())
    return text if len(text) <= 300 else f"{text[:300]}…"


def _read(path: Path) -> bytes:
    size, most = path.stat().st_size, _MOST_BYTES[path.name]
    if size > most:
        raise ModelError(
            f"{path}: it has {size / 1e6:,.0f} MB, and no model of ferflow has more than {most / 1e6:,.0f}. "
            "Fetch or train the model again."
        )
    return path.read_bytes()


def _read_checked(directory: Path, file: str, description: ModelDescription) -> bytes:
    path = directory / file
    try:
        content = _read(path)
    except OSError as error:
        raise ModelError(f"{path}: it cannot be read ({error.strerror}). Fetch or train the model again.") from error
    if hashlib.sha256(content).hexdigest() != description.sha256.get(file):
        raise ModelError(
            f"{path}: it is not the file that {DESCRIPTION_FILE} describes. Fetch or train the model again."
        )
    return content
