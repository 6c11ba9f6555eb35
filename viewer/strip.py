"""which emotion was shown when -> a strip of colours, and its legend, as HTML"""

from collections.abc import Sequence
from dataclasses import dataclass

from ferflow.emotions import EMOTIONS
from viewer.theme import EMOTION_COLORS

_NOBODY = "rgba(128,128,128,.15)"

STYLE = f"""
.ff-strip {{height: 1.5rem; border-radius: .25rem; background-color: {_NOBODY}}}
.ff-bar {{display: flex; height: .75rem; border-radius: .375rem; overflow: hidden; background: {_NOBODY}}}
.ff-bar i + i {{border-left: 1px solid rgba(255,255,255,.8)}}
.ff-legend {{display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin-top: .5rem; font-size: .875rem}}
.ff-legend i {{display: inline-block; width: .75rem; height: .75rem; border-radius: .2rem; margin-right: .4rem;
    vertical-align: -.05rem; background: {_NOBODY}}}
"""
"""What a page that shows any of these adds to its style."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A piece of a strip."""

    emotion: str
    """What was shown."""
    start_share: float
    """Where it begins, 0 to 1 of the strip's length."""
    end_share: float
    """Where it ends."""


def strip_html(strip: Sequence[Stretch]) -> str:
    """A strip, its stretches in order: one element however many there are."""
    stops: list[str] = []
    end = 0.0
    for stretch in strip:
        if stretch.start_share > end:
            stops.append(f"transparent {100 * end:.4g}% {100 * stretch.start_share:.4g}%")
        end = stretch.end_share
        stops.append(f"{EMOTION_COLORS[stretch.emotion]} {100 * stretch.start_share:.4g}% {100 * end:.4g}%")
    if end < 1:
        stops.append(f"transparent {100 * end:.4g}% 100%")
    return f'<div class="ff-strip" style="background-image:linear-gradient(90deg,{",".join(stops)})"></div>'


def shares_html(shares: Sequence[float] | None) -> str:
    """A bar of the emotions' shares, in the order of EMOTIONS and together 1; empty without."""
    pieces = "".join(
        f'<i style="width:{100 * share:.2f}%;background:{EMOTION_COLORS[emotion]}" title="{emotion} {share:.0%}"></i>'
        for emotion, share in zip(EMOTIONS, shares or (), strict=bool(shares))
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
