"""frames + rows -> frames with boxes and labels drawn."""

import functools
import math

import cv2
import numpy as np

from ferflow.emotions import EMOTIONS
from ferflow.records import FaceColumns, Frame

_COLOR_OF = {
    "angry": (240, 70, 10),
    "disgust": (0, 143, 105),
    "fear": (178, 124, 228),
    "happy": (245, 212, 40),
    "neutral": (167, 167, 167),
    "sad": (20, 80, 180),
    "surprise": (115, 224, 243),
}
EMOTION_COLORS_RGB: tuple[tuple[int, int, int], ...] = tuple(_COLOR_OF[emotion] for emotion in EMOTIONS)
"""One colour per class in the order of EMOTIONS, for boxes and charts. People with any kind of colour-blindness can
tell them apart: any two differ by a CIEDE2000 of 16 or more as they see them (Machado et al. 2009; see
tests/test_colors.py; Okabe and Ito's colours: 7)."""

_DARK = (25, 25, 25)
_WEIGHT = 600  # semi-bold: thinner letters break up when a small video is compressed

_Color = tuple[int, int, int]
_Rectangle = tuple[int, int, int, int]


def ink_rgb(color_rgb: _Color) -> _Color:
    """Black or white, whichever reads better on a colour (contrast as WCAG 2 defines it)."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color_rgb]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def draw_frame(
    frame: Frame, faces: FaceColumns, emotions: np.ndarray, *, source_size_wh: tuple[int, int], bars: bool = False
) -> None:
    """Draw the faces that the table holds for one frame, in place.

    Where only some frames were analysed, a face is shown until its time is over.

    Args:
        frame: its picture may have been scaled; it is drawn on.
        faces: all rows of the video. The percentage in a label is the probability here, so give smoothed ones.
        emotions: int (n,), the class to show for each row, as `summary.emotion_of_rows` tells it.
        source_size_wh: the size in pixels to which the boxes refer.
        bars: as in `draw_faces`.
    """
    end = int(np.searchsorted(faces.frame_index, frame.index, side="right"))
    if not end:
        return
    start = int(np.searchsorted(faces.frame_index, faces.frame_index[end - 1], side="left"))
    over = faces.pts_seconds[start] + faces.frame_seconds[start] - 1e-6
    if faces.frame_index[start] != frame.index and float(frame.pts) >= over:
        return
    height, width = frame.image_rgb.shape[:2]
    scale = np.array([width / source_size_wh[0], height / source_size_wh[1]] * 2)
    rows = slice(start, end)
    draw_faces(
        frame.image_rgb,
        faces.boxes_xyxy[rows] * scale,
        faces.track_id[rows],
        emotions[rows],
        faces.probabilities[rows],
        bars=bars,
    )


def draw_faces(
    image_rgb: np.ndarray,
    boxes_xyxy: np.ndarray,
    track_ids: np.ndarray,
    emotions: np.ndarray,
    probabilities: np.ndarray,
    *,
    bars: bool = False,
) -> None:
    """Draw a box and a label like `happy 87%  #2` for each face, in place.

    Args:
        image_rgb: uint8 (height, width, 3), C-contiguous and writable; changed.
        boxes_xyxy: float (n, 4) in pixels of the picture; may reach past its edge.
        track_ids: int (n,), the person.
        emotions: int (n,), the class to show, an index into EMOTIONS.
        probabilities: float (n, 7), of which the shown class's is written.
        bars: list all seven probabilities beside each face that is large enough and has the room.
    """
    height, width = image_rgb.shape[:2]
    short_px = min(height, width)
    seen = [
        (box, EMOTION_COLORS_RGB[emotion], track_id, emotion, row)
        for corners, track_id, emotion, row in zip(
            boxes_xyxy.tolist(), track_ids.tolist(), emotions.tolist(), probabilities.tolist(), strict=True
        )
        if (box := _clip(corners, width, height)) is not None
    ]
    boxes = [box for box, *_ in seen]
    for box, color, *_ in seen:
        _draw_frame(image_rgb, box, max(round(min(short_px / 240, (box[3] - box[1]) / 20)), 1), color)
    taken: list[_Rectangle] = []
    if bars:
        for box, _, _, _, row in seen:
            taken += _draw_bars(image_rgb, box, row, _text_px(short_px, box), blocked=[*boxes, *taken])
    for box, color, track_id, emotion, row in seen:
        name, percent = EMOTIONS[emotion], f"{row[emotion]:.0%}"
        texts = (f"{name} {percent}  #{track_id}", f"{name} {percent}", name)
        others = [other for other in boxes if other is not box]
        taken.append(_draw_tag(image_rgb, box, texts, _text_px(short_px, box), color, taken=taken, others=others))


def _clip(corners: list[float], width: int, height: int) -> _Rectangle | None:
    """The part of a box inside the picture in whole pixels; None when there is none."""
    left, top = max(round(corners[0]), 0), max(round(corners[1]), 0)
    right, bottom = min(round(corners[2]), width), min(round(corners[3]), height)
    return (left, top, right, bottom) if left < right and top < bottom else None


def _text_px(short_px: int, box: _Rectangle) -> int:
    """Height of the letters: grows with the picture, and a little with the face."""
    face_share = (box[3] - box[1]) / short_px
    return max(round((8 + 0.014 * short_px) * min(max(math.sqrt(face_share / 0.25), 0.8), 1.3)), 9)


@functools.lru_cache(maxsize=1024)
def _text_width_px(text: str, text_px: int) -> int:
    """How wide a text will be; the same few labels come again and again."""
    return int(cv2.getTextSize((1, 1), text, (0, 0), cv2.FontFace("sans"), text_px, _WEIGHT)[2])


def _draw_text(image: np.ndarray, text: str, x: int, baseline_y: int, text_px: int, color: _Color) -> None:
    cv2.putText(image, text, (x, baseline_y), color, cv2.FontFace("sans"), text_px, _WEIGHT)


def _draw_frame(image: np.ndarray, box: _Rectangle, line_px: int, color: _Color) -> None:
    """The box's edge inside of it, and a dark hairline around, so that any colour shows on any background."""
    left, top, right, bottom = box
    height, width = image.shape[:2]
    outer = (max(left - 1, 0), max(top - 1, 0), min(right + 1, width), min(bottom + 1, height))
    # Slices, because cv2.rectangle draws thick lines with round corners and half outside.
    for (x_min, y_min, x_max, y_max), thick, tone in ((outer, 1, _DARK), (box, line_px, color)):
        image[y_min : y_min + thick, x_min:x_max] = tone
        image[max(y_max - thick, 0) : y_max, x_min:x_max] = tone
        image[y_min:y_max, x_min : x_min + thick] = tone
        image[y_min:y_max, max(x_max - thick, 0) : x_max] = tone


def _draw_tag(
    image: np.ndarray,
    box: _Rectangle,
    texts: tuple[str, ...],
    text_px: int,
    color: _Color,
    *,
    taken: list[_Rectangle],
    others: list[_Rectangle],
) -> _Rectangle:
    """Write the first text that fits into the picture on a filled tag where it covers least; returns the tag."""
    height, width = image.shape[:2]
    pad = max(text_px // 4, 2)
    widths = [_text_width_px(text, text_px) + 2 * pad for text in texts]
    text, tag_width = next(((t, w) for t, w in zip(texts, widths, strict=True) if w <= width), (texts[-1], widths[-1]))
    tag_height = round(text_px * 1.35)
    left, top, right, bottom = box
    places = [
        (left, top - tag_height),
        (left, bottom),
        (right - tag_width, top - tag_height),
        (right - tag_width, bottom),
        (left, top),
        (left, bottom - tag_height),
    ]

    def inside(place: tuple[int, int]) -> _Rectangle:
        x, y = max(min(place[0], width - tag_width), 0), max(min(place[1], height - tag_height), 0)
        return x, y, min(x + tag_width, width), min(y + tag_height, height)

    def badness(place: tuple[int, int]) -> int:
        tag = inside(place)
        moved = abs(tag[0] - place[0]) + abs(tag[1] - place[1])
        hidden = 4 * sum(_shared(tag, other) for other in taken) + sum(_shared(tag, other) for other in others)
        return hidden + moved * text_px // 2

    x_min, y_min, x_max, y_max = inside(min(places, key=badness))
    image[y_min:y_max, x_min:x_max] = color
    # Draw into the tag alone, so that a letter that is too wide ends with it.
    _draw_text(image[y_min:y_max, x_min:x_max], text, pad, text_px, text_px, ink_rgb(color))
    return x_min, y_min, x_max, y_max


def _draw_bars(
    image: np.ndarray, box: _Rectangle, row: list[float], text_px: int, *, blocked: list[_Rectangle]
) -> list[_Rectangle]:
    """List the probabilities beside a face; returns the panel, or nothing when there is no room."""
    width = image.shape[1]
    small_px = max(round(text_px * 0.75), 9)
    line_px, pad = round(small_px * 1.4), max(small_px // 2, 3)
    names_px = max(_text_width_px(name, small_px) for name in EMOTIONS)
    bars_px = small_px * 5
    panel_width, panel_height = names_px + bars_px + 3 * pad, line_px * len(EMOTIONS) + 2 * pad
    left, top, right, bottom = box
    if bottom - top < panel_height:
        return []
    for x in (right + pad, left - pad - panel_width):
        panel = (x, top, x + panel_width, top + panel_height)
        fits = x >= 0 and panel[2] <= width
        if fits and not any(_shared(panel, other) for other in blocked if other is not box):
            break
    else:
        return []
    image[top : top + panel_height, x : x + panel_width] >>= 2
    for line, (name, color, probability) in enumerate(zip(EMOTIONS, EMOTION_COLORS_RGB, row, strict=True)):
        y = top + pad + line * line_px
        _draw_text(image, name, x + pad, y + small_px, small_px, (255, 255, 255))
        bar_x, bar_px = x + 2 * pad + names_px, max(round(bars_px * probability), 1)
        image[y + line_px // 5 : y + line_px - line_px // 5, bar_x : bar_x + bar_px] = color
    return [panel]


def _shared(first: _Rectangle, second: _Rectangle) -> int:
    """Pixels that two rectangles share."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0) * max(height, 0)
