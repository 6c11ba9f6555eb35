"""files that somebody drops on the page -> the inbox; then how far each is, and what was found"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.runtime.uploaded_file_manager import UploadedFile

from ferflow.errors import FerflowError, VideoError
from ferflow.merged_rows import find_video
from ferflow.progress import AtWork, find_progress, list_progress
from ferflow.records import VideoSummary
from ferflow.storage import is_local, place, what_is_wrong
from viewer import theme, video
from viewer.settings import results, watching
from viewer.uploads import SUFFIXES, safe_name, take_upload

_LOOK_SECONDS, _LOOK_INTO_BUCKET_SECONDS = 1.0, 5.0
_WAITS_LONG_SECONDS = 60.0
# A watch takes a file up after some seconds, or when it is done with those before it.


@dataclass(frozen=True, slots=True)
class _Dropped:
    """A file that was dropped here."""

    name: str
    """How it is called."""
    video_id: str | None
    """Hash of its bytes; None if it was refused."""
    refusal: str | None
    """Why it was refused."""
    dropped_at: float
    """When, seconds since 1970."""


def show() -> None:
    """Take files, and show what becomes of them."""
    told = watching()
    theme.title("Drop a video", "Drag videos onto the field, or choose them, and see which emotions the faces show.")
    dropped: list[_Dropped] = st.session_state.setdefault("dropped", [])
    # Always the same one and for every kind of file: a new one would forget what is still on its way and what it
    # refused, and why another kind is refused is told below.
    given = st.file_uploader(
        "Videos",
        accept_multiple_files=True,
        key="files",
        label_visibility="collapsed",
        max_upload_size=told.max_upload_mb,
    )
    st.caption(f"Videos that end in {', '.join(SUFFIXES)}.")
    for file in given:
        if file.closed:  # Taken before.
            continue
        with st.spinner(theme.plain(f"Taking {safe_name(file.name)} …")):
            dropped.insert(0, _take(file, file.name))
            _let_go(file)
    with contextlib.suppress(FerflowError, OSError):  # Told where it is looked for again.
        _find(lambda video_id: True)
    seconds = _LOOK_SECONDS if is_local(results().root) else _LOOK_INTO_BUCKET_SECONDS
    st.fragment(_show_dropped, run_every=seconds)()


def _take(file: IO[bytes], name: str) -> _Dropped:
    try:
        upload = take_upload(file, name, watching(), results())
    except VideoError as error:
        return _Dropped(safe_name(name), None, str(error), time.time())
    except (FerflowError, OSError) as error:
        why = f"{safe_name(name)}: it cannot be put into the inbox ({error}); tell whoever runs this page."
        return _Dropped(safe_name(name), None, why, time.time())
    return _Dropped(upload.name, upload.video_id, None, time.time())


def _let_go(file: UploadedFile) -> None:
    """Free the bytes of an upload, which Streamlit would hold until the browser leaves; it is not given again."""
    file.close()
    context = get_script_run_ctx()
    if context is not None:
        context.uploaded_file_mgr.remove_file(context.session_id, file.file_id)  # type: ignore[attr-defined]


def _show_dropped() -> None:
    """How far each file is; looked at again and again."""
    dropped: list[_Dropped] = st.session_state.dropped
    mine = {file.video_id for file in dropped}
    try:
        others = [state for state in list_progress(results()) if state.video_id not in mine]
        # Each by its own file. To look for those that have been merged lists the whole table; that is done when the
        # page is opened, and they are merged only a day later.
        summaries = _find(lambda video_id: results().rows("videos", video_id).exists())
    except (FerflowError, OSError) as error:
        theme.unreadable("The results", what_is_wrong(results().root, error))
        _show_each([file for file in dropped if file.refusal], {})
        return
    _show_each(dropped, summaries)
    if others:
        st.subheader("At work now")
        for state in others:
            with theme.card():
                st.markdown(f"**{theme.plain(Path(state.source).name)}**")
                _show_progress(state)
    if not dropped and not others:
        _show_how_it_works()


def _find(is_there: Callable[[str], bool]) -> dict[str, VideoSummary]:
    """What is known of the files that were dropped; what is done is not read again."""
    summaries: dict[str, VideoSummary] = st.session_state.setdefault("found", {})
    for file in st.session_state.dropped:
        is_done = file.video_id in summaries and summaries[file.video_id].status == "done"
        if file.video_id and not is_done and is_there(file.video_id):
            found = find_video(results(), file.video_id)
            summaries |= {} if found is None else {file.video_id: found}
    return summaries


def _show_each(dropped: Sequence[_Dropped], summaries: Mapping[str, VideoSummary]) -> None:
    for file in dropped:
        with theme.card():
            _show_one(file, summaries.get(file.video_id) if file.video_id else None)


def _show_one(file: _Dropped, summary: VideoSummary | None) -> None:
    if file.video_id is None:
        theme.problem(file.refusal or "")
        return
    st.markdown(f"**{theme.plain(file.name)}**")
    if summary is not None and summary.status == "done":
        _show_result(summary)
        return
    state = find_progress(results(), file.video_id)
    if state is not None:
        _show_progress(state)
    elif summary is not None:
        theme.problem(f"This video could not be analysed: {summary.error}")
    else:
        _show_waiting(time.time() - file.dropped_at)


def _show_result(summary: VideoSummary) -> None:
    left, right = st.columns([3, 2], gap="medium", vertical_alignment="center")
    with left:
        st.write(theme.plain(video.sentence(summary)))
        video.link(summary.video_id, "See when, and who", icon=":material/arrow_forward:")
    if summary.emotion_shares is not None:
        with right:
            texts = [f"{share:.0%}" for share in summary.emotion_shares]
            theme.bars(summary.emotion_shares, texts, label="Share of the time with a face of each emotion")


def _show_progress(state: AtWork) -> None:
    frames = (
        f"{state.frames_done:,} of {state.frames_expected:,}" if state.frames_expected else f"{state.frames_done:,}"
    )
    now = "drawing" if state.stage == "drawing" else "looking for faces"
    left = "" if state.seconds_left is None else f", about {_roughly(state.seconds_left)} left"
    share = min(max(state.share, 0.0), 1.0)
    # The share is of all stages, the frames are of the one under way.
    st.progress(share, text=f"{share:.0%} of all work{left}. Now: {now}, {frames} frames")


def _show_waiting(seconds: float) -> None:
    st.progress(0.0, text="Queued: it is taken up in a few seconds, or after the videos before it.")
    if seconds > _WAITS_LONG_SECONDS:
        st.info(
            "Nobody has begun with it yet. If nothing happens, see whether `ferflow up` or `ferflow watch` is running.",
            icon=":material/hourglass_empty:",
        )


def _show_how_it_works() -> None:
    inbox = place(watching().sources[0])
    if is_local(inbox) and is_local(results().root):
        where = "Nothing leaves the machine that this page runs on."
    else:
        where = "Videos and results are kept in the bucket that this page was started with, and go nowhere else."
    with theme.card():
        st.markdown(
            "**What happens then**\n\n"
            "1. The video is put into the inbox, and analysed as soon as those before it are done.\n"
            "2. Here you see how far it is, then what was found.\n"
            "3. It stays among all videos, with a timeline, any frame of it, and its rows to take away.\n\n"
            f"{where} The same video again gives its earlier result at once."
        )


def _roughly(seconds: float) -> str:
    """How long something takes, as a person says it."""
    if seconds < 55:
        return f"{max(round(seconds / 5) * 5, 5)} seconds"
    if seconds < 90:
        return "a minute"
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes < 90 else f"{seconds / 3600:.1f} hours"
