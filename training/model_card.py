"""model.json + evaluation.json -> MODEL_CARD.md: what a model is, how well it does, what it must not be used for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ferflow.emotions import EMOTIONS
from ferflow.storage import part_file
from models.emotion_classifier import ModelDescription, read_description
from training.evaluation import (
    TOLERATED_IMAGES,
    TOLERATED_SHARE,
    TOLERATED_TIME_SHARE,
    ClipResult,
    Evaluation,
    Goal,
    list_goals,
    read_evaluation,
)
from training.metrics import accuracy_interval

CARD_FILE = "MODEL_CARD.md"

_SETS = {
    "validation": "validation (FER2013: PublicTest)",
    "test": "**test** (FER2013: PrivateTest)",
    "test_unseen": "test, without photos that are in training too",
    "test_mirrored": "test, averaged with the mirror image; not what is served",
    "ferplus": "test, labelled by the crowd's top vote (FER+)",
    "ferplus_majority": "test, labelled by FER+'s stricter majority",
}

_LEFT_OUT = {
    "leaked": "whose photo is in validation or test too",
    "blank": "that show nothing",
    "conflicting": "whose label is contradicted",
    "repeated": "that repeat another",
}

_USE = """\
## What it is for, and what not

For: expressions of faces in video, summed over time and over people, where a person looks at what comes out: research,
film and interface studies, sorting footage.

Not for: decisions about a single person, such as hiring, schooling, policing, health or credit; telling lies from
truth; watching people at work or at school, where the European Union's AI Act forbids emotion recognition but for
medical and safety reasons.

Not measured: infants, masks and make-up, faces from the side, animals, drawings, thermal and infrared cameras.

What the scores do not mean:

- A face shows an expression; it does not prove a feeling. People smile without joy and grieve without a frown, and
  what a face shows differs between persons, situations and cultures (Barrett et al., Emotional Expressions
  Reconsidered, 2019).
- A score estimates how likely a person who must label the picture with one of seven words would choose this one.
  There is no score for "none of these", and none for how strong an expression is.
- How often a score is right was measured on pictures like the test images alone. On other footage it is not known
  until it is measured there.
- Labels are opinions: people agree with those of FER2013 in 65 ± 5 % (Goodfellow et al., 2013), and the crowd of FER+
  chose another word than FER2013's label for 38 % of its images.
"""

_UNMEASURED = """\
What could not be measured: FER2013 says nothing of age, sex, skin or origin, and guessing these from the picture would
measure the guess. Whether the model does equally well for all people is therefore **not known**; the photos come from
an image search for emotion words and stand for no population. The light of a picture is not the skin of a face.
Measure on people like yours before you rely on it.
"""


_PICTURES = """\
![confusion matrix](confusion.png)

![reliability diagram](reliability.png)

![training curves](curves.png)
"""


def write_card(directory: Path) -> Path:
    """Write the card of a model from what lies in its directory.

    Raises:
        ModelError: model.json or evaluation.json is missing or damaged.
    """
    path = directory / CARD_FILE
    with part_file(path) as part:
        part.write_text(describe_model(read_description(directory), read_evaluation(directory)), encoding="utf-8")
    return path


def describe_model(description: ModelDescription, evaluation: Evaluation | None) -> str:
    """The card as Markdown.

    Args:
        description: what the model says of itself.
        evaluation: what was measured of it; without it the card has the figures of its training alone.
    """
    parts = [
        f"# {description.version}\n\nMade from model.json{'' if evaluation is None else ' and evaluation.json'}; "
        "changes belong there.\n",
        _identity(description),
        _data(description),
        *([_notes(description)] if description.notes else []),
        _figures(description, evaluation),
        *([] if evaluation is None else [_crowd(evaluation), _PICTURES, describe_evaluation(evaluation)]),
        _USE,
        _recipe(description),
    ]
    return "\n".join(parts)


def _identity(description: ModelDescription) -> str:
    framing = description.framing
    rows = [
        ("reads", f"grey crops of faces, {description.crop_size_px} x {description.crop_size_px} pixels, uint8"),
        ("answers", f"a probability for each of {', '.join(EMOTIONS)}; together 1"),
        (
            "framing",
            f"a square {framing.side_per_box:g} times the detector's box, its centre {abs(framing.down_per_box):g} of "
            f"the box {'above' if framing.down_per_box < 0 else 'below'} the box's, "
            + ("turned so that the eyes are level" if framing.is_levelled else "as the face leans"),
        ),
        ("trained by", f"commit {description.commit}" if description.commit else "code whose commit is not known"),
        ("written by", f"Keras {description.keras_version}"),
        (
            "calibration",
            f"temperature {description.temperature:.3f}, class biases "
            + ", ".join(f"{emotion} {bias:+.2f}" for emotion, bias in description.class_biases.items())
            + "; fitted on the validation images, inside the saved graph",
        ),
        *((file, f"sha256 {digest}") for file, digest in description.sha256.items()),
    ]
    return _table(("", ""), rows)


def _data(description: ModelDescription) -> str:
    data = description.data
    # Models of another age say the same in other words.
    images: Mapping[str, Mapping[str, int]] = data.get("images") or {
        name: split["used"] for name, split in data.get("splits", {}).items()
    }
    left_out: Mapping[str, int] = data.get("left_out") or {
        reason: data.get(f"left_out_{reason}", 0) for reason in _LEFT_OUT
    }
    rows = [
        (name, *(f"{counts.get(emotion, 0):,}" for emotion in EMOTIONS), f"{sum(counts.values()):,}")
        for name, counts in images.items()
    ]
    reasons = [f"{left_out.get(reason, 0):,} {words}" for reason, words in _LEFT_OUT.items() if left_out.get(reason)]
    twice = data.get("held_out_twice", 0)
    return (
        "## Data and split\n\n"
        "Fitted on train, calibrated on validation, measured on test.\n\n"
        + _table(("images", *EMOTIONS, "all"), rows)
        + (f"\nLeft out of train: {', '.join(reasons)}.\n" if reasons else "")
        + (f"\nPhotos that are in validation and in test: {twice:,}.\n" if twice else "")
        + _enlarged(description)
        + f"\nsha256 over all paths, labels and pixels: `{data.get('sha256')}`.\n"
    )


def _enlarged(description: ModelDescription) -> str:
    learned_px = max(description.recipe.get("schedule", {}).get("sizes_px", [description.crop_size_px]))
    if learned_px >= description.crop_size_px:
        return ""
    return (
        f"\nTrained and measured on photos of {learned_px} pixels, enlarged to {description.crop_size_px}; in video it "
        "is shown faces as large as they are there.\n"
    )


def _notes(description: ModelDescription) -> str:
    return "## What its makers add\n\n" + "".join(f"- {note}\n" for note in description.notes)


def _figures(description: ModelDescription, evaluation: Evaluation | None) -> str:
    metrics = description.metrics if evaluation is None else evaluation.served.metrics
    note = (
        "Measured at the end of the training, in float32.\n"
        if evaluation is None
        else "Measured in the form in which it is served. The range is the 95 % interval of Wilson.\n"
    )
    rows = []
    for split, name in _SETS.items():
        if split in metrics:
            measured = metrics[split]
            count = measured["image_count"]
            low, high = accuracy_interval(measured["accuracy"] * count, count)
            rows.append(
                (
                    name,
                    f"{count:,}",
                    f"{measured['accuracy']:.1%}",
                    f"{low:.1%} to {high:.1%}",
                    f"{measured['macro_f1']:.3f}",
                    f"{measured['calibration_error']:.1%}",
                    f"{measured['log_loss']:.3f}",
                )
            )
    recalls = [
        (_SETS[split], *(_share(metrics[split]["recall"][emotion]) for emotion in EMOTIONS))
        for split in ("test", "test_unseen", "ferplus")
        if split in metrics
    ]
    confusion = [
        (f"**{emotion}**", *(f"{count:,}" for count in row))
        for emotion, row in zip(EMOTIONS, metrics["test"]["confusion"], strict=True)
    ]
    return (
        f"## How well it does\n\n{note}\n"
        + _table(("images", "number", "accuracy", "range", "macro-F1", "expected calibration error", "log loss"), rows)
        + "\nRecall, the share of each emotion's images that is recognised:\n\n"
        + _table(("images", *EMOTIONS), recalls)
        + "\nConfusion on the test images: a row a label, a column an answer.\n\n"
        + _table(("", *EMOTIONS), confusion)
        + ("" if evaluation is None else _reliability(evaluation))
    )


def _reliability(evaluation: Evaluation) -> str:
    rows = []
    for bin_ in evaluation.reliability:
        if bin_.mean_confidence is not None and bin_.accuracy is not None:
            low, high = accuracy_interval(bin_.accuracy * bin_.image_count, bin_.image_count)
            rows.append(
                (
                    f"{bin_.low:.1f} to {bin_.high:.1f}",
                    f"{bin_.image_count:,}",
                    f"{bin_.mean_confidence:.3f}",
                    f"{bin_.accuracy:.1%}",
                    f"{low:.1%} to {high:.1%}",
                )
            )
    if not rows:
        return ""
    return (
        "\nHow often an answer is right, test images by the score that it was given; a score that means what it says "
        "is right as often as it is high:\n\n" + _table(("score", "number", "mean score", "right", "range"), rows)
    )


def describe_evaluation(evaluation: Evaluation) -> str:
    """Where a model stands against its goals and beside its rival, by clip and by group, as Markdown."""
    parts = ["## Against its goals\n\n" + describe_goals(list_goals(evaluation)), _side_by_side(evaluation)]
    if evaluation.served.clips:
        parts.append(_clips(evaluation))
    return "\n".join([*parts, _groups(evaluation)])


def _crowd(evaluation: Evaluation) -> str:
    if "ferplus" not in evaluation.served.metrics:
        return ""
    return (
        "By the crowd: FER+ has ten votes an image, with contempt, unknown and not-a-face among the answers. Top vote: "
        "images whose most frequent answer is one of the seven. Stricter majority: FER+'s own rule, single votes "
        f"dropped and more than half of the rest. {evaluation.crowd_ties:,} test images on which two answers lead with "
        "equally many votes are not in the first.\n"
    )


def describe_goals(goals: Iterable[Goal]) -> str:
    """A table of figures with what they must and should be, as Markdown."""
    return _table(
        ("figure", "measured", "must be", "should be", ""),
        [
            (goal.what, _amount(goal, goal.value), _bound(goal, goal.floor), _bound(goal, goal.target), _verdict(goal))
            for goal in goals
        ],
    )


def _amount(goal: Goal, value: float) -> str:
    if goal.unit == "%":
        return f"{100 * value:.1f} %" if value >= 0.01 or not value else f"{100 * value:.2f} %"
    return f"{value:.0f}{goal.unit}" if goal.unit.startswith(" of") else f"{value:.2f}{goal.unit}"


def _bound(goal: Goal, bound: float | None) -> str:
    return "" if bound is None else f"{'at most' if goal.is_ceiling else 'at least'} {_amount(goal, bound)}"


def _verdict(goal: Goal) -> str:
    if not goal.meets_floor and goal.floor is not None:
        return f"**missed** by {_amount(goal, abs(goal.floor - goal.value))}"
    if not goal.meets_target and goal.target is not None:
        return f"{_amount(goal, abs(goal.target - goal.value))} to go"
    return "met"


def _side_by_side(evaluation: Evaluation) -> str:
    candidates = (evaluation.served, evaluation.float32, evaluation.rival)
    rows = []
    for candidate in candidates:
        metrics, clips = candidate.metrics, candidate.clips
        rows.append(
            (
                candidate.name,
                *(f"{metrics[split]['accuracy']:.1%}" if split in metrics else "" for split in ("test", "test_unseen")),
                f"{metrics['ferplus']['accuracy']:.1%}" if "ferplus" in metrics else "",
                f"{metrics['test']['macro_f1']:.3f}",
                f"{metrics['test']['calibration_error']:.1%}",
                f"{sum(clip.is_right for clip in clips)} of {len(clips)}" if clips else "",
                f"{candidate.cpu_ms:.2f}",
            )
        )
    chance = evaluation.served_against_rival
    p_value = "less than 0.001" if chance.p_value < 0.001 else f"{chance.p_value:.3f}"
    return (
        f"## Beside {evaluation.rival.name}\n\n"
        "The same images, in the same run; clips through the same detector, framing and smoothing; CPU milliseconds a "
        f"face, asked for 64 at a time, on one thread of {evaluation.machine}.\n\n"
        + _table(
            ("", "test", "test, unseen", "FER+", "macro-F1", "calibration error", "clips", "CPU ms"),
            rows,
        )
        + f"\nOf the test images {evaluation.version} alone tells {chance.first_only:,} right, {evaluation.rival.name} "
        f"alone {chance.second_only:,}. If both were equally good, so uneven a split or a more uneven one would have a "
        f"probability of {p_value} (McNemar's exact test). That network was trained on FER2013 by its makers; which of "
        "these photos it has seen is not known.\n"
    )


def _clips(evaluation: Evaluation) -> str:
    rival = {clip.file: clip for clip in evaluation.rival.clips}
    rows = [
        (clip.file, clip.intended, _answer(clip), f"{clip.share:.0%}", _answer(rival.get(clip.file)))
        for clip in evaluation.served.clips
    ]
    return (
        "## From video to label\n\n"
        "Clips in which an actor was asked for one emotion, or a face was animated to show it; the answer is what is "
        "shown for the longest time.\n\n"
        + _table(("clip", "asked for", "answer", "share of the time", evaluation.rival.name), rows)
    )


def _answer(clip: ClipResult | None) -> str:
    if clip is None:
        return ""
    return clip.answer or "no face" if clip.is_right else f"**{clip.answer or 'no face'}**"


def _groups(evaluation: Evaluation) -> str:
    rows = [
        (
            group.by,
            group.name,
            f"{group.image_count:,}",
            f"{group.accuracy:.1%}",
            f"{group.low:.1%} to {group.high:.1%}",
            f"{group.expected:.1%}",
            f"{100 * (group.accuracy - group.expected):+.1f}",
        )
        for group in evaluation.groups
    ]
    return (
        "## Differences between groups of faces\n\n"
        "Test images by what can be measured of them. The mix of emotions differs between groups, and some emotions "
        "are easier: `by its emotions` is the accuracy that the group's mix alone would give, the last column what is "
        "left, in points.\n\n"
        + _table(("by", "images", "number", "accuracy", "range", "by its emotions", "difference"), rows)
        + f"\n{_UNMEASURED}"
    )


def _recipe(description: ModelDescription) -> str:
    rows = list(_flatten(description.recipe))
    epochs = description.history
    took = sum(epoch["seconds"] for epoch in epochs) / 3600
    length = f"{len(epochs)} epochs, {took:.1f} hours of wall time.\n\n" if epochs else ""
    reproduction = (
        "## Where the figures come from\n\n"
        "`make evaluate` measures again, from the data, what is in it, how well the model does, and all that it is "
        "compared with, and fails where a figure differs by more than "
        f"{100 * TOLERATED_SHARE:g} points or {TOLERATED_IMAGES} images of those that it is a share of, whichever is "
        f"more (for macro-F1 of the rarest emotion's; a clip's time {100 * TOLERATED_TIME_SHARE:g} points, log loss "
        "0.01; CPU times are not compared). What the training left, its calibration, recipe, length and curves, stands "
        "in model.json. "
        "`make evaluate CARD=write` stores what it measured and writes this card anew.\n"
    )
    return f"## Training\n\n{length}" + _table(("setting", "value"), rows) + f"\n{reproduction}"


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            yield f"`{prefix}{key}`", text


def _share(value: float | None) -> str:
    return "no image" if value is None else f"{value:.1%}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
