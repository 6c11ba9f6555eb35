"""grey faces -> probabilities: the networks, with normalisation and temperature inside the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ferflow.emotions import EMOTIONS

if TYPE_CHECKING:
    import keras

CROP_SIZE_PX = 48
"""Side of the images that the networks learn from: what FER2013 was published in."""

_NORM_MOMENTUM = 0.98
# Below a spread of about 0.03 of full scale an image is noise; it is not blown up to look like a face.
_LEAST_VARIANCE = 1e-3
_MOBILE_STEM = 32
_MOBILE_FACE_PX = 112
# The kernels from which it may start were made for 128, which is no better and costs a third more; 96 is worse.
_SEQUENTIAL_L2 = 1e-4
_SEQUENTIAL_HIDDEN = 256


def served_size_px(kind: str) -> int:
    """Side of the crops that a finished network of a kind reads.

    Where a network enlarges what it learns from, it is shown faces of video in that size from the beginning: they have
    the detail.
    """
    return _MOBILE_FACE_PX if kind == "mobile" else CROP_SIZE_PX


def build_emotion_cnn(
    *,
    kind: str = "residual",
    widths: Sequence[int] = (32, 64, 128, 256),
    blocks: Sequence[int] = (0, 1, 2, 1),
    dropout: float = 0.2,
    temperature: float = 1.0,
    precision: str = "float32",
    size_px: int | None = CROP_SIZE_PX,
) -> keras.Model:
    """Build a network, its weights fresh.

    Args:
        kind: `mobile`, depthwise separable convolutions after MobileNet (Howard et al. 2017, arXiv 1704.04861) on the
            face at 112 pixels, to which smaller crops are enlarged, and which can start from `models.face_network`;
            `residual`, with squeeze-and-excitation (He et al. 2016, Hu et al. 2018); `sequential`, one convolution
            after the other with L2 and dropout, the kind that this project began with.
        widths: channels at the first resolution and after each halving.
        blocks: blocks at each of these resolutions.
        dropout: share of the pooled features that training drops; in `sequential` also of each level's.
        temperature: what the logits are divided by before the softmax; 1 while training, fitted afterwards.
        precision: Keras' name of the arithmetic: `float32`, or `mixed_bfloat16` or `mixed_float16` to train faster.
        size_px: side of the crops; None takes any, which lets training begin on small ones. The weights are the same.

    Returns:
        A model from uint8 (n, size_px, size_px, 1) grey values to float32 (n, 7) probabilities in
        the order of EMOTIONS. It holds no Lambda and no own class, so Keras loads it in safe mode.
    """
    import keras
    from keras import layers

    faces = keras.Input((size_px, size_px, 1), dtype="uint8", name="faces_gray")
    x = layers.Rescaling(1 / 255, dtype="float32")(faces)
    # Each face by its own mean and spread: a dim face and a bright one look alike to what follows.
    x = layers.GroupNormalization(1, epsilon=_LEAST_VARIANCE, center=False, scale=False, dtype="float32")(x)
    x = BODIES[kind](x, widths, blocks, dropout, keras.dtype_policies.get(precision))
    x = layers.Dropout(dropout, dtype="float32")(x)
    logits = layers.Dense(len(EMOTIONS), dtype="float32", name="logits")(x)
    calibrated = layers.Rescaling(1 / temperature, dtype="float32")(logits)
    return keras.Model(faces, layers.Softmax(dtype="float32", name="probabilities")(calibrated), name="emotion_cnn")


_Body = Callable[
    ["keras.KerasTensor", Sequence[int], Sequence[int], float, "keras.dtype_policies.DTypePolicy"], "keras.KerasTensor"
]


def _mobile(
    x: keras.KerasTensor,
    widths: Sequence[int],
    blocks: Sequence[int],
    dropout: float,
    policy: keras.dtype_policies.DTypePolicy,
) -> keras.KerasTensor:
    del dropout
    from keras import layers

    def relu6(x: keras.KerasTensor) -> keras.KerasTensor:
        return layers.ReLU(6, dtype=policy)(x)

    if x.shape[1] != _MOBILE_FACE_PX:
        x = layers.Resizing(_MOBILE_FACE_PX, _MOBILE_FACE_PX, interpolation="bilinear", dtype=policy)(x)
    x = relu6(layers.Conv2D(_MOBILE_STEM, 3, 2, padding="same", dtype=policy, name="stem")(x))
    for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        for index in range(count):
            stride, name = 2 if index == 0 and level > 0 else 1, f"level{level}_block{index}"
            # TensorFlow's gradient of a strided one takes a processor 13 to 50 times as long in bfloat16 as in float32.
            number = "float32" if stride > 1 else policy
            x = layers.DepthwiseConv2D(3, stride, padding="same", dtype=number, name=f"{name}_depthwise")(x)
            x = relu6(x)
            x = relu6(layers.Conv2D(width, 1, dtype=policy, name=f"{name}_pointwise")(x))
    x = layers.GlobalAveragePooling2D(dtype=policy)(x)
    # The face network's features hardly vary around their means: as they are, the last layer would learn slowly.
    return layers.BatchNormalization(momentum=_NORM_MOMENTUM, center=False, scale=False, dtype="float32")(x)


def _residual(
    x: keras.KerasTensor,
    widths: Sequence[int],
    blocks: Sequence[int],
    dropout: float,
    policy: keras.dtype_policies.DTypePolicy,
) -> keras.KerasTensor:
    del dropout
    from keras import layers

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

    def block(x: keras.KerasTensor, width: int, *, stride: int) -> keras.KerasTensor:
        shortcut = x
        if stride > 1:
            shortcut = layers.AveragePooling2D(stride, padding="same", dtype=policy)(shortcut)
        if shortcut.shape[-1] != width:
            shortcut = norm_relu(conv(shortcut, width, size=1), relu=False)
        x = norm_relu(conv(x, width, stride=stride))
        x = squeeze_excite(norm_relu(conv(x, width), relu=False), width)
        return layers.Activation("relu", dtype=policy)(layers.Add(dtype=policy)([shortcut, x]))

    x = norm_relu(conv(x, widths[0]))
    for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        for index in range(count):
            x = block(x, width, stride=2 if index == 0 and level > 0 else 1)
    return layers.GlobalAveragePooling2D(dtype=policy)(x)


def _sequential(
    x: keras.KerasTensor,
    widths: Sequence[int],
    blocks: Sequence[int],
    dropout: float,
    policy: keras.dtype_policies.DTypePolicy,
) -> keras.KerasTensor:
    import keras
    from keras import layers

    l2 = keras.regularizers.L2(_SEQUENTIAL_L2)
    for width, count in zip(widths, blocks, strict=True):
        for _ in range(count):
            x = layers.Conv2D(width, 3, padding="same", kernel_regularizer=l2, activation="relu", dtype=policy)(x)
        x = layers.MaxPooling2D(2, dtype=policy)(x)
        x = layers.Dropout(dropout, dtype=policy)(x)
    # Pooled over the picture, which a network that takes crops of any size must do; the first one flattened.
    x = layers.GlobalAveragePooling2D(dtype=policy)(x)
    return layers.Dense(_SEQUENTIAL_HIDDEN, kernel_regularizer=l2, activation="relu", dtype=policy)(x)


BODIES: dict[str, _Body] = {"mobile": _mobile, "residual": _residual, "sequential": _sequential}
"""What lies between the normalised face and the pooled features, by the name of its kind."""
