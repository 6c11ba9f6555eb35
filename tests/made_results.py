"""the tables that an analysis leaves, written without analysing anything: for tests of who reads them"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count

from ferflow.emotions import EMOTIONS
from ferflow.records import Analysis, Segment, VideoInfo, VideoSummary
from ferflow.rows import write_faces, write_segments, write_video

BEGAN = datetime(2026, 11, 1, 12, tzinfo=UTC)
NUMBERS = count(1)
INFO = VideoInfo(640, 360, 100, 10.0, 10.0, has_audio=True, warning=None)


def add_video(results, source, *, emotion="happy", segments=None, **changes):
    """Write the tables that an analysis leaves, without the rows of its faces; one that failed has no length either."""
    number = next(NUMBERS)
    shares = tuple(0.7 if name == emotion else 0.05 for name in EMOTIONS)
    summary = VideoSummary(
        video_id=f"{number:016x}",
        source=source,
        status="done",
        error=None,
        info=INFO,
        face_count=100,
        track_count=1,
        dominant_emotion=emotion,
        emotion_shares=shares,
        annotated_path=None,
        timeline_path=None,
        model_version="m",
        settings_hash="s",
        processed_at=BEGAN + timedelta(minutes=number),
        processing_seconds=float(number),
    )
    summary = replace(summary, **changes)
    if summary.info is not None:
        analysis = Analysis(summary.video_id, source, "m", "s", BEGAN, summary.info)
        write_faces(results.rows("faces", summary.video_id), [], lambda: analysis, parts=results.parts)
    if summary.face_count:
        segments = segments or [Segment(0, emotion, 0.0, 10.0, 0.7)]
        path = results.rows("segments", summary.video_id)
        version = summary.model_version
        write_segments(path, segments, video_id=summary.video_id, model_version=version, parts=results.parts)
    write_video(results.rows("videos", summary.video_id), summary, parts=results.parts)
    return summary


def add_failure(results, source):
    return add_video(
        results,
        source,
        **{"status": "failed", "error": "this is a text file, not a video.", "info": None, "face_count": 0},
        **{"track_count": 0, "dominant_emotion": None, "emotion_shares": None, "processing_seconds": 0.0},
    )
