"""rows -> one video's segments, shares and timeline picture."""

import math
from pathlib import Path

import cv2
import numpy as np

from ferflow.emotions import EMOTIONS
from ferflow.overlay import EMOTION_COLORS_RGB, ink_rgb
from ferflow.records import FaceColumns, Segment
from ferflow.storage import part_file

SMOOTHING_SECONDS = 0.5
"""Window of the average: an expression lasts half a second to four seconds (Ekman, Emotions Revealed, 2003)."""
MIN_SEGMENT_SECONDS = 0.4
"""What is shorter is taken for a slip of the model, not for an expression."""
_CLEAR_LEAD = 0.25
# An emotion that leads its neighbours' by less than this, on average, counts for proportionally less time: with 0.31
# against 0.24 an expression has to last 1.4 s where a clear one needs 0.4 s.
MAX_GAP_SECONDS = 1.0
"""For as long a person may be out of sight without a new segment; also how long the tracker waits."""


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
    raw = faces.probabilities[order]

    # Lay the tracks one after another on one line, a window apart, so that no window sees two of them.
    lanes = np.cumsum(first_rows) - 1
    stride = ends.max() - starts.min() + window_seconds
    starts, ends = starts + lanes * stride, ends + lanes * stride
    middles = (starts + ends) / 2
    half = window_seconds / 2
    smoothed = _integrate(starts, ends, raw, since=middles - half, until=middles + half)
    sums = smoothed.sum(axis=1)
    shown = sums > 1e-6  # a frame of no duration, alone, has no time to average over
    smoothed[shown] /= sums[shown, None]
    smoothed[~shown] = raw[~shown]
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
        min_seconds: a shorter stretch takes the likelier emotion of its neighbours, unless it stands alone; one that
            hardly leads over its neighbours' emotions has to be longer.
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
    first_rows = np.ones(len(order), bool)
    first_rows[1:] = tracks[1:] != tracks[:-1]
    return order, starts, _ends(starts, faces.frame_seconds[order], first_rows), first_rows


def _ends(starts: np.ndarray, seconds: np.ndarray, first_rows: np.ndarray | None = None) -> np.ndarray:
    """When each row is over: never after the next one of its track begins, though 0.1 + 0.2 > 0.3."""
    ends: np.ndarray = starts + seconds
    overlaps = ends[:-1] > starts[1:]
    if first_rows is not None:
        overlaps &= ~first_rows[1:]
    ends[:-1] = np.where(overlaps, starts[1:], ends[:-1])
    return ends


def _integrate(
    starts: np.ndarray, ends: np.ndarray, probabilities: np.ndarray, *, since: np.ndarray, until: np.ndarray
) -> np.ndarray:
    """The integral over time of each probability, between (m,) times and (m,) others: float64 (m, 7)."""
    bends = np.stack([starts, ends], axis=1).ravel()
    sums = np.zeros((len(starts), 2))  # up to each bend, from the first row on
    integral = np.empty((len(since), probabilities.shape[1]))
    for place, column in enumerate(probabilities.T):  # one by one: an hour's rows at once would take 60 MB
        np.cumsum(column * (ends - starts), out=sums[:, 1])
        sums[1:, 0] = sums[:-1, 1]
        integral[:, place] = np.interp(until, bends, sums.ravel()) - np.interp(since, bends, sums.ravel())
    return integral


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

        weights = np.add.reduceat(weighted, begin, axis=0)
        runs = np.arange(len(begin))
        label = labels[begin]
        before, after = np.r_[label[:1], label[:-1]], np.r_[label[1:], label[-1:]]
        before_weight = np.where(has_previous, weights[runs, before], -1.0)
        after_weight = np.where(has_next, weights[runs, after], -1.0)
        lead = (weights[runs, label] - np.maximum(before_weight, after_weight)) / weights.sum(axis=1)
        clear_seconds = seconds * np.clip(lead / _CLEAR_LEAD, 0, 1)

        previous_seconds = np.where(has_previous, np.r_[np.inf, clear_seconds[:-1]], np.inf)
        next_seconds = np.where(has_next, np.r_[clear_seconds[1:], np.inf], np.inf)
        # Only a stretch shorter than both neighbours, so that no two neighbours change at once.
        short = (clear_seconds < min_seconds) & (has_previous | has_next)
        short &= (clear_seconds <= previous_seconds) & (clear_seconds < next_seconds)
        if not short.any():
            return labels
        settled = np.where(short, np.where(after_weight > before_weight, after, before), label)
        labels = np.repeat(settled, last - begin + 1)


def draw_timeline(
    faces: FaceColumns,
    segments: list[Segment],
    path: Path,
    *,
    title: str,
    duration_seconds: float,
    parts: Path | None = None,
) -> None:
    """Write a PNG on which a person sees at a glance who showed what, and when.

    Each person has a lane with their segments and, when there are few people, the probabilities below it as
    stacked areas; beside the lanes is each emotion's share of the time. Drawn with OpenCV: it has letters for
    the file names of most of the world, can be used from any thread and takes 10 ms, where matplotlib takes 120
    and a second to import. The file appears complete or not at all.

    Args:
        faces: the rows.
        segments: those that `find_segments` made of them.
        path: where to write.
        title: the video's file name.
        duration_seconds: length of the video.
        parts: folder for the unfinished file, on the target's disk; None for one beside the target.
    """
    seen_seconds = _seen_seconds(faces)
    people = sorted(sorted(seen_seconds, key=lambda track: -seen_seconds[track])[:_MOST_LANES])
    with_areas = len(people) <= _MOST_LANES_WITH_AREAS
    lane_px = max(140 if with_areas else 46, _SHARES_PX // max(len(people), 1) if with_areas else 0)
    lanes_px = max(lane_px * len(people), _SHARES_PX)
    bottom_px = _HEAD_PX + lanes_px
    picture = np.full((bottom_px + _FOOT_PX, _WIDTH_PX, 3), 255, np.uint8)

    shares = emotion_shares(faces, segments)
    ends = faces.pts_seconds + faces.frame_seconds
    end_seconds = max(duration_seconds, float(np.max(ends, initial=0.0)), 1e-3)
    _write(picture, _shorten(title, _WIDTH_PX - 2 * _MARGIN_PX, 30), _MARGIN_PX, 44, 30, weight=600)
    _write(picture, _headline(len(seen_seconds), shares, end_seconds), _MARGIN_PX, 84, 19, color=_GREY)
    for lane, track in enumerate(people):
        top = _HEAD_PX + lane * lane_px
        _draw_lane(picture, faces, segments, track, top, lane_px, with_areas=with_areas, end_seconds=end_seconds)
        _write(picture, f"#{track}", _MARGIN_PX, top + 18, 19, weight=600)
        _write(picture, _duration_text(seen_seconds[track]), _LANES_X[0] - 12, top + 18, 17, color=_GREY, align=1.0)
    if not people:
        middle = (_LANES_X[0] + _LANES_X[1]) // 2
        _write(picture, "No face was found in this video.", middle, _HEAD_PX + lanes_px // 2, 24, align=0.5)
    _draw_time_axis(picture, bottom_px, end_seconds)
    _draw_shares(picture, shares)
    _write(picture, _footnote(seen_seconds, people, with_areas), _MARGIN_PX, bottom_px + 68, 16, color=_GREY)

    with part_file(path, folder=parts) as part:
        part.write_bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), _PNG)[1].tobytes())


_WIDTH_PX, _MARGIN_PX, _HEAD_PX, _FOOT_PX = 1600, 40, 124, 92
_LANES_X = (180, 1190)
_SHARES_X, _SHARES_PX = 1370, 250
_MOST_LANES, _MOST_LANES_WITH_AREAS = 12, 4
_BAND_PX, _AREA_GAP_PX = 36, 6
_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE)
# Plain areas need no filter: half the time and half the bytes of OpenCV's own choice.
_BLACK, _GREY, _PALE = (0, 0, 0), (100, 100, 100), (240, 240, 240)
_TICK_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)


def _write(
    picture: np.ndarray,
    text: str,
    x: int,
    middle_y: int,
    size_px: int,
    *,
    color: tuple[int, int, int] = _BLACK,
    weight: int = 400,
    align: float = 0.0,
) -> None:
    """Write a line of text that begins (align 0), is centred (0.5) or ends (1) at x."""
    font = cv2.FontFace("sans")
    left = x - round(align * _text_px(text, size_px, weight))
    cv2.putText(picture, text, (left, middle_y + round(size_px * 0.36)), color, font, size_px, weight)


def _text_px(text: str, size_px: int, weight: int = 400) -> int:
    return int(cv2.getTextSize((1, 1), text, (0, 0), cv2.FontFace("sans"), size_px, weight)[2])


def _draw_lane(
    picture: np.ndarray,
    faces: FaceColumns,
    segments: list[Segment],
    track: int,
    top: int,
    lane_px: int,
    *,
    with_areas: bool,
    end_seconds: float,
) -> None:
    """One person: the segments with their names, and below them the probabilities."""
    left, right = _LANES_X
    band = picture[top : top + _BAND_PX, left:right]
    band[:] = _PALE
    pixels_per_second = (right - left) / end_seconds
    for segment in segments:
        if segment.track_id != track:
            continue
        color = EMOTION_COLORS_RGB[EMOTIONS.index(segment.emotion)]
        start = min(round(segment.start_seconds * pixels_per_second), right - left - 1)
        end = max(round(segment.end_seconds * pixels_per_second), start + 1)
        band[:, start:end] = color
        if _text_px(segment.emotion, 17) + 8 <= end - start:
            _write(band, segment.emotion, (start + end) // 2, _BAND_PX // 2, 17, color=ink_rgb(color), align=0.5)
    if with_areas:
        area_top, area_bottom = top + _BAND_PX + _AREA_GAP_PX, top + lane_px - 22
        _draw_areas(picture[area_top:area_bottom, left:right], faces, track, end_seconds=end_seconds)


def _draw_areas(area: np.ndarray, faces: FaceColumns, track: int, *, end_seconds: float) -> None:
    """Stack the mean probabilities around each column's time, from the bottom up, where the face is seen."""
    own = faces.track_id == track
    starts: np.ndarray = faces.pts_seconds[own]
    ends, probabilities = _ends(starts, faces.frame_seconds[own]), faces.probabilities[own]
    height, width = area.shape[:2]
    edges = np.linspace(0, end_seconds, width + 1)
    shown = _integrate(starts, ends, probabilities, since=edges[:-1], until=edges[1:]).sum(axis=1) > 0
    # Each column averages over its neighbours too, or an hour is a flicker of single columns.
    half = end_seconds / 400
    middles = (edges[:-1] + edges[1:])[shown] / 2
    tops = np.cumsum(_integrate(starts, ends, probabilities, since=middles - half, until=middles + half), axis=1)
    tops /= tops[:, -1:]
    levels = (np.arange(height, 0, -1) - 0.5) / height
    classes = np.zeros((height, len(tops)), np.uint8)
    for top in tops.T[:-1]:
        classes += top <= levels[:, None]
    pale = (0.65 * np.array(EMOTION_COLORS_RGB) + 0.35 * 255).astype(np.uint8)
    area[:, shown] = pale[classes]


def _draw_time_axis(picture: np.ndarray, y: int, end_seconds: float) -> None:
    """A line with at most eleven times below it."""
    left, right = _LANES_X
    picture[y : y + 2, left:right] = _GREY
    step = next((step for step in _TICK_SECONDS if end_seconds / step <= 10), math.ceil(end_seconds / 36000) * 3600)
    for tick in range(math.floor(end_seconds / step + 1e-6) + 1):
        x = min(left + round(tick * step / end_seconds * (right - left)), right - 2)
        picture[y : y + 8, x : x + 2] = _GREY
        _write(picture, _clock(tick * step, end_seconds), x, y + 24, 17, color=_GREY, align=0.5)


def _draw_shares(picture: np.ndarray, shares: tuple[float, ...] | None) -> None:
    """Each emotion's share of the time as a bar, which is the legend of the colours too."""
    _write(picture, "share of time", _SHARES_X, 84, 19, color=_GREY)
    for place, (emotion, color) in enumerate(zip(EMOTIONS, EMOTION_COLORS_RGB, strict=True)):
        y = _HEAD_PX + 18 + place * 35
        share = shares[place] if shares else 0.0
        end = _SHARES_X + max(round(share * 150), 6)
        picture[y - 13 : y + 13, _SHARES_X:end] = color
        _write(picture, emotion, _SHARES_X - 10, y, 19, align=1.0)
        if shares:
            _write(picture, f"{share:.0%}", end + 8, y, 19)


def _seen_seconds(faces: FaceColumns) -> dict[int, float]:
    """For how long each track is seen."""
    tracks, rows = np.unique(faces.track_id, return_inverse=True)
    return dict(zip(tracks.tolist(), np.bincount(rows, weights=faces.frame_seconds).tolist(), strict=True))


def _headline(people: int, shares: tuple[float, ...] | None, end_seconds: float) -> str:
    """`2 people in 1:00, most often happy: 54% of the time with a face`."""
    if shares is None:
        return f"nobody in {_duration_text(end_seconds)}"
    who = "1 person" if people == 1 else f"{people} people"
    most_often = f"{dominant_emotion(shares)}: {max(shares):.0%} of the time with a face"
    return f"{who} in {_duration_text(end_seconds)}, most often {most_often}"


def _footnote(seen_seconds: dict[int, float], people: list[int], with_areas: bool) -> str:
    """Who is left out, and what the picture's parts mean."""
    if not people:
        return ""
    parts = ["# the person's number in the video, with the time seen; grey: not seen"]
    if with_areas:
        parts.append("below: how likely each emotion is")
    left_out = [seconds for track, seconds in seen_seconds.items() if track not in people]
    if left_out:
        who = "1 more person" if len(left_out) == 1 else f"{len(left_out)} more people"
        parts.insert(0, f"and {who}, seen for {_duration_text(max(left_out))} or less")
    return "  ·  ".join(parts)


def _duration_text(seconds: float) -> str:
    """`0.04 s`, `4.2 s` up to a minute, then `3:05` and `1:02:07`."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    return _clock(seconds, seconds)


def _clock(seconds: float, longest: float) -> str:
    """A time on an axis that reaches to the longest."""
    if longest < 60.5:
        return f"{seconds:.6g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if round(longest) < 3600 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _shorten(text: str, most_px: int, size_px: int) -> str:
    """Leave out the middle of a long text: the end of a file name tells as much as its beginning."""
    # OpenCV crashes on the surrogates by which Python names a file whose bytes are not UTF-8.
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    keep = len(text)
    shortened = text
    while _text_px(shortened, size_px, 600) > most_px:
        keep -= 1
        shortened = f"{text[: (keep + 1) // 2]}…{text[len(text) - keep // 2 :]}"
    return shortened
