"""segments -> a lane for each person on the page, in which a click on a segment gives its time"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from ferflow.records import Segment
from viewer.theme import EDGE, EMOTION_COLORS, INK, INK_COLORS, MUTED, PALE

_TICK_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)
_MOST_TICKS = 6
# As many as a phone has room for.

_CSS = f"""
.lanes {{ display: grid; grid-template-columns: max-content 1fr; gap: .4rem .75rem; align-items: center;
    font-family: var(--st-font); font-size: .875rem; color: var(--st-text-color); }}
.who {{ font-variant-numeric: tabular-nums; }}
.band {{ position: relative; height: 2.25rem; border-radius: .25rem; background: {PALE}; overflow: hidden; }}
button {{ position: absolute; top: 0; bottom: 0; min-width: 3px; padding: 0; border: 1px solid {EDGE}; cursor: pointer;
    font: inherit; overflow: hidden; white-space: nowrap; container-type: inline-size; }}
button:hover {{ filter: brightness(.93); }}
button:focus-visible {{ outline: 3px solid {INK}; outline-offset: -3px; z-index: 1; }}
button span {{ display: none; }}
@container (min-width: 4.5em) {{ button span {{ display: inline; }} }}
.now {{ position: absolute; left: var(--ff-now, 0); top: 0; bottom: 0; width: 2px; margin-left: -1px; background: {INK};
    box-shadow: 0 0 0 1px #fff; pointer-events: none; z-index: 2; }}
.axis {{ position: relative; height: 1.25rem; grid-column: 2; color: {MUTED}; }}
.axis span {{ position: absolute; transform: translateX(-50%); font-variant-numeric: tabular-nums; }}
.axis span {{ white-space: nowrap; }}
.axis span:first-child {{ transform: none; }}
.axis span.last {{ transform: translateX(-100%); }}
"""

# Text is set as text, never as HTML.
_JS = """
export default function ({ parentElement, data, setTriggerValue }) {
    const make = (kind, name, text) => {
        const element = document.createElement(kind)
        element.className = name
        element.textContent = text
        return element
    }
    // A little after its beginning, so that no rounding shows the frame before.
    const move = seconds => {
        const player = document.querySelector("video.ff-player")
        if (player) player.currentTime = seconds + 0.001
    }
    const lanes = parentElement.querySelector(".lanes")
    const held = parentElement.activeElement ? parentElement.activeElement.ariaLabel : null
    lanes.replaceChildren()
    for (const lane of data.lanes) {
        const band = make("div", "band", "")
        for (const segment of lane.segments) {
            const button = make("button", "", "")
            button.append(make("span", "", segment.name))
            button.type = "button"
            button.ariaLabel = button.title = segment.label
            button.style.left = segment.left + "%"
            button.style.width = segment.width + "%"
            button.style.background = segment.color
            button.style.color = segment.ink
            button.onclick = () => {
                // Here too: to whom this moment was shown before, the answer of the page changes nothing.
                move(segment.start_seconds)
                setTriggerValue("jump", segment.start_seconds)
            }
            band.append(button)
        }
        band.append(make("div", "now", ""))
        lanes.append(make("span", "who", lane.name), band)
    }
    const axis = make("div", "axis", "")
    for (const tick of data.ticks) {
        const label = make("span", "", tick.name)
        label.style.left = tick.left + "%"
        if (tick.left > 95) label.className = "last"
        axis.append(label)
    }
    lanes.append(axis)
    for (const button of lanes.querySelectorAll("button")) if (held && button.ariaLabel === held) button.focus()
}
"""

# The line is moved by itself: an hour's lanes are a quarter of a megabyte, too much for each step of a slider.
_MOVE_JS = """
export default function ({ data }) {
    document.documentElement.style.setProperty("--ff-now", data.now + "%")
    const player = document.querySelector("video.ff-player")
    if (player && player.dataset.at !== String(data.seconds)) {
        player.dataset.at = data.seconds
        // A little after its beginning, so that no rounding shows the frame before.
        player.currentTime = data.seconds + 0.001
    }
    return () => document.documentElement.style.removeProperty("--ff-now")
}
"""

_lanes: Any = None
_moment: Any = None


def show_timeline(
    segments: Sequence[Segment],
    tracks: Sequence[int],
    *,
    end_seconds: float,
    key: str,
    on_jump: Callable[[], None],
) -> None:
    """Show who showed what when.

    In the session's state under the key, `.jump` is the start in seconds of the segment that was clicked.

    Args:
        segments: those of the video.
        tracks: the people to show, from top to bottom.
        end_seconds: length of the video.
        key: by which the page knows it again.
        on_jump: called before the page is shown anew after a click.
    """
    global _lanes
    if _lanes is None:
        _lanes = st.components.v2.component("ferflow_lanes", html='<div class="lanes"></div>', css=_CSS, js=_JS)
    end_seconds = max(end_seconds, 1e-3)
    lanes = [
        {
            "name": f"#{track}",
            "segments": [_piece(segment, end_seconds) for segment in segments if segment.track_id == track],
        }
        for track in tracks
    ]
    step = next((step for step in _TICK_SECONDS if end_seconds / step <= _MOST_TICKS), end_seconds / _MOST_TICKS)
    ticks = [
        {"name": clock(index * step), "left": 100 * index * step / end_seconds}
        for index in range(math.floor(end_seconds / step * 0.98) + 1)
    ]
    _lanes(data={"lanes": lanes, "ticks": ticks}, key=key, on_jump_change=on_jump)


def show_moment(seconds: float, *, end_seconds: float) -> None:
    """Move the player to a moment when that changes, and in the timeline the line that marks it.

    Args:
        seconds: the moment.
        end_seconds: length of the video.
    """
    global _moment
    if _moment is None:
        _moment = st.components.v2.component("ferflow_moment", js=_MOVE_JS)
    now = 100 * min(seconds / max(end_seconds, 1e-3), 1.0)
    _moment(data={"now": now, "seconds": seconds}, key="moment", height=0)


def clock(seconds: float) -> str:
    """A moment as a person says it: `2.4 s`, `3:05`, `1:02:07`."""
    if seconds < 60:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    minutes, rest = divmod(math.floor(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _piece(segment: Segment, end_seconds: float) -> dict[str, str | float]:
    start, end = segment.start_seconds, min(segment.end_seconds, end_seconds)
    return {
        "name": segment.emotion,
        "label": f"#{segment.track_id} {segment.emotion} from {clock(start)} to {clock(end)}",
        "left": 100 * start / end_seconds,
        "width": 100 * max(end - start, 0.0) / end_seconds,
        "color": EMOTION_COLORS[segment.emotion],
        "ink": INK_COLORS[segment.emotion],
        "start_seconds": start,
    }
