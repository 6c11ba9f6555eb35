"""portraits that installed packages ship -> a short clip with two people, motion and sound."""

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from ferflow.frames import SOUND_RATE, write_video
from ferflow.records import Frame

_SIZE_WH = (1280, 720)
_RATE = Fraction(25)
_SECONDS = 4
_CARD_WH = (480, 600)
_SECOND_ENTERS_SECONDS = 0.8
_NOTES_HZ = (293.66, 369.99, 440.00, 587.33, 493.88, 440.00, 369.99, 293.66)


def make_sample_clip(path: Path) -> None:
    """Write four seconds of video in which one person is seen, and soon another beside her; a melody plays.

    The people are Grace Hopper and Eileen Collins, in portraits in the public domain that matplotlib and
    scikit-image ship with.
    """
    write_video(path, _frames(), size_wh=_SIZE_WH, rate=_RATE, sound=_melody())


def _frames() -> Iterator[Frame]:
    hopper, collins = _portraits()
    background = _background()
    width, card_width = _SIZE_WH[0], _CARD_WH[0]
    gap = (width - 2 * card_width) // 3
    for index in range(round(_SECONDS * _RATE)):
        pts = index / _RATE
        seconds = float(pts)
        turn = 2 * math.pi * seconds / _SECONDS
        image_rgb = background.copy()
        card = _card(hopper, center_xy=(262, 266), zoom=1.15 + 0.05 * seconds, roll_degrees=3 * math.sin(turn))
        _paste(image_rgb, card, left=gap)
        if seconds >= _SECOND_ENTERS_SECONDS:
            card = _card(collins, center_xy=(226, 145), zoom=2.3 - 0.06 * seconds, roll_degrees=-3 * math.sin(turn))
            _paste(image_rgb, card, left=width - gap - card_width)
        yield Frame(index=index, pts=pts, duration=1 / _RATE, image_rgb=image_rgb)


def _portraits() -> tuple[np.ndarray, np.ndarray]:
    """Grace Hopper (600, 512, 3) and Eileen Collins (512, 512, 3), uint8 RGB."""
    # Imported here because both packages take longer to load than the whole command line.
    import skimage.data
    from matplotlib import get_data_path
    from matplotlib.image import imread

    hopper_rgb = imread(Path(get_data_path(), "sample_data", "grace_hopper.jpg"))
    collins_rgb: np.ndarray = skimage.data.astronaut()  # type: ignore[no-untyped-call]
    return hopper_rgb, collins_rgb


def _background() -> np.ndarray:
    """A dusk from top to bottom, uint8 RGB."""
    width, height = _SIZE_WH
    down = np.linspace(0, 1, height)[:, None, None]
    column_rgb = (1 - down) * (38, 50, 84) + down * (176, 124, 118)
    return np.repeat(column_rgb.astype(np.uint8), width, axis=1)


def _card(portrait_rgb: np.ndarray, *, center_xy: tuple[float, float], zoom: float, roll_degrees: float) -> np.ndarray:
    """What shows of a portrait in a card with a white edge, uint8 RGB."""
    width, height = _CARD_WH
    to_card = cv2.getRotationMatrix2D(center_xy, roll_degrees, zoom)
    to_card[:, 2] += np.array((width / 2 - center_xy[0], height / 2 - center_xy[1]))
    card = cv2.warpAffine(portrait_rgb, to_card, _CARD_WH, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    cv2.rectangle(card, (3, 3), (width - 4, height - 4), (250, 248, 244), thickness=8)
    return card


def _paste(image_rgb: np.ndarray, card: np.ndarray, *, left: int) -> None:
    top = (image_rgb.shape[0] - card.shape[0]) // 2
    image_rgb[top : top + card.shape[0], left : left + card.shape[1]] = card


def _melody() -> np.ndarray:
    """Soft plucked notes that wander from left to right: float32 (2, n), -1 to 1."""
    count = _SECONDS * SOUND_RATE // len(_NOTES_HZ)
    seconds = np.arange(count) / SOUND_RATE
    # The attack and the end of a note are rounded, or each would click.
    loudness = np.minimum(seconds / 0.01, 1) * np.exp(-5 * seconds) * np.minimum((seconds[-1] - seconds) / 0.02, 1)
    notes = []
    for position, hertz in zip(np.linspace(0.2, 0.8, len(_NOTES_HZ)), _NOTES_HZ, strict=True):
        phase = 2 * np.pi * hertz * seconds
        note = 0.35 * loudness * (np.sin(phase) + 0.3 * np.sin(2 * phase) + 0.1 * np.sin(3 * phase))
        notes.append(np.stack([note * math.cos(position * math.pi / 2), note * math.sin(position * math.pi / 2)]))
    return np.concatenate(notes, axis=1).astype(np.float32)
