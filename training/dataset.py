"""labelled image files (+ crowd votes) -> images and targets of each split, without what leaks between them."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from ferflow.emotions import EMOTIONS
from ferflow.errors import DataError
from ferflow.faces import CropWindow, crop_gray

_log = logging.getLogger(__name__)

LABELS_FILE = "fer2013_labels.csv"
"""Name of the optional table of crowd votes, looked for in DATA and beside it."""

_IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
# What ten people said of each FER2013 image (FER+, MIT); contempt, unknown and "not a face" are none of our classes.
_VOTE_COLUMNS = {
    "angry": "votes_anger",
    "disgust": "votes_disgust",
    "fear": "votes_fear",
    "happy": "votes_happiness",
    "neutral": "votes_neutral",
    "sad": "votes_sadness",
    "surprise": "votes_surprise",
}
_FER2013_SPLITS = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}
# Two thumbnails this alike are one photo: of FER2013 PrivateTest it finds all 288 that have an identical twin in
# Training, 188 of the 197 that its labels table calls near, and 7 that the table does not know.
_NEAR_THUMBNAIL_PX = 16
_NEAR_CORRELATION = 0.96
# A picture whose grey values spread less than this shows nothing.
_BLANK_SPREAD = 4.0


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
    left_out_blank: int
    """Training images left out because they show nothing."""
    left_out_leaked: int
    """Training images left out because validation or test has the same photo, identical or nearly so."""
    unreadable: int
    """Files that hold no image."""
    sha256: str
    """Over every path, label and pixel: the same data gives the same hash."""


def load_splits(data: Path, *, size_px: int = 48, labels_csv: Path | None = None) -> DataSplits:
    """Read the labelled images of DATA.

    Args:
        data: a folder, or a .tar.gz of one, laid out as `train/<emotion>/*` and `test/<emotion>/*`: the FER2013
            download as it is, or anybody's. FER2013 file names (`PublicTest_*`, `PrivateTest_*`) say which test
            image is for choosing and which for reporting; other names are dealt out by the hash of their pixels.
        size_px: side of the images returned; larger ones are cut to their central square and area-averaged.
        labels_csv: table with a `path` column and `votes_*` columns of crowd votes; by default
            `fer2013_labels.csv` in DATA or beside it, and no votes where there is none.

    Raises:
        DataError: there is no such folder, a folder is not named after an emotion, or an emotion has no image.
    """
    found: dict[str, list[tuple[str, np.ndarray, int]]] = {"train": [], "validation": [], "test": []}
    unreadable = 0
    for path, encoded in sorted(_image_files(data)):
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE) if encoded else None
        if image is None:
            _log.warning("%s: not an image, left out", path)
            unreadable += 1
            continue
        height, width = image.shape
        window = CropWindow(width / 2, height / 2, min(height, width))
        crop = crop_gray(image, window, size_px=size_px)
        found[_split_of(path, crop)].append((path, crop, EMOTIONS.index(PurePosixPath(path).parts[1])))
    for folder, rows in (("train", found["train"]), ("test", found["validation"] + found["test"])):
        _require_every_emotion(data, folder, rows)
    if not found["validation"] or not found["test"]:
        raise DataError(
            f"{data}: its test folder has {len(found['validation'])} images to choose on and {len(found['test'])} "
            "to report on; both need some. Add images to test/."
        )

    votes = _read_votes(_labels_table(data, labels_csv))
    train, validation, test = (_stack(found[name], votes, size_px) for name in ("train", "validation", "test"))
    digest = hashlib.sha256()
    for split in (train, validation, test):
        digest.update(repr(split.paths).encode() + split.images_gray.tobytes() + split.votes.tobytes())

    held_out = np.concatenate([validation.images_gray, test.images_gray])
    same = _same_photo(train.images_gray, held_out)
    leaked = np.zeros(len(train), bool)
    leaked[same[:, 0]] = True
    seen = np.zeros(len(held_out), bool)
    seen[same[:, 1]] = True
    blank = _spread(train.images_gray) < _BLANK_SPREAD
    train = _select(train, ~leaked & ~blank)
    _require_every_emotion(data, "train", [("", np.empty(0), int(label)) for label in train.labels])
    return DataSplits(
        train=train,
        validation=_with_seen(validation, seen[: len(validation)]),
        test=_with_seen(test, seen[len(validation) :]),
        left_out_blank=int((blank & ~leaked).sum()),
        left_out_leaked=int(leaked.sum()),
        unreadable=unreadable,
        sha256=digest.hexdigest(),
    )


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


def _image_files(data: Path) -> Iterator[tuple[str, bytes]]:
    """Yield each image of train/ and test/ as its path relative to DATA and its bytes."""
    if data.is_dir():
        for folder in ("train", "test"):
            if not (data / folder).is_dir():
                raise DataError(
                    f"{data}: it has no {folder} folder. Lay it out as train/<emotion>/ and test/<emotion>/."
                )
        for path in data.glob("*/*/*"):
            if path.suffix.lower() in _IMAGE_SUFFIXES and path.is_file():
                relative = path.relative_to(data).as_posix()
                if _is_labelled(data, relative):
                    yield relative, path.read_bytes()
    elif data.is_file() and data.name.endswith((".tar.gz", ".tgz", ".tar")):
        # Read in place: nothing of a stranger's archive is written to the disk.
        try:
            with tarfile.open(data) as archive:
                for member in archive:
                    relative = PurePosixPath(member.name).as_posix().removeprefix("./")
                    if member.isfile() and PurePosixPath(relative).suffix.lower() in _IMAGE_SUFFIXES:
                        content = archive.extractfile(member)
                        if content is not None and _is_labelled(data, relative):
                            yield relative, content.read()
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(f"{data}: it cannot be read as an archive ({error}). Fetch it again.") from error
    elif data.exists():
        raise DataError(f"{data}: neither a folder nor a .tar.gz. Give the folder that holds train/ and test/.")
    else:
        raise DataError(f"{data}: there is no such folder or archive. Give the folder that holds train/ and test/.")


def _is_labelled(data: Path, relative: str) -> bool:
    """Say whether a file lies in train/<emotion>/ or test/<emotion>/; refuse a label that is no emotion."""
    parts = PurePosixPath(relative).parts
    if len(parts) != 3 or parts[0] not in ("train", "test"):
        return False
    if parts[1] not in EMOTIONS:
        raise DataError(
            f"{data}: {parts[0]}/{parts[1]} is not named after an emotion. Rename or move it; the emotions are "
            f"{', '.join(EMOTIONS)}."
        )
    return True


def _split_of(path: str, crop: np.ndarray) -> str:
    folder, _, name = PurePosixPath(path).parts
    if folder == "train":
        return "train"
    usage = _FER2013_SPLITS.get(name.split("_")[0])
    if usage in ("validation", "test"):
        return usage
    return "validation" if hashlib.sha256(crop.tobytes()).digest()[0] % 2 else "test"


def _require_every_emotion(data: Path, folder: str, rows: list[tuple[str, np.ndarray, int]]) -> None:
    counts = Counter(label for _, _, label in rows)
    missing = [emotion for index, emotion in enumerate(EMOTIONS) if counts[index] == 0]
    if missing:
        raise DataError(
            f"{data}: {folder}/ has no usable image of {', '.join(missing)}. "
            "Every emotion needs some in train/ and test/."
        )


def _labels_table(data: Path, labels_csv: Path | None) -> Path | None:
    if labels_csv is not None:
        if not labels_csv.is_file():
            raise DataError(f"{labels_csv}: there is no such table of votes. Correct the path or leave it out.")
        return labels_csv
    return next((path for path in (data / LABELS_FILE, data.parent / LABELS_FILE) if path.is_file()), None)


def _read_votes(table: Path | None) -> dict[str, np.ndarray]:
    """Read the votes of each path as shares, float32 (7,)."""
    if table is None:
        return {}
    votes = {}
    with io.StringIO(table.read_text(encoding="utf-8-sig")) as file:
        reader = csv.DictReader(file)
        lacking = {"path", *_VOTE_COLUMNS.values()} - set(reader.fieldnames or ())
        if lacking:
            raise DataError(f"{table}: it lacks the columns {', '.join(sorted(lacking))}. Add them or move it away.")
        for number, row in enumerate(reader, start=2):
            try:
                counts = np.array([float(row[_VOTE_COLUMNS[emotion]] or 0) for emotion in EMOTIONS], np.float32)
            except (TypeError, ValueError) as error:
                raise DataError(f"{table}: line {number} has a vote that is not a number. Correct it.") from error
            if counts.sum() > 0:
                votes[row["path"]] = counts / counts.sum()
    return votes


def _stack(rows: list[tuple[str, np.ndarray, int]], votes: dict[str, np.ndarray], size_px: int) -> LabelledImages:
    nobody = np.zeros(len(EMOTIONS), np.float32)
    return LabelledImages(
        paths=tuple(path for path, _, _ in rows),
        images_gray=np.stack([crop for _, crop, _ in rows]) if rows else np.empty((0, size_px, size_px), np.uint8),
        labels=np.array([label for _, _, label in rows], np.int64),
        votes=np.stack([votes.get(path, nobody) for path, _, _ in rows]) if rows else np.empty((0, 7), np.float32),
        seen_in_training=np.zeros(len(rows), bool),
    )


def _select(images: LabelledImages, keep: np.ndarray) -> LabelledImages:
    return LabelledImages(
        paths=tuple(path for path, kept in zip(images.paths, keep, strict=True) if kept),
        images_gray=images.images_gray[keep],
        labels=images.labels[keep],
        votes=images.votes[keep],
        seen_in_training=images.seen_in_training[keep],
    )


def _with_seen(images: LabelledImages, seen: np.ndarray) -> LabelledImages:
    return LabelledImages(images.paths, images.images_gray, images.labels, images.votes, seen)


def _spread(images_gray: np.ndarray) -> np.ndarray:
    spread: np.ndarray = images_gray.reshape(len(images_gray), -1).std(axis=1, dtype=np.float32)
    return spread


def _same_photo(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Find the pairs of images that show one photo, whatever its brightness: int64 (pairs, 2) of row numbers."""
    first_thumbs, second_thumbs = _thumbnails(first), _thumbnails(second)
    pairs = []
    # In slices, so that 28,000 x 7,000 correlations never lie in memory at once.
    for start in range(0, len(first), 2048):
        alike = np.argwhere(first_thumbs[start : start + 2048] @ second_thumbs.T > _NEAR_CORRELATION)
        alike[:, 0] += start
        pairs.append(alike)
    return np.concatenate(pairs)


def _thumbnails(images_gray: np.ndarray) -> np.ndarray:
    """Shrink images to vectors of mean 0 and length 1, so that a product of two is their correlation."""
    size_wh = (_NEAR_THUMBNAIL_PX, _NEAR_THUMBNAIL_PX)
    small = np.stack([cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA) for image in images_gray])
    flat = small.reshape(len(small), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    # A blank image is like no other: its vector stays zero.
    shows_something = length > _BLANK_SPREAD * _NEAR_THUMBNAIL_PX
    unit: np.ndarray = np.divide(flat, length, out=np.zeros_like(flat), where=shows_something)
    return unit
