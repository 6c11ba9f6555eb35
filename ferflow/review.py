"""picked faces -> crops in a folder, ready to be sorted by hand into one of each emotion"""

import contextlib
import csv
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from ferflow.emotions import EMOTIONS
from ferflow.errors import ConfigError, VideoError
from ferflow.faces import Framing, crop_gray, face_window
from ferflow.frames import read_images_at
from ferflow.records import Face
from ferflow.selection import FacePlace, PickedFace
from ferflow.storage import content_id, fetched, list_files, part_file, place, reach

UNSORTED = "unsorted"
"""Folder of the crops that are still to be sorted; those of the emotions lie beside it."""
UNSURE = "unsure"
"""Folder for what shows no one emotion, or no face; training does not read it."""
TABLE_FILE = "faces.csv"
"""What is known of every face that was ever written to a review."""

_LEAST_SIDE_PX, _MOST_SIDE_PX = 96, 384
_JPEG_QUALITY = 95
_READABLE_BYTES = 90
# A whole name is then shorter than 143 bytes, the limit of encrypted home folders; others allow 255.
_NAME = re.compile(r".*~([0-9a-f]{16})~f([0-9]{1,9})~t([0-9]{1,9})(?![0-9]).*", re.DOTALL)
_PLACE_COLUMNS = ("file", "source", "video_id", "frame_index", "pts_seconds", "track_id")
_COLUMNS = (*_PLACE_COLUMNS, *EMOTIONS, "model_version", "picked")


@dataclass(frozen=True, slots=True)
class Written:
    """What became of the picked faces."""

    faces: tuple[PickedFace, ...]
    """Those whose crops were written."""
    problems: tuple[str, ...]
    """A sentence for each video whose faces could not be."""


def name_crop(source: str, place: FacePlace) -> str:
    """Name a crop so that a person sees what video it is from, and every file system takes it.

    Of the video's name only letters, digits, `-` and `_` are kept, and no more than 90 bytes.
    """
    letters = (
        letter if letter in "-_" or unicodedata.category(letter)[0] in "LMN" else " "
        for letter in unicodedata.normalize("NFC", Path(source).stem)
    )
    words = "_".join("".join(letters).split())
    readable = words.encode()[:_READABLE_BYTES].decode(errors="ignore").strip("-_")
    return f"{readable or 'video'}~{place.video_id}~f{place.frame_index:06d}~t{place.track_id}.jpg"


def parse_name(name: str) -> FacePlace | None:
    """Read what `name_crop` wrote; None for any other name.

    What file managers add is passed over: ` (2)`, `Copy of `, another ending.
    """
    found = _NAME.fullmatch(name)
    return found and FacePlace(found[1], int(found[2]), int(found[3]))


def video_id_of(path: str) -> str | None:
    """Say which video a face is from by its file's name; None where that does not tell."""
    found = parse_name(PurePosixPath(path).name)
    return None if found is None else found.video_id


def faces_reviewed(review: Path, labelled: Path) -> frozenset[FacePlace]:
    """Every face that a person was given before: what lies in either folder or stands in the review's table.

    Args:
        review: the folder of this machine.
        labelled: a folder or a bucket's prefix, which need not be there.

    Raises:
        ConfigError: the review's table is none; there is no such bucket, or its key is missing or wrong.
        OSError: the bucket does not answer.
    """
    reach(labelled)
    names = [row["file"] for row in _read_table(review / TABLE_FILE)]
    names += [file.path.name for folder in (review, labelled) for file in list_files(folder)]
    return frozenset(place for place in map(parse_name, names) if place is not None)


def write_review(
    faces: Sequence[PickedFace],
    review: Path,
    *,
    framing: Framing,
    crop_size_px: int,
    progress: Callable[[int], None] | None = None,
) -> Written:
    """Cut picked faces out of their videos and write them where a person can sort them.

    The pictures lie in `unsorted`, with nothing that tells the model's guess: who sees it tends to agree. Beside it
    are a folder for each emotion and `unsure`, and `faces.csv` says what is known of each picture. A video that is
    gone or changed is told of, and the others go on.

    Args:
        faces: what to write.
        review: the folder, made if it is not there; what it holds is kept.
        framing: how much of a face a crop shows, as for the network that is to learn from it.
        crop_size_px: side of that network's crops.
        progress: told how many faces are done.

    Raises:
        ConfigError: the folder cannot be written to, or holds another `faces.csv`.
    """
    table = review / TABLE_FILE
    rows = _read_table(table)
    try:
        for name in (UNSORTED, UNSURE, *EMOTIONS):
            (review / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{review}: nothing can be written to this folder ({error.strerror}); choose another with --out."
        ) from error
    written: list[PickedFace] = []
    problems = []
    done = 0
    try:
        for (source, _), group in groupby(sorted(faces, key=_video), key=_video):
            of_video = list(group)
            count = len(written)
            try:
                for picked, image_rgb in _with_images(place(source), of_video):
                    crop_rgb = cut_face(image_rgb, picked.face, framing, crop_size_px=crop_size_px)
                    write_jpeg(review / UNSORTED / name_crop(picked.source, picked.place), crop_rgb)
                    written.append(picked)
            except VideoError as error:
                problems.append(str(error))
            else:
                if missing := len(of_video) - (len(written) - count):
                    problems.append(
                        f"{source}: {missing} of {len(of_video)} of its faces are in frames that cannot be found."
                    )
            done += len(of_video)
            if progress is not None:
                progress(done)
    finally:
        # Also when it is interrupted: what lies in the folder then stands in the table.
        if written:
            _write_table(table, [*rows, *map(_row, written)])
    return Written(tuple(written), tuple(problems))


def cut_face(image_rgb: np.ndarray, face: Face, framing: Framing, *, crop_size_px: int) -> np.ndarray:
    """Cut a face out for a person, so that a network that reads the cut sees what it would have seen in the video.

    Args:
        image_rgb: uint8 (height, width, 3), the frame.
        face: the face in it.
        framing: how much of it to show.
        crop_size_px: side of the network's crops.

    Returns:
        uint8 (side, side, 3) RGB, as fine as the video, but at least about 96 and at most about 384 pixels a side.
        The side is a whole multiple of crop_size_px, the grid on which `crop_gray` samples before it averages:
        `crop_gray` of the whole cut is then the same as of the frame.
    """
    window = face_window(face, framing)
    multiple = -(-max(window.side_px, _LEAST_SIDE_PX) // crop_size_px)
    side_px = crop_size_px * int(max(min(multiple, _MOST_SIDE_PX // crop_size_px), 1))
    return np.stack([crop_gray(image_rgb[..., color], window, size_px=side_px) for color in range(3)], axis=2)


def _video(picked: PickedFace) -> tuple[str, str]:
    return picked.source, picked.place.video_id


def _with_images(source: Path, faces: Sequence[PickedFace]) -> Iterator[tuple[PickedFace, np.ndarray]]:
    """Each face of one video with the frame that it is in."""
    left_out = f"so its {len(faces)} faces were left out" if len(faces) > 1 else "so its face was left out"
    times = {picked.place.frame_index: picked.pts_seconds for picked in faces}
    with contextlib.ExitStack() as held:
        try:
            file = held.enter_context(fetched(source))
            is_same = content_id(file) == faces[0].place.video_id
        except OSError as error:
            raise VideoError(f"{source}: the video cannot be read any more ({error.strerror}), {left_out}.") from error
        if not is_same:
            raise VideoError(f"{source}: the file has changed since it was analysed, {left_out}; analyse it again.")
        for index, image_rgb in read_images_at(file, times):
            for picked in faces:
                if picked.place.frame_index == index:
                    yield picked, image_rgb


def write_jpeg(path: Path, image_rgb: np.ndarray) -> None:
    """Write a picture, uint8 (height, width, 3) RGB, with so little loss that a network reads the same from it."""
    # Chroma in full, and encoded in memory: OpenCV cannot write to names outside a system's code page.
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        _JPEG_QUALITY,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR), options)
    with part_file(path) as part:
        part.write_bytes(encoded.tobytes())


def _row(picked: PickedFace) -> dict[str, str]:
    place = picked.place
    values = (
        name_crop(picked.source, place),
        picked.source,
        place.video_id,
        place.frame_index,
        picked.pts_seconds,
        place.track_id,
        *(f"{probability:.4f}" for probability in picked.probabilities),
        picked.model_version,
        picked.why,
    )
    return dict(zip(_COLUMNS, map(str, values), strict=True))


def _read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a review's table; none if there is no table yet."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names, rows = list(reader.fieldnames or ()), list(reader)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (UnicodeDecodeError, csv.Error) as error:
        raise _not_ours(path) from error
    if names != list(_COLUMNS) or any(None in row or None in row.values() for row in rows):
        raise _not_ours(path)
    return rows


def _not_ours(path: Path) -> ConfigError:
    return ConfigError(
        f"{path}: this is not the table that `ferflow review` writes; move it away or choose another folder with --out."
    )


def _write_table(path: Path, rows: Sequence[dict[str, str]]) -> None:
    with part_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
