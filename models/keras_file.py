"""model.keras from anybody -> nothing, if it holds ordinary layers only; looked at before Keras opens it.

Keras' safe mode refuses Lambda layers and pickles, yet names in a file that Keras resolved to other functions ran code
more than once (CVE-2025-1550, CVE-2025-8747, CVE-2025-9906), and some of its layers read files that a model names
(CVE-2025-12058). So the names are compared with a list of what is known to do nothing but arithmetic.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ferflow.errors import ModelError

_LAYERS = """
    Activation Add AlphaDropout Attention Average AveragePooling1D AveragePooling2D BatchNormalization CenterCrop
    Concatenate Conv1D Conv1DTranspose Conv2D Conv2DTranspose Cropping1D Cropping2D Dense DepthwiseConv1D
    DepthwiseConv2D Dot Dropout EinsumDense ELU Embedding Flatten GaussianDropout GaussianNoise GlobalAveragePooling1D
    GlobalAveragePooling2D GlobalMaxPooling1D GlobalMaxPooling2D GroupNormalization GroupQueryAttention Identity
    InputLayer LayerNormalization LeakyReLU MaxPooling1D MaxPooling2D Maximum Minimum MultiHeadAttention Multiply
    Normalization Permute PReLU ReLU RepeatVector Rescaling Reshape Resizing RMSNormalization SeparableConv1D
    SeparableConv2D Softmax SpatialDropout1D SpatialDropout2D SpectralNormalization Subtract UnitNormalization
    UpSampling1D UpSampling2D ZeroPadding1D ZeroPadding2D
"""
_INITIALIZERS = """
    Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity LecunNormal LecunUniform Ones Orthogonal
    OrthogonalInitializer RandomNormal RandomUniform TruncatedNormal VarianceScaling Zeros
"""
_ARITHMETIC = {
    "keras": {"DTypePolicy", "Functional", "Model", "Sequential"},
    "keras.dtype_policies": {"DTypePolicy"},
    "keras.src.models.functional": {"Functional"},
    "keras.src.models.sequential": {"Sequential"},
    "keras.layers": set(_LAYERS.split()),
    "keras.initializers": set(_INITIALIZERS.split()),
    "keras.regularizers": {"L1", "L2", "L1L2", "OrthogonalRegularizer"},
    "keras.constraints": {"MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm"},
    None: {"__keras_tensor__", "__tuple__"},
}
"""What a model may be made of: Keras' module, and its classes that only compute."""

_MOST_BYTES = {"metadata.json": 100_000, "config.json": 10_000_000, "model.weights.h5": 200_000_000}
# The members that a .keras file has, and ten times what ours take.
_MOST_IN_A_SHAPE = 16_384
# Ours have 512 channels. A layer that claims a billion takes the memory before any weight is read.
_NAMES = {"seed", "shared_object_id"}
# Numbers that stand for no size.


def check_keras_file(path: Path) -> None:
    """Make sure that loading a .keras file can do nothing but build layers and read their weights.

    Raises:
        ModelError: it is no such file, or it holds or claims anything else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive.infolist())
            config = json.loads(archive.read("config.json"))
            if not isinstance(config, dict):
                raise _refusal(path, "its config.json describes no network")
            # With compile=False Keras drops this; a fine-tuned model's optimizer may be of a class of its own.
            config.pop("compile_config", None)
            for part in _parts(config):
                _check_part(path, part)
            with archive.open("model.weights.h5") as weights:
                _check_weights(path, weights)
    except OSError as error:
        raise ModelError(f"{path}: it cannot be read ({error}). Fetch or train the model again.") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, RecursionError, KeyError) as error:
        raise _refusal(path, f"it is damaged or no .keras file ({error})") from error


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    names = [member.filename for member in members]
    if sorted(names) != sorted(_MOST_BYTES):
        odd = next((name for name in names if name not in _MOST_BYTES or names.count(name) > 1), None)
        raise _refusal(path, f"it holds {odd!r}" if odd else "a part of it is missing")
    for member in members:
        if member.file_size > _MOST_BYTES[member.filename]:
            raise _refusal(path, f"its {member.filename} claims {member.file_size / 1e6:,.0f} MB")


def _check_part(path: Path, part: dict[str, Any]) -> None:
    """One object of the network's description: its class must be known, its sizes moderate."""
    if "class_name" in part:
        module, name = part.get("module"), part["class_name"]
        known = _ARITHMETIC.get(module, set()) if module is None or isinstance(module, str) else set()
        if not isinstance(name, str) or name not in known:
            raise _refusal(path, f"it contains {_named(name)} from {_named(module or 'elsewhere')}")
        if part.get("registered_name") not in (None, name):
            raise _refusal(path, f"it contains a class of its own, {_named(part['registered_name'])}")
    for key, value in part.items():
        numbers = value if isinstance(value, list) else [value]
        if key not in _NAMES and any(type(number) is int and abs(number) > _MOST_IN_A_SHAPE for number in numbers):
            raise _refusal(path, f"it claims {_named(key)} = {_named(value)}")


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object in a JSON value."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for member in value:
            yield from _parts(member)


def _check_weights(path: Path, file: Any) -> None:
    """HDF5 can point to other files, and claim arrays that are not there."""
    import h5py  # type: ignore[import-untyped]

    claimed = 0

    def look(group: Any) -> None:
        nonlocal claimed
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise _refusal(path, f"its weights point elsewhere ({_named(name)})")
            member = group[name]
            if isinstance(member, h5py.Group):
                look(member)
            elif member.external or member.is_virtual:
                raise _refusal(path, f"its weights point to another file ({_named(name)})")
            else:
                claimed += member.nbytes
                if claimed > _MOST_BYTES["model.weights.h5"]:
                    raise _refusal(path, "its weights claim more memory than any model of ferflow takes")

    with h5py.File(file, "r") as weights:
        look(weights)


def _named(value: object) -> str:
    return " ".join(str(value).split())[:80]


def _refusal(path: Path, what: str) -> ModelError:
    return ModelError(
        f"{path}: {what}, and ferflow opens networks of ordinary Keras layers only, because a model file from a "
        "stranger must not run code. Train or fetch the model again."
    )
