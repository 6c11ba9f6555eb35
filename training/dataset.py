"""labelled pictures (+ crowd votes) -> images and targets of each split, and a report of what is wrong with them."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import numpy as np

from ferflow.emotions import EMOTIONS
from ferflow.errors import ConfigError, DataError
from ferflow.faces import CropWindow, crop_gray
from ferflow.storage import utf8
from training.data_report import DataReport, Finding, LeftOut, SplitReport, count_emotions
from training.duplicates import digest_of, identical, is_blank, same_photo
from training.formats import TABLE_SUFFIXES, Fault, Picture, emotion_of, read_labelled_folder, read_pictures, split_of
from training.votes import read_votes

Leaks = Literal["refuse", "leave_out", "keep"]
"""What to do about training images that are also held out: refuse the data, leave them out of the fit, keep them."""

LABELS_FILE = "fer2013_labels.csv"
"""Name of the optional table of crowd votes, looked for in DATA and beside it."""

MIN_IMAGES = 5
"""Fewer images of an emotion teach nothing about it."""

# Of pictures without splits, the share that is fitted to and the share up to which they are chosen on.
_TRAIN_UP_TO, _VALIDATION_UP_TO = 0.70, 0.85


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images of one split with what people say they show, row by row."""

    paths: tuple[str, ...]
    """Where each image came from, relative to DATA."""
    images_gray: np.ndarray
    """uint8 (n, size_px, size_px)."""
    labels: np.ndarray
    """int64 (n,), an index into EMOTIONS."""
    votes: np.ndarray
    """float32 (n, 7), shares of the crowd's votes in the order of EMOTIONS; a row of zeros where nobody voted."""
    seen_in_training: np.ndarray
    """bool (n,), whether the same or nearly the same photo was among the training images as delivered."""
    digests: tuple[str, ...]
    """Names each image by its pixels: the first 16 hexadecimal digits of their SHA-256."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class DataSplits:
    """Everything one training needs, and what was done to it."""

    train: LabelledImages
    """What the network is fitted to."""
    validation: LabelledImages
    """What the settings, the epoch and the temperature are chosen on (FER2013: PublicTest)."""
    test: LabelledImages
    """What is reported, once (FER2013: PrivateTest)."""
    report: DataReport
    """What was found in the data, and what was left out of `train`."""
    sha256: str
    """Over every path, label and pixel as delivered: the same data gives the same hash."""


@dataclass(frozen=True, slots=True)
class _Row:
    path: str
    label: int
    split: str | None
    digest: str
    crop: np.ndarray


@dataclass(frozen=True, slots=True)
class _Read:
    rows: list[_Row]
    faulty: dict[Fault, list[str]]
    unknown: dict[str, list[str]]


def load_splits(
    data: Path,
    *,
    size_px: int = 48,
    labels_csv: Path | None = None,
    leaks: Leaks = "refuse",
    min_images: int = MIN_IMAGES,
) -> DataSplits:
    """Read the labelled images of DATA. Those for validation and test are never changed, whatever is wrong with them.

    Args:
        data: in any of the forms that `training.formats.read_pictures` reads: the FER2013 download as it is, folders
            by emotion, a table. Pictures without splits are dealt out 70 : 15 : 15 by the hash of their pixels, or of
            their video where `ferflow review` named it in the file, so that each stays where it is when others are
            added and faces of one video stay together. Where only one of validation and test is there, FER2013 file
            names (`PublicTest_*`, `PrivateTest_*`) or else that hash divide it in two.
        size_px: side of the images returned; larger ones are cut to their central square and area-averaged.
        labels_csv: table with a `path` column and `votes_*` columns of crowd votes; by default
            `fer2013_labels.csv` in DATA or beside it, and no votes where there is none.
        leaks: what to do about training images whose photo is also in validation or test.
        min_images: how many images of each emotion there must be to fit to.

    Raises:
        DataError: DATA is none of these forms or damaged, most of its labels are no emotions, an emotion has too few
            images, or there are leaks and they are to be refused.
        ConfigError: `leaks` is none of its three words.
    """
    if leaks not in get_args(Leaks):
        raise ConfigError(f"leaks is {leaks!r}, but it must be one of {', '.join(get_args(Leaks))}.")
    read = _read(read_pictures(data), size_px)
    report = _unusable(read)
    _require_labels(data, read, report)
    hints = report.unusable_in_words()
    if any(row.split is None and _video_id(row) for row in read.rows):
        hints.append("Faces of one video are dealt out together, so add some of other videos.")
    rows = _deal(read.rows)
    votes = _votes(data, labels_csv)
    train, validation, test = (_stack(rows[name], votes, size_px) for name in ("train", "validation", "test"))
    if not len(validation) or not len(test):
        raise DataError(
            f"{data}: it has {len(validation)} usable images to choose on (validation) and {len(test)} to report on "
            f"(test), and both need some. {' '.join(['Add images to test.', *hints])}"
        )

    held_out_paths = validation.paths + test.paths
    held_out_gray = np.concatenate([validation.images_gray, test.images_gray])
    leaked, seen, found_leaks = _find_twins(train.paths, train.images_gray, held_out_paths, held_out_gray)
    if leaks == "refuse" and found_leaks.count:
        raise DataError(
            f"{data}: {found_leaks.count:,} of its training images are also in validation or test, so that the "
            f"accuracy would come out too high; for example {utf8('; '.join(found_leaks.examples[:2]))}. Remove them, "
            "or leave them out of the fit with --leaks leave_out."
        )
    used, left_out = _clean(train, leaked if leaks == "leave_out" else np.zeros(len(train), bool))
    _, _, held_out_twice = _find_twins(validation.paths, validation.images_gray, test.paths, test.images_gray)
    report = replace(
        report,
        splits=(
            _describe("train", train, used),
            _describe("validation", validation, validation),
            _describe("test", test, test),
        ),
        leaks=found_leaks,
        held_out_twice=held_out_twice,
        conflicts=_conflicts((train, validation, test)),
        left_out=left_out,
    )
    for split, images, at_least in zip(report.splits, (train, validation, test), (min_images, 1, 1), strict=True):
        _require_enough(data, split, images, at_least, hints)
    return DataSplits(
        train=used,
        validation=replace(validation, seen_in_training=seen[: len(validation)]),
        test=replace(test, seen_in_training=seen[len(validation) :]),
        report=report,
        sha256=_hash((train, validation, test)),
    )


def load_labelled(folder: Path, *, size_px: int = 48) -> tuple[LabelledImages, DataReport]:
    """Read images as users sort them into `folder/<emotion>/`, for a fine-tune.

    Args:
        folder: holds a folder for each emotion, or for some; other folders are counted as unknown labels, and what
            lies deeper or beside as misplaced. Hidden and half-copied files are passed over.
        size_px: side of the images returned.

    Returns:
        What can be fitted to, perhaps nothing: blank images, images with contradicting labels and repetitions are left
        out. And the report that says so, with one split, `labelled`.

    Raises:
        DataError: there is no such folder.
    """
    read = _read(read_labelled_folder(folder), size_px)
    images = _stack(read.rows, {}, size_px)
    used, left_out = _clean(images, np.zeros(len(images), bool))
    report = replace(
        _unusable(read),
        splits=(_describe("labelled", images, used),),
        conflicts=_conflicts((images,)),
        left_out=left_out,
    )
    return used, report


def describe_uncounted(folder: Path, *, settle_seconds: float) -> list[str]:
    """Say in sentences which pictures of a folder of labelled images do not count, or not yet; none is opened.

    Args:
        folder: as `load_labelled` takes it.
        settle_seconds: a file counts when it has not changed for so long.

    Raises:
        DataError: there is no such folder.
    """
    pictures = list(read_labelled_folder(folder, decode=False))
    latest, settling = time.time() - settle_seconds, 0
    for picture in pictures:
        if picture.emotion is not None and picture.fault is None:
            with contextlib.suppress(OSError):
                settling += (folder / picture.path).stat().st_ctime > latest
    lines = _unusable(_read(pictures, size_px=1)).unusable_in_words()
    if settling:
        many = "1 image counts when it has" if settling == 1 else f"{settling:,} images count when they have"
        lines.append(f"{many} not changed for {settle_seconds:g} s (settle_seconds).")
    return lines


def soft_targets(images: LabelledImages, *, votes_share: float, smoothing: float) -> np.ndarray:
    """Mix the label, the crowd's votes and doubt into what the network should answer.

    Args:
        images: the labelled images.
        votes_share: weight of the votes beside the label, 0 to 1; an image without votes keeps its label alone.
        smoothing: share taken from that and spread evenly over all classes.

    Returns:
        float32 (n, 7), rows sum to 1.
    """
    label = np.eye(len(EMOTIONS), dtype=np.float32)[images.labels]
    share = np.where(images.votes.sum(axis=1, keepdims=True) > 0, np.float32(votes_share), np.float32(0))
    mixed = label * (1 - share) + images.votes * share
    targets: np.ndarray = (mixed * (1 - smoothing) + smoothing / len(EMOTIONS)).astype(np.float32)
    return targets


def _read(pictures: Iterable[Picture], size_px: int) -> _Read:
    read = _Read([], defaultdict(list), defaultdict(list))
    for picture in pictures:
        if picture.fault is not None:
            read.faulty[picture.fault].append(picture.path)
        elif picture.emotion is None:
            read.unknown[picture.label].append(picture.path)
        elif picture.image_gray is not None:
            height, width = picture.image_gray.shape
            window = CropWindow(width / 2, height / 2, min(height, width))
            crop = crop_gray(picture.image_gray, window, size_px=size_px)
            read.rows.append(_Row(picture.path, picture.emotion, picture.split, digest_of(crop), crop))
    read.rows.sort(key=lambda row: (row.path, row.label))
    return read


def _unusable(read: _Read) -> DataReport:
    """Report what nothing could be made of; what was found in the rest is still to be filled in."""
    nothing, misplaced = Finding(0, ()), read.faulty["misplaced"]
    # Those of one depth mostly have one cause: of each depth one is among the examples.
    telling = set({path.count("/"): path for path in reversed(misplaced)}.values())
    return DataReport(
        splits=(),
        unreadable=Finding.of(read.faulty["unreadable"]),
        unknown_labels={label: Finding.of(sorted(paths)) for label, paths in sorted(read.unknown.items())},
        leaks=nothing,
        held_out_twice=nothing,
        conflicts=nothing,
        left_out=LeftOut(0, 0, 0, 0),
        missing=Finding.of(read.faulty["missing"]),
        misplaced=Finding.of(sorted(misplaced, key=lambda path: path not in telling)),
        other_format=Finding.of(read.faulty["other_format"]),
    )


def _require_labels(data: Path, read: _Read, report: DataReport) -> None:
    """Refuse data that has no labelled pictures, or whose labels are mostly not ours, or of which none can be used."""
    unknown_count = sum(map(len, read.unknown.values()))
    words = report.unusable_in_words()
    count = len(read.rows) + report.unreadable.count + report.missing.count + unknown_count
    if not count:
        raise DataError(
            f"{data}: there is no labelled picture in it. Lay it out as train/<emotion>/ and test/<emotion>/, or as "
            f"{' '.join(['<emotion>/ alone, with .jpg, .png, .webp or .bmp files in there.', *words])}"
        )
    if 2 * unknown_count > count:
        labels = ", ".join(utf8(label) or "(none)" for label in list(read.unknown)[:5])
        raise DataError(
            f"{data}: {unknown_count:,} of its {count:,} pictures have labels that are no emotions, such as {labels}. "
            f"Name them {', '.join(EMOTIONS)}."
        )
    if not read.rows:
        if report.missing.count and data.name.lower().endswith(TABLE_SUFFIXES):
            words.append("Write paths relative to the table's folder, with / in between.")
        raise DataError(f"{data}: none of its pictures can be used. {' '.join(words)}")


def _deal(rows: Sequence[_Row]) -> dict[str, list[_Row]]:
    """Give each row its split: as delivered, as far as that says it, otherwise by the hash of its video or pixels."""
    said = {row.split for row in rows if row.split is not None}
    held_out = said & {"validation", "test"}
    dealt: dict[str, list[_Row]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        split = row.split
        if split is None:
            key = _deal_key(row)
            share = int(key, 16) / 16 ** len(key)
            split = "train" if share < _TRAIN_UP_TO else "validation" if share < _VALIDATION_UP_TO else "test"
        elif split != "train" and len(held_out) == 1:
            usage = split_of(PurePosixPath(row.path).name.split("_")[0])
            halves = ("test", "validation")
            split = usage if usage in halves else halves[int(_deal_key(row)[:2], 16) % 2]
        dealt[split].append(row)
    return dealt


def _deal_key(row: _Row) -> str:
    """Give the hexadecimal digits by which a row is dealt out."""
    video_id = _video_id(row)
    # Hashed once more, so that this choice has nothing to do with any other that is made by the same digits.
    return row.digest if video_id is None else hashlib.sha256(f"dealt: {video_id}".encode()).hexdigest()[:16]


def _video_id(row: _Row) -> str | None:
    from ferflow.review import video_id_of

    return video_id_of(row.path)


def _clean(images: LabelledImages, leaked: np.ndarray) -> tuple[LabelledImages, LeftOut]:
    """Leave out what a network should not be fitted to."""
    conflicting, repeated = np.zeros(len(images), bool), np.zeros(len(images), bool)
    for group in identical(images.digests):
        if len(set(images.labels[group])) > 1:
            conflicting[group] = True
        else:
            repeated[group[1:]] = True
    keep = np.ones(len(images), bool)
    counts = []
    for reason in (leaked, is_blank(images.images_gray), conflicting, repeated):
        counts.append(int((reason & keep).sum()))
        keep &= ~reason
    return _select(images, keep), LeftOut(*counts)


def _require_enough(data: Path, split: SplitReport, images: LabelledImages, at_least: int, hints: list[str]) -> None:
    few = {emotion: count for emotion, count in zip(EMOTIONS, split.used, strict=True) if count < at_least}
    if not few:
        return
    if data.name.lower().endswith(TABLE_SUFFIXES) or any("/" not in path for path in images.paths):
        where = "the table"
    else:
        # The split's folder by its own name: `val`, or `test` where that is dealt out to both.
        folders = PurePosixPath(images.paths[0]).parts[:-2] if images.paths else (split.name,)
        where = ", ".join("/".join((*folders, emotion)) for emotion in few)
    raise DataError(
        f"{data}: its {split.name} part has too few usable images: "
        f"{', '.join(f'{count} of {emotion}' for emotion, count in few.items())}, and each emotion needs at least "
        f"{at_least}. {' '.join([f'Add some to {where}.', *hints])}"
    )


def _votes(data: Path, labels_csv: Path | None) -> dict[str, np.ndarray]:
    if labels_csv is not None:
        if not labels_csv.is_file():
            raise DataError(f"{labels_csv}: there is no such table of votes. Correct the path or leave it out.")
        return read_votes(labels_csv)
    table = next((path for path in (data / LABELS_FILE, data.parent / LABELS_FILE) if path.is_file()), None)
    return {} if table is None else read_votes(table)


def _stack(rows: Sequence[_Row], votes: dict[str, np.ndarray], size_px: int) -> LabelledImages:
    nobody = np.zeros(len(EMOTIONS), np.float32)
    return LabelledImages(
        paths=tuple(row.path for row in rows),
        images_gray=np.stack([row.crop for row in rows]) if rows else np.empty((0, size_px, size_px), np.uint8),
        labels=np.array([row.label for row in rows], np.int64),
        votes=np.stack([votes.get(row.path, nobody) for row in rows]) if rows else np.empty((0, 7), np.float32),
        seen_in_training=np.zeros(len(rows), bool),
        digests=tuple(row.digest for row in rows),
    )


def _select(images: LabelledImages, keep: np.ndarray) -> LabelledImages:
    kept = np.flatnonzero(keep)
    return LabelledImages(
        paths=tuple(images.paths[row] for row in kept),
        images_gray=images.images_gray[kept],
        labels=images.labels[kept],
        votes=images.votes[kept],
        seen_in_training=images.seen_in_training[kept],
        digests=tuple(images.digests[row] for row in kept),
    )


def _hash(splits: Iterable[LabelledImages]) -> str:
    digest = hashlib.sha256()
    for images in splits:
        names = tuple(
            # A path whose folder says the label needs no more; so did the models trained before there were tables.
            path if emotion_of(PurePosixPath(path).parent.name) == label else f"{path} {EMOTIONS[label]}"
            for path, label in zip(images.paths, images.labels, strict=True)
        )
        digest.update(repr(names).encode() + images.images_gray.tobytes() + images.votes.tobytes())
    return digest.hexdigest()


def _describe(name: str, images: LabelledImages, used: LabelledImages) -> SplitReport:
    return SplitReport(
        name=name,
        delivered=count_emotions(images.labels),
        used=count_emotions(used.labels),
        blank=Finding.of(images.paths[row] for row in np.flatnonzero(is_blank(images.images_gray))),
        repeated=Finding.of(images.paths[row] for group in identical(images.digests) for row in group[1:]),
    )


def _conflicts(splits: Sequence[LabelledImages]) -> Finding:
    paths = [path for images in splits for path in images.paths]
    labels = np.concatenate([images.labels for images in splits])
    groups = identical([digest for images in splits for digest in images.digests])
    return Finding.of(
        " and ".join(paths[row] for row in group[:2]) + (f" and {len(group) - 2} more" if len(group) > 2 else "")
        for group in groups
        if len(set(labels[group])) > 1
    )


def _find_twins(
    paths: Sequence[str], images_gray: np.ndarray, other_paths: Sequence[str], others_gray: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Finding]:
    """Find which images have the same photo among others, and which others: bool (n,), bool (m,), and pairs."""
    is_twin, is_others_twin = np.zeros(len(paths), bool), np.zeros(len(other_paths), bool)
    pairs = []
    for row, other in same_photo(images_gray, others_gray):
        if not is_twin[row]:
            pairs.append(f"{paths[row]} and {other_paths[other]}")
        is_twin[row] = is_others_twin[other] = True
    return is_twin, is_others_twin, Finding.of(pairs)
