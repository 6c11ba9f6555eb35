"""ferflow's colours -> the look of the page"""

import html

import streamlit as st

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


def apply() -> None:
    """Give the page its style; once a run, before anything is shown."""
    st.html("<style>.block-container {max-width: 1200px; padding-top: 4.5rem}</style>")


def escaped(text: str) -> str:
    """Text of a file's name or a message, safe inside HTML; what no screen can show becomes a replacement sign."""
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return html.escape(shown)
