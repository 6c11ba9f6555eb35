"""emotion models, images -> what they answer together, for a network to learn: distillation

After Hinton, Vinyals, Dean 2015 (arXiv:1503.02531): what several networks answer says more than a label on which people
disagree, and a network that learns it keeps most of what they know together.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.emotion_classifier import EmotionModel

_LEAST_PROBABILITY = 1e-6


def ask_teachers(teachers: Sequence[Path], images_gray: np.ndarray) -> np.ndarray:
    """The geometric mean of what some models answer, each asked of every image and of its mirror image.

    Args:
        teachers: model directories.
        images_gray: uint8 (n, 48, 48).

    Returns:
        float32 (n, 7), rows sum to 1.

    Raises:
        ModelError: a model cannot be used.
    """
    logs = [
        np.log(np.maximum(model.classify_photos(np.ascontiguousarray(view)), _LEAST_PROBABILITY))
        for model in map(EmotionModel, teachers)
        for view in (images_gray, images_gray[..., ::-1])
    ]
    mean = np.exp(np.mean(logs, axis=0))
    answers: np.ndarray = (mean / mean.sum(axis=1, keepdims=True)).astype(np.float32)
    return answers
