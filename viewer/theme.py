"""ferflow's colours -> the look of the page, and the pieces of HTML that Streamlit has no element for"""

import html as escaping
from collections.abc import Sequence

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from ferflow.emotions import EMOTIONS
from ferflow.overlay import EMOTION_COLORS_RGB, ink_rgb

EMOTION_COLORS = {
    emotion: f"#{red:02x}{green:02x}{blue:02x}"
    for emotion, (red, green, blue) in zip(EMOTIONS, EMOTION_COLORS_RGB, strict=True)
}
"""Each emotion's colour as CSS writes it."""

INK_COLORS = {
    emotion: f"#{red:02x}{green:02x}{blue:02x}"
    for emotion, (red, green, blue) in zip(EMOTIONS, map(ink_rgb, EMOTION_COLORS_RGB), strict=True)
}
"""Black or white, whichever reads better on an emotion's colour."""

_STYLE = """
.block-container {max-width: 1200px; padding-top: 5rem; padding-bottom: 4rem}
h1.ff-title {font-size: 1.75rem; font-weight: 650; line-height: 1.25; margin: 0; padding: 0; overflow-wrap: anywhere}
.ff-lead {font-size: 1.125rem; color: #3b4654; margin: .35rem 0 0}
.ff-player {display: block; width: 100%; max-height: 70vh; background: #10151b; border-radius: .5rem}
[data-testid="stImage"] img {max-height: 70vh; object-fit: contain; object-position: left}
[data-testid="stFileUploaderDropzone"] {min-height: 8rem; border: 2px dashed #8592a3; align-content: center;
    align-items: center; justify-content: center}
[data-testid="stFileUploaderDropzone"] span, [data-testid="stCaptionContainer"], [data-testid="stCaptionContainer"] p {
    color: #4b5563 !important; opacity: 1 !important}
.ff-bars {display: grid; grid-template-columns: max-content 1fr max-content; gap: .45rem .75rem; align-items: center;
    font-size: .9375rem}
.ff-bars .ff-track {height: .8rem; border-radius: .2rem; background: #e8ecf1; overflow: hidden}
.ff-bars .ff-track i {display: block; height: 100%; border-radius: .2rem;
    box-shadow: inset 0 0 0 1px rgba(28, 37, 48, .35)}
.ff-bars .ff-value {font-variant-numeric: tabular-nums; text-align: right}
.ff-bars .ff-best {font-weight: 650}
.ff-problem {border-left: .3rem solid #c0271a; background: #fdf1ef; border-radius: .25rem; padding: .8rem 1rem;
    overflow-wrap: anywhere}
.ff-facts {display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.25rem; margin: 0; font-size: .9375rem}
.ff-facts dt {color: #4b5563} .ff-facts dd {margin: 0; overflow-wrap: anywhere}
.ff-tiles {display: flex; flex-wrap: wrap; gap: .5rem 2.5rem; margin: .25rem 0 .75rem}
.ff-tiles b {display: block; font-size: 1.5rem; font-weight: 600; line-height: 1.2; font-variant-numeric: tabular-nums}
.ff-tiles span {font-size: .875rem; color: #4b5563}
@media (max-width: 760px) {.ff-tiles {gap: .5rem 1.5rem}}
.ff-downloads {display: flex; flex-wrap: wrap; gap: .6rem}
a.ff-download {color: #145fb4; border: 1px solid #b8c1cc; border-radius: .5rem; padding: .45rem .9rem;
    text-decoration: none}
a.ff-download:hover {border-color: #145fb4; background: #f3f5f8}
"""


def apply() -> None:
    """Give the page its style; once a run, before anything is shown."""
    st.html(f"<style>{_STYLE}</style>")


def escaped(text: str) -> str:
    """Text of a file's name or a message, safe inside HTML; what no screen can show becomes a replacement sign."""
    return escaping.escape(_printable(text))


def plain(text: str) -> str:
    """Text of a file's name or a message, safe where Streamlit reads Markdown: nothing in it means anything."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]()<>#+-.!|~:$" else letter for letter in _printable(text))


def html(markup: str) -> None:
    """Show HTML that was put together here, everything from outside in it `escaped`."""
    st.html(markup)


def card() -> DeltaGenerator:
    """A frame around what belongs together."""
    return st.container(border=True)


def title(name: str, lead: str) -> None:
    """What a page is about, and the one sentence that matters most."""
    html(f'<h1 class="ff-title">{escaped(name)}</h1><p class="ff-lead">{escaped(lead)}</p>')


def problem(text: str) -> None:
    """What is wrong with a file."""
    html(f'<div class="ff-problem" role="alert">{escaped(text)}</div>')


def bars(shares: Sequence[float], texts: Sequence[str], *, label: str) -> None:
    """A bar for each emotion in their order, the longest one's name in bold."""
    best = max(range(len(shares)), key=lambda place: shares[place])
    lines = []
    for place, (emotion, share, text) in enumerate(zip(EMOTIONS, shares, texts, strict=True)):
        strong = " ff-best" if place == best else ""
        bar = f'<i style="width: {100 * share:.2f}%; background: {EMOTION_COLORS[emotion]}"></i>' if share > 0 else ""
        lines.append(
            f'<span class="ff-name{strong}">{emotion}</span><span class="ff-track">{bar}</span>'
            f'<span class="ff-value{strong}">{escaped(text)}</span>'
        )
    html(f'<div class="ff-bars" role="group" aria-label="{escaped(label)}">{"".join(lines)}</div>')


def facts(rows: Sequence[tuple[str, str]]) -> None:
    """What is known, line by line."""
    lines = "".join(f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>" for name, value in rows)
    html(f'<dl class="ff-facts">{lines}</dl>')


def tiles(rows: Sequence[tuple[str, str]]) -> None:
    """A few numbers that are to be seen at once, each above its name."""
    shown = "".join(f"<div><b>{value}</b><span>{name}</span></div>" for name, value in rows)
    html(f'<div class="ff-tiles">{shown}</div>')


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
