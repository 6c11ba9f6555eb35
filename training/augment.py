"""labelled crop -> the same face as another camera would have shown it: framing, light, hidden parts, poor pictures."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ferflow.faces import CropWindow, crop_gray


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How much training images are varied; all zero leaves them as they are."""

    shift_share: float
    """Largest shift of the window, as a share of its side."""
    zoom_share: float
    """Largest change of the window's side, as a share of it."""
    roll_degrees: float
    """Largest roll of the window."""
    mirror: float
    """Probability of swapping left and right."""
    light: float
    """Strength of the change of gamma and of a shadow across the face."""
    erase: float
    """Probability of covering a rectangle, as a hand, hair or a microphone does."""
    degrade: float
    """Probability of the faults of real footage: blur, a small face enlarged, compression, noise."""
    mix: float
    """Strength with which two faces and their targets are blended; 0 does not. See `mix_batch`."""
    surroundings: float = 0.0
    """Probability of another picture, or a flat grey, around the face."""


def augment(
    image_gray: np.ndarray, how: Augmentation, rng: np.random.Generator, *, size_px: int, other_gray: np.ndarray
) -> np.ndarray:
    """Vary one face.

    The framing goes through `crop_gray`, the function that cuts faces out of video, so that training sees its
    interpolation and its edges. A shift of the window is what a detector's error looks like.

    Args:
        image_gray: uint8 (height, width), a square crop.
        how: the strengths.
        rng: where chance comes from; the same state gives the same image.
        size_px: side of the result.
        other_gray: another crop of the same shape, of which the surroundings may be taken.

    Returns:
        uint8 (size_px, size_px).
    """
    side = image_gray.shape[0]
    if how.surroundings and rng.random() < how.surroundings:
        image_gray = _surround(image_gray, other_gray, rng)
    dx, dy, dzoom, droll = rng.uniform(-1, 1, 4)
    window = CropWindow(
        center_x=side * (0.5 + how.shift_share * dx),
        center_y=side * (0.5 + how.shift_share * dy),
        side_px=side * (1 + how.zoom_share * dzoom),
        roll_degrees=how.roll_degrees * droll,
    )
    face = crop_gray(image_gray, window, size_px=size_px, mirror=rng.random() < how.mirror)
    if how.light:
        face = _relight(face, how.light, rng)
    if rng.random() < how.degrade:
        face = _degrade(face, rng)
    if rng.random() < how.erase:
        face = _erase(face, rng)
    return face


def augment_batch(images_gray: np.ndarray, how: Augmentation, rng: np.random.Generator, *, size_px: int) -> np.ndarray:
    """Vary each of some faces, uint8 (n, height, width) -> uint8 (n, size_px, size_px)."""
    others = images_gray[rng.permutation(len(images_gray))] if how.surroundings else images_gray
    return np.stack(
        [
            augment(image, how, rng, size_px=size_px, other_gray=other)
            for image, other in zip(images_gray, others, strict=True)
        ]
    )


def mix_batch(
    faces_gray: np.ndarray, targets: np.ndarray, strength: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Blend each face of a batch, and its target, with another one's: mixup (Zhang et al. 2018, arXiv:1710.09412).

    Args:
        faces_gray: uint8 (n, height, width).
        targets: float32 (n, 7), what the network is to answer.
        strength: both parameters of the Beta distribution that says how much of the other face is added.
        rng: where chance comes from.

    Returns:
        Faces and targets of the same kinds and shapes.
    """
    other = rng.permutation(len(faces_gray))
    share = rng.beta(strength, strength, len(faces_gray)).astype(np.float32)[:, np.newaxis]
    # Half of it at most: the face itself is the one that shows.
    share = np.minimum(share, 1 - share)
    faces = faces_gray + share[..., np.newaxis] * (faces_gray[other].astype(np.float32) - faces_gray)
    return np.rint(faces).astype(np.uint8), targets + share * (targets[other] - targets)


def _surround(face: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Keep an ellipse around the face, its edge soft, and show half of the time a flat grey outside of it."""
    side = face.shape[0]
    down, across = np.mgrid[:side, :side].astype(np.float32) / side
    center_x, center_y = rng.uniform(0.46, 0.54, 2)
    radius_x, radius_y = rng.uniform(0.32, 0.46), rng.uniform(0.4, 0.54)
    distance = np.hypot((across - center_x) / radius_x, (down - center_y) / radius_y)
    inside = np.clip((1 - distance) * rng.uniform(3, 10) + 0.5, 0, 1)
    around = np.full_like(face, rng.integers(0, 256)) if rng.random() < 0.5 else other
    shown: np.ndarray = np.rint(inside * face + (1 - inside) * around).astype(np.uint8)
    return shown


def _relight(face: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Change gamma and let the light fall off to one side; mean and spread the network normalises itself."""
    gamma = np.exp(rng.uniform(-strength, strength))
    curve = (255 * (np.arange(256) / 255) ** gamma).astype(np.float32)
    across, down = rng.uniform(-strength, strength, 2).astype(np.float32)
    ramp = np.linspace(-0.5, 0.5, face.shape[0], dtype=np.float32)
    shadow = 1 + across * ramp[np.newaxis, :] + down * ramp[:, np.newaxis]
    lit: np.ndarray = np.clip(curve[face] * shadow, 0, 255).astype(np.uint8)
    return lit


def _degrade(face: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size_px = face.shape[0]
    match rng.integers(4):
        case 0:
            return cv2.GaussianBlur(face, (0, 0), rng.uniform(0.4, 1.2))
        case 1:
            small_px = int(rng.integers(size_px // 2, size_px))
            small = cv2.resize(face, (small_px, small_px), interpolation=cv2.INTER_AREA)
            return cv2.resize(small, (size_px, size_px), interpolation=cv2.INTER_LINEAR)
        case 2:
            encoded = cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 80))])[1]
            decoded = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE)
            assert decoded is not None
            return decoded
        case _:
            noise = rng.normal(0, rng.uniform(2, 10), face.shape)
            return np.clip(face + noise, 0, 255).astype(np.uint8)


def _erase(face: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size_px = face.shape[0]
    height, width = rng.integers(size_px // 6, size_px // 3 + 1, 2)
    top, left = rng.integers(0, size_px - height + 1), rng.integers(0, size_px - width + 1)
    covered = face.copy()
    covered[top : top + height, left : left + width] = rng.integers(0, 256)
    return covered
