"""one video -> its rows, its annotated copy, its summary: the stages, each paths in and a path out."""

import contextlib
import logging
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np

from ferflow.child_process import Progress
from ferflow.config import Settings
from ferflow.emotions import EMOTIONS, EmotionClassifier, classify_in_batches
from ferflow.errors import VideoError
from ferflow.faces import FaceDetector, crop_gray, face_window
from ferflow.frames import PIECE_SECONDS, VideoReader, find_cuts, rewrite_video
from ferflow.kept_frames import keeping, take
from ferflow.looks import find_faces
from ferflow.overlay import draw_frame
from ferflow.pieces import PieceFaces, Pieces, piece_faces, read_piece, stitch, write_piece
from ferflow.records import Analysis, Face, FaceColumns, FaceRow, Frame, Segment, VideoSummary
from ferflow.rows import read_analysis, read_faces, write_faces, write_segments, write_video
from ferflow.storage import Results, holding_tables, relative, stat_file, utf8
from ferflow.summary import (
    dominant_emotion,
    draw_timeline,
    emotion_of_rows,
    emotion_shares,
    find_segments,
    smooth_probabilities,
)
from ferflow.tracks import Tracker

_KEPT_SHARE = 1 / 32
# Of the memory that a video may take, for its frames: 250 MB of 8 GB hold 12 seconds of 640 x 360, or 3 of 1280 x 720.

logger = logging.getLogger(__name__)


def analyze_video(
    file: Path,
    results: Results,
    *,
    video_id: str,
    detector: Callable[[], FaceDetector],
    classifier: EmotionClassifier,
    settings: Settings,
    source: Path | None = None,
    tag: str | None = None,
    redo: bool = False,
    piece_seconds: float = PIECE_SECONDS,
    progress: Progress | None = None,
) -> Path:
    """Find, follow and score every face of a video in one go; write them as one file of the faces table.

    A file that an unfinished run with the same model and settings left there is taken as it is. Where a long video can
    be cut, the search for faces begins anew, so that its rows are those of its pieces: see `analyze_piece`.

    Args:
        file: the video on this machine.
        results: where to write.
        video_id: hash of its bytes.
        detector: makes what finds the faces, for the beginning and for each cut.
        classifier: scores them.
        settings: what to look at.
        source: where the video came from, as the tables name it; the file itself if left out.
        tag: by what the source is known again, see `storage.StoredFile`.
        redo: make anew what is there.
        piece_seconds: see `find_cuts`.
        progress: told of every frame.

    Returns:
        The Parquet file; a video without faces gives one without rows.

    Raises:
        VideoError: the video cannot be read.
    """
    started_at = datetime.now(UTC)
    path = results.rows("faces", video_id)
    if not redo and is_analyzed(path, classifier.version, settings):
        return path
    with naming_source(str(source or file), file), VideoReader(file, limits=settings.limits) as reader:
        cuts = find_cuts(file, piece_seconds=piece_seconds, limits=settings.limits)

        def describe() -> Analysis:
            return Analysis(
                video_id=video_id,
                source=utf8(str(source or file)),
                source_tag=tag,
                model_version=classifier.version,
                settings_hash=settings.settings_hash,
                started_at=started_at,
                info=reader.info,
            )

        frames = reader.frames(max_fps=settings.max_fps or None, cuts=cuts)
        if settings.annotate and not settings.max_fps:
            frames = keeping(
                frames,
                video_id=video_id,
                expected=reader.frames_expected,
                most_bytes=settings.max_memory_gb * 1e9 * _KEPT_SHARE,
            )
        if progress is not None:
            frames = _counted(frames, progress, reader.frames_expected)
        write_faces(path, _scored(frames, detector, classifier, cuts), describe, parts=results.parts)
    return path


def analyze_piece(
    file: Path,
    results: Results,
    pieces: Pieces,
    number: int,
    *,
    detector: FaceDetector,
    classifier: EmotionClassifier,
    settings: Settings,
    progress: Progress | None = None,
) -> int:
    """Find and score the faces of a piece of a long video, and write them to the piece's own file.

    Args:
        file: the video on this machine.
        results: where to write.
        pieces: those of the video.
        number: which of them.
        detector: finds the faces; made for this piece.
        classifier: scores them.
        settings: what to look at.
        progress: told of every frame.

    Returns:
        How many frames were looked at.

    Raises:
        PieceError: it would not show what the whole video shows.
        VideoError: the video cannot be read.
    """
    looks: list[tuple[int, float, float, list[Face]]] = []
    with VideoReader(file, limits=settings.limits) as reader:
        frames = reader.piece(*pieces.span(number), max_fps=settings.max_fps or None)
        if progress is not None:
            frames = _counted(frames, progress, reader.frames_expected)

        def crops() -> Iterator[tuple[None, np.ndarray]]:
            for frame, faces in find_faces(frames, detector):
                looks.append((frame.index, float(frame.pts), float(frame.duration), faces))
                for face in faces:
                    yield None, _crop(frame, face, classifier)

        scores = [scores for _, scores in classify_in_batches(crops(), classifier)]
        found = piece_faces(
            looks,
            np.array(scores, np.float32).reshape(-1, len(EMOTIONS)),
            frame_count=reader.info.frame_count,
            end=reader.end,
        )
    write_piece(pieces.path(number), found, parts=results.parts)
    return len(looks)


def stitch_pieces(
    file: Path,
    results: Results,
    pieces: Pieces,
    *,
    model_version: str,
    settings: Settings,
    started_at: datetime,
    source: Path | None = None,
    tag: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the faces of a video whose pieces are all there: the same file as `analyze_video` writes.

    Args:
        file: the video on this machine.
        results: where to write.
        pieces: those of the video.
        model_version: what scored the faces.
        settings: what was looked at.
        started_at: when the work on the video began, UTC.
        source: where the video came from, as the tables name it; the file itself if left out.
        tag: by what the source is known again, see `storage.StoredFile`.
        progress: told of every piece, in frames.

    Returns:
        The Parquet file.

    Raises:
        ValueError: a piece's file is damaged.
    """
    path = results.rows("faces", pieces.video_id)
    frame_count, end = 0, Fraction(0)
    with VideoReader(file, limits=settings.limits) as reader:

        def read() -> Iterator[PieceFaces]:
            nonlocal frame_count, end
            for number in range(pieces.count):
                piece = read_piece(pieces.path(number))
                yield piece
                frame_count, end = frame_count + piece.frame_count, piece.end
                if progress is not None:
                    progress(frame_count, reader.frames_expected)

        def describe() -> Analysis:
            return Analysis(
                video_id=pieces.video_id,
                source=utf8(str(source or file)),
                source_tag=tag,
                model_version=model_version,
                settings_hash=settings.settings_hash,
                started_at=started_at,
                info=reader.info_of(frame_count=frame_count, end=end),
            )

        write_faces(path, stitch(read()), describe, parts=results.parts)
    return path


def is_analyzed(path: Path, model_version: str, settings: Settings) -> bool:
    """Whether a file of the faces table is there, made with this model and these settings."""
    analysis = read_analysis(path)
    return (
        analysis is not None
        and analysis.video_id == path.stem  # Of a stranger's file it may be the way to another folder.
        and analysis.model_version == model_version
        and analysis.settings_hash == settings.settings_hash
    )


def annotate_video(
    file: Path, faces_path: Path, results: Results, *, settings: Settings, progress: Progress | None = None
) -> Path:
    """Write a copy of a video with its faces' boxes and labels.

    One that was drawn after the faces were written is taken as it is.

    Args:
        file: the video on this machine.
        faces_path: what `analyze_video` made of it.
        results: where to write.
        settings: those of the analysis.
        progress: told of every frame.

    Returns:
        The MP4 file.

    Raises:
        VideoError: the video cannot be read.
    """
    faces, analysis = read_faces(faces_path)
    path = results.annotated(analysis.source, analysis.video_id)
    if _is_newer(path, faces_path):
        return path
    emotions = emotion_of_rows(faces, _segments(faces, settings))
    smoothed = replace(faces, probabilities=smooth_probabilities(faces, window_seconds=settings.smoothing_seconds))

    size_wh = analysis.info.width, analysis.info.height

    def draw(frame: Frame) -> None:
        draw_frame(frame, smoothed, emotions, source_size_wh=size_wh)
        if progress is not None:
            progress(frame.index + 1, analysis.info.frame_count)

    with naming_source(analysis.source, file):
        rewrite_video(
            file,
            path,
            draw,
            max_short_side_px=settings.annotated_short_side_px or None,
            parts=results.parts,
            limits=settings.limits,
            decoded=partial(take, analysis.video_id),
        )
    return path


def summarize_video(faces_path: Path, annotated_path: Path | None, results: Results, *, settings: Settings) -> Path:
    """Write a video's segments, its timeline picture and, last of all, its row of the videos table.

    Args:
        faces_path: what `analyze_video` made of the video.
        annotated_path: what `annotate_video` made of it; None if it is not wanted.
        results: where to write.
        settings: those of the analysis.

    Returns:
        The Parquet file with the video's row; its being there means that everything else is.
    """
    faces, analysis = read_faces(faces_path)
    segments = _segments(faces, settings)
    write_segments(
        results.rows("segments", analysis.video_id),
        segments,
        video_id=analysis.video_id,
        model_version=analysis.model_version,
        parts=results.parts,
    )
    timeline_path = results.timeline(analysis.source, analysis.video_id)
    draw_timeline(
        faces,
        segments,
        timeline_path,
        title=Path(analysis.source).name,
        duration_seconds=analysis.info.duration_seconds,
        parts=results.parts,
    )
    shares = emotion_shares(faces, segments)
    finished_at = datetime.now(UTC)
    path = results.rows("videos", analysis.video_id)
    summary = VideoSummary(
        video_id=analysis.video_id,
        source=analysis.source,
        source_tag=analysis.source_tag,
        status="done",
        error=analysis.info.warning,
        info=analysis.info,
        face_count=len(faces.track_id),
        track_count=len(np.unique(faces.track_id)),
        dominant_emotion=dominant_emotion(shares),
        emotion_shares=shares,
        annotated_path=None if annotated_path is None else relative(annotated_path, results),
        timeline_path=relative(timeline_path, results),
        model_version=analysis.model_version,
        settings_hash=analysis.settings_hash,
        processed_at=finished_at,
        processing_seconds=(finished_at - analysis.started_at).total_seconds(),
    )
    write_video(path, summary, parts=results.parts)
    return path


def record_failure(
    source: Path,
    error: VideoError,
    results: Results,
    *,
    video_id: str,
    model_version: str,
    settings: Settings,
    tag: str | None = None,
) -> Path:
    """Write the row of a video that cannot be analysed, and take away what an earlier analysis left of it.

    Returns:
        The Parquet file with the video's row.
    """
    remove_results(results, source, video_id=video_id, but_row=True)
    path = results.rows("videos", video_id)
    summary = describe_failure(
        source, error, video_id=video_id, model_version=model_version, settings=settings, tag=tag
    )
    write_video(path, summary, parts=results.parts)
    return path


def remove_results(results: Results, source: Path, *, video_id: str, but_row: bool = False) -> None:
    """Take away what an analysis of a file left, its row of the videos table last or not at all."""
    for picture in (results.annotated(utf8(str(source)), video_id), results.timeline(utf8(str(source)), video_id)):
        picture.unlink(missing_ok=True)
    with holding_tables(results.root):
        for table in ("faces", "segments") if but_row else ("faces", "segments", "videos"):
            results.rows(table, video_id).unlink(missing_ok=True)


def remove_picture(results: Results, named: str, *, video_id: str) -> None:
    """Take away an annotated video or a timeline that a video's row names, and nothing else that a row may name."""
    folder, _, name = named.partition("/")
    is_its = Path(name).stem.endswith((f"-{video_id}", f"-{video_id[:8]}"))  # So short in an older ferflow.
    if folder in ("annotated", "timelines") and "/" not in name and is_its:
        (results.root / folder / name).unlink(missing_ok=True)


def describe_failure(
    source: Path, error: VideoError, *, video_id: str, model_version: str, settings: Settings, tag: str | None = None
) -> VideoSummary:
    """The row of a video that cannot be analysed."""
    return VideoSummary(
        video_id=video_id,
        source=utf8(str(source)),
        source_tag=tag,
        status="failed",
        error=utf8(str(error)).removeprefix(f"{utf8(str(source))}: "),
        info=None,
        face_count=0,
        track_count=0,
        dominant_emotion=None,
        emotion_shares=None,
        annotated_path=None,
        timeline_path=None,
        model_version=model_version,
        settings_hash=settings.settings_hash,
        processed_at=datetime.now(UTC),
        processing_seconds=0.0,
    )


def _is_newer(path: Path, than: Path) -> bool:
    try:
        return stat_file(path).modified_at >= stat_file(than).modified_at
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def naming_source(source: str, file: Path) -> Iterator[None]:
    """What is said of a copy is said of where it came from."""
    try:
        yield
    except VideoError as error:
        text = str(error)
        if source == str(file) or not text.startswith(f"{file}: "):
            raise
        raise VideoError(f"{source}: {text.removeprefix(f'{file}: ')}") from error


def _scored(
    frames: Iterable[Frame],
    detector: Callable[[], FaceDetector],
    classifier: EmotionClassifier,
    cuts: Sequence[Fraction],
) -> Iterator[FaceRow]:
    """Every face of every frame, scored in batches that reach across frames but not across cuts."""
    tracker = Tracker()

    def crops(piece: Iterable[Frame]) -> Iterator[tuple[FaceRow, np.ndarray]]:
        for frame, faces in find_faces(piece, detector()):
            for face, track_id in zip(faces, tracker.assign(faces, float(frame.pts)), strict=True):
                # The row goes on without the picture: those of a whole batch would take 200 MB at 1080p.
                row = FaceRow(frame.index, float(frame.pts), float(frame.duration), track_id, face, probabilities=())
                yield row, _crop(frame, face, classifier)

    for _, piece in groupby(frames, key=lambda frame: bisect_right(cuts, frame.pts)):
        for row, probabilities in classify_in_batches(crops(piece), classifier):
            yield replace(row, probabilities=tuple(probabilities.tolist()))


def _crop(frame: Frame, face: Face, classifier: EmotionClassifier) -> np.ndarray:
    return crop_gray(frame.image_rgb, face_window(face, classifier.framing), size_px=classifier.crop_size_px)


def _segments(faces: FaceColumns, settings: Settings) -> list[Segment]:
    return find_segments(faces, window_seconds=settings.smoothing_seconds, min_seconds=settings.min_segment_seconds)


def _counted(frames: Iterable[Frame], progress: Progress, expected: int | None) -> Iterator[Frame]:
    for frame in frames:
        yield frame
        # Frames that are left out were decoded too.
        progress(frame.index + 1, expected)
