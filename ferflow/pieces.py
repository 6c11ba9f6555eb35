"""a long video's faces <-> files of its pieces, each made by whoever is free, stitched when all are there.

The folder of a video's pieces is made by the run that has claimed the video, and removed by it when the faces of the
whole are written. As long as it is there, any thread of any process on any host may make a piece:

    for number in pieces.take(Claims(results)):
        ...  # analyse the piece, write it to pieces.path(number)

Each piece has a claim of its own, and its file appears complete or not at all, so a killed run goes on with the pieces
that are missing.
"""

import contextlib
import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ferflow.claims import Claims
from ferflow.config import Settings
from ferflow.records import Box, Face, FaceRow
from ferflow.storage import Results, is_local, list_files, part_file
from ferflow.tracks import Tracker

_CUTS_FILE = "cuts.json"


@dataclass(frozen=True, slots=True)
class Pieces:
    """The pieces of one video for one model and settings."""

    video_id: str
    """Hash of the video's bytes."""
    folder: Path
    """Where their files lie."""
    cuts: tuple[Fraction, ...]
    """Seconds at which the video is cut, as `find_cuts` gives them."""

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.cuts) + 1

    def span(self, number: int) -> tuple[Fraction | None, Fraction | None]:
        """Where a piece begins and ends; None for the beginning and the end of the video."""
        return (self.cuts[number - 1] if number else None), (self.cuts[number] if number < len(self.cuts) else None)

    def path(self, number: int) -> Path:
        """The file of a piece, from 0."""
        return self.folder / f"{number}.npz"

    def missing(self) -> list[int]:
        """The pieces that are still to be made; none once the folder was closed.

        Raises:
            OSError: the results cannot be read.
        """
        there = {file.path.name for file in list_files(self.folder)}
        return [number for number in range(self.count) if f"{number}.npz" not in there] if _CUTS_FILE in there else []

    def take(self, claims: Claims) -> Iterator[int]:
        """Claim pieces that are missing, one after the other; ends when every piece is there or claimed by another.

        Raises:
            OSError: the results folder is at fault.
        """
        for number in self.missing():
            with claims.hold(f"{self.video_id}-{number}") as is_ours:
                if is_ours and number in self.missing():
                    yield number

    def close(self, claims: Claims) -> None:
        """Remove the files: the faces of the whole are written, or will not be."""
        _remove(self.folder.parent)
        for claimed in claims.claimed():
            if claimed.startswith(f"{self.video_id}-"):
                with claims.hold(claimed):  # Of a process that was killed; to give it up removes it.
                    pass


def open_pieces(
    results: Results,
    video_id: str,
    cuts: Sequence[Fraction],
    *,
    model_version: str,
    settings: Settings,
    redo: bool = False,
) -> Pieces:
    """Make a video's pieces known to whoever may help; only for who has claimed the video.

    Those that an earlier run has made are kept.

    Args:
        results: where to.
        video_id: hash of the video's bytes.
        cuts: where it is cut.
        model_version: the weights that score the faces.
        settings: what to look at.
        redo: make anew what is there.

    Raises:
        OSError: the results folder is at fault.
    """
    folder = _folder(results, video_id, model_version, settings)
    pieces = Pieces(video_id, folder, tuple(cuts))
    if redo or find_pieces(results, video_id, model_version=model_version, settings=settings) != pieces:
        _remove(folder.parent)
        with part_file(folder / _CUTS_FILE, folder=results.parts) as part:
            part.write_text(json.dumps([str(cut) for cut in cuts]))
    return pieces


def find_pieces(results: Results, video_id: str, *, model_version: str, settings: Settings) -> Pieces | None:
    """The pieces of a video that somebody is at work on, or was; None if there are none.

    Raises:
        OSError: the results cannot be read.
    """
    folder = _folder(results, video_id, model_version, settings)
    try:
        cuts = json.loads((folder / _CUTS_FILE).read_bytes())
        return Pieces(video_id, folder, tuple(map(Fraction, cuts)))
    except (FileNotFoundError, ValueError, TypeError):
        return None


@dataclass(frozen=True, slots=True)
class PieceFaces:
    """What was found in one piece, or in a whole video that is not cut."""

    frame_index: np.ndarray
    """int32 (m,): position of each frame looked at among the decoded frames of the piece."""
    pts_seconds: np.ndarray
    """float64 (m,): when it appears."""
    frame_seconds: np.ndarray
    """float64 (m,): how long it is shown."""
    face_count: np.ndarray
    """int32 (m,): how many faces it has."""
    faces: np.ndarray
    """float64 (n, 9): x_min, y_min, x_max, y_max, the right and the left eye's x and y, and the score of each face."""
    probabilities: np.ndarray
    """float32 (n, 7): its emotions."""
    frame_count: int
    """Decoded frames of the piece."""
    end: Fraction
    """When its last frame ends."""


def write_piece(path: Path, piece: PieceFaces, *, parts: Path) -> None:
    """Write the faces of a piece; the file appears complete or not at all."""
    with part_file(path, folder=parts) as part, part.open("wb") as file:
        np.savez_compressed(
            file,
            frame_index=piece.frame_index,
            pts_seconds=piece.pts_seconds,
            frame_seconds=piece.frame_seconds,
            face_count=piece.face_count,
            faces=piece.faces,
            probabilities=piece.probabilities,
            frame_count=piece.frame_count,
            end=np.array(str(piece.end)),
        )


def read_piece(path: Path) -> PieceFaces:
    """Read what `write_piece` wrote, exactly.

    Raises:
        OSError: it is not there.
        ValueError: it is damaged.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays: dict[str, Any] = dict(file)
        end, frame_count = Fraction(str(arrays.pop("end"))), int(arrays.pop("frame_count"))
        return PieceFaces(**arrays, frame_count=frame_count, end=end)
    except (zipfile.BadZipFile, KeyError, TypeError) as error:
        raise ValueError(f"{path}: this piece is damaged.") from error


def piece_faces(
    looks: Iterable[tuple[int, float, float, list[Face]]], probabilities: np.ndarray, *, frame_count: int, end: Fraction
) -> PieceFaces:
    """Put together what was found in a piece.

    Args:
        looks: index, time, duration and faces of every frame looked at, in order of time.
        probabilities: float32 (n, 7), of every face in this order.
        frame_count: decoded frames.
        end: when the last one ends.
    """
    looks = list(looks)
    faces = [
        (box.x_min, box.y_min, box.x_max, box.y_max, *face.right_eye_xy, *face.left_eye_xy, face.score)
        for *_, found in looks
        for face in found
        for box in [face.box]
    ]
    return PieceFaces(
        frame_index=np.array([index for index, *_ in looks], np.int32),
        pts_seconds=np.array([seconds for _, seconds, _, _ in looks], np.float64),
        frame_seconds=np.array([seconds for _, _, seconds, _ in looks], np.float64),
        face_count=np.array([len(found) for *_, found in looks], np.int32),
        faces=np.array(faces, np.float64).reshape(-1, 9),
        probabilities=probabilities,
        frame_count=frame_count,
        end=end,
    )


def stitch(pieces: Iterable[PieceFaces]) -> Iterator[FaceRow]:
    """The rows of a whole video: frames counted through, and each person followed from piece to piece."""
    tracker = Tracker()
    frames_before = 0
    for piece in pieces:
        first = 0
        for index, pts_seconds, frame_seconds, count in zip(
            piece.frame_index.tolist(),
            piece.pts_seconds.tolist(),
            piece.frame_seconds.tolist(),
            piece.face_count.tolist(),
            strict=True,
        ):
            faces = [_face(values) for values in piece.faces[first : first + count].tolist()]
            scores = piece.probabilities[first : first + count].tolist()
            for face, track_id, probabilities in zip(faces, tracker.assign(faces, pts_seconds), scores, strict=True):
                yield FaceRow(
                    frames_before + index,
                    pts_seconds,
                    frame_seconds,
                    track_id,
                    face,
                    probabilities=tuple(probabilities),
                )
            first += count
        frames_before += piece.frame_count


def _face(values: list[float]) -> Face:
    return Face(
        box=Box(*values[:4]),
        right_eye_xy=(values[4], values[5]),
        left_eye_xy=(values[6], values[7]),
        score=values[8],
    )


def _folder(results: Results, video_id: str, model_version: str, settings: Settings) -> Path:
    key = hashlib.sha256(f"{model_version}:{settings.settings_hash}".encode()).hexdigest()[:12]
    return results.pieces / video_id / key


def _remove(folder: Path) -> None:
    if is_local(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    bucket: Any = folder
    with contextlib.suppress(FileNotFoundError):
        bucket.fs.rm(bucket.path, recursive=True)
