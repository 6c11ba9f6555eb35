"""one video's summary -> its page in Markdown, for a person"""

import base64
import contextlib
from pathlib import Path

from ferflow.emotions import EMOTIONS
from ferflow.records import VideoSummary
from ferflow.storage import Results

_PICTURE_WIDTH_PX = 1000
_PICTURE_QUALITY = 75
# WebP of this size: 7 to 17 KB for the shared videos, and its words can be read. As PNG it takes 60 KB.


def describe_video(summary: VideoSummary, results: Results, *, has_picture: bool) -> str:
    """Tell what is known of a video; its timeline is put into the page itself, so that it is seen from any machine."""
    parts = [f"# {_plain(Path(summary.source).name)}", _sentence(summary)]
    if has_picture and (picture := _timeline(summary, results)):
        parts.append(f"![who showed what, and when](data:image/jpeg;base64,{picture})")
    rows = [f"| {name} | {value} |" for name, value in _facts(summary, results)]
    return "\n\n".join([*parts, "\n".join(["| | |", "|---|---|", *rows])]) + "\n"


def _sentence(summary: VideoSummary) -> str:
    if summary.info is None:
        return (
            f"**This video could not be analysed:** {_plain(summary.error or '')} It is tried again when the file "
            "changes, or when an analysis is started with *force*."
        )
    seconds = f"{summary.info.duration_seconds:.1f} s of video"
    if not summary.track_count or summary.emotion_shares is None:
        return f"No face was found in {seconds}."
    share = max(summary.emotion_shares)
    people = "One person" if summary.track_count == 1 else f"{summary.track_count} people"
    return f"{people} in {seconds}, mostly **{summary.dominant_emotion}** ({share:.0%} of the time with a face)."


def _facts(summary: VideoSummary, results: Results) -> list[tuple[str, str]]:
    facts = [("file", f"`{_plain(summary.source)}`")]
    if (info := summary.info) is not None:
        facts += [
            (
                "length",
                f"{info.duration_seconds:.1f} s, {info.frame_count} frames, {info.width} × {info.height} pixels",
            ),
            ("people", f"{summary.track_count}, {summary.face_count} faces found"),
        ]
    if summary.emotion_shares is not None:
        shares = sorted(zip(summary.emotion_shares, EMOTIONS, strict=True), reverse=True)
        shown = [f"{emotion} {share:.0%}" for share, emotion in shares if share >= 0.005]
        facts.append(("emotions, by time with a face", ", ".join(shown)))
    if summary.info is not None and summary.error:
        facts.append(("note", _plain(summary.error)))
    if summary.annotated_path is not None:
        facts.append(("annotated video", f"`{_plain(str(results.root / summary.annotated_path))}`"))
    if summary.timeline_path is not None:
        facts.append(("timeline picture", f"`{_plain(str(results.root / summary.timeline_path))}`"))
    return [
        *facts,
        ("model", f"`{summary.model_version}`"),
        ("analysed", f"{summary.processed_at:%Y-%m-%d %H:%M} UTC, {summary.processing_seconds:.1f} s of work"),
    ]


def _timeline(summary: VideoSummary, results: Results) -> str:
    """The picture in base64; empty if there is none."""
    import cv2
    import numpy as np

    picture: np.ndarray | None = None
    with contextlib.suppress(OSError, cv2.error):  # Gone; empty.
        if (path := results.named(summary.timeline_path)) is not None:
            picture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        return ""
    height, width = picture.shape[:2]
    size = _PICTURE_WIDTH_PX, round(height * _PICTURE_WIDTH_PX / width)
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    # As WebP it would be half as large, and take 30 times as long.
    encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _PICTURE_QUALITY])[1]
    return base64.b64encode(encoded.tobytes()).decode()


def _plain(text: str) -> str:
    """Text that means nothing to Markdown's tables and marks no code; a name may hold anything."""
    return " ".join(text.split()).replace("|", "¦").replace("`", "'").replace("<", "‹").replace(">", "›")
