"""an annotated video + a moment -> the frame that is shown then, as a JPEG, and the faces that are in it"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ferflow.frames import read_images_at
from ferflow.records import FaceColumns

_LONGEST_SIDE_PX = 1280
_QUALITY = 85


@dataclass(frozen=True, slots=True)
class ShownFace:
    """A face of a frame."""

    track_id: int
    """The person."""
    probabilities: tuple[float, ...]
    """One for each of EMOTIONS, of this frame alone."""
    label: int
    """Which of EMOTIONS it is labelled with."""


def frame_jpeg(video: Path, seconds: float) -> bytes | None:
    """The frame that appears at a time, as a JPEG no larger than a page shows it; None if there is none.

    The file is sought in: how long it is does not matter.

    Args:
        video: an annotated video of the results.
        seconds: one of `ferflow.frames.read_frame_times`.

    Raises:
        VideoError: the video cannot be read.
    """
    for _, image_rgb in read_images_at(video, {0: seconds}):
        height, width = image_rgb.shape[:2]
        scale = min(_LONGEST_SIDE_PX / max(height, width), 1.0)
        if scale < 1:
            image_rgb = cv2.resize(
                image_rgb, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA
            )
        bgr = cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR)
        return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
    return None


def faces_at(faces: FaceColumns, labels: np.ndarray, seconds: float) -> list[ShownFace]:
    """The faces of the frame that is shown at a time; where only some frames were analysed, those of the last one.

    Args:
        faces: all rows of the video.
        labels: int (n,), which of EMOTIONS each row is labelled with.
        seconds: the time.
    """
    end = int(np.searchsorted(faces.pts_seconds, seconds + 1e-6, side="right"))
    if not end:
        return []
    start = int(np.searchsorted(faces.pts_seconds, faces.pts_seconds[end - 1] - 1e-6, side="left"))
    if seconds >= faces.pts_seconds[start] + faces.frame_seconds[start] - 1e-6:
        return []
    columns = (faces.track_id, faces.probabilities, labels)
    rows = zip(*(column[start:end].tolist() for column in columns), strict=True)
    return [ShownFace(track_id, tuple(shares), label) for track_id, shares, label in sorted(rows)]
