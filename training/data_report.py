"""what was found in labelled data -> sentences for a person, numbers for model.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ferflow.emotions import EMOTIONS
from ferflow.storage import printable, utf8

_EXAMPLE_COUNT = 3
_MOST_LABELS_NAMED = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """How often something was found, and where."""

    count: int
    """How many."""
    examples: tuple[str, ...]
    """Paths of the first of them."""

    @classmethod
    def of(cls, places: Iterable[str]) -> Finding:
        """Count places and keep the first ones."""
        found = list(places)
        return cls(len(found), tuple(found[:_EXAMPLE_COUNT]))


@dataclass(frozen=True, slots=True)
class SplitReport:
    """What one split holds."""

    name: str
    """`train`, `validation` or `test`; `labelled` for a folder without splits."""
    delivered: tuple[int, ...]
    """Readable images of each emotion, in the order of EMOTIONS."""
    used: tuple[int, ...]
    """The same without what was left out; nothing is ever left out of validation and test."""
    blank: Finding
    """Images that show nothing."""
    repeated: Finding
    """Images whose pixels are those of an earlier one of this split, whatever their labels."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Images that are not fitted to, each counted once, under the first of these reasons."""

    leaked: int
    """Validation or test has the same photo."""
    blank: int
    """It shows nothing."""
    conflicting: int
    """The same pixels have another label elsewhere in this split, and nobody knows which is right."""
    repeated: int
    """The same pixels with the same label are there already."""

    @property
    def total(self) -> int:
        return self.leaked + self.blank + self.conflicting + self.repeated


@dataclass(frozen=True, slots=True)
class DataReport:
    """What was found in labelled data, and what was done about it."""

    splits: tuple[SplitReport, ...]
    """One each."""
    unreadable: Finding
    """Files that hold no image, are cut off, or claim to be larger than any photo of a face."""
    unknown_labels: Mapping[str, Finding]
    """Images whose label is none of the emotions, by that label."""
    leaks: Finding
    """Training images whose photo, identical or nearly so, is also in validation or test; both are named."""
    held_out_twice: Finding
    """Validation images whose photo, identical or nearly so, is also in test; both are named."""
    conflicts: Finding
    """Groups of images with the same pixels and different labels, in whichever splits."""
    left_out: LeftOut
    """What the network is not fitted to."""
    missing: Finding = Finding(0, ())
    """Files that are not there, though a table names them, or that cannot be read."""
    misplaced: Finding = Finding(0, ())
    """Pictures that lie beside or below the folders that say what pictures show."""
    other_format: Finding = Finding(0, ())
    """Pictures in such a folder that by their names are of a format that is not read."""

    def in_words(self) -> list[str]:
        """Say it in sentences; what was not found is not mentioned."""
        lines = [_describe_split(split) for split in self.splits]
        lines += self.unusable_in_words()
        for split in self.splits:
            lines += _mention(split.blank, f"{split.name} image shows nothing", f"{split.name} images show nothing")
            lines += _mention(
                split.repeated,
                f"{split.name} image repeats another pixel for pixel",
                f"{split.name} images repeat another pixel for pixel",
            )
        lines += _mention(
            self.leaks,
            "train image is also in validation or test",
            "train images are also in validation or test",
        )
        lines += _mention(self.held_out_twice, "validation image is also in test", "validation images are also in test")
        lines += _mention(
            self.conflicts,
            "group of identical images has different labels",
            "groups of identical images have different labels",
        )
        if self.left_out.total:
            reasons = {
                "whose photo is in validation or test": self.left_out.leaked,
                "that show nothing": self.left_out.blank,
                "whose label is contradicted": self.left_out.conflicting,
                "that repeat another": self.left_out.repeated,
            }
            said = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)
            lines.append(f"Left out of the fit: {said}.")
        return lines

    def unusable_in_words(self) -> list[str]:
        """Say in sentences which files nothing could be made of."""
        lines = _mention(self.unreadable, "file holds no image", "files hold no image")
        lines += _mention(self.missing, "file is not there or cannot be read", "files are not there or cannot be read")
        lines += _mention(
            self.misplaced,
            "picture is passed over, as it lies beside or below the folders that are read",
            "pictures are passed over, as they lie beside or below the folders that are read",
        )
        lines += _mention(
            self.other_format,
            "picture is passed over, as its format is not read (save it as .jpg or .png)",
            "pictures are passed over, as their format is not read (save them as .jpg or .png)",
        )
        total = sum(found.count for found in self.unknown_labels.values())
        labels = [f"{printable(name) or 'none at all'} {found.count:,}" for name, found in self.unknown_labels.items()]
        if len(labels) > _MOST_LABELS_NAMED:
            labels[_MOST_LABELS_NAMED:] = ["others"]
        meant = f"whose label is none of the emotions ({', '.join(labels)})"
        places = [place for found in self.unknown_labels.values() for place in found.examples]
        unknown = Finding(total, tuple(places[:_EXAMPLE_COUNT]))
        return lines + _mention(unknown, f"image {meant}", f"images {meant}")

    def as_json(self) -> dict[str, Any]:
        """Give its numbers as JSON can hold them, without any path: a model is handed on, its users' files are not."""
        return {
            "images": {split.name: dict(zip(EMOTIONS, split.used, strict=True)) for split in self.splits},
            "delivered": {split.name: dict(zip(EMOTIONS, split.delivered, strict=True)) for split in self.splits},
            "left_out_leaked": self.left_out.leaked,
            "left_out_blank": self.left_out.blank,
            "left_out_conflicting": self.left_out.conflicting,
            "left_out_repeated": self.left_out.repeated,
            "blank": {split.name: split.blank.count for split in self.splits},
            "repeated": {split.name: split.repeated.count for split in self.splits},
            "leaks": self.leaks.count,
            "held_out_twice": self.held_out_twice.count,
            "conflicts": self.conflicts.count,
            "unreadable": self.unreadable.count,
            "missing": self.missing.count,
            "misplaced": self.misplaced.count,
            "other_format": self.other_format.count,
            "unknown_labels": {utf8(label): found.count for label, found in self.unknown_labels.items()},
        }


def count_emotions(labels: np.ndarray) -> tuple[int, ...]:
    """Count each emotion, in the order of EMOTIONS, among int64 (n,) indices."""
    return tuple(int(count) for count in np.bincount(labels, minlength=len(EMOTIONS)))


def _describe_split(split: SplitReport) -> str:
    delivered, used = sum(split.delivered), sum(split.used)
    each = ", ".join(f"{emotion} {count:,}" for emotion, count in zip(EMOTIONS, split.used, strict=True))
    of_all = f" of {delivered:,}" if used != delivered else ""
    return f"{split.name}: {used:,}{of_all} {'image' if delivered == 1 else 'images'} used ({each})."


def _mention(found: Finding, one: str, many: str) -> list[str]:
    if not found.count:
        return []
    where = f", for example {printable('; '.join(found.examples))}" if found.examples else ""
    return [f"{found.count:,} {one if found.count == 1 else many}{where}."]
