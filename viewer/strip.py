"""who showed which emotion when -> a strip of stacked colours, and its legend, as HTML"""

import base64
from collections.abc import Sequence

import cv2
import numpy as np

from ferflow.emotions import EMOTIONS
from ferflow.overlay import EMOTION_COLORS_RGB
from viewer.theme import EDGE, EMOTION_COLORS, PALE

_HEIGHT_PX = 24
_COLORS_BGRA = np.array([(*color[::-1], 255) for color in EMOTION_COLORS_RGB], np.uint8)

STYLE = f"""
.ff-strip, .ff-bar, .ff-legend i {{background: {PALE}; box-shadow: 0 0 0 1px {EDGE}}}
.ff-strip {{display: block; width: 100%; height: 1.5rem; border-radius: .2rem; image-rendering: pixelated}}
.ff-bar {{display: flex; height: .75rem; border-radius: .2rem; overflow: hidden}}
.ff-bar i + i {{border-left: 1px solid {EDGE}}}
.ff-legend {{display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin-top: .5rem; font-size: .875rem}}
.ff-legend i {{display: inline-block; width: .75rem; height: .75rem; border-radius: .15rem; margin-right: .4rem;
    vertical-align: -.05rem}}
"""
"""What a page that shows any of these adds to its style."""


def strip_html(shown: np.ndarray) -> str:
    """A strip in which a moment is a column, and the emotions that the faces show in it share its height.

    Args:
        shown: float (moments, 7), for how long, or by how many, each of EMOTIONS was shown; 0 where nobody is seen.
    """
    totals = shown.sum(axis=1)
    # Where in the column, counted from below, each emotion ends; the order is always that of EMOTIONS.
    ends = np.rint(shown.cumsum(axis=1) / np.where(totals, totals, 1)[:, None] * _HEIGHT_PX)
    rows = np.arange(_HEIGHT_PX)[::-1, None, None]
    picture = _COLORS_BGRA[np.minimum((ends <= rows).sum(axis=2), len(EMOTIONS) - 1)]
    picture[:, totals == 0] = 0
    png = base64.b64encode(cv2.imencode(".png", picture)[1].tobytes()).decode()
    shares = shown.sum(axis=0) / (totals.sum() or 1)
    named = sorted(zip(shares, EMOTIONS, strict=True), reverse=True)
    text = ", ".join(f"{emotion} {share:.0%}" for share, emotion in named if share >= 0.005) or "nobody seen"
    return f'<img class="ff-strip" src="data:image/png;base64,{png}" alt="{text}" title="{text}">'


def shares_html(shares: Sequence[float] | None) -> str:
    """A bar of the emotions' shares, in the order of EMOTIONS and together 1; empty without."""
    pieces = "".join(
        f'<i style="width:{100 * share:.2f}%;background:{EMOTION_COLORS[emotion]}" title="{emotion} {share:.0%}"></i>'
        for emotion, share in zip(EMOTIONS, shares or (), strict=bool(shares))
        if share > 0
    )
    return f'<div class="ff-bar">{pieces}</div>'


def legend_html(shares: Sequence[float] | None = None) -> str:
    """Which colour is which emotion, with the shares if there are any."""
    numbers = [f" <b>{share:.0%}</b>" for share in shares] if shares else [""] * len(EMOTIONS)
    names = "".join(
        f'<span><i style="background:{EMOTION_COLORS[emotion]}"></i>{emotion}{number}</span>'
        for emotion, number in zip(EMOTIONS, numbers, strict=True)
    )
    return f'<div class="ff-legend">{names}<span><i></i>nobody seen</span></div>'
