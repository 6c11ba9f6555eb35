"""frames -> faces: the FaceDetector protocol, box, crop and alignment arithmetic."""

import math
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from ferflow.records import Box, Face

_MOST_SUPERSAMPLING = 8


class FaceDetector(Protocol):
    """Something that finds faces, picture after picture of one video; it may remember where they were."""

    def detect(self, image_rgb: np.ndarray) -> list[Face]:
        """Find every face in uint8 (height, width, 3) RGB, C-contiguous; best first, none twice."""
        ...


def intersection_over_union(first: Box, second: Box) -> float:
    """Area shared by two boxes over the area covered by either, 0 to 1."""
    width = min(first.x_max, second.x_max) - max(first.x_min, second.x_min)
    height = min(first.y_max, second.y_max) - max(first.y_min, second.y_min)
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (first.area + second.area - shared)


@dataclass(frozen=True, slots=True)
class CropWindow:
    """The square of a picture that becomes a crop; it may be rolled and may reach past the picture's edge."""

    center_x: float
    """Column of the centre in pixels, 0 at the left edge of the first pixel."""
    center_y: float
    """Row of the centre in pixels, 0 at the top edge of the first pixel."""
    side_px: float
    """Length of a side in pixels of the picture."""
    roll_degrees: float = 0.0
    """How far the face leans clockwise as seen by a viewer; the crop shows it upright."""


@dataclass(frozen=True, slots=True)
class Framing:
    """How much of a face the crops show that a network was trained on, measured on the detector's faces."""

    side_per_box: float
    """Side of the crop over the mean side of the detector's box."""
    down_per_box: float
    """How far the crop's centre lies below the box's centre, towards the chin, over the same length."""
    is_levelled: bool
    """Whether the crop is rolled so that the eyes are level."""


def face_window(face: Face, framing: Framing) -> CropWindow:
    """Where to cut a detected face out of its picture so that it fills the crop as the network expects."""
    box_px = (face.box.width + face.box.height) / 2
    (right_x, right_y), (left_x, left_y) = face.right_eye_xy, face.left_eye_xy
    roll = math.atan2(left_y - right_y, left_x - right_x) if framing.is_levelled else 0.0
    down_px = framing.down_per_box * box_px
    return CropWindow(
        center_x=(face.box.x_min + face.box.x_max) / 2 - math.sin(roll) * down_px,
        center_y=(face.box.y_min + face.box.y_max) / 2 + math.cos(roll) * down_px,
        side_px=max(framing.side_per_box * box_px, 1.0),
        roll_degrees=math.degrees(roll),
    )


def resize_faces(faces_gray: np.ndarray, size_px: int) -> np.ndarray:
    """Bring pictures of faces to another side, sampled as `crop_gray` samples.

    Args:
        faces_gray: uint8 (n, side, side).
        size_px: the other side.

    Returns:
        uint8 (n, size_px, size_px); the pictures themselves where they have that side.
    """
    side_px = faces_gray.shape[1]
    if side_px == size_px:
        return faces_gray
    window = CropWindow(center_x=side_px / 2, center_y=side_px / 2, side_px=side_px, roll_degrees=0.0)
    resized = np.empty((len(faces_gray), size_px, size_px), np.uint8)
    for row, face in zip(resized, faces_gray, strict=True):
        row[:] = crop_gray(face, window, size_px=size_px)
    return resized


def crop_gray(image: np.ndarray, window: CropWindow, *, size_px: int, mirror: bool = False) -> np.ndarray:
    """Cut one window out of a picture: the only way by which a face reaches a network, in training and in use.

    Args:
        image: uint8 (height, width, 3) RGB or (height, width) grey.
        window: what to cut; beyond the edge the outermost pixels are repeated.
        size_px: side of the crop.
        mirror: swap left and right.

    Returns:
        uint8 (size_px, size_px) grey. A window larger than the crop is area-averaged, not sampled, so a large
        face is as smooth as one photographed from afar.
    """
    fineness = min(max(math.ceil(window.side_px / size_px), 1), _MOST_SUPERSAMPLING)
    fine_px = size_px * fineness
    step = window.side_px / fine_px
    cos, sin = math.cos(math.radians(window.roll_degrees)) * step, math.sin(math.radians(window.roll_degrees)) * step

    # Convert only what the window touches: a grey copy of a whole 1080p frame costs more than the crop.
    reach = window.side_px * (abs(cos) + abs(sin)) / step / 2 + 2
    height, width = image.shape[:2]
    left = min(max(math.floor(window.center_x - reach), 0), width - 1)
    top = min(max(math.floor(window.center_y - reach), 0), height - 1)
    right = max(min(math.ceil(window.center_x + reach), width), left + 1)
    bottom = max(min(math.ceil(window.center_y + reach), height), top + 1)
    region = image[top:bottom, left:right]
    region_gray = region if region.ndim == 2 else cv2.cvtColor(region, cv2.COLOR_RGB2GRAY)

    flip = -1.0 if mirror else 1.0
    half = (fine_px - 1) / 2
    crop_to_region = np.array(
        [
            [cos * flip, -sin, window.center_x - 0.5 - left - cos * flip * half + sin * half],
            [sin * flip, cos, window.center_y - 0.5 - top - sin * flip * half - cos * half],
        ]
    )
    crop = cv2.warpAffine(
        region_gray,
        crop_to_region,
        (fine_px, fine_px),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return crop if fineness == 1 else cv2.resize(crop, (size_px, size_px), interpolation=cv2.INTER_AREA)
