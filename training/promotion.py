"""answers of two models on the same images -> whether the new one is promoted, and why, in words

The rule: a candidate is promoted if it is better than the model in use on new images that neither has learned, by more
than chance, and not worse on the old test images by more than a margin, for certain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from training.metrics import mcnemar

_MOST_IMAGES_FORETOLD = 100_000
_BISECTIONS = 60


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the same images."""

    image_count: int
    """How many images."""
    candidate_right: int
    """How many the candidate names as their label does."""
    in_use_right: int
    """How many the model in use does."""
    candidate_only: int
    """How many only the candidate does."""
    in_use_only: int
    """How many only the model in use does."""

    @property
    def gain(self) -> float:
        """The candidate's accuracy less that of the model in use, -1 to 1."""
        return (self.candidate_only - self.in_use_only) / self.image_count if self.image_count else 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to become of a candidate."""

    is_promoted: bool
    """Whether it is taken into use."""
    reasons: tuple[str, ...]
    """A sentence on the new images, one on the old, and what would help."""


def compare(candidate_right: np.ndarray, in_use_right: np.ndarray) -> Comparison:
    """Count.

    Args:
        candidate_right: bool (n,), whether the candidate got each image right.
        in_use_right: bool (n,), whether the model in use did.
    """
    pairs = mcnemar(candidate_right, in_use_right)
    return Comparison(
        image_count=len(candidate_right),
        candidate_right=int(candidate_right.sum()),
        in_use_right=int(in_use_right.sum()),
        candidate_only=pairs.first_only,
        in_use_only=pairs.second_only,
    )


def chance_of_gain(candidate_only: int, in_use_only: int) -> float:
    """How likely the candidate would win at least so often if both were equally good: McNemar's test, one-sided, exact.

    Args:
        candidate_only: images that only the candidate got right.
        in_use_only: images that only the model in use got right.
    """
    tosses = candidate_only + in_use_only
    ways, tail = 1, 0
    # In whole numbers: 2 ** -3589 is no float.
    for losses in range(in_use_only + 1):
        tail += ways
        ways = ways * (tosses - losses) // (losses + 1)
    return float(tail / 2**tosses)


def least_gain(comparison: Comparison, *, confidence: float) -> float:
    """Say what the true gain in accuracy is at least, -1 to 1: the score bound for paired answers, one-sided.

    Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample design
    (1998). Unlike Wald's bound it claims nothing from few images: without a single difference on 28 images the gain is
    at least -8.8 points, not 0.

    Args:
        comparison: at least one image.
        confidence: how often such a bound lies below the true value.
    """
    z = NormalDist().inv_cdf(confidence)
    low, high = -1.0, comparison.gain
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _score(comparison, middle) > z else (low, middle)
    return low


def _score(comparison: Comparison, gain: float) -> float:
    """How many standard errors the gain seen lies above a supposed one, -1 < gain <= the gain seen."""
    count, won, lost = comparison.image_count, comparison.candidate_only, comparison.in_use_only
    b = -won - lost + (2 * count - won + lost) * gain
    c = -lost * gain * (1 - gain)
    # The likeliest share of images that only the model in use gets right, if the gain is the supposed one.
    share_lost = (math.sqrt(b * b - 8 * count * c) - b) / (4 * count)
    variance = count * (2 * share_lost + gain * (1 - gain))
    return (won - lost - count * gain) / math.sqrt(variance) if variance > 0 else math.inf


def decide(
    new: Comparison, old: Comparison, *, significance: float, old_margin_points: float, holdout_share: float
) -> Decision:
    """Judge a candidate by the rule at the head of this module.

    Args:
        new: on the new images held out of the fit.
        old: on the frozen test images.
        significance: how likely chance alone may be to pass either test.
        old_margin_points: how many points of accuracy the candidate may lose on the old images.
        holdout_share: share of new images that is held out; by it the reasons say how many more to label.
    """
    is_better, on_new = _judge_new(new, significance, holdout_share)
    is_no_worse, on_old = _judge_old(old, significance, old_margin_points)
    return Decision(is_better and is_no_worse, (*on_new, *on_old))


def _judge_new(new: Comparison, significance: float, holdout_share: float) -> tuple[bool, list[str]]:
    if not new.image_count:
        return False, [
            "None of the new images is held out, so nothing shows whether it is better. All faces of a video are "
            "learned or held out together: label faces of other videos too."
        ]
    p = chance_of_gain(new.candidate_only, new.in_use_only)
    counts = (
        f"On {_images(new.image_count, 'new')} that neither has learned it is right on {new.candidate_right}, the "
        f"model in use on {new.in_use_right} ({new.candidate_only} only it, {new.in_use_only} only the other)"
    )
    test = f"p = {_p(p)} by McNemar's exact test, one-sided"
    if new.gain <= 0:
        return False, [f"{counts}: not better."]
    if p <= significance:
        return True, [f"{counts}: better, {test}."]
    reasons = [f"{counts}: better, but that may be chance, {test}, where {significance:g} is allowed."]
    if needed := _images_needed(new, significance):
        more = needed - new.image_count
        label = math.ceil(more / holdout_share)
        reasons.append(
            f"If it goes on like this, about {more:,} more held-out images would decide: label about {label:,} more."
        )
    return False, reasons


def _judge_old(old: Comparison, significance: float, margin_points: float) -> tuple[bool, list[str]]:
    least = 100 * least_gain(old, confidence=1 - significance)
    is_no_worse = least > -margin_points
    counts = (
        f"On {_images(old.image_count, 'old test')} it is right on {_percent(old.candidate_right, old)}, the model in "
        f"use on {_percent(old.in_use_right, old)}"
    )
    bound = f"at worst {abs(least):.1f} points {'lost' if least < 0 else 'won'} with {1 - significance:.0%} confidence"
    if is_no_worse:
        return True, [f"{counts}: {bound}, and {margin_points:g} may be lost."]
    if 100 * old.gain > -margin_points:
        bound += "; the images are too few to tell"
    return False, [f"{counts}: {bound}, but only {margin_points:g} may be lost."]


def _images_needed(seen: Comparison, significance: float) -> int | None:
    """How many images would decide, if the differences stay as frequent as they were."""
    count = seen.image_count
    while count < _MOST_IMAGES_FORETOLD:
        count = max(count + 1, math.ceil(count * 1.05))
        won, lost = (round(share * count / seen.image_count) for share in (seen.candidate_only, seen.in_use_only))
        if won + lost < 1000:
            p = chance_of_gain(won, lost)
        else:
            p = 1 - NormalDist().cdf((won - lost) / math.sqrt(won + lost))
        if p <= significance:
            return count
    return None


def _images(count: int, what: str) -> str:
    return f"{count:,} {what} image{'s' * (count != 1)}"


def _percent(right: int, comparison: Comparison) -> str:
    return f"{100 * right / comparison.image_count:.1f} %"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1g}"
