"""probabilities + labels -> accuracy, recall, F1, confusion, calibration, significance: plain numpy, no network."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

_CALIBRATION_BINS = 15
_LEAST_PROBABILITY = 1e-12
# How much a class may be favoured: 2 in its logit is 7 times the odds, beyond which the others suffer for nothing.
_FAVOUR_STEP, _MOST_FAVOUR = 0.02, 2.0
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


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Answers whose stated probability lies in one range."""

    low: float
    """Where the range begins, 0 to 1; it ends where the next begins."""
    high: float
    """Where it ends; only the last range contains its end."""
    image_count: int
    """How many answers fall in it."""
    mean_confidence: float | None
    """Mean of what they state; None where there is none."""
    accuracy: float | None
    """Share of them that was right; None where there is none."""


def reliability_bins(
    confidences: np.ndarray, right: np.ndarray, *, bin_count: int = _CALIBRATION_BINS
) -> tuple[ReliabilityBin, ...]:
    """Sort answers into equal ranges of their stated probability.

    Args:
        confidences: float (n,), the probability of each answer, 0 to 1.
        right: bool (n,), whether it was the label.
        bin_count: how many ranges.
    """
    bins = np.minimum((confidences * bin_count).astype(int), bin_count - 1)
    counts = np.bincount(bins, minlength=bin_count).tolist()
    confidence_sums = np.bincount(bins, weights=confidences, minlength=bin_count).tolist()
    right_sums = np.bincount(bins, weights=right, minlength=bin_count).tolist()
    return tuple(
        ReliabilityBin(
            low=index / bin_count,
            high=(index + 1) / bin_count,
            image_count=count,
            mean_confidence=confidence_sums[index] / count if count else None,
            accuracy=right_sums[index] / count if count else None,
        )
        for index, count in enumerate(counts)
    )


def expected_calibration_error(confidences: np.ndarray, right: np.ndarray) -> float:
    """Average over 15 equal bins of |mean confidence - share right|, weighted by how many fall in each.

    Guo et al., On Calibration of Modern Neural Networks (2017), the usual form.

    Args:
        confidences: float (n,), the probability of each answer, 0 to 1.
        right: bool (n,), whether it was the label.
    """
    gaps = sum(
        bin_.image_count * abs(bin_.mean_confidence - bin_.accuracy)
        for bin_ in reliability_bins(confidences, right)
        if bin_.mean_confidence is not None and bin_.accuracy is not None
    )
    return float(gaps / max(len(right), 1))


@dataclass(frozen=True, slots=True)
class Significance:
    """Whether one of two classifiers is better on the same images by more than chance."""

    first_only: int
    """Images that only the first got right."""
    second_only: int
    """Images that only the second got right."""
    p_value: float
    """How likely so uneven a split, or a more uneven one, would be if both were equally good; 0 to 1."""


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> Significance:
    """Compare two classifiers on the same images by McNemar's test, exact and two-sided.

    Images that both or neither got right say nothing about the difference; the others would be dealt out by a fair
    coin. McNemar, Note on the sampling error of the difference between correlated proportions (1947); the exact form
    is a sign test. Recommended for classifiers that are trained once by Dietterich, Approximate Statistical Tests for
    Comparing Supervised Classification Learning Algorithms (1998).

    Args:
        first_right: bool (n,), whether the first got each image right.
        second_right: bool (n,), the second.

    Raises:
        ValueError: the two do not have the same length.
    """
    if len(first_right) != len(second_right):
        raise ValueError(f"{len(first_right)} answers of the first, {len(second_right)} of the second")
    first_only = int((first_right & ~second_right).sum())
    second_only = int((second_right & ~first_right).sum())
    tosses = first_only + second_only
    # In whole numbers: 2 ** -3589 is no float.
    ways, tail = 1, 0
    for heads in range(min(first_only, second_only) + 1):
        tail += ways
        ways = ways * (tosses - heads) // (heads + 1)
    return Significance(first_only, second_only, min(1.0, 2 * tail / 2**tosses))


def accuracy_interval(right_count: float, image_count: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Say between which bounds an accuracy lies, given that the images are a sample: Wilson's score interval.

    Wilson, Probable inference, the law of succession, and statistical inference (1927); preferred to the usual normal
    interval by Brown, Cai and DasGupta, Interval Estimation for a Binomial Proportion (2001).

    Args:
        right_count: how many images were right.
        image_count: of how many, at least 1.
        confidence: how often such an interval holds the true value.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = right_count / image_count
    spread = z * math.sqrt(share * (1 - share) / image_count + (z / image_count) ** 2 / 4)
    middle, scale = share + z**2 / image_count / 2, 1 + z**2 / image_count
    # Rounding may leave the bounds a hair outside.
    return max((middle - spread) / scale, 0.0), min((middle + spread) / scale, 1.0)


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


def favour_rare_answers(
    probabilities: np.ndarray, labels: np.ndarray, calibration: Calibration, *, least_recall: float
) -> Calibration:
    """Raise the biases of the classes that are recognised too rarely, until each has its share or nothing helps.

    Args:
        probabilities: float (n, classes) as the network gives them.
        labels: int (n,); not images that the network was fitted to.
        calibration: what `fit_calibration` gave for them.
        least_recall: share of each class's images to be recognised; 0 changes nothing.
    """
    biases = np.array(calibration.class_biases)
    for _ in range(round(_MOST_FAVOUR / _FAVOUR_STEP)):
        favoured = dataclasses.replace(calibration, class_biases=tuple(float(bias) for bias in biases))
        recall = measure(calibrate(probabilities, favoured), labels).recall
        too_rare = np.array([share is not None and share < least_recall for share in recall])
        if not too_rare.any():
            break
        biases = biases + _FAVOUR_STEP * too_rare
    biases -= biases.mean()
    return dataclasses.replace(calibration, class_biases=tuple(float(bias) for bias in biases))


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
