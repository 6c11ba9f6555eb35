"""classifier + images held out -> Evaluation: how well it does, on whose word, in which groups, against which goals.

An evaluation lies beside the model that it is about, as evaluation.json; the model card is made of it.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from ferflow.emotions import EMOTIONS
from ferflow.errors import DataError, ModelError
from ferflow.storage import part_file
from models.store import EVALUATION_FILE
from training.dataset import DataSplits, LabelledImages
from training.metrics import ReliabilityBin, Significance, accuracy_interval, measure
from training.votes import CROWD_COLUMNS

_Item = TypeVar("_Item")

TOLERATED_SHARE = 0.003
TOLERATED_IMAGES = 2
"""Another processor rounds otherwise, which turns a few answers: a figure may move by 0.3 points or by two images."""
TOLERATED_TIME_SHARE = 0.03
"""By how much the share of a clip's time may move, of which frames of a fraction of a second are a part."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What a classifier says of the images held out; each float (n, 7) in the order of EMOTIONS."""

    validation: np.ndarray
    """Of the validation images."""
    test: np.ndarray
    """Of the test images."""
    test_mirrored: np.ndarray
    """Of the test images' mirror images."""


@dataclass(frozen=True, slots=True)
class CrowdLabels:
    """Images of which the crowd says one thing clearly, and what."""

    rows: np.ndarray
    """int64 (m,), their row numbers."""
    labels: np.ndarray
    """int64 (m,), an index into EMOTIONS."""


@dataclass(frozen=True, slots=True)
class Group:
    """Test images that are alike in something that can be measured."""

    by: str
    """What was measured: `light`."""
    name: str
    """Which of them: `darkest third`."""
    rows: np.ndarray
    """bool (n,), whether each test image is one."""


@dataclass(frozen=True, slots=True)
class GroupResult:
    """How well a classifier does on one group."""

    by: str
    """What was measured."""
    name: str
    """Which images."""
    image_count: int
    """How many."""
    accuracy: float
    """Share of them that was right."""
    low: float
    """Lower end of the accuracy's 95 % interval."""
    high: float
    """Upper end."""
    expected: float
    """Accuracy if each emotion were recognised as often as among all images: what the group's mix of emotions alone
    explains."""


@dataclass(frozen=True, slots=True)
class ClipResult:
    """What the pipeline says of one clip in which an actor was asked for one emotion."""

    file: str
    """The clip's file name."""
    intended: str
    """The emotion in it."""
    answer: str | None
    """The emotion shown for the longest time, `dominant_emotion` of the videos table; None where no face was found."""
    share: float
    """Share of the time that the intended emotion took."""

    @property
    def is_right(self) -> bool:
        """Whether the answer is what was intended."""
        return self.answer == self.intended


@dataclass(frozen=True, slots=True)
class Candidate:
    """One classifier's results on the same images as the others'."""

    name: str
    """Whose network, and in which form."""
    metrics: Mapping[str, Mapping[str, Any]]
    """As `measure_scores` gives them."""
    cpu_ms: float
    """Median CPU time a face in milliseconds, in batches of 64 on one thread."""
    clips: tuple[ClipResult, ...]
    """Its answers to the labelled clips, if it was asked."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything measured in one run of the evaluation."""

    version: str
    """The model."""
    data_sha256: str
    """The images, as in `DataSplits`."""
    model_mb: float
    """Size of the Keras file in millions of bytes."""
    machine: str
    """The processor that the times are of."""
    served: Candidate
    """The model in the form in which the pipeline runs it."""
    float32: Candidate
    """The same as Keras computes it."""
    rival: Candidate
    """Another project's network on the same images."""
    served_against_rival: Significance
    """Whether the difference on the test images is more than chance; the served model is the first."""
    crowd_ties: int
    """Test images with votes on which two answers lead with equally many; they do not count by the top vote."""
    groups: tuple[GroupResult, ...]
    """The served model on groups of the test images."""
    reliability: tuple[ReliabilityBin, ...] = ()
    """The served model on the test images, by tenths of the score that it gave its answer; older files lack it."""


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure beside what it must be and what it should be."""

    what: str
    """The figure in words."""
    value: float
    """As measured."""
    floor: float | None
    """What it must reach, or must not exceed."""
    target: float | None
    """What it should reach or stay below."""
    is_ceiling: bool
    """Whether less is better."""
    unit: str
    """`%` for shares, which are stored as 0 to 1; else what follows the number."""

    @property
    def meets_floor(self) -> bool:
        """Whether it is as it must be."""
        return self.floor is None or (self.value <= self.floor if self.is_ceiling else self.value >= self.floor)

    @property
    def meets_target(self) -> bool:
        """Whether it is as it should be."""
        return self.target is None or (self.value <= self.target if self.is_ceiling else self.value >= self.target)


def score(classify: Callable[[np.ndarray], np.ndarray], splits: DataSplits) -> Scores:
    """Ask a classifier, uint8 (n, size_px, size_px) -> float (n, 7), about all images held out."""
    return Scores(
        validation=classify(splits.validation.images_gray),
        test=classify(splits.test.images_gray),
        test_mirrored=classify(np.ascontiguousarray(splits.test.images_gray[:, :, ::-1])),
    )


def measure_scores(scores: Scores, splits: DataSplits, crowd: np.ndarray | None = None) -> dict[str, dict[str, Any]]:
    """Compare scores with the labels, and with the crowd's votes where there are any.

    Args:
        scores: what a classifier says.
        splits: the images.
        crowd: int (n, 10), the votes on the test images, as `read_crowd` gives them.

    Returns:
        The fields of `Metrics` as JSON can hold them, the recall by name, for each of

        - `validation` and `test`,
        - `test_mirrored`: each image's scores averaged with its mirror image's,
        - `test_unseen`: without photos that are also among the training images as delivered,
        - `ferplus`: images whose most frequent vote, of all ten answers, is one of the seven, with that as the label,
        - `ferplus_majority`: the same by FER+'s own stricter rule.

        A set without images is left out.
    """
    test, unseen = splits.test, ~splits.test.seen_in_training
    measured = {
        "validation": measure(scores.validation, splits.validation.labels),
        "test": measure(scores.test, test.labels),
        "test_mirrored": measure((scores.test + scores.test_mirrored) / 2, test.labels),
    }
    if unseen.any():
        measured["test_unseen"] = measure(scores.test[unseen], test.labels[unseen])
    if crowd is not None:
        for name, said in (("ferplus", by_top_vote(crowd)), ("ferplus_majority", by_majority(crowd))):
            if len(said.rows):
                measured[name] = measure(scores.test[said.rows], said.labels)
    return {
        split: dataclasses.asdict(metrics) | {"recall": dict(zip(EMOTIONS, metrics.recall, strict=True))}
        for split, metrics in measured.items()
    }


def evaluate(classify: Callable[[np.ndarray], np.ndarray], splits: DataSplits) -> dict[str, dict[str, Any]]:
    """Measure a classifier on the images held out.

    Args:
        classify: uint8 (n, 48, 48) -> float (n, 7): an `EmotionModel`'s method or anybody else's.
        splits: the data.

    Returns:
        What `measure_scores` says, without the crowd.
    """
    return measure_scores(score(classify, splits), splits)


def read_crowd(table: Path, paths: Sequence[str]) -> np.ndarray:
    """Read what ten people said of each image.

    Args:
        table: CSV with the columns `path` and `votes_*`, as fer2013_labels.csv has them.
        paths: the images, as the table names them.

    Returns:
        int64 (n, 10): votes for each of EMOTIONS, for contempt, for `unknown` and for `not a face`; zeros for an image
        on which nobody voted or that the table does not have.

    Raises:
        DataError: the table cannot be read.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            votes = {
                row["path"]: [int(float(row[column] or 0)) for column in CROWD_COLUMNS] for row in csv.DictReader(file)
            }
    except OSError as error:
        raise DataError(f"{table}: this table of votes cannot be read ({error.strerror}). Correct the path.") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(f"{table}: it is not a table of ten votes an image ({error}). Correct or remove it.") from error
    nobody = [0] * len(CROWD_COLUMNS)
    return np.array([votes.get(path, nobody) for path in paths], np.int64).reshape(len(paths), len(CROWD_COLUMNS))


def by_top_vote(crowd: np.ndarray) -> CrowdLabels:
    """Images whose most frequent vote is one of EMOTIONS; where two answers lead together, neither counts.

    Args:
        crowd: int (n, 10).
    """
    top = crowd.max(axis=1)
    said = crowd.argmax(axis=1)
    rows = np.flatnonzero((top > 0) & ~has_tie(crowd) & (said < len(EMOTIONS)))
    return CrowdLabels(rows, said[rows])


def by_majority(crowd: np.ndarray) -> CrowdLabels:
    """Images for one of EMOTIONS by the rule of FER+: single votes dropped, more than half of those left.

    Barsoum et al., Training Deep Networks for Facial Expression Recognition with Crowd-Sourced Label Distribution
    (2016), `majority` in its published code.

    Args:
        crowd: int (n, 10).
    """
    supported = np.where(crowd > 1, crowd, 0)
    said = supported.argmax(axis=1)
    rows = np.flatnonzero((2 * supported.max(axis=1) > supported.sum(axis=1)) & (said < len(EMOTIONS)))
    return CrowdLabels(rows, said[rows])


def has_tie(crowd: np.ndarray) -> np.ndarray:
    """Whether two answers lead with equally many votes, bool (n,)."""
    top = crowd.max(axis=1, keepdims=True)
    tied: np.ndarray = (top[:, 0] > 0) & ((crowd == top).sum(axis=1) > 1)
    return tied


def find_groups(
    images: LabelledImages, *, crowd: np.ndarray | None = None, rolls_degrees: np.ndarray | None = None
) -> list[Group]:
    """Group images by what can be measured of them.

    Who is in them, how old, of which sex or skin, FER2013 does not say, and guessing it from the picture would measure
    the guess.

    Args:
        images: the test images.
        crowd: int (n, 10), the votes on them.
        rolls_degrees: float (n,), how far each head leans to a side by a face detector's eyes; NaN where it found none.
    """
    pixels = images.images_gray.astype(np.float32)
    spread = pixels.std(axis=(1, 2))
    # Of the picture at one contrast, or a pale picture would count as blurred.
    edges = np.array([cv2.Laplacian(image, cv2.CV_32F).std() for image in pixels]) / np.maximum(spread, 1)
    groups = [
        *_thirds("light", ("darkest third", "middle third", "brightest third"), pixels.mean(axis=(1, 2))),
        *_thirds("contrast", ("palest third", "middle third", "strongest third"), spread),
        *_thirds("sharpness", ("most blurred third", "middle third", "sharpest third"), edges),
    ]
    if rolls_degrees is not None:
        lean = np.abs(rolls_degrees)
        groups += [
            Group("lean of the head", "within 5°", lean <= 5),
            Group("lean of the head", "5° to 15°", (lean > 5) & (lean <= 15)),
            Group("lean of the head", "more than 15°", lean > 15),
            Group("lean of the head", "no face found", np.isnan(lean)),
        ]
    if crowd is not None:
        votes = crowd.sum(axis=1)
        agreed = crowd.max(axis=1) / np.maximum(votes, 1)
        by = "agreement of the crowd"
        groups += [
            Group(by, "up to half say the same", (votes > 0) & (agreed <= 0.5)),
            Group(by, "more than half", (agreed > 0.5) & (agreed < 0.9)),
            Group(by, "nine of ten or all", agreed >= 0.9),
        ]
    return [group for group in groups if group.rows.any()]


def _thirds(by: str, names: Sequence[str], values: np.ndarray) -> list[Group]:
    third = np.digitize(values, np.quantile(values, (1 / 3, 2 / 3)))
    return [Group(by, name, third == index) for index, name in enumerate(names)]


def measure_group(group: Group, probabilities: np.ndarray, labels: np.ndarray) -> GroupResult:
    """Say how well a classifier does on a group.

    Args:
        group: rows of the images.
        probabilities: float (n, 7) of all images.
        labels: int (n,) of all images.
    """
    right = probabilities.argmax(axis=1) == labels
    recall = np.array([right[labels == index].mean() if (labels == index).any() else 0 for index in range(7)])
    count = int(group.rows.sum())
    low, high = accuracy_interval(int(right[group.rows].sum()), count)
    return GroupResult(
        by=group.by,
        name=group.name,
        image_count=count,
        accuracy=float(right[group.rows].mean()),
        low=low,
        high=high,
        expected=float(recall[labels[group.rows]].mean()),
    )


def list_goals(evaluation: Evaluation) -> list[Goal]:
    """What the project asks of its model, and where it stands."""
    served, float32, clips = evaluation.served, evaluation.float32, evaluation.served.clips
    test = served.metrics["test"]
    recalls = {emotion: recall for emotion, recall in test["recall"].items() if recall is not None}
    weakest = min(recalls, key=lambda emotion: recalls[emotion])
    form_gap = abs(test["accuracy"] - float32.metrics["test"]["accuracy"])
    goals = [
        Goal("accuracy on the test images", test["accuracy"], 0.71, 0.74, False, "%"),
        Goal(f"recall of the weakest emotion, {weakest}", recalls[weakest], 0.45, None, False, "%"),
        Goal("expected calibration error", test["calibration_error"], None, 0.03, True, "%"),
        Goal("accuracy lost or won between float32 and the served form", form_gap, 0.003, None, True, "%"),
        Goal("CPU a face in float32", float32.cpu_ms, 4.0, None, True, " ms"),
        Goal("CPU a face in the served form", served.cpu_ms, 2.0, None, True, " ms"),
        Goal("size of the Keras file", evaluation.model_mb, 10.0, None, True, " MB"),
    ]
    if "ferplus" in served.metrics:
        goals.insert(
            1, Goal("accuracy by the crowd's votes", served.metrics["ferplus"]["accuracy"], None, 0.86, False, "%")
        )
    if clips:
        right, floor = sum(clip.is_right for clip in clips), math.ceil(5 / 7 * len(clips))
        goals.append(Goal("labelled clips told right", right, floor, None, False, f" of {len(clips)}"))
    return goals


def find_differences(stored: Evaluation, measured: Evaluation) -> list[str]:
    """Name every figure that another run does not reproduce; times are left out, they depend on the machine.

    A share may move by TOLERATED_SHARE or by TOLERATED_IMAGES of those it is a share of, a count of images likewise.
    """
    found = []
    for field in ("version", "data_sha256", "crowd_ties", "model_mb"):
        if (before := getattr(stored, field)) != (now := getattr(measured, field)):
            found.append(f"{field}: stored {before}, now {now}")
    for part in ("served", "float32", "rival"):
        before, now = getattr(stored, part), getattr(measured, part)
        found += compare_metrics(before.metrics, now.metrics, name=part)
        for clip, clip_now in _pairs(before.clips, now.clips, lambda clip: clip.file):
            if (
                clip is None
                or clip_now is None
                or clip.answer != clip_now.answer
                or abs(clip.share - clip_now.share) > TOLERATED_TIME_SHARE
            ):
                found.append(f"{part}, clips: stored {_said(clip)}, now {_said(clip_now)}")
    image_count = stored.served.metrics["test"]["image_count"]
    for field in ("first_only", "second_only"):
        before, now = getattr(stored.served_against_rival, field), getattr(measured.served_against_rival, field)
        if _is_count_off(before, now, image_count):
            found.append(f"served_against_rival, {field}: stored {before}, now {now}")
    for group, group_now in _pairs(stored.groups, measured.groups, lambda group: f"{group.by}, {group.name}"):
        if (
            group is None
            or group_now is None
            or _is_count_off(group.image_count, group_now.image_count, image_count)
            or _is_off(group.accuracy, group_now.accuracy, group.image_count)
            or _is_off(group.expected, group_now.expected, group.image_count)
        ):
            found.append(f"groups: stored {group}, now {group_now}")
    for bin_, bin_now in _pairs(stored.reliability, measured.reliability, lambda bin_: bin_.low):
        if bin_ is None or bin_now is None or _moved(bin_, bin_now, image_count):
            found.append(f"reliability: stored {bin_}, now {bin_now}")
    return found


def _moved(bin_: ReliabilityBin, now: ReliabilityBin, image_count: int) -> bool:
    """Whether other answers state so much, or others of them are right; a few always cross a bin's end."""
    right, right_now = (round((it.accuracy or 0) * it.image_count) for it in (bin_, now))
    return _is_count_off(bin_.image_count, now.image_count, image_count) or _is_count_off(right, right_now, image_count)


def compare_metrics(
    stored: Mapping[str, Mapping[str, Any]], measured: Mapping[str, Mapping[str, Any]], *, name: str
) -> list[str]:
    """Name every figure of stored metrics that the measured ones do not reproduce; see `find_differences`."""
    found = []
    for split, before in stored.items():
        now = measured.get(split)
        if now is None or now["image_count"] != before["image_count"]:
            count = None if now is None else now["image_count"]
            found.append(f"{name}, {split}: stored {before['image_count']} images, now {count}")
            continue
        images_of = dict(zip(EMOTIONS, (sum(row) for row in before["confusion"]), strict=True))
        figures = [(key, before[key], now[key], before["image_count"]) for key in ("accuracy", "calibration_error")]
        # The mean of seven F1 moves with the rarest emotion's.
        rarest = min(images_of.values()) * len(EMOTIONS) or 1
        figures.append(("macro_f1", before["macro_f1"], now["macro_f1"], rarest))
        figures += [
            (f"recall of {emotion}", before["recall"][emotion], now["recall"][emotion], images_of[emotion])
            for emotion in EMOTIONS
            if images_of[emotion]
        ]
        for figure, was, is_, count in figures:
            if _is_off(was, is_, count):
                found.append(f"{name}, {split}, {figure}: stored {was:.4f}, now {is_:.4f}")
        if abs(before["log_loss"] - now["log_loss"]) > 0.01:
            found.append(f"{name}, {split}, log_loss: stored {before['log_loss']:.4f}, now {now['log_loss']:.4f}")
        moved = np.abs(np.subtract(before["confusion"], now["confusion"])).max()
        if _is_count_off(0, moved, before["image_count"]):
            found.append(f"{name}, {split}, confusion: a cell moved by {moved} images")
    return found


def write_evaluation(directory: Path, evaluation: Evaluation) -> Path:
    """Put an evaluation beside the model that it is about."""
    path = directory / EVALUATION_FILE
    text = json.dumps(dataclasses.asdict(evaluation), indent=2, ensure_ascii=False)
    with part_file(path) as part:
        part.write_text(text + "\n", encoding="utf-8")
    return path


def read_evaluation(directory: Path) -> Evaluation | None:
    """Read a model's evaluation; None where it was never evaluated.

    Raises:
        ModelError: the file is damaged.
    """
    path = directory / EVALUATION_FILE
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        candidates = {part: _candidate(table[part]) for part in ("served", "float32", "rival")}
        fields = table | candidates
        fields |= {"served_against_rival": Significance(**table["served_against_rival"])}
        fields |= {"groups": tuple(GroupResult(**group) for group in table["groups"])}
        fields |= {"reliability": tuple(ReliabilityBin(**bin_) for bin_ in table.get("reliability", ()))}
        return Evaluation(**fields)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: it is damaged ({error}). Remove it and run `make evaluate` again.") from error


def _candidate(table: dict[str, Any]) -> Candidate:
    return Candidate(**table | {"clips": tuple(ClipResult(**clip) for clip in table["clips"])})


def _is_off(before: float, now: float, image_count: int) -> bool:
    return abs(before - now) > max(TOLERATED_SHARE, TOLERATED_IMAGES / image_count) + 1e-9


def _is_count_off(before: int, now: int, image_count: int) -> bool:
    return abs(before - now) > max(TOLERATED_IMAGES, TOLERATED_SHARE * image_count)


def _pairs(
    before: Sequence[_Item], now: Sequence[_Item], key: Callable[[_Item], str | float]
) -> Iterator[tuple[_Item | None, _Item | None]]:
    by_key, by_key_now = {key(item): item for item in before}, {key(item): item for item in now}
    yield from ((by_key.get(name), by_key_now.get(name)) for name in [*by_key, *(by_key_now.keys() - by_key.keys())])


def _said(clip: ClipResult | None) -> str:
    return "nothing" if clip is None else f"{clip.answer} for {clip.file}, {clip.share:.0%} {clip.intended}"
