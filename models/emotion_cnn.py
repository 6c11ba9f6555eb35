"""grey 48x48 faces -> probabilities: the network, with its normalisation and its temperature inside the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ferflow.emotions import EMOTIONS

if TYPE_CHECKING:
    import keras

CROP_SIZE_PX = 48
"""Side of the crops that the network reads: what FER2013 was published in."""

_NORM_MOMENTUM = 0.98
# Below a spread of about 0.03 of full scale an image is noise; it is not blown up to look like a face.
_LEAST_VARIANCE = 1e-3


def build_emotion_cnn(
    *,
    widths: Sequence[int] = (32, 64, 128, 256),
    blocks: Sequence[int] = (0, 2, 2, 1),
    dropout: float = 0.2,
    temperature: float = 1.0,
    precision: str = "float32",
    size_px: int | None = CROP_SIZE_PX,
) -> keras.Model:
    """Build the residual network with squeeze-and-excitation, its weights fresh.

    Args:
        widths: channels at full resolution and after each halving; the first is the stem's.
        blocks: residual blocks at each of these resolutions. At full resolution a block costs as much as at any
            other but sees only a few pixels around, so none is spent there by default.
        dropout: share of the pooled features that training drops.
        temperature: what the logits are divided by before the softmax; 1 while training, fitted afterwards.
        precision: Keras' name of the arithmetic: `float32`, or `mixed_bfloat16` to train faster.
        size_px: side of the crops; None takes any, which lets training begin on small ones. The weights are the same.

    Returns:
        A model from uint8 (n, 48, 48, 1) grey values to float32 (n, 7) probabilities in
        the order of EMOTIONS. It holds no Lambda and no own class, so Keras loads it in safe mode.
    """
    import keras
    from keras import layers

    policy = keras.dtype_policies.get(precision)

    def norm_relu(x: keras.KerasTensor, *, relu: bool = True) -> keras.KerasTensor:
        x = layers.BatchNormalization(momentum=_NORM_MOMENTUM, dtype=policy)(x)
        return layers.Activation("relu", dtype=policy)(x) if relu else x

    def conv(x: keras.KerasTensor, width: int, *, size: int = 3, stride: int = 1) -> keras.KerasTensor:
        return layers.Conv2D(
            width, size, stride, padding="same", use_bias=False, kernel_initializer="he_normal", dtype=policy
        )(x)

    def squeeze_excite(x: keras.KerasTensor, width: int) -> keras.KerasTensor:
        gate = layers.GlobalAveragePooling2D(keepdims=True, dtype=policy)(x)
        gate = layers.Conv2D(max(width // 8, 8), 1, activation="relu", dtype=policy)(gate)
        gate = layers.Conv2D(width, 1, activation="sigmoid", dtype=policy)(gate)
        return layers.Multiply(dtype=policy)([x, gate])

    def residual(x: keras.KerasTensor, width: int, *, stride: int) -> keras.KerasTensor:
        shortcut = x
        if stride > 1:
            shortcut = layers.AveragePooling2D(stride, padding="same", dtype=policy)(shortcut)
        if shortcut.shape[-1] != width:
            shortcut = norm_relu(conv(shortcut, width, size=1), relu=False)
        x = norm_relu(conv(x, width, stride=stride))
        x = squeeze_excite(norm_relu(conv(x, width), relu=False), width)
        return layers.Activation("relu", dtype=policy)(layers.Add(dtype=policy)([shortcut, x]))

    faces = keras.Input((size_px, size_px, 1), dtype="uint8", name="faces_gray")
    x = layers.Rescaling(1 / 255, dtype="float32")(faces)
    # Each face by its own mean and spread: a dim face and a bright one look alike to what follows.
    x = layers.GroupNormalization(1, epsilon=_LEAST_VARIANCE, center=False, scale=False, dtype="float32")(x)
    x = norm_relu(conv(x, widths[0]))
    for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        for index in range(count):
            x = residual(x, width, stride=2 if index == 0 and level > 0 else 1)
    x = layers.GlobalAveragePooling2D(dtype=policy)(x)
    x = layers.Dropout(dropout, dtype="float32")(x)
    logits = layers.Dense(len(EMOTIONS), dtype="float32")(x)
    calibrated = layers.Rescaling(1 / temperature, dtype="float32")(logits)
    return keras.Model(faces, layers.Softmax(dtype="float32", name="probabilities")(calibrated), name="emotion_cnn")
