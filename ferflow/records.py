"""What the stages hand to each other: one frozen record per thing in the world."""

from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction

import numpy as np


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded picture of a video and when it is shown."""

    index: int
    """Position among the decoded frames, from 0."""
    pts: Fraction
    """Seconds at which the frame appears; exact, as the file states it."""
    duration: Fraction
    """Seconds until the next frame appears (for the last one: what the file states, or the usual step)."""
    image_rgb: np.ndarray
    """uint8 (height, width, 3), C-contiguous, as a viewer sees it (rotation applied)."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in source pixels, right and bottom exclusive; it may reach past the picture's edge."""

    x_min: float
    """Left edge."""
    y_min: float
    """Top edge."""
    x_max: float
    """Right edge."""
    y_max: float
    """Bottom edge."""

    @property
    def width(self) -> float:
        return self.x_max - self.x_min

    @property
    def height(self) -> float:
        return self.y_max - self.y_min

    @property
    def area(self) -> float:
        return max(self.width, 0.0) * max(self.height, 0.0)


@dataclass(frozen=True, slots=True)
class Face:
    """One face in one frame, as a detector found it."""

    box: Box
    """Where the face is, forehead to chin."""
    right_eye_xy: tuple[float, float]
    """The person's right eye in source pixels: the left one for a viewer."""
    left_eye_xy: tuple[float, float]
    """The person's left eye in source pixels: the right one for a viewer."""
    score: float
    """How sure the detector is, 0 to 1."""


@dataclass(frozen=True, slots=True)
class FaceRow:
    """One face in one frame, scored: one row of the faces table."""

    frame_index: int
    """Position of the frame among the decoded frames, from 0."""
    pts_seconds: float
    """When the frame appears."""
    frame_seconds: float
    """How long the frame is shown."""
    track_id: int
    """The person, within this video."""
    face: Face
    """Where."""
    probabilities: tuple[float, ...]
    """One number per class in the order of EMOTIONS, sum 1; empty until the face is scored."""


@dataclass(frozen=True, slots=True)
class FaceColumns:
    """All rows of one video's faces table as arrays of equal length n, in order of time."""

    frame_index: np.ndarray
    """int32 (n,), position of the frame among the decoded frames."""
    pts_seconds: np.ndarray
    """float64 (n,), when the frame appears."""
    frame_seconds: np.ndarray
    """float64 (n,), how long the frame is shown."""
    track_id: np.ndarray
    """int32 (n,), the person."""
    boxes_xyxy: np.ndarray
    """float32 (n, 4), x_min, y_min, x_max, y_max in source pixels."""
    probabilities: np.ndarray
    """float32 (n, 7), in the order of EMOTIONS, rows sum to 1."""


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What decoding a whole video told about it."""

    width: int
    """Pixels across, as a viewer sees it (rotation applied)."""
    height: int
    """Pixels down, as a viewer sees it (rotation applied)."""
    frame_count: int
    """Frames that could be decoded."""
    duration_seconds: float
    """When the last frame ends, counted from the file's beginning as players count."""
    fps: float
    """Frames a second, the average from the first frame to the last one's end."""
    has_audio: bool
    """Whether there is a sound track."""
    warning: str | None
    """What was wrong with the file although frames could be read (cut off, damaged frames), or None."""


@dataclass(frozen=True, slots=True)
class Analysis:
    """How one video's faces came about; travels inside the faces file."""

    video_id: str
    """Hash of the file's bytes."""
    source: str
    """The file's path or address."""
    model_version: str
    """The weights that scored the faces."""
    settings_hash: str
    """Names the settings that the result depends on."""
    started_at: datetime
    """When the first frame was read, UTC."""
    info: VideoInfo
    """What decoding told about the video."""
    source_tag: str | None = None
    """By what the file is known again without reading it: its length with its time, or with the bucket's ETag."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of time in which one person shows one emotion."""

    track_id: int
    """The person, within this video."""
    emotion: str
    """One of EMOTIONS."""
    start_seconds: float
    """When it begins."""
    end_seconds: float
    """When it ends."""
    mean_probability: float
    """Mean over the stretch of the probability of this emotion, 0 to 1."""


@dataclass(frozen=True, slots=True)
class VideoSummary:
    """One row of the videos table: what a person wants to know about one video."""

    video_id: str
    """Hash of the file's bytes."""
    source: str
    """The file's path or address."""
    status: str
    """`done` or `failed`."""
    error: str | None
    """One sentence on what is wrong with the file; for a `done` video what could not be read of it; or None."""
    info: VideoInfo | None
    """What decoding told; None when nothing could be decoded."""
    face_count: int
    """Rows in the faces table."""
    track_count: int
    """People, as far as tracking can tell."""
    dominant_emotion: str | None
    """The emotion shown for the longest time; None without faces."""
    emotion_shares: tuple[float, ...] | None
    """Share of the time of all faces that each of EMOTIONS took, sum 1; None without faces."""
    annotated_path: str | None
    """The annotated video, relative to the results folder."""
    timeline_path: str | None
    """The timeline picture, relative to the results folder."""
    model_version: str
    """The weights that scored the faces."""
    settings_hash: str
    """Names the settings that the result depends on."""
    processed_at: datetime
    """When the result was finished, UTC."""
    processing_seconds: float
    """From the first frame read to the finished result."""
    source_tag: str | None = None
    """By what the file is known again without reading it: its length with its time, or with the bucket's ETag."""
