"""face crops -> scored faces: the classes, the EmotionClassifier protocol, batching."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np

from ferflow.faces import Framing

EMOTIONS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
"""The classes in their only order: model outputs, table columns, colours and metrics all derive from it."""

Label = TypeVar("Label")


class EmotionClassifier(Protocol):
    """A network that scores face crops."""

    version: str
    """Names the weights; written in every row that they produced."""
    crop_size_px: int
    """Side of the square grey crops that it reads."""
    framing: Framing
    """How much of a face such a crop shows."""

    def classify(self, crops_gray: np.ndarray) -> np.ndarray:
        """Score crops, uint8 (n, crop_size_px, crop_size_px).

        Returns:
            float32 (n, 7) in the order of EMOTIONS, rows sum to 1.
        """
        ...


def classify_in_batches(
    crops: Iterable[tuple[Label, np.ndarray]], classifier: EmotionClassifier, *, batch_size: int = 32
) -> Iterator[tuple[Label, np.ndarray]]:
    """Score a stream of crops, many at a time and across frames.

    Args:
        crops: whatever names a crop, and the crop: uint8 (crop_size_px, crop_size_px).
        classifier: the network.
        batch_size: crops a call; one call costs as much as several crops, so a call a face would be slow.

    Yields:
        The names in their order, each with its float32 (7,) probabilities in the order of EMOTIONS.
    """
    waiting = iter(crops)
    while batch := list(islice(waiting, batch_size)):
        probabilities = classifier.classify(np.stack([crop for _, crop in batch]))
        yield from zip((label for label, _ in batch), probabilities, strict=True)
