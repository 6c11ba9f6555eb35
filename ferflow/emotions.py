"""face crops -> scored faces: the classes, the EmotionClassifier protocol, batching."""

from typing import Protocol

import numpy as np

EMOTIONS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
"""The classes in their only order: model outputs, table columns, colours and metrics all derive from it."""


class EmotionClassifier(Protocol):
    """A network that scores face crops."""

    version: str
    """Names the weights; written in every row that they produced."""
    crop_size_px: int
    """Side of the square grey crops that it reads."""

    def classify(self, crops_gray: np.ndarray) -> np.ndarray:
        """Score crops, uint8 (n, crop_size_px, crop_size_px) -> float32 (n, 7) in the order of EMOTIONS, rows sum to 1."""
        ...
