"""faces of neighbouring frames -> one person's track."""

import math
from dataclasses import dataclass

from ferflow.records import Face

MAX_MISSED_SECONDS = 1.0
"""How long a face may go unseen and still come back as the same person."""

# Distances are in face sizes (the geometric mean of a box's sides, about 0.19 m on a person), so that one set of
# numbers fits a face of 20 px and one of 1000 px.
_REACH = 0.4  # a detector's jitter and a turn of the head between two neighbouring frames
_REACH_PER_SECOND = 4.0  # how far a motion that nobody foresaw may take a face
_MOST_REACH = 1.5  # people side by side are 1.2 sizes (cheek to cheek) to 3 sizes apart
_RATIO = math.log(1.4)  # largest change of size between neighbouring frames, as a logarithm
_RATIO_PER_SECOND = math.log(1.5)
_MOST_RATIO = math.log(2.2)
_COST_PER_SECOND = 0.5  # a track seen a moment ago wins over one that was lost nearby
_VELOCITY_SECONDS = 0.15  # memory of the velocity: long against jitter at 60 fps, short against a change of pace


@dataclass(slots=True)
class _Track:
    """What is remembered of one person."""

    track_id: int
    x: float
    y: float
    size: float
    seen_seconds: float
    x_velocity: float = 0.0
    y_velocity: float = 0.0
    sightings: int = 1

    def cost(self, x: float, y: float, size: float, now: float) -> float | None:
        """How unlikely it is that this person is now there, in face sizes; None when it is out of the question."""
        seconds = max(now - self.seen_seconds, 0.0)
        ratio = abs(math.log(size / self.size))
        if ratio > min(_RATIO + _RATIO_PER_SECOND * seconds, _MOST_RATIO):
            return None
        # A face that was missed is back where it was heading, or it had stopped there when it was lost.
        heading_x, heading_y = self.x + self.x_velocity * seconds, self.y + self.y_velocity * seconds
        pixels = min(math.hypot(x - heading_x, y - heading_y), math.hypot(x - self.x, y - self.y))
        distance = pixels / math.sqrt(size * self.size)
        if distance > min(_REACH + _REACH_PER_SECOND * seconds, _MOST_REACH):
            return None
        return distance + ratio + _COST_PER_SECOND * seconds

    def move_to(self, x: float, y: float, size: float, now: float) -> None:
        """Take over a new sighting."""
        seconds = now - self.seen_seconds
        if seconds > 0:
            weight = max(1 - math.exp(-seconds / _VELOCITY_SECONDS), 1 / self.sightings)
            self.x_velocity += weight * ((x - self.x) / seconds - self.x_velocity)
            self.y_velocity += weight * ((y - self.y) / seconds - self.y_velocity)
        self.x, self.y, self.size, self.seen_seconds = x, y, size, max(now, self.seen_seconds)
        self.sightings += 1


class Tracker:
    """Gives the faces of one video, frame after frame, the number of the person they belong to.

    As in SORT (Bewley et al., Simple Online and Realtime Tracking, ICIP 2016, https://arxiv.org/abs/1602.00763)
    a track goes on at its velocity and takes the face nearest to where that puts it. Instead of the overlap,
    which is zero for a small face that moves at a low frame rate, nearness is the distance in face sizes; and all
    times are seconds, so one setting serves 60 frames a second, 1 frame a second and a rate that varies.

    Memory holds only the people seen in the last second or so.
    """

    def __init__(self) -> None:
        self._tracks: list[_Track] = []
        self._next_id = 0
        self._previous_seconds: float | None = None

    def assign(self, faces: list[Face], pts_seconds: float) -> list[int]:
        """Number the faces of the next frame; call it for frames without a face too.

        Args:
            faces: the frame's faces, each person once.
            pts_seconds: when the frame appears; later than the frame before.

        Returns:
            A track id per face, in the order of the faces, none twice; ids count from 0 as people appear.
        """
        # What counts is the time in frames that did not show the face: at 1 frame a second the step between
        # frames is already a second, and a face in both of them was never missed.
        latest = pts_seconds if self._previous_seconds is None else self._previous_seconds
        self._tracks = [track for track in self._tracks if latest - track.seen_seconds <= MAX_MISSED_SECONDS]
        self._previous_seconds = pts_seconds

        places = [_place(face) for face in faces]
        pairs = sorted(
            (cost, track_index, face_index)
            for track_index, track in enumerate(self._tracks)
            for face_index, place in enumerate(places)
            if (cost := track.cost(*place, pts_seconds)) is not None
        )
        track_of_face: dict[int, _Track] = {}
        taken: set[int] = set()
        for _, track_index, face_index in pairs:
            if track_index not in taken and face_index not in track_of_face:
                taken.add(track_index)
                track_of_face[face_index] = self._tracks[track_index]

        ids = []
        for face_index, place in enumerate(places):
            track = track_of_face.get(face_index)
            if track is None:
                track = _Track(self._next_id, *place, pts_seconds)
                self._next_id += 1
                self._tracks.append(track)
            else:
                track.move_to(*place, pts_seconds)
            ids.append(track.track_id)
        return ids


def _place(face: Face) -> tuple[float, float, float]:
    """Centre and size of a face in pixels; never smaller than one pixel."""
    box = face.box
    return (box.x_min + box.x_max) / 2, (box.y_min + box.y_max) / 2, max(math.sqrt(box.area), 1.0)
