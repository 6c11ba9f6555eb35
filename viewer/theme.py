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

INK, MUTED, LINK, ALARM = "#1c2530", "#4b5563", "#145fb4", "#a3201a"
"""Text: what is to be read, what explains it, what leads elsewhere, what went wrong."""
PALE, LINE, EDGE = "#e8ecf1", "#d5dbe3", "#66717f"
"""Grounds of bars, lines between things, and the outline that makes each colour a mark that everybody sees."""

_STYLE = f"""
[data-testid="stHeader"] {{background: none; pointer-events: none}}
.block-container {{max-width: 1200px; padding-top: 1.25rem; padding-bottom: 4rem}}
.st-key-links, .st-key-moment {{position: absolute}}
.st-key-nav {{border-bottom: 1px solid {LINE}; padding-bottom: .5rem; margin-bottom: 1rem; column-gap: .25rem}}
.ff-brand {{font-weight: 700; font-size: 1.125rem; letter-spacing: -.01em; color: {LINK}; margin-right: 1rem}}
h1.ff-title {{font-size: 1.75rem; font-weight: 650; line-height: 1.25; margin: 0; padding: 0; overflow-wrap: anywhere}}
.ff-lead {{font-size: 1.125rem; color: #3b4654; margin: .35rem 0 0}}
.ff-lead .ff-status {{margin-right: .35rem; vertical-align: .1em}}
.ff-status {{border: 1px solid {EDGE}; padding: .1rem .5rem; border-radius: 1rem; font-size: .8rem;
    white-space: nowrap}}
.ff-failed {{border-color: transparent; color: {ALARM}; background: #fdecea}}
.ff-player {{display: block; width: 100%; max-height: 70vh; background: #10151b; border-radius: .5rem}}
.ff-coming {{display: flex; flex-direction: column; align-items: center; justify-content: center; gap: .5rem;
    min-height: 11rem; padding: 1rem; text-align: center; color: #fff}}
.ff-coming progress {{width: min(16rem, 80%); accent-color: #fff}}
.st-key-move button {{min-height: 2.5rem}}
[data-testid="stImage"] img {{max-height: 70vh; object-fit: contain; object-position: left}}
[data-testid="stFileUploaderDropzone"] {{min-height: 9rem; border: 2px dashed {EDGE}; flex-direction: column;
    align-items: center; justify-content: center; text-align: center}}
[data-testid="stFileUploaderDropzone"] > * {{flex: none}}
[data-testid="stFileUploaderDropzone"] span, [data-testid="stCaptionContainer"], [data-testid="stCaptionContainer"] p {{
    color: {MUTED} !important; opacity: 1 !important}}
[data-testid="stFileUploaderDropzone"] [aria-label="Add files"] {{width: auto; white-space: nowrap; color: {LINK}}}
[data-testid="stFileUploaderDropzone"] [aria-label="Add files"]::after {{content: "Upload more"}}
[data-testid="stFileChips"]:not(:has([data-testid="stFileChipIconSpinner"]))
    [data-testid="stFileChip"]:not([aria-invalid]) {{display: none}}
[data-testid="stFileChip"][aria-invalid] [role="alert"] {{position: static !important; clip: auto !important;
    width: auto !important; height: auto !important}}
.ff-faces {{display: grid; grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)); gap: 1rem}}
.ff-face {{border: 1px solid {LINE}; border-radius: .5rem; padding: 1rem}}
.ff-face p {{margin: 0 0 .75rem}}
.ff-bars {{display: grid; grid-template-columns: max-content 1fr max-content; gap: .45rem .75rem; align-items: center;
    font-size: .9375rem}}
.ff-bars .ff-track {{height: .8rem; border-radius: .2rem; background: {PALE}; overflow: hidden}}
.ff-bars .ff-track i {{display: block; height: 100%; min-width: 3px; border-radius: .2rem;
    box-shadow: inset 0 0 0 1px {EDGE}}}
.ff-bars .ff-value {{font-variant-numeric: tabular-nums; text-align: right}}
.ff-bars .ff-best {{font-weight: 650}}
.ff-problem {{border-left: .3rem solid {ALARM}; background: #fdf1ef; border-radius: .25rem; padding: .8rem 1rem;
    overflow-wrap: anywhere}}
.ff-facts {{display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.25rem; margin: 0;
    font-size: .9375rem}}
.ff-facts dt {{color: {MUTED}}} .ff-facts dd {{margin: 0; overflow-wrap: anywhere}}
.ff-tiles {{display: flex; flex-wrap: wrap; gap: .5rem 2.5rem; margin: .25rem 0 .75rem}}
.ff-tiles b {{display: block; font-size: 1.5rem; font-weight: 600; line-height: 1.2;
    font-variant-numeric: tabular-nums}}
.ff-tiles span {{font-size: .875rem; color: {MUTED}}}
.ff-empty {{border: 1px dashed {EDGE}; border-radius: .5rem; padding: 2.5rem 1rem; text-align: center}}
.ff-downloads {{display: flex; flex-wrap: wrap; gap: .6rem}}
a.ff-download {{color: {LINK}; border: 1px solid {EDGE}; border-radius: .5rem; padding: .45rem .9rem;
    text-decoration: none}}
a.ff-download:hover {{border-color: {LINK}; background: #f3f5f8}}
@media (max-width: 760px) {{
    .st-key-nav > div:first-child {{display: none}}
    .st-key-nav {{flex-wrap: nowrap; justify-content: space-between; gap: 0}}
    .ff-tiles {{display: grid; grid-template-columns: repeat(3, auto); gap: .75rem 1rem}}
    .ff-tiles b {{font-size: 1.25rem}}
}}
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


def title(name: str, lead: str, *, status: str = "") -> None:
    """What a page is about, the one sentence that matters most, and before it what became of a video, in a word."""
    look = "ff-status ff-failed" if status == "failed" else "ff-status"
    said = f'<span class="{look}">{escaped(status.capitalize())}</span> ' if status else ""
    html(f'<h1 class="ff-title">{escaped(name)}</h1><p class="ff-lead">{said}{escaped(lead)}</p>')


def problem(text: str) -> None:
    """What is wrong with a file."""
    html(f'<div class="ff-problem" role="alert">{escaped(capitalised(text))}</div>')


def capitalised(text: str) -> str:
    """With a capital letter, but for a file's name or address at the beginning."""
    first = text.partition(" ")[0]
    return text if "." in first or "://" in first else text[:1].upper() + text[1:]


def unreadable(what: str, error: BaseException) -> bool:
    """That something cannot be read, why, and what to do: `what` begins the sentence; whether to look again now."""
    why = f"{error.filename}: {error.strerror.lower()}" if isinstance(error, OSError) and error.strerror else str(error)
    st.error(plain(f"{what} cannot be read. {capitalised(why).rstrip('.')}."), icon=":material/error:")
    st.caption("If that stays so when you look again, tell whoever runs this page.")
    return st.button("Look again", icon=":material/refresh:")


def empty(text: str, advice: str) -> None:
    """That there is nothing to be seen here, and what to do."""
    html(f'<div class="ff-empty"><b>{escaped(text)}</b><br>{escaped(advice)}</div>')


def bars(shares: Sequence[float], texts: Sequence[str], *, label: str) -> None:
    """A bar for each emotion in their order, the longest one's name in bold."""
    html(bars_html(shares, texts, label=label))


def bars_html(shares: Sequence[float], texts: Sequence[str], *, label: str) -> str:
    """The same, to be put into other HTML."""
    best = max(range(len(shares)), key=lambda place: shares[place])
    lines = []
    for place, (emotion, share, text) in enumerate(zip(EMOTIONS, shares, texts, strict=True)):
        strong = " ff-best" if place == best else ""
        color = EMOTION_COLORS[emotion]
        bar = f'<i style="width: {100 * share:.2f}%; background: {color}"></i>' if share >= 0.005 else ""
        lines.append(
            f'<span class="ff-name{strong}">{emotion}</span><span class="ff-track">{bar}</span>'
            f'<span class="ff-value{strong}">{escaped(text)}</span>'
        )
    return f'<div class="ff-bars" role="group" aria-label="{escaped(label)}">{"".join(lines)}</div>'


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
