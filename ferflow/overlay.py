"""frames + rows -> frames with boxes and labels drawn."""

import math
from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from ferflow.emotions import EMOTIONS
from ferflow.records import FaceColumns, Frame

_COLOR_OF = {
    "angry": (213, 94, 0),
    "disgust": (0, 158, 115),
    "fear": (204, 121, 167),
    "happy": (240, 180, 30),
    "neutral": (153, 153, 153),
    "sad": (0, 114, 178),
    "surprise": (86, 180, 233),
}
EMOTION_COLORS_RGB: tuple[tuple[int, int, int], ...] = tuple(_COLOR_OF[emotion] for emotion in EMOTIONS)
"""One colour per class in the order of EMOTIONS, for boxes and charts; told apart by colour-blind people
(Okabe and Ito, https://jfly.uni-koeln.de/color/)."""

_Rectangle = tuple[int, int, int, int]


def draw_frames(
    frames: Iterable[Frame], faces: FaceColumns, emotions: np.ndarray, *, scale: float = 1.0
) -> Iterator[Frame]:
    """Draw every face of the table on its frame.

    Args:
        frames: the video's frames in order; they are drawn on in place.
        faces: what to show; the percentage in a label is the probability here, so give smoothed ones.
        emotions: int (n,), the class to show for each row, as `summary.emotion_of_rows` tells it.
        scale: pixels of these frames per pixel of the source, when they were made smaller.

    Yields:
        The same frames. Where only some frames were analysed, a face is shown until its time is over.
    """
    for frame in frames:
        end = int(np.searchsorted(faces.frame_index, frame.index, side="right"))
        if end:
            start = int(np.searchsorted(faces.frame_index, faces.frame_index[end - 1], side="left"))
            ends_seconds = faces.pts_seconds[start] + faces.frame_seconds[start]
            if faces.frame_index[start] == frame.index or float(frame.pts) < ends_seconds - 1e-6:
                rows = slice(start, end)
                draw_faces(
                    frame.image_rgb,
                    faces.boxes_xyxy[rows] * scale,
                    faces.track_id[rows],
                    emotions[rows],
                    faces.probabilities[rows],
                )
        yield frame


def draw_faces(
    image_rgb: np.ndarray,
    boxes_xyxy: np.ndarray,
    track_ids: np.ndarray,
    emotions: np.ndarray,
    probabilities: np.ndarray,
) -> None:
    """Draw a box and a label like `happy 87%  #2` for each face, in place.

    Args:
        image_rgb: uint8 (height, width, 3), C-contiguous and writable; changed.
        boxes_xyxy: float (n, 4) in pixels of the picture; may reach past its edge.
        track_ids: int (n,), the person.
        emotions: int (n,), the class to show, an index into EMOTIONS.
        probabilities: float (n, 7), of which the shown class's is written.
    """
    height, width = image_rgb.shape[:2]
    short_px = min(height, width)
    line_px = max(round(short_px / 360), 1)
    boxes = [_clip(box, width, height) for box in boxes_xyxy.tolist()]
    colors = [EMOTION_COLORS_RGB[emotion] for emotion in emotions.tolist()]
    for box, color in zip(boxes, colors, strict=True):
        if box is not None:
            _draw_frame(image_rgb, box, line_px, color)

    tags: list[_Rectangle] = []
    for box, color, track_id, emotion, row in zip(boxes, colors, track_ids, emotions, probabilities, strict=True):
        if box is None:
            continue
        text_px = _text_px(short_px, box)
        text = f"{EMOTIONS[emotion]} {row[emotion]:.0%}  #{track_id}"
        others = [other for other in boxes if other is not None and other is not box]
        tags.append(_draw_tag(image_rgb, box, text, text_px, line_px, color, tags=tags, others=others))


def _text_px(short_px: int, box: _Rectangle) -> int:
    """Height of the letters: grows with the picture, and a little with the face."""
    usual = 8 + 0.014 * short_px
    face_share = (box[3] - box[1]) / short_px
    return round(max(usual * min(max(math.sqrt(face_share / 0.25), 0.8), 1.3), 9))


def _clip(box: list[float], width: int, height: int) -> _Rectangle | None:
    """The part of a box inside the picture in whole pixels; None when there is none."""
    left, top = max(round(box[0]), 0), max(round(box[1]), 0)
    right, bottom = min(round(box[2]), width), min(round(box[3]), height)
    return (left, top, right, bottom) if left < right and top < bottom else None


def _draw_frame(image: np.ndarray, box: _Rectangle, line_px: int, color: tuple[int, int, int]) -> None:
    """A frame just inside the box. Slices, because cv2.rectangle rounds the corners of thick lines."""
    left, top, right, bottom = box
    line_px = min(line_px, right - left, bottom - top)
    image[top : top + line_px, left:right] = color
    image[bottom - line_px : bottom, left:right] = color
    image[top:bottom, left : left + line_px] = color
    image[top:bottom, right - line_px : right] = color


def _draw_tag(
    image: np.ndarray,
    box: _Rectangle,
    text: str,
    text_px: int,
    line_px: int,
    color: tuple[int, int, int],
    *,
    tags: list[_Rectangle],
    others: list[_Rectangle],
) -> _Rectangle:
    """Write the text on a filled tag at the best free place by the box; returns the tag's place."""
    height, width = image.shape[:2]
    font = cv2.FontFace("sans")
    (_, _, text_width, _) = cv2.getTextSize((width, height), text, (0, 0), font, text_px, 600)
    pad = max(text_px // 4, 2)
    tag_width, tag_height = text_width + 2 * pad, round(text_px * 1.35)
    left, top, right, bottom = box
    places = [
        (left, top - tag_height),
        (left, bottom),
        (right - tag_width, top - tag_height),
        (right - tag_width, bottom),
        (left, top),
        (left, bottom - tag_height),
    ]

    def badness(place: tuple[int, int]) -> float:
        x, y = place
        tag = (x, y, x + tag_width, y + tag_height)
        outside = tag_width * tag_height - _shared(tag, (0, 0, width, height))
        return outside + 4 * sum(_shared(tag, other) for other in tags) + sum(_shared(tag, other) for other in others)

    x, y = min(places, key=badness)
    x, y = max(min(x, width - tag_width), 0), max(min(y, height - tag_height), 0)
    image[y : y + tag_height, x : x + tag_width] = color
    ink = (0, 0, 0) if np.dot(color, (0.299, 0.587, 0.114)) > 120 else (255, 255, 255)
    cv2.putText(image, text, (x + pad, y + round(text_px * 1.0)), ink, font, text_px, 600)
    return x, y, x + tag_width, y + tag_height


def _shared(first: _Rectangle, second: _Rectangle) -> int:
    """Pixels that two rectangles share."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0) * max(height, 0)
