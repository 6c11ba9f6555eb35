"""package index -> weights of a network that tells faces apart: where a `mobile` emotion network may start from.

A MobileNet 1.0 trained by A. Savchenko (HSE) to recognise people, age and gender on VGGFace2's photos, as the npm
package `@vladmandic/human` carries it (MIT). Nobody needs it to use ferflow, or to train from scratch or from an
earlier emotion model; it is fetched by `npm pack` when a recipe asks for it, verified by sha256 and never committed.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ferflow.errors import ModelError
from models.wheels import cache_folder, is_right, read_verified, write_whole

if TYPE_CHECKING:
    import keras

_PACKAGE = "@vladmandic/human@3.3.6"
_MEMBERS = {
    "faceres.json": "5b83d49c0385d2e68a05122441b94226313677cae9fcc40b9587ad50079eb4df",
    "faceres.bin": "2c7d2d62b76c97528b736527aa09d310ea71743c9e3e79fb6c62d4b2d73af79b",
}
_FETCH_SECONDS = 900
# It was trained on BGR photos less these means, in grey values of 0 to 255.
_MEANS_BGR = (103.939, 116.779, 123.68)
_SPREAD = 60.0
# What one unit of a face by its own mean and spread is worth in those.


def start_from_face_network(network: keras.Model) -> None:
    """Give a fresh `mobile` network the weights of the face network; its last layer stays as it is.

    Raises:
        ModelError: the weights cannot be had, or the network's layers are not the face network's first ones.
    """
    kernels = iter(read_face_network())
    for layer in network.layers:
        if layer.name == "stem" or layer.name.endswith(("_depthwise", "_pointwise")):
            kernel, bias = next(kernels, (np.empty(0), np.empty(0)))
            if layer.name == "stem":
                kernel, bias = _for_gray(kernel, bias)
            if [weight.shape for weight in layer.weights] != [kernel.shape, bias.shape]:
                raise ModelError(
                    f"{layer.name} is {layer.weights[0].shape}, the face network's is {kernel.shape}: set widths to "
                    "[64, 128, 256, 512, 1024] and blocks to [1, 2, 2, 6, 2] or the first of these (fewer blocks only "
                    "at the last width), or start from scratch."
                )
            layer.set_weights([kernel, bias])


def read_face_network() -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernel and bias of each convolution in order, float32; depthwise kernels (3, 3, channels, 1)."""
    folder = _fetch()
    graph = json.loads((folder / "faceres.json").read_text())
    values = _read_values(graph["weightsManifest"], (folder / "faceres.bin").read_bytes())
    nodes = {node["name"]: node for node in graph["modelTopology"]["node"]}

    def constant(node: dict[str, Any]) -> np.ndarray:
        return next(values[name] for name in node["input"] if name in values)

    layers: list[tuple[np.ndarray, np.ndarray]] = []
    node = nodes["global_pooling/Mean"]
    scale, bias = None, np.empty(0, np.float32)
    # From the last layer to the first: convolution, Mul, Add and the rest each have one input that is not constant.
    while node["op"] != "Placeholder":
        match node["op"]:
            case "Add":
                bias, scale = constant(node).ravel(), None
            case "Mul":
                scale = constant(node).ravel()
            case "Conv2D":
                layers.append((constant(node), bias))
            case "DepthwiseConv2dNative":
                kernel = constant(node)
                layers.append((kernel if scale is None else kernel * scale[:, np.newaxis], bias))
        node = nodes[next(name for name in node["input"] if name not in values)]
    return layers[::-1]


def _for_gray(kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Let a kernel over three colours read a normalised grey face: the same answer as for R = G = B."""
    means = np.array(_MEANS_BGR, np.float32)
    shift = np.einsum("hwco,c->o", kernel, means.mean() - means)
    return kernel.sum(axis=2, keepdims=True) * _SPREAD, bias + shift


def _read_values(manifest: list[dict[str, Any]], content: bytes) -> dict[str, np.ndarray]:
    values, offset = {}, 0
    for entry in (entry for group in manifest for entry in group["weights"]):
        stored = np.dtype(entry.get("quantization", entry)["dtype"])
        array = np.frombuffer(content, stored, int(np.prod(entry["shape"])), offset)
        offset += array.nbytes
        values[entry["name"]] = array.astype(entry["dtype"]).reshape(entry["shape"])
    return values


def _fetch() -> Path:
    folder = cache_folder() / "face_network"
    if all(is_right(folder / name, sha256=sha256) for name, sha256 in _MEMBERS.items()):
        return folder
    with tempfile.TemporaryDirectory(prefix="ferflow-face-network-") as scratch:
        try:
            subprocess.run(
                ["npm", "pack", "--silent", _PACKAGE],
                cwd=scratch,
                check=True,
                capture_output=True,
                timeout=_FETCH_SECONDS,
            )
            with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
                for name in _MEMBERS:
                    member = archive.extractfile(f"package/models/{name}")
                    assert member is not None
                    (Path(scratch) / name).write_bytes(member.read())
        except (OSError, subprocess.SubprocessError, tarfile.TarError, StopIteration, KeyError) as error:
            raise ModelError(
                f"The face network could not be fetched ({error}): install npm and connect once, or set "
                "network.start to 'scratch' in the recipe."
            ) from error
        folder.mkdir(parents=True, exist_ok=True)
        for name, sha256 in _MEMBERS.items():
            remedy = f"take {name} from the npm package {_PACKAGE}, or set network.start to 'scratch' in the recipe"
            write_whole(folder / name, read_verified(Path(scratch), name, sha256=sha256, remedy=remedy))
    return folder
