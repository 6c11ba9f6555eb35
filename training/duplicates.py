"""grey images -> which are identical, which show the same photo, which show nothing."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import cv2
import numpy as np

# Two thumbnails this alike are one photo: of FER2013 PrivateTest it finds all 288 that have an identical twin in
# Training, 188 of the 197 that its labels table calls near, and 7 that the table does not know.
_NEAR_THUMBNAIL_PX = 16
_NEAR_CORRELATION = 0.96
# A picture whose grey values spread less than this shows nothing.
_BLANK_SPREAD = 4.0
_DIGEST_LENGTH = 16


def digest_of(image_gray: np.ndarray) -> str:
    """Name an image, uint8 (size_px, size_px), by its pixels: the first 16 hexadecimal digits of their SHA-256."""
    return hashlib.sha256(image_gray.tobytes()).hexdigest()[:_DIGEST_LENGTH]


def identical(digests: Sequence[str]) -> list[list[int]]:
    """Group the rows that share their pixels; the groups of two and more, each in the order of its rows."""
    rows = defaultdict(list)
    for row, digest in enumerate(digests):
        rows[digest].append(row)
    return [group for group in rows.values() if len(group) > 1]


def is_blank(images_gray: np.ndarray) -> np.ndarray:
    """Say of each image, uint8 (n, size_px, size_px), whether it shows nothing: bool (n,)."""
    spread = images_gray.std(axis=(1, 2), dtype=np.float32)
    blank: np.ndarray = spread < _BLANK_SPREAD
    return blank


def same_photo(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Find the pairs of images that show one photo, whatever its brightness: int64 (pairs, 2) of row numbers.

    Args:
        first: uint8 (n, size_px, size_px).
        second: uint8 (m, size_px, size_px).
    """
    first_thumbs, second_thumbs = _thumbnails(first), _thumbnails(second)
    pairs = [np.empty((0, 2), np.int64)]
    # In slices, so that 28,000 x 7,000 correlations never lie in memory at once.
    for start in range(0, len(first), 2048):
        correlation = first_thumbs[start : start + 2048] @ second_thumbs.T
        # Few rows have a twin: looking for the pairs in those alone is a second faster.
        rows = np.flatnonzero(correlation.max(axis=1, initial=-1) > _NEAR_CORRELATION)
        alike = np.argwhere(correlation[rows] > _NEAR_CORRELATION)
        pairs.append(np.stack([start + rows[alike[:, 0]], alike[:, 1]], axis=1))
    return np.concatenate(pairs)


def _thumbnails(images_gray: np.ndarray) -> np.ndarray:
    """Shrink images to vectors of mean 0 and length 1, so that a product of two is their correlation."""
    size_wh = (_NEAR_THUMBNAIL_PX, _NEAR_THUMBNAIL_PX)
    small = np.empty((len(images_gray), _NEAR_THUMBNAIL_PX, _NEAR_THUMBNAIL_PX), np.uint8)
    for image, thumbnail in zip(images_gray, small, strict=True):
        cv2.resize(image, size_wh, dst=thumbnail, interpolation=cv2.INTER_AREA)
    flat = small.reshape(len(small), _NEAR_THUMBNAIL_PX**2).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    # A blank image is like no other: its vector stays zero.
    shows_something = length > _BLANK_SPREAD * _NEAR_THUMBNAIL_PX
    unit: np.ndarray = np.divide(flat, length, out=np.zeros_like(flat), where=shows_something)
    return unit
