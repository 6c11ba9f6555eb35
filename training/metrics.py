"""probabilities + labels -> accuracy, recall, F1, confusion, calibration: plain numpy, no network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_CALIBRATION_BINS = 15


@dataclass(frozen=True, slots=True)
class Metrics:
    """How well some probabilities fit the labels."""

    image_count: int
    """How many images were scored."""
    accuracy: float
    """Share of images whose most probable class is the label."""
    recall: tuple[float | None, ...]
    """For each class the share of its images that were recognised; None where it has no image."""
    macro_f1: float
    """Mean over the classes of the F1 score; a class without images or answers counts as zero."""
    calibration_error: float
    """Expected calibration error: how far a stated probability is from the share that was right, on average."""
    log_loss: float
    """Mean of -log of the probability given to the label."""
    confusion: tuple[tuple[int, ...], ...]
    """Counts, a row a true class, a column an answer."""


def measure(probabilities: np.ndarray, labels: np.ndarray) -> Metrics:
    """Compare probabilities with labels.

    Args:
        probabilities: float (n, classes), rows sum to 1.
        labels: int (n,), the true class of each.

    Raises:
        ValueError: there is nothing to measure, or the two do not have the same length.
    """
    if len(labels) == 0 or len(probabilities) != len(labels):
        raise ValueError(f"{len(probabilities)} rows of probabilities for {len(labels)} labels")
    class_count = probabilities.shape[1]
    answers = probabilities.argmax(axis=1)
    confusion = np.zeros((class_count, class_count), np.int64)
    np.add.at(confusion, (labels, answers), 1)
    right, true_counts, answer_counts = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    f1 = 2 * right / np.maximum(true_counts + answer_counts, 1)
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return Metrics(
        image_count=len(labels),
        accuracy=float((answers == labels).mean()),
        recall=tuple(int(hit) / int(all_) if all_ else None for hit, all_ in zip(right, true_counts, strict=True)),
        macro_f1=float(f1.mean()),
        calibration_error=expected_calibration_error(probabilities.max(axis=1), answers == labels),
        log_loss=float(-np.log(np.maximum(of_label, 1e-12)).mean()),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )


def expected_calibration_error(confidences: np.ndarray, right: np.ndarray) -> float:
    """Average over 15 equal bins of |mean confidence - share right|, weighted by how many fall in each.

    Guo et al., On Calibration of Modern Neural Networks (2017), the usual form.

    Args:
        confidences: float (n,), the probability of each answer, 0 to 1.
        right: bool (n,), whether it was the label.
    """
    bins = np.minimum((confidences * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    counts = np.bincount(bins, minlength=_CALIBRATION_BINS)
    confidence_sums = np.bincount(bins, weights=confidences, minlength=_CALIBRATION_BINS)
    right_sums = np.bincount(bins, weights=right, minlength=_CALIBRATION_BINS)
    return float(np.abs(confidence_sums - right_sums).sum() / max(counts.sum(), 1))


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Find what to divide the logits by, so that the probabilities mean what they say.

    Args:
        probabilities: float (n, classes) at temperature 1.
        labels: int (n,).

    Returns:
        The temperature of least log loss, between 0.25 and 4, to within half a percent. Above 1 the network was too
        sure of itself, below 1 not sure enough.
    """
    candidates = np.geomspace(0.25, 4, 557)
    rows = np.arange(len(labels))
    losses = [-np.log(apply_temperature(probabilities, candidate)[rows, labels]).mean() for candidate in candidates]
    return float(candidates[np.argmin(losses)])


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Change probabilities as dividing their logits would; float64 (n, classes)."""
    # Log probabilities are logits up to a constant in each row, which the normalisation takes out again.
    scaled = np.log(np.maximum(probabilities.astype(np.float64), 1e-12)) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    # No probability is exactly zero, or its logarithm would be lost.
    changed: np.ndarray = np.maximum(powers / powers.sum(axis=1, keepdims=True), 1e-12)
    return changed
