"""rows -> one video's segments, shares and timeline picture."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ferflow.emotions import EMOTIONS
from ferflow.overlay import EMOTION_COLORS_RGB
from ferflow.records import FaceColumns, Segment

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTHING_SECONDS = 0.5
MIN_SEGMENT_SECONDS = 0.4
MAX_GAP_SECONDS = 1.0


def smooth_probabilities(faces: FaceColumns, *, window_seconds: float = SMOOTHING_SECONDS) -> np.ndarray:
    """Average each track's probabilities over a window of time around each frame.

    The average is over time, not over rows: a frame that is shown twice as long counts twice, and a frame that
    the window cuts counts in part, so the frame rate may vary. A window no longer than a frame changes nothing.

    Args:
        faces: the rows.
        window_seconds: length of the window, centred on the middle of the frame.

    Returns:
        float32 (n, 7), rows sum to 1, in the order of the rows. O(n log n).
    """
    order, starts, ends, first_rows = _by_track(faces)
    if not len(order):
        return faces.probabilities.copy()
    raw = faces.probabilities[order].astype(np.float64)

    # Lay the tracks one after another on one line, a window apart, so that no window sees two of them.
    lane = np.cumsum(first_rows) - 1
    stride = ends.max() - starts.min() + window_seconds + 1
    starts, ends = starts + lane * stride, ends + lane * stride

    # The integral of a track's probabilities is a line with a bend at each frame's start and end.
    bends = np.stack([starts, ends], axis=1).ravel()
    seconds = ends - starts
    middles = (starts + ends) / 2
    integral = np.zeros((len(order), 2, raw.shape[1]))
    integral[:, 1] = np.cumsum(raw * seconds[:, None], axis=0)
    integral[1:, 0] = integral[:-1, 1]
    integral = integral.reshape(len(bends), -1)
    half = window_seconds / 2
    smoothed = np.stack(
        [np.interp(middles + half, bends, column) - np.interp(middles - half, bends, column) for column in integral.T],
        axis=1,
    )
    sums = smoothed.sum(axis=1, keepdims=True)
    shown = sums > 1e-9  # a frame of no duration has no time to average over
    smoothed = np.where(shown, smoothed, raw) / np.where(shown, sums, raw.sum(axis=1, keepdims=True))
    result = np.empty_like(faces.probabilities)
    result[order] = smoothed
    return result


def find_segments(
    faces: FaceColumns,
    *,
    window_seconds: float = SMOOTHING_SECONDS,
    min_seconds: float = MIN_SEGMENT_SECONDS,
    max_gap_seconds: float = MAX_GAP_SECONDS,
) -> list[Segment]:
    """Cut each track into stretches of one emotion.

    Args:
        faces: the rows.
        window_seconds: how long the probabilities are averaged before the largest wins.
        min_seconds: a shorter stretch takes the likelier emotion of its neighbours, unless it stands alone.
        max_gap_seconds: a track unseen for longer ends its segment even if the emotion stays the same.

    Returns:
        Segments by track, then by time. A segment lasts from its first frame's appearance to its last frame's
        end; those of one track do not overlap, and every row lies in exactly one.
    """
    order, starts, ends, first_rows = _by_track(faces)
    if not len(order):
        return []
    smoothed = smooth_probabilities(faces, window_seconds=window_seconds)[order].astype(np.float64)
    alone = first_rows.copy()  # rows that cannot continue the segment before them
    alone[1:] |= starts[1:] - ends[:-1] > max_gap_seconds
    labels = _settle(smoothed, starts, ends, alone, min_seconds)

    begin = np.flatnonzero(alone | np.r_[True, labels[1:] != labels[:-1]])
    last = np.r_[begin[1:], len(order)] - 1
    raw = faces.probabilities[order, labels].astype(np.float64)
    weights = np.maximum(ends - starts, 1e-9)
    means = np.add.reduceat(raw * weights, begin) / np.add.reduceat(weights, begin)
    tracks = faces.track_id[order]
    return [
        Segment(int(tracks[b]), EMOTIONS[labels[b]], float(starts[b]), float(ends[e]), min(float(mean), 1.0))
        for b, e, mean in zip(begin, last, means, strict=True)
    ]


def emotion_of_rows(faces: FaceColumns, segments: list[Segment]) -> np.ndarray:
    """The class of the segment that each row lies in: what a person is told about this face.

    Returns:
        int64 (n,), indices into EMOTIONS. A row is in the last segment of its track that starts no later.

    Raises:
        ValueError: a row lies before every segment of its track; the segments are those of other rows.
    """
    if not len(faces.track_id):
        return np.zeros(0, np.int64)
    # One sorted line of time for all tracks, as far apart as the video is long, so that one search serves all.
    tracks = np.unique(faces.track_id)
    lanes = np.searchsorted(tracks, [segment.track_id for segment in segments])
    stride = np.ptp(faces.pts_seconds) + 1.0
    segment_keys = lanes * stride + [segment.start_seconds for segment in segments]
    by_key = np.argsort(segment_keys)
    row_keys = np.searchsorted(tracks, faces.track_id) * stride + faces.pts_seconds
    at = np.searchsorted(segment_keys[by_key], row_keys, side="right") - 1
    segment_tracks = np.array([segment.track_id for segment in segments])[by_key]
    if not len(segments) or (at < 0).any() or (segment_tracks[at] != faces.track_id).any():
        raise ValueError("a face lies before the first segment of its track: the segments are those of other faces")
    rows: np.ndarray = np.array([EMOTIONS.index(segment.emotion) for segment in segments])[by_key][at]
    return rows


def emotion_shares(faces: FaceColumns, segments: list[Segment]) -> tuple[float, ...] | None:
    """Share of the time of all faces that each emotion took.

    Every face counts for as long as its frame is shown, under the emotion of its segment; two people for one
    second are two seconds. Time without a face counts for nothing.

    Returns:
        One number per class in the order of EMOTIONS, sum 1; None without faces.
    """
    if not len(faces.track_id):
        return None
    seconds = np.maximum(faces.frame_seconds, 1e-9)
    totals = np.bincount(emotion_of_rows(faces, segments), weights=seconds, minlength=len(EMOTIONS))
    return tuple((totals / totals.sum()).tolist())


def dominant_emotion(shares: tuple[float, ...] | None) -> str | None:
    """The emotion with the largest share, the first in EMOTIONS of equals; None without faces."""
    return None if shares is None else EMOTIONS[int(np.argmax(shares))]


def describe_segment(segment: Segment) -> str:
    """`track 2 happy from 3.2 s to 5.8 s`."""
    return (
        f"track {segment.track_id} {segment.emotion} from {segment.start_seconds:.1f} s to {segment.end_seconds:.1f} s"
    )


def _by_track(faces: FaceColumns) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows by track and time: their order, starts and ends in seconds, and which are the first of their track."""
    order = np.lexsort((faces.pts_seconds, faces.track_id))
    tracks, starts = faces.track_id[order], faces.pts_seconds[order]
    ends = starts + faces.frame_seconds[order]
    first_rows = np.ones(len(order), bool)
    first_rows[1:] = tracks[1:] != tracks[:-1]
    # Start plus duration may pass the next start by a rounding error: 0.1 + 0.2 > 0.3.
    ends[:-1] = np.where(first_rows[1:], ends[:-1], np.minimum(ends[:-1], starts[1:]))
    return order, starts, ends, first_rows


def _settle(
    smoothed: np.ndarray, starts: np.ndarray, ends: np.ndarray, alone: np.ndarray, min_seconds: float
) -> np.ndarray:
    """The class of each row after stretches shorter than the minimum went to their neighbours, shortest first."""
    labels: np.ndarray = np.argmax(smoothed, axis=1)
    weighted = smoothed * np.maximum(ends - starts, 1e-9)[:, None]
    while True:
        begin = np.flatnonzero(alone | np.r_[True, labels[1:] != labels[:-1]])
        last = np.r_[begin[1:], len(labels)] - 1
        seconds = ends[last] - starts[begin]
        has_next = np.r_[~alone[begin[1:]], False]
        has_previous = ~alone[begin]
        previous_seconds = np.where(has_previous, np.r_[np.inf, seconds[:-1]], np.inf)
        next_seconds = np.where(has_next, np.r_[seconds[1:], np.inf], np.inf)
        # Only a stretch shorter than both neighbours, so that no two neighbours change at once.
        short = (seconds < min_seconds) & (has_previous | has_next)
        short &= (seconds <= previous_seconds) & (seconds < next_seconds)
        if not short.any():
            return labels
        weights = np.add.reduceat(weighted, begin, axis=0)
        runs = np.arange(len(begin))
        label = labels[begin]
        before, after = np.r_[label[:1], label[:-1]], np.r_[label[1:], label[-1:]]
        before_weight = np.where(has_previous, weights[runs, before], -1.0)
        after_weight = np.where(has_next, weights[runs, after], -1.0)
        settled = np.where(short, np.where(after_weight > before_weight, after, before), label)
        labels = np.repeat(settled, last - begin + 1)


def draw_timeline(
    faces: FaceColumns, segments: list[Segment], path: Path, *, title: str, duration_seconds: float
) -> None:
    """Write a PNG on which a person sees at a glance who showed what, and when.

    Each person has a lane with the segments in their colours and, when there are few people, the probabilities
    below it as stacked areas; beside it is each emotion's share of the time. The file appears complete or not
    at all.

    Args:
        faces: the rows.
        segments: those that `find_segments` made of them.
        path: where to write; the folder exists.
        title: the video's file name.
        duration_seconds: length of the video.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    seen = _seen_seconds(faces)
    shown = sorted(sorted(seen, key=lambda track: -seen[track])[:_MOST_LANES])
    detailed = len(shown) <= _MOST_DETAILED_LANES
    lanes_inches = max(len(shown) * (_DETAILED_INCHES if detailed else _LANE_INCHES), _LEAST_INCHES)
    height = lanes_inches + _HEAD_INCHES + _FOOT_INCHES
    figure = Figure(figsize=(_WIDTH_INCHES, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)

    bottom, lanes_height = _FOOT_INCHES / height, lanes_inches / height
    lanes = figure.add_axes((0.085, bottom, 0.645, lanes_height))
    end_seconds = max(duration_seconds, float(np.max(faces.pts_seconds + faces.frame_seconds, initial=0.0)), 1e-3)
    _draw_lanes(lanes, faces, segments, shown, seen, detailed=detailed, end_seconds=end_seconds)

    share_inches = min(lanes_inches, _LEAST_INCHES)
    bars = figure.add_axes((0.825, (height - _HEAD_INCHES - share_inches) / height, 0.13, share_inches / height))
    shares = emotion_shares(faces, segments)
    _draw_shares(bars, shares)

    left_out = [seconds for track, seconds in seen.items() if track not in shown]
    figure.text(0.085, 1 - 0.3 / height, _fit(title, 90), fontsize=14, weight="bold", parse_math=False, va="center")
    figure.text(0.085, 1 - 0.58 / height, _headline(seen, shares, end_seconds), fontsize=10, color=_GREY, va="center")
    if left_out:
        more = "1 more person" if len(left_out) == 1 else f"{len(left_out)} more people"
        note = f"and {more}, seen for {_duration_text(max(left_out))} or less"
        figure.text(0.085, 0.16 / height, note, fontsize=10, color=_GREY, va="center")

    part = path.with_name(f"{path.name}.part")
    try:
        figure.savefig(part, format="png")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


_GREY = "#555555"
_WIDTH_INCHES, _DPI = 13.0, 110
_HEAD_INCHES, _FOOT_INCHES, _LEAST_INCHES = 0.95, 0.75, 2.1
_LANE_INCHES, _DETAILED_INCHES = 0.42, 1.05
_MOST_LANES, _MOST_DETAILED_LANES = 12, 4
_MOST_BINS = 400
_TICK_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)


def _seen_seconds(faces: FaceColumns) -> dict[int, float]:
    """For how long each track is seen."""
    tracks, inverse = np.unique(faces.track_id, return_inverse=True)
    return dict(zip(tracks.tolist(), np.bincount(inverse, weights=faces.frame_seconds).tolist(), strict=True))


def _draw_lanes(
    axes: "Axes",
    faces: FaceColumns,
    segments: list[Segment],
    shown: list[int],
    seen: dict[int, float],
    *,
    detailed: bool,
    end_seconds: float,
) -> None:
    """One lane per person: segments with their names, and below them the probabilities."""
    axes.set_xlim(0, end_seconds)
    axes.set_ylim(max(len(shown), 1), 0)
    band = (0.08, 0.30) if detailed else (0.12, 0.76)
    box = axes.get_window_extent()
    pixels_per_second = box.width / end_seconds
    for lane, track in enumerate(shown):
        axes.broken_barh([(0, end_seconds)], (lane + band[0], band[1]), color="#f0f0f0", linewidth=0)
        own = [segment for segment in segments if segment.track_id == track]
        for emotion, color in zip(EMOTIONS, _colors(), strict=True):
            spans = [(s.start_seconds, s.end_seconds - s.start_seconds) for s in own if s.emotion == emotion]
            axes.broken_barh(spans, (lane + band[0], band[1]), color=color, linewidth=0)
        for segment in own:
            width = (segment.end_seconds - segment.start_seconds) * pixels_per_second
            if width > len(segment.emotion) * 8.5 + 6:
                axes.text(
                    (segment.start_seconds + segment.end_seconds) / 2,
                    lane + band[0] + band[1] / 2,
                    segment.emotion,
                    ha="center",
                    va="center_baseline",
                    fontsize=9,
                    color=_ink(segment.emotion),
                )
        if detailed:
            _draw_areas(axes, faces, track, lane + 0.92, 0.5, end_seconds)
        if lane:
            axes.axhline(lane, color="#dddddd", linewidth=0.8)
    axes.set_yticks(
        [lane + band[0] + band[1] / 2 for lane in range(len(shown))],
        [f"#{track}  {_duration_text(seen[track])}" for track in shown],
    )
    if not shown:
        axes.text(0.5, 0.5, "No face was found in this video.", transform=axes.transAxes, ha="center", fontsize=14)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    step = next((step for step in _TICK_STEPS if end_seconds / step <= 10), 28800)
    ticks = np.arange(0, end_seconds + step * 1e-6, step)
    axes.set_xticks(ticks, [_clock(tick, end_seconds) for tick in ticks.tolist()])


def _draw_areas(axes: "Axes", faces: FaceColumns, track: int, base: float, height: float, end_seconds: float) -> None:
    """Stack the mean probabilities of at most _MOST_BINS stretches of time, upwards from the base."""
    rows = faces.track_id == track
    starts = faces.pts_seconds[rows]
    bins = min(_MOST_BINS, max(int(end_seconds / max(float(np.median(faces.frame_seconds[rows])), 1e-3)), 1))
    at = np.minimum((starts / end_seconds * bins + 1e-6).astype(np.int64), bins - 1)
    counts = np.bincount(at, minlength=bins)
    probabilities = faces.probabilities[rows]
    heights = np.stack([np.bincount(at, weights=column, minlength=bins) for column in probabilities.T])
    tops = np.cumsum(heights / np.maximum(counts, 1), axis=0) * height
    edges = np.linspace(0, end_seconds, bins + 1)
    below: np.ndarray = np.zeros(bins)
    for top, color in zip(tops, _colors(), strict=True):
        axes.fill_between(
            edges,
            base - np.append(below, below[-1]),
            base - np.append(top, top[-1]),
            step="post",
            color=color,
            linewidth=0,
            alpha=0.75,
        )
        below = top


def _draw_shares(axes: "Axes", shares: tuple[float, ...] | None) -> None:
    """Each emotion's share of the time as a bar; it is the legend of the colours too."""
    axes.set_title("share of time", fontsize=10, color=_GREY, loc="left")
    values = shares or (0.0,) * len(EMOTIONS)
    places = range(len(EMOTIONS))
    axes.barh(places, [max(value, 0.02) for value in values], color=_colors(), height=0.72)
    for place, value in zip(places, values, strict=True):
        axes.text(max(value, 0.02) + 0.03, place, f"{value:.0%}" if shares else "", va="center", fontsize=9)
    axes.set_yticks(list(places), list(EMOTIONS))
    axes.set_ylim(len(EMOTIONS) - 0.5, -0.5)
    axes.set_xlim(0, 1.15)
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _headline(seen: dict[int, float], shares: tuple[float, ...] | None, end_seconds: float) -> str:
    """`2 people in 1:00, mostly happy (54% of the time)`."""
    if shares is None:
        return f"nobody in {_duration_text(end_seconds)}"
    people = "1 person" if len(seen) == 1 else f"{len(seen)} people"
    return (
        f"{people} in {_duration_text(end_seconds)}, mostly {dominant_emotion(shares)} ({max(shares):.0%} of the time)"
    )


def _duration_text(seconds: float) -> str:
    """`4.2 s` up to a minute, then `3:05` and `1:02:07`."""
    return f"{seconds:.1f} s" if seconds < 60 else _clock(seconds, seconds)


def _clock(seconds: float, longest: float) -> str:
    """A time on an axis that reaches to the longest."""
    if longest <= 60:
        return f"{seconds:.6g} s"
    minutes, rest = divmod(round(seconds), 60)
    if longest < 3600:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _colors() -> list[tuple[float, float, float]]:
    """The colours of the boxes in the video, as matplotlib wants them."""
    return [(red / 255, green / 255, blue / 255) for red, green, blue in EMOTION_COLORS_RGB]


def _ink(emotion: str) -> str:
    """Black or white, whichever reads better on the emotion's colour."""
    return "black" if np.dot(EMOTION_COLORS_RGB[EMOTIONS.index(emotion)], (0.299, 0.587, 0.114)) > 120 else "white"


def _fit(text: str, most: int) -> str:
    """Shorten in the middle: the end of a file name tells as much as its beginning."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2) :]}"
