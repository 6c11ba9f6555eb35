"""one video's rows and annotated file -> its page: what was found, when, and any frame of it"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import streamlit as st

from ferflow.emotions import EMOTIONS
from ferflow.errors import FerflowError, VideoError
from ferflow.frames import read_frame_times
from ferflow.merged_rows import find_faces, find_rows, find_video
from ferflow.records import FaceColumns, Segment, VideoSummary
from ferflow.storage import is_video_id, what_is_wrong
from ferflow.summary import emotion_of_rows
from viewer import files, theme
from viewer.copies import Copy
from viewer.frames import ShownFace, faces_at, frame_jpeg
from viewer.prefect_run import run_url
from viewer.settings import results
from viewer.timeline import clock, show_moment, show_timeline

_MOST_LANES = 12
_MOST_PILLS = 8
_FACES_BESIDE = 2
# More of them stand below the picture.
_ABOUT_AS_LONG = 0.05
# Two emotions whose shares differ by less are both named.
_ZERO = datetime(2000, 1, 1)
# From it the slider counts the time of a video.
_FACE_TIME = "the time with a face"
_LOOK_SECONDS = 1.0
_DAMAGED = (
    "The annotated copy of this video is damaged. Run `ferflow analyze --force` on the video to have it made anew."
)


@dataclass(frozen=True, slots=True)
class _Found:
    """What the page shows of a video, read once."""

    faces: FaceColumns
    """All its rows."""
    segments: Sequence[Segment]
    """Who showed what when."""
    tracks: Sequence[int]
    """The people, those seen longest first."""
    labels: np.ndarray
    """int (n,), the emotion that each row's face is labelled with: averaged over half a second."""
    counts: Sequence[int]
    """Faces that are labelled with each of EMOTIONS."""
    annotated: Copy | None
    """The annotated video, held so that it stays while the page is open; None if it cannot be shown."""
    times: np.ndarray
    """When each of its frames appears; none as long as it is on its way."""
    no_player: str
    """Why it cannot be shown; empty if it can."""

    @property
    def is_coming(self) -> bool:
        """Whether the annotated video is on its way from a bucket."""
        return self.annotated is not None and not len(self.times)


def show() -> None:
    """Show the video that the address names."""
    video_id = st.query_params.get("video", "")
    if not video_id:
        _nothing("No video is chosen", "Choose one from the table of all videos, or drop a new one.")
        return
    try:
        summary = find_video(results(), video_id) if is_video_id(video_id) else None
        if summary is None:
            _nothing("There is no such video", "Its result may have been removed, or the address is not complete.")
            return
        if summary.status == "failed":
            _show_failed(summary)
            return
        with st.spinner("Reading what was found …"):
            found = _with_video(_find(video_id, summary.processed_at), summary)
    except (FerflowError, OSError) as error:
        theme.title("This video cannot be shown", "")
        theme.unreadable("Its result", what_is_wrong(results().root, error))
        return
    _show(summary, found)


def link(video_id: str, label: str, icon: str | None = None) -> None:
    """A link to the page of a video."""
    st.page_link(st.session_state.pages["video"], label=label, icon=icon, query_params={"video": video_id})


def sentence(summary: VideoSummary) -> str:
    """What was found in a video, for a person."""
    assert summary.info is not None
    length = clock(summary.info.duration_seconds)
    if summary.emotion_shares is None:
        return f"No face was found in {length} of video."
    who = "One person" if summary.track_count == 1 else f"{summary.track_count} people"
    shares = sorted(zip(summary.emotion_shares, EMOTIONS, strict=True), key=lambda pair: -pair[0])
    (most, emotion), (almost, other) = shares[:2]
    if most - almost < _ABOUT_AS_LONG:
        return f"{who} in {length} of video, mostly {emotion} and {other}: {most:.0%} and {almost:.0%} of {_FACE_TIME}."
    return f"{who} in {length} of video, mostly {emotion}: {most:.0%} of {_FACE_TIME}."


def name_of(summary: VideoSummary) -> str:
    """The file's name."""
    return summary.source.replace("\\", "/").rpartition("/")[2]


@st.cache_resource(max_entries=8, show_spinner=False)
def _find(video_id: str, processed_at: datetime) -> _Found:
    """Read a video's rows; those of another analysis are others."""
    place = results()
    summary = find_video(place, video_id)
    known = find_faces(place, video_id)
    rows = find_rows(place, "segments", video_id)
    if summary is None or known is None or rows is None:
        raise FerflowError("this video's result is being written anew; look again in a moment.")
    faces = known[0]
    segments = [Segment(**{name: row[name] for name in Segment.__dataclass_fields__}) for row in rows.to_pylist()]
    tracks, inverse = np.unique(faces.track_id, return_inverse=True)
    seconds = np.bincount(inverse, weights=faces.frame_seconds, minlength=len(tracks))
    try:
        labels = emotion_of_rows(faces, segments)
    except ValueError as error:
        raise FerflowError(
            "Its tables are of two analyses: it is being analysed anew, or that was cut off. Look again in a moment, "
            "and if that stays so run `ferflow analyze --force` on it."
        ) from error
    return _Found(
        faces=faces,
        segments=segments,
        tracks=tracks[np.argsort(-seconds, kind="stable")].tolist(),
        labels=labels,
        counts=np.bincount(labels, minlength=len(EMOTIONS)).tolist(),
        annotated=None,
        times=np.zeros(0),
        no_player="There is no annotated copy of this video: it was analysed without, or the file was removed.",
    )


def _with_video(found: _Found, summary: VideoSummary) -> _Found:
    """What was found, with the annotated video as far as it is here."""
    try:
        annotated = files.local_file(results(), summary.annotated_path)
        if annotated is None:
            return found
        if not annotated.arrived.done():
            return replace(found, annotated=annotated, no_player="")
        times = _frame_times(annotated.wait(), summary.processed_at)
    except VideoError:
        return replace(found, no_player=_DAMAGED)
    except OSError as error:
        return replace(found, no_player=f"The annotated video cannot be read ({error}). Open this page again later.")
    if not len(times):
        return replace(found, no_player=_DAMAGED)
    return replace(found, annotated=annotated, times=times, no_player="")


@st.cache_resource(max_entries=8, show_spinner=False)
def _frame_times(annotated: Path, processed_at: datetime) -> np.ndarray:
    """Read when each frame appears; those of another analysis are others."""
    del processed_at  # Tells the cache.
    return read_frame_times(annotated)


def _nothing(title: str, advice: str) -> None:
    theme.title(title, advice)
    with st.container(horizontal=True):
        st.page_link(st.session_state.pages["videos"], label="All videos", icon=":material/video_library:")
        st.page_link(st.session_state.pages["drop"], label="Drop a video", icon=":material/upload:")


def _show_way_back() -> None:
    """To the table of all videos."""
    st.page_link(st.session_state.pages["videos"], label="All videos", icon=":material/arrow_back:")


def _show_failed(summary: VideoSummary) -> None:
    _show_way_back()
    theme.title(name_of(summary), "This video could not be analysed.", status="failed")
    theme.problem(summary.error or "nothing is known of the reason.")
    st.write("It is tried again when the file changes, or at once with `ferflow analyze --force`.")
    _show_facts(summary)


def _show(summary: VideoSummary, found: _Found) -> None:
    _show_way_back()
    theme.title(name_of(summary), sentence(summary), status="done" if summary.face_count else "without a face")
    if summary.error:
        st.warning(theme.plain(f"Note: {summary.error}"), icon=":material/warning:")
    at = f"at-{summary.video_id}"
    if at not in st.session_state:
        st.session_state[at] = _first_moment(found)
    left, right = st.columns([3, 2], gap="medium")
    with left:
        _show_player(summary, found)
    with right:
        _show_shares(summary, found)
    _show_moments(summary, found, at)
    _show_downloads(summary, found)
    _show_facts(summary)


def _show_player(summary: VideoSummary, found: _Found) -> None:
    if found.annotated is None:
        st.info(theme.plain(found.no_player))
        return
    if found.is_coming:
        st.fragment(_show_arriving, run_every=_LOOK_SECONDS)(summary, found.annotated)
        return
    url = files.url_of(summary.video_id, files.ANNOTATED)
    assert summary.info is not None
    ratio = f"{summary.info.width} / {summary.info.height}"
    theme.html(
        f'<video class="ff-player" controls playsinline preload="metadata" style="aspect-ratio: {ratio}" '
        f'aria-label="The annotated video" src="{url}"></video>'
    )


def _show_arriving(summary: VideoSummary, annotated: Copy) -> None:
    """How much of the annotated video is here; then the whole page, with it."""
    if annotated.error is not None:
        if theme.unreadable("The annotated video", annotated.error):
            st.rerun()
        return
    if annotated.arrived.done():
        st.rerun()
    assert summary.info is not None
    ratio = f"{summary.info.width} / {summary.info.height}"
    size = f"{annotated.share:.0%} of {annotated.size_bytes / 1e6:,.0f} MB"
    theme.html(
        f'<div class="ff-player ff-coming" role="status" style="aspect-ratio: {ratio}">'
        f'<b>The annotated video is on its way</b><progress value="{annotated.share:.3f}" aria-label="{size}">'
        f"</progress><span>{size}. Everything else is here.</span></div>"
    )


def _show_shares(summary: VideoSummary, found: _Found) -> None:
    if summary.emotion_shares is None:
        with theme.card():
            st.markdown("**No face was found**")
            st.write("Faces that are very small, turned away, covered or dark may be missed.")
        return
    with theme.card():
        st.markdown("**Share of face time, number of faces**")
        theme.bars(
            summary.emotion_shares,
            [f"{share:.0%} · {count:,}" for share, count in zip(summary.emotion_shares, found.counts, strict=True)],
            label="Share of the time with a face of each emotion",
        )


@st.fragment
def _show_moments(summary: VideoSummary, found: _Found, at: str) -> None:
    """The timeline and the frame at a moment: a click in the one leads to the other."""
    video_id = summary.video_id
    assert summary.info is not None
    if found.tracks:
        st.subheader("Who showed what, and when")
        track = _choose_track(found, video_id)
        tracks = found.tracks[:_MOST_LANES] if track is None else [track]

        def jump() -> None:
            start = st.session_state[f"lanes-{video_id}"].jump
            if start is not None and len(found.times):
                st.session_state[at] = _nearest(found.times, start)

        show_timeline(
            found.segments,
            tracks,
            end_seconds=summary.info.duration_seconds,
            key=f"lanes-{video_id}",
            on_jump=jump,
        )
        hidden = len(found.tracks) - _MOST_LANES
        more = f" {hidden} more, seen for less time, can be chosen above." if track is None and hidden > 0 else ""
        click = " A click leads to the beginning of a stretch, in the video and below." if len(found.times) else ""
        st.caption(f"A row for each person, who was seen longest first.{click}{more}")
    else:
        track = None
    if found.annotated is None:
        return
    st.subheader("Frame by frame")
    if found.is_coming:
        theme.empty("Each frame can be looked at as soon as the annotated video is here.", "")
    else:
        _show_frame(summary, found, at, track)


def _choose_track(found: _Found, video_id: str) -> int | None:
    """The person to show alone; None for everyone."""
    if len(found.tracks) == 1:
        return None
    options = {"Everyone": None} | {f"#{track}": track for track in found.tracks}
    key = f"track-{video_id}"
    if len(options) > _MOST_PILLS:
        return options[st.selectbox("Person", list(options), key=key, width=200)]
    return options[st.pills("Person", list(options), default="Everyone", required=True, key=key)]


@st.fragment
def _show_frame(summary: VideoSummary, found: _Found, at: str, track: int | None) -> None:
    """The frame at a moment, without the timeline being sent anew at each step."""
    times = found.times
    _show_slider(times, summary.video_id, at)
    seconds = float(times[st.session_state[at]])
    assert summary.info is not None
    show_moment(seconds, end_seconds=summary.info.duration_seconds)
    shown = [face for face in faces_at(found.faces, found.labels, seconds) if track in (None, face.track_id)]
    is_beside = len(shown) <= _FACES_BESIDE
    left, right = st.columns([3, 2], gap="medium")
    with left:
        picture = _picture(found, seconds)
        place = f"Frame {st.session_state[at]:,} (the last is {len(times) - 1:,}), at {_exact(seconds)}"
        if picture is None:
            st.warning("This frame cannot be shown: it is damaged, or the annotated video was removed.")
        else:
            st.image(picture, width="stretch", alt=place)
            st.caption(place)
    with right if is_beside else st.container():
        if not shown:
            theme.empty("No face in this frame." if track is None else f"#{track} is not in this frame.", "")
            return
        theme.html(f'<div class="ff-faces">{"".join(map(_face_html, shown[:_MOST_LANES]))}</div>')
        hidden = len(shown) - _MOST_LANES
        more = f"{hidden} more {'face is' if hidden == 1 else 'faces are'} in this frame. " if hidden > 0 else ""
        st.caption(f"{more}The bars are of this frame alone; a label averages over half a second.")


def _picture(found: _Found, seconds: float) -> bytes | None:
    """A frame of the annotated video; None if that is gone since the page was opened, or damaged there."""
    try:
        return None if found.annotated is None else frame_jpeg(found.annotated.path, seconds)
    except (FerflowError, OSError):
        return None


def _face_html(face: ShownFace) -> str:
    seen, label = EMOTIONS[int(np.argmax(face.probabilities))], EMOTIONS[face.label]
    so_far = "" if seen == label else f", labelled {label}"
    values = [f"{probability:.0%}" for probability in face.probabilities]
    bars = theme.bars_html(face.probabilities, values, label=f"Probabilities of #{face.track_id}")
    return f'<div class="ff-face"><p><b>#{face.track_id}</b> looks {seen} in this frame{so_far}</p>{bars}</div>'


def _show_slider(times: np.ndarray, video_id: str, at: str) -> None:
    """A slider by time or by frame, and a step to either side; all three move the same moment."""
    last = len(times) - 1
    if last < 1:
        return
    slider = f"slider-{video_id}"

    def slide() -> None:
        value = st.session_state[slider]
        if unit == "frames":
            st.session_state[at] = int(value)
        else:
            # The nearest, not the one before: so each step of the slider is a step.
            st.session_state[at] = int(np.abs(times - (value - _ZERO).total_seconds()).argmin())

    def step(by: int) -> None:
        st.session_state[at] = min(max(st.session_state[at] + by, 0), last)

    with st.container(horizontal=True, vertical_alignment="bottom", key="move"):
        unit = st.segmented_control(
            "Move by", ["time", "frames"], default="time", required=True, key=f"unit-{video_id}"
        )
        st.button("Back", icon=":material/chevron_left:", on_click=step, args=(-1,), help="One frame back")
        st.button("Next", icon=":material/chevron_right:", on_click=step, args=(1,), help="One frame on")
    index = st.session_state[at]
    # Of another kind for each unit: a slider that changes from seconds to frames is another slider.
    slider = f"{slider}-{unit}"
    if unit == "frames":
        st.session_state[slider] = index
        st.slider("Frame", 0, last, key=slider, on_change=slide)
    else:
        st.session_state[slider] = _moment(times[index])
        st.slider(
            "Time",
            _moment(times[0]),
            _moment(times[-1]),
            step=_moment(np.median(np.diff(times))) - _ZERO,
            format="m:ss.SS" if times[-1] < 3600 else "H:mm:ss.SS",
            key=slider,
            on_change=slide,
        )


def _show_downloads(summary: VideoSummary, found: _Found) -> None:
    st.subheader("Download")
    there = [(files.PARQUET, "Rows as Parquet"), (files.CSV, "Rows as CSV")]
    there += [(files.ANNOTATED, "Annotated video")] if not found.no_player else []
    there += [(files.TIMELINE, "Timeline picture")] if summary.timeline_path else []
    links = "".join(
        f'<a class="ff-download" download href="{files.url_of(summary.video_id, name)}">{label}</a>'
        for name, label in there
    )
    theme.html(f'<div class="ff-downloads">{links}</div>')


def _show_facts(summary: VideoSummary) -> None:
    facts = [("File", summary.source)]
    if (info := summary.info) is not None:
        facts += [
            ("Picture", f"{info.width} × {info.height}, {info.frame_count:,} frames, {info.fps:.4g} a second"),
            ("Faces", f"{summary.face_count:,} in all frames, {summary.track_count} people"),
        ]
    facts += [
        ("Analysed", f"{summary.processed_at:%d %B %Y, %H:%M} UTC, in {clock(summary.processing_seconds)}"),
        ("Model", summary.model_version),
    ]
    with st.expander("About this result", expanded=summary.status == "failed"):
        theme.facts(facts)
        run = _run_url(summary.video_id)
        if run:
            st.link_button("Its run in Prefect", run, icon=":material/open_in_new:")


@st.cache_data(ttl=60, max_entries=1000, show_spinner=False)
def _run_url(video_id: str) -> str | None:
    return run_url(results(), video_id)


def _first_moment(found: _Found) -> int:
    """The first frame with a face."""
    return _nearest(found.times, float(found.faces.pts_seconds[0])) if len(found.faces.pts_seconds) else 0


def _nearest(times: np.ndarray, seconds: float) -> int:
    """The frame that is shown at a time."""
    return max(int(np.searchsorted(times, seconds + 1e-3, side="right")) - 1, 0)


def _moment(seconds: float) -> datetime:
    """A moment as the slider takes it: on some day."""
    return _ZERO + timedelta(microseconds=round(float(seconds) * 1e6))


def _exact(seconds: float) -> str:
    """A moment to the hundredth, cut off like that of the slider."""
    minutes, hundredths = divmod(round(seconds * 1e6) // 10_000, 6000)
    hours, minutes = divmod(minutes, 60)
    rest = f"{hundredths // 100:02d}.{hundredths % 100:02d}"
    return f"{hours}:{minutes:02d}:{rest}" if hours else f"{minutes}:{rest}"
