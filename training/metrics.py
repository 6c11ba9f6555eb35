"""probabilities + labels -> accuracy, recall, F1, confusion, calibration: plain numpy, no network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_CALIBRATION_BINS = 15
_LEAST_PROBABILITY = 1e-12
_NEWTON_STEPS = 50
# Keeps the parameters finite where a few images could be told apart perfectly; on thousands it changes nothing.
_CALIBRATION_RIDGE = 1e-3


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
        log_loss=float(-np.log(np.maximum(of_label, _LEAST_PROBABILITY)).mean()),
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


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is done to a network's logits so that its probabilities mean what they say."""

    temperature: float
    """What they are divided by first. Above 1 the network was too sure of itself, below 1 not sure enough."""
    class_biases: tuple[float, ...]
    """What is added to each class then. Above 0 the network named the class too rarely."""


def fit_calibration(probabilities: np.ndarray, labels: np.ndarray) -> Calibration:
    """Find the temperature and the biases of least log loss, by Newton's method; the problem is convex.

    Args:
        probabilities: float (n, classes) as the network gives them.
        labels: int (n,); not images that the network was fitted to.
    """
    logits = _logits(probabilities)
    row_count, class_count = logits.shape
    truth = np.eye(class_count)[labels]
    # What a single parameter changes in the logits: (n, classes, 1 + classes).
    basis = np.concatenate([logits[:, :, np.newaxis], np.tile(np.eye(class_count), (row_count, 1, 1))], axis=2)
    start = np.concatenate([[1.0], np.zeros(class_count)])

    def loss(parameters: np.ndarray) -> float:
        answers = _softmax(basis @ parameters)
        fit = -np.log(np.maximum((answers * truth).sum(axis=1), _LEAST_PROBABILITY)).mean()
        return float(fit + _CALIBRATION_RIDGE / 2 * ((parameters - start) ** 2).sum())

    parameters = start
    for _ in range(_NEWTON_STEPS):
        answers = _softmax(basis @ parameters)
        gradient = np.einsum("nk,nkp->p", answers - truth, basis) / row_count
        gradient += _CALIBRATION_RIDGE * (parameters - start)
        mean_basis = np.einsum("nk,nkp->np", answers, basis)
        curvature = np.einsum("nk,nkp,nkq->pq", answers, basis, basis, optimize=True) - mean_basis.T @ mean_basis
        curvature = curvature / row_count + _CALIBRATION_RIDGE * np.eye(1 + class_count)
        step = np.linalg.solve(curvature, gradient)
        # Far from the goal a whole step may go too far.
        shares = (share for share in (1.0, 0.5, 0.25, 0.1) if loss(parameters - share * step) < loss(parameters))
        share = next(shares, 0.0)
        if share * np.abs(step).max() < 1e-6:
            break
        parameters = parameters - share * step
    # The same added to every class changes nothing.
    biases = parameters[1:] - parameters[1:].mean()
    return Calibration(temperature=float(1 / parameters[0]), class_biases=tuple(float(bias) for bias in biases))


def calibrate(probabilities: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Change probabilities as changing their logits would; float64 (n, classes)."""
    return _softmax(_logits(probabilities) / calibration.temperature + calibration.class_biases)


def _logits(probabilities: np.ndarray) -> np.ndarray:
    """Undo a softmax up to a constant in each row, which the next softmax takes out again."""
    logits: np.ndarray = np.log(np.maximum(probabilities.astype(np.float64), _LEAST_PROBABILITY))
    return logits


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return probabilities
