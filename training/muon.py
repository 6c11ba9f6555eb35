"""gradients -> steps: Keras' Muon, extended to convolutions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


def make_muon(
    learning_rate: keras.optimizers.schedules.LearningRateSchedule | float, *, weight_decay: float, precision: str
) -> keras.optimizers.Optimizer:
    """Build an optimizer that steps convolutions by Muon and everything else by AdamW.

    Muon (Jordan et al., 2024) makes the step of a weight matrix nearly orthogonal, so that all its directions learn
    equally fast. Keras 3's takes matrices only; a convolution is one too, of (height x width x channels in, channels
    out). Its step is scaled to the size of AdamW's (Liu et al., 2025, arXiv 2502.16982).
    """
    import keras
    from keras import ops

    class ConvolutionalMuon(keras.optimizers.Muon):  # type: ignore[misc]
        """Muon over the kernels of convolutions that mix channels."""

        def _should_use_adamw(self, variable: keras.Variable) -> bool:
            return not (len(variable.shape) == 4 and min(variable.shape[2:]) > 1)

        def zeropower_via_newtonschulz5(self, x: object, steps: int) -> object:
            shape = x.shape  # type: ignore[attr-defined]
            # The iteration is known to bear bfloat16, which halves its cost where the machine computes in it.
            number = "bfloat16" if precision == "mixed_bfloat16" else "float32"
            matrix = ops.cast(ops.reshape(x, (-1, shape[-1])), number)
            matrix = super().zeropower_via_newtonschulz5(matrix, steps)
            return ops.cast(ops.reshape(matrix, shape), "float32")

        def lr_adjust(self, x: object) -> object:
            shape = x.shape  # type: ignore[attr-defined]
            return x * (math.sqrt(max(math.prod(shape[:-1]), shape[-1])) * self.rms_rate)

    return ConvolutionalMuon(
        learning_rate,
        weight_decay=weight_decay,
        adam_weight_decay=weight_decay,
        adam_lr_ratio=0.5,
        ns_steps=4,
    )
