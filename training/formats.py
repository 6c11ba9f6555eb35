"""folder, archive, fer2013.csv or table of paths -> its labelled pictures, one after the other, decoded to grey."""

from __future__ import annotations

import csv
import math
import os
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import cv2
import numpy as np

from ferflow.emotions import EMOTIONS
from ferflow.errors import DataError
from ferflow.storage import utf8
from training.picture_size import claimed_size_wh

FER2013_FILES = ("fer2013.csv", "icml_face_data.csv")
"""Names under which FER2013 is handed around as one table; looked for in a folder."""

TABLE_SUFFIXES = (".csv", ".parquet", ".pq")
"""What the name of a table ends with."""

_IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
# Pictures too, which are told of but not read.
_OTHER_SUFFIXES = (".avif", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl", ".pgm", ".ppm", ".tif", ".tiff")
# What systems and programs leave in folders; also files that are still being copied (`~name`).
_NOT_THE_USERS = (".", "~", "__MACOSX", "@eaDir")
# A file that says it is larger is no photo of a face: decoding it would fill the memory.
_MOST_PIXELS = 100_000_000
_MOST_BYTES = 200_000_000

# The words for the seven emotions in the data sets that people have.
_WORDS = {
    "angry": ("anger",),
    "disgust": ("disgusted",),
    "fear": ("fearful", "afraid", "scared"),
    "happy": ("happiness", "joy"),
    "neutral": ("neutrality",),
    "sad": ("sadness",),
    "surprise": ("surprised",),
}
_EMOTION_INDEX = {word: EMOTIONS.index(name) for name, words in _WORDS.items() for word in (name, *words)}
# 0 to 6 as the authors of FER2013 numbered them; it is not the order of EMOTIONS.
_FER2013_NUMBERS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
_SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "publictest": "validation",
    "test": "test",
    "testing": "test",
    "privatetest": "test",
}


_File: TypeAlias = tuple[tuple[str, ...], Callable[[], bytes | None]]
# The folders that a file lies in and its name; what reads it, None when that cannot be done.

Fault = Literal["unreadable", "missing", "misplaced", "other_format"]
"""Why nothing can be made of a picture: the file holds no image; it is not there or cannot be read; it lies where no
folder says what it shows; by its name it is of a format that is not read."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One labelled picture as it was delivered."""

    path: str
    """Where it lies, relative to DATA, or to the table that names it; for a line of pixels the table and the line."""
    label: str
    """What it shows, as the data says it."""
    emotion: int | None
    """The same as an index into EMOTIONS; None when it is none of them."""
    split: str | None
    """`train`, `validation` or `test`; None when the data does not say."""
    image_gray: np.ndarray | None
    """uint8 (height, width); None when there is a fault, or where nobody needs it: the label is unknown, say."""
    fault: Fault | None = None
    """What is wrong with it; None when it can be used or its label is unknown."""


def read_pictures(data: Path) -> Iterator[Picture]:
    """Read the labelled pictures of DATA, whichever of its forms it has.

    Args:
        data: a folder or an archive (.tar.gz, .tar, .zip) of `train/<emotion>/*`, `test/<emotion>/*` and perhaps
            `validation/<emotion>/*`, or of `<emotion>/*` alone; `fer2013.csv` or a folder that holds it; or a CSV or
            Parquet table with the columns `path` (relative to the table's folder), `label` and perhaps `split`.
            Pictures that lie elsewhere in a folder or an archive are given with that fault, and not opened.

    Raises:
        DataError: it is none of these or damaged.
    """
    if data.is_dir():
        fer2013 = next((data / name for name in FER2013_FILES if (data / name).is_file()), None)
        if fer2013 is not None and not (data / "train").is_dir():
            return _from_csv(fer2013)
        return _by_place(data, _folder_files(data))
    if not data.exists():
        raise DataError(
            f"{data}: there is no such folder, archive or table. Give the folder that holds train/ and test/."
        )
    name = data.name.lower()
    if name.endswith((".tar.gz", ".tgz", ".tar")):
        return _from_tar(data)
    if name.endswith(".zip"):
        return _from_zip(data)
    if name.endswith(".csv"):
        return _from_csv(data)
    if name.endswith((".parquet", ".pq")):
        return _from_parquet(data)
    raise DataError(
        f"{data}: neither a folder nor a .tar.gz, .zip, .csv or .parquet. Give the folder that holds train/ and test/."
    )


def read_labelled_folder(folder: Path, *, decode: bool = True) -> Iterator[Picture]:
    """Read `<emotion>/*` as users drop it; hidden and half-copied files and what is no picture are passed over.

    Args:
        folder: holds the emotions' folders.
        decode: without it no file is opened, which costs next to nothing, and no picture has an image.

    Raises:
        DataError: there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder. Make it, with a folder for each emotion in it.")
    yield from _by_folder(_folder_files(folder), in_splits=False, decode=decode)


def emotion_of(label: str) -> int | None:
    """Say which emotion a word means, as an index into EMOTIONS; None when it means none."""
    return _EMOTION_INDEX.get(label.strip().casefold())


def split_of(word: str) -> str | None:
    """Say which split a word means, FER2013's names of its parts among them; None when it means none."""
    return _SPLITS.get(word.strip().casefold())


def decode_gray(encoded: bytes) -> np.ndarray | None:
    """Decode a picture, uint8 (height, width); None when it is none, is cut off, or claims to be gigantic."""
    width, height = claimed_size_wh(encoded) or (0, 0)
    if not 0 < width * height <= _MOST_PIXELS:
        return None
    try:
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error:
        return None


def _picture(path: str, label: str, split: str | None, read: Callable[[], bytes | None]) -> Picture:
    emotion = emotion_of(label)
    if emotion is None:
        return Picture(path, label, None, split, None)
    encoded = read()
    if encoded is None:
        return Picture(path, label, emotion, split, None, "missing")
    return _decoded(path, label, emotion, split, decode_gray(encoded))


def _decoded(path: str, label: str, emotion: int, split: str | None, image: np.ndarray | None) -> Picture:
    return Picture(path, label, emotion, split, image, "unreadable" if image is None else None)


def _is_picture(parts: Sequence[str]) -> bool:
    """Judge by its name whether a file is a picture that a user means, in whichever format."""
    is_picture = parts[-1].lower().endswith(_IMAGE_SUFFIXES + _OTHER_SUFFIXES)
    return is_picture and not any(part.startswith(_NOT_THE_USERS) for part in parts)


def _is_read(name: str) -> bool:
    return name.lower().endswith(_IMAGE_SUFFIXES)


def _bytes_of(path: Path) -> bytes | None:
    """Read a file; None when it is not there or cannot be read, nothing when it is far too large."""
    try:
        return path.read_bytes() if path.stat().st_size <= _MOST_BYTES else b""
    # A ValueError is a name with a NUL in it, which a table can hold and no file can have.
    except (OSError, ValueError):
        return None


def _folder_files(data: Path) -> Iterator[_File]:
    """Find the pictures below a folder in one walk."""
    for parent, folders, names in os.walk(data, followlinks=True):
        above = Path(parent).relative_to(data).parts
        # A link may stand for an emotion's folder; deeper in, one could lead round in circles.
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(_NOT_THE_USERS) and (len(above) < 2 or not Path(parent, name).is_symlink())
        )
        for name in sorted(names):
            path = Path(parent, name)
            if _is_picture((*above, name)) and path.is_file():
                yield (*above, name), partial(_bytes_of, path)


def _from_tar(data: Path) -> Iterator[Picture]:
    # Read in place: nothing of a stranger's archive is written to the disk.
    try:
        with tarfile.open(data) as archive:

            def read(member: tarfile.TarInfo) -> bytes:
                content = archive.extractfile(member) if member.size <= _MOST_BYTES else None
                return b"" if content is None else content.read()

            members = [member for member in archive.getmembers() if member.isfile()]
            # A damaged header passes for the archive's end; only the checksum behind the real end tells.
            while archive.fileobj is not None and archive.fileobj.read(1 << 20):
                pass
            yield from _by_place(data, _unwrapped((member.name, partial(read, member)) for member in members))
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{data}: it cannot be read as an archive ({error}). Fetch it again.") from error


def _from_zip(data: Path) -> Iterator[Picture]:
    try:
        with zipfile.ZipFile(data) as archive:

            def read(member: zipfile.ZipInfo) -> bytes:
                return archive.read(member) if member.file_size <= _MOST_BYTES else b""

            members = [member for member in archive.infolist() if not member.is_dir()]
            yield from _by_place(data, _unwrapped((member.filename, partial(read, member)) for member in members))
    # A RuntimeError is a password, a NotImplementedError a compression that Python does not know.
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, zlib.error) as error:
        raise DataError(f"{data}: it cannot be read as an archive ({error}). Fetch it again.") from error


def _unwrapped(members: Iterable[tuple[str, Callable[[], bytes | None]]]) -> list[_File]:
    """Keep an archive's pictures, without the one folder around everything that most archives have."""
    files = [(tuple(name.removeprefix("./").split("/")), read) for name, read in members]
    files = [(parts, read) for parts, read in files if _is_picture(parts)]
    tops = {parts[0] for parts, _ in files if _is_read(parts[-1])}
    if len(tops) == 1 and split_of(*tops) is None and emotion_of(*tops) is None:
        return [((parts[1:] or parts) if parts[0] in tops else parts, read) for parts, read in files]
    return files


def _by_place(data: Path, files: Iterable[_File]) -> Iterator[Picture]:
    """Tell which of the two layouts it is, and read it."""
    files = list(files)
    found = {split_of(parts[0]) for parts, _ in files if len(parts) == 3} - {None}
    for missing, is_missing in (("train", "train" not in found), ("test", found == {"train"})):
        if found and is_missing:
            raise DataError(
                f"{data}: it has no {missing} folder with pictures. Lay it out as train/<emotion>/ and "
                "test/<emotion>/, or as <emotion>/ alone, which is then dealt out."
            )
    yield from _by_folder(files, in_splits=bool(found))


def _by_folder(files: Iterable[_File], *, in_splits: bool, decode: bool = True) -> Iterator[Picture]:
    """Tell the label of each file by the folder that it lies in, and its split by the one around that."""
    for parts, read in files:
        path, split = "/".join(parts), split_of(parts[0]) if in_splits else None
        if len(parts) != (3 if in_splits else 2) or (in_splits and split is None):
            yield Picture(path, "", None, None, None, "misplaced")
        elif not _is_read(parts[-1]):
            yield Picture(path, parts[-2], emotion_of(parts[-2]), split, None, "other_format")
        elif decode:
            yield _picture(path, parts[-2], split, read)
        else:
            yield Picture(path, parts[-2], emotion_of(parts[-2]), split, None)


def _from_csv(table: Path) -> Iterator[Picture]:
    """Read a table as text: FER2013's own, with the pixels in it, or one of paths and labels."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            columns = [name.strip().casefold() for name in next(reader, [])]
            rows = (
                (reader.line_num, dict(zip(columns, row, strict=False)))
                for row in reader
                if any(value.strip() for value in row)
            )
            read = _from_pixel_rows if {"emotion", "pixels"} <= set(columns) else _from_path_rows
            yield from read(table, columns, rows)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{table}: it cannot be read as a CSV table ({error}). Save it again as CSV, UTF-8.") from error
    except OSError as error:
        raise DataError(
            f"{table}: it cannot be read ({error.strerror}). Correct the path or the permissions."
        ) from error


def _from_parquet(table: Path) -> Iterator[Picture]:
    from ferflow.rows import read_text_columns

    columns = read_text_columns(table)
    rows = ({name: values[index] for name, values in columns.items()} for index in range(len(columns.get("path", []))))
    yield from _from_path_rows(table, list(columns), enumerate(rows, start=1))


def _from_path_rows(
    table: Path, columns: list[str], rows: Iterable[tuple[int, Mapping[str, str]]]
) -> Iterator[Picture]:
    lacking = [name for name in ("path", "label") if name not in columns]
    if lacking:
        raise DataError(
            f"{table}: it lacks the column {' and '.join(lacking)}. A table of pictures has the columns path and "
            "label, FER2013's own has emotion and pixels."
        )
    split_column = next((name for name in ("split", "usage") if name in columns), None)
    for number, row in rows:
        path = row.get("path", "").strip()
        file = table.parent / path
        if not path:
            raise DataError(f"{table}: line {number} names no file. Fill in its path or remove it.")
        # A user's own table may name pictures anywhere; but one made elsewhere names what is not here at all.
        if _lies_outside(table.parent, file) and not file.is_file():
            raise DataError(
                f"{table}: line {number} names {utf8(path)}, which lies outside of the table's folder and is not "
                "there. Write paths relative to the table."
            )
        split = None
        if split_column is not None:
            said = row.get(split_column, "")
            split = split_of(said)
            if split is None:
                raise DataError(
                    f"{table}: line {number} has the split {said!r}. It must be train, validation or test; without "
                    "that column the pictures are dealt out."
                )
        yield _picture(path, row.get("label", ""), split, partial(_bytes_of, file))


def _lies_outside(folder: Path, file: Path) -> bool:
    try:
        return not file.resolve().is_relative_to(folder.resolve())
    # Links that lead round in a circle, or a NUL in the name: it is nowhere.
    except (OSError, RuntimeError, ValueError):
        return False


def _from_pixel_rows(
    table: Path, columns: list[str], rows: Iterable[tuple[int, Mapping[str, str]]]
) -> Iterator[Picture]:
    for number, row in rows:
        label = row.get("emotion", "").strip()
        name = _FER2013_NUMBERS[int(label)] if label.isascii() and label.isdigit() and int(label) < 7 else label
        split = None
        if "usage" in columns:
            split = split_of(row.get("usage", ""))
            if split is None:
                raise DataError(
                    f"{table}: line {number} has the usage {row.get('usage', '')!r}. It must be Training, PublicTest "
                    "or PrivateTest; without that column the pictures are dealt out."
                )
        place, emotion = f"{table.name}:{number}", emotion_of(name)
        if emotion is None:
            yield Picture(place, name, None, split, None)
        else:
            yield _decoded(place, name, emotion, split, _image_of(row.get("pixels", "")))


def _image_of(pixels: str) -> np.ndarray | None:
    """Turn numbers in a line into a square picture; None when they are no square number of values from 0 to 255."""
    try:
        with warnings.catch_warnings():
            # Of a line that is not all numbers older releases of NumPy only warn.
            warnings.simplefilter("error", DeprecationWarning)
            # Five times as fast as splitting the line: 35,887 of them take 2 s.
            values = np.fromstring(pixels, np.int64, sep=" ")
    except (ValueError, DeprecationWarning):
        return None
    side_px = math.isqrt(len(values))
    if side_px < 1 or side_px**2 != len(values) or values.min() < 0 or values.max() > 255:
        return None
    return values.astype(np.uint8).reshape(side_px, side_px)
