"""faces tables -> the faces that a person should label next"""

import bisect
import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ferflow.emotions import EMOTIONS
from ferflow.errors import ConfigError, VideoError
from ferflow.merged_rows import stream_videos
from ferflow.records import Analysis, Box, Face
from ferflow.storage import Results, holding_tables, place

LEAST_SURE, RANDOM = "least sure", "random"
"""Why a face was picked."""

_APART_SECONDS = 1.0
# Nearer in time, two faces of one person look alike: the second would cost as much as the first and teach less.
_PER_TRACK, _PER_VIDEO = 5, 20
# More of one track or one video only where the others do not fill the sheet.
_LEAST_FACE_PX = 24
# In a smaller face a person sees no expression either (tried on a street scene: 28 pixels can be read, 20 cannot).

_BOX_COLUMNS = ("x_min", "y_min", "x_max", "y_max")
_EYE_COLUMNS = ("right_eye_x", "right_eye_y", "left_eye_x", "left_eye_y")
_COLUMNS = ("frame_index", "pts_seconds", "track_id", *_BOX_COLUMNS, *_EYE_COLUMNS, "detection_score", *EMOTIONS)


@dataclass(frozen=True, slots=True)
class FacePlace:
    """Which face of which frame of which video."""

    video_id: str
    """Hash of the video's bytes; the tables have its path."""
    frame_index: int
    """Position of the frame among the decoded frames, from 0."""
    track_id: int
    """The person, within the video."""


@dataclass(frozen=True, slots=True)
class PickedFace:
    """A face that a person should look at, and all that is needed to cut it out."""

    place: FacePlace
    """Where it is found again."""
    source: str
    """The video's path."""
    pts_seconds: float
    """When the frame appears."""
    face: Face
    """Where in the frame."""
    probabilities: tuple[float, ...]
    """What the model thought, in the order of EMOTIONS."""
    model_version: str
    """Which model."""
    why: str
    """LEAST_SURE or RANDOM."""


@dataclass(frozen=True, slots=True)
class Picked:
    """The faces for one review."""

    faces: tuple[PickedFace, ...]
    """Those of which the model was least sure, the least first; then those drawn."""
    face_count: int
    """How many faces there were to pick from."""
    problems: tuple[str, ...]
    """A sentence for each video or table that had to be left out."""


def pick_faces(
    results: Results, *, count: int, random_share: float, seed: int, reviewed: Collection[FacePlace] = ()
) -> Picked:
    """Pick the faces that are worth a person's time.

    Most are those of which the model was least sure: the smallest margin between its first and its second guess.
    B. Settles, "Active Learning Literature Survey" (2009), section 3.1: the margin suits those who want fewer wrong
    answers, for it asks about what tells two confused classes apart; entropy, which also looks at how the rest is
    spread over classes that nobody would choose, suits those who want a lower log-loss. The others are drawn from
    all faces alike, so that what is labelled is not only the hard cases but also what the videos mostly hold.

    Faces smaller than 24 pixels are passed over: nobody could label them. Two of one track are at least a second
    apart, also from those reviewed before. Of the least sure, no track gives more than 5 and no video more than 20,
    unless there are not enough others. The same results, seed and reviewed faces give the same picks. Every row is
    read once, and memory does not grow with their number.

    Args:
        results: where the faces are.
        count: how many to pick.
        random_share: which part of them to draw, 0 to 1.
        seed: of the draw.
        reviewed: faces that a person has been given before.

    Raises:
        ConfigError: there are no results.
    """
    if not results.table("faces").is_dir():
        raise ConfigError(
            f"{results.root}: there are no results in this folder; run `ferflow analyze` first, or name another with "
            "--results."
        )
    reviewed_in: defaultdict[str, list[FacePlace]] = defaultdict(list)
    for seen in reviewed:
        reviewed_in[seen.video_id].append(seen)
    drawn_count = round(count * random_share)
    unsure = _Sheet(count - drawn_count, why=LEAST_SURE, per_track=_PER_TRACK, per_video=_PER_VIDEO)
    # Up to two of those drawn lie within a second of each of the least sure and are left out in the end.
    spare = 2 * unsure.size if drawn_count else 0
    drawn = _Sheet(drawn_count + spare, why=RANDOM)
    problems = []
    face_count = 0
    with holding_tables(results.root):
        for path in sorted(results.table("faces").glob("*.parquet")):
            try:
                for analysis, pieces in stream_videos(path, _COLUMNS):
                    if not place(analysis.source).is_file():
                        problems.append(
                            f"{analysis.source}: the video is not there any more, so its faces cannot be shown."
                        )
                        continue
                    reviewed_here = reviewed_in[analysis.video_id]
                    face_count += _look_through(analysis, pieces, unsure, drawn, reviewed_here, seed=seed)
            except VideoError as error:
                problems.append(str(error))

    faces = unsure.faces()
    times = _Times((_person(picked), picked.pts_seconds) for picked in faces)
    others = (picked for picked in drawn.faces() if times.is_free(_person(picked), picked.pts_seconds))
    faces += [picked for _, picked in zip(range(drawn_count), others, strict=False)]
    return Picked(tuple(faces), face_count, tuple(problems))


class _Sheet:
    """The faces of the lowest scores among the videos met so far, spread over tracks and videos."""

    def __init__(self, size: int, *, why: str, per_track: int | None = None, per_video: int | None = None) -> None:
        self.size = size
        self._why = why
        self._per_track = per_track or max(size, 1)
        self._per_video = per_video or max(size, 1)
        self._entries: list[tuple[int, float, PickedFace]] = []
        self.highest_score = math.inf if size else -math.inf
        """A face with a higher score has no chance any more."""

    def add(self, analysis: Analysis, rows: np.ndarray, shown: Iterable[tuple[int, float]]) -> None:
        """Enter a video.

        Args:
            analysis: which video it is.
            rows: its faces with their scores.
            shown: track and time of its faces that were reviewed before.
        """
        times = _Times(shown)
        of_track, of_level = Counter[int](), Counter[int]()
        entries = []
        for row in rows[np.lexsort((rows["track_id"], rows["frame_index"], rows["score"]))]:
            track, pts = int(row["track_id"]), float(row["pts_seconds"])
            if times.is_free(track, pts):
                times.take(track, pts)
                # How often the limits would have to be lifted before this face has its turn.
                level = of_track[track] // self._per_track
                of_track[track] += 1
                while of_level[level] >= self._per_video:
                    level += 1
                of_level[level] += 1
                entries.append((level, float(row["score"]), self._picked(analysis, row)))
        if not entries:
            return
        self._entries += self._best(entries)
        within_limits = [entry for entry in self._entries if entry[0] == 0]
        if len(within_limits) >= self.size:
            self._entries = self._best(within_limits)
            self.highest_score = max((score for _, score, _ in self._entries), default=-math.inf)

    def faces(self) -> list[PickedFace]:
        """The best faces, lowest score first; beyond the limits only as many as it takes to fill the sheet."""
        chosen = self._best(self._entries)
        return [picked for _, _, picked in self._best([(0, score, picked) for _, score, picked in chosen])]

    def _best(self, entries: list[tuple[int, float, PickedFace]]) -> list[tuple[int, float, PickedFace]]:
        def rank(entry: tuple[int, float, PickedFace]) -> tuple[int, float, str, int, int]:
            level, score, picked = entry
            return level, score, picked.place.video_id, picked.place.frame_index, picked.place.track_id

        return sorted(entries, key=rank)[: self.size]

    def _picked(self, analysis: Analysis, row: np.void) -> PickedFace:
        numbers = {name: float(row[name]) for name in _COLUMNS}
        right_x, right_y, left_x, left_y = (numbers[name] for name in _EYE_COLUMNS)
        return PickedFace(
            place=FacePlace(analysis.video_id, int(row["frame_index"]), int(row["track_id"])),
            source=analysis.source,
            pts_seconds=numbers["pts_seconds"],
            face=Face(
                Box(*(numbers[name] for name in _BOX_COLUMNS)),
                right_eye_xy=(right_x, right_y),
                left_eye_xy=(left_x, left_y),
                score=numbers["detection_score"],
            ),
            probabilities=tuple(numbers[emotion] for emotion in EMOTIONS),
            model_version=analysis.model_version,
            why=self._why,
        )


class _Times:
    """When each person is shown already."""

    def __init__(self, taken: Iterable[tuple[Hashable, float]]) -> None:
        self._of_person: defaultdict[Hashable, list[float]] = defaultdict(list)
        for person, pts_seconds in taken:
            self.take(person, pts_seconds)

    def take(self, person: Hashable, pts_seconds: float) -> None:
        bisect.insort(self._of_person[person], pts_seconds)

    def is_free(self, person: Hashable, pts_seconds: float) -> bool:
        """Whether the person is shown at no time near this one."""
        taken = self._of_person[person]
        after = bisect.bisect(taken, pts_seconds)
        return all(abs(pts_seconds - near) >= _APART_SECONDS for near in taken[max(after - 1, 0) : after + 1])


def _person(picked: PickedFace) -> tuple[str, int]:
    return picked.place.video_id, picked.place.track_id


def _look_through(
    analysis: Analysis,
    pieces: Iterator[np.ndarray],
    unsure: _Sheet,
    drawn: _Sheet,
    reviewed: Collection[FacePlace],
    *,
    seed: int,
) -> int:
    """Enter one video in both sheets; returns how many faces it has to pick from."""
    seed_bytes = hashlib.sha256(f"{seed}:{analysis.video_id}".encode()).digest()
    lottery = np.random.default_rng(int.from_bytes(seed_bytes))
    # A face of the video as one number.
    reviewed_keys = np.array([(place.frame_index << 32) + place.track_id for place in reviewed], np.int64)
    shown: list[tuple[int, float]] = []
    waiting: list[np.ndarray | None] = [None, None]
    face_count = 0
    for piece in pieces:
        sides_px = (piece["x_max"] - piece["x_min"] + piece["y_max"] - piece["y_min"]) / 2
        rows = piece[sides_px >= _LEAST_FACE_PX]
        face_count += len(rows)
        if reviewed:
            keys = (piece["frame_index"].astype(np.int64) << 32) + piece["track_id"]
            again = piece[np.isin(keys, reviewed_keys)]
            shown += zip(again["track_id"].tolist(), again["pts_seconds"].tolist(), strict=True)
        for turn, (sheet, scores) in enumerate(((unsure, _margins(rows)), (drawn, lottery.random(len(rows))))):
            # A pick keeps at most two elected ones out, those of the seconds before and after it.
            per_track = 3 * (sheet.size + len(reviewed))
            waiting[turn] = _elect(waiting[turn], rows, scores, below=sheet.highest_score, per_track=per_track)
    for sheet, elected in zip((unsure, drawn), waiting, strict=True):
        if elected is not None:
            sheet.add(analysis, elected, shown)
    return face_count


def _margins(rows: np.ndarray) -> np.ndarray:
    """How far the first guess lies before the second, float32 (n,)."""
    guesses = np.partition(np.stack([rows[emotion] for emotion in EMOTIONS], axis=1), -2, axis=1)
    margins: np.ndarray = guesses[:, -1] - guesses[:, -2]
    return margins


def _elect(
    earlier: np.ndarray | None, rows: np.ndarray, scores: np.ndarray, *, below: float, per_track: int
) -> np.ndarray:
    """Keep the face of the lowest score of each second of each track, and the lowest of these of each track."""
    has_chance = scores <= below
    rows, scores = rows[has_chance], scores[has_chance]
    scored = np.empty(len(rows), [*rows.dtype.descr, ("score", np.float64)])
    for name in rows.dtype.names or ():
        scored[name] = rows[name]
    scored["score"] = scores
    if earlier is not None:
        scored = np.concatenate([earlier, scored])
    seconds = np.floor(scored["pts_seconds"])
    order = np.lexsort((scored["frame_index"], scored["score"], seconds, scored["track_id"]))
    scored, seconds = scored[order], seconds[order]
    elected = scored[_rank_within(scored["track_id"], seconds) == 0]
    elected = elected[np.lexsort((elected["frame_index"], elected["score"], elected["track_id"]))]
    kept: np.ndarray = elected[_rank_within(elected["track_id"]) < per_track]
    return kept


def _rank_within(*sorted_keys: np.ndarray) -> np.ndarray:
    """Number the rows of each run of equal keys from 0: int64 (n,)."""
    numbers = np.arange(len(sorted_keys[0]))
    is_first = np.zeros(len(numbers), bool)
    is_first[:1] = True
    for keys in sorted_keys:
        is_first[1:] |= keys[1:] != keys[:-1]
    ranks: np.ndarray = numbers - np.maximum.accumulate(np.where(is_first, numbers, 0))
    return ranks
