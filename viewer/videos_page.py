"""a results folder -> the page of all its videos: totals, a table with a strip of emotions each, filters, an order"""

from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from urllib.parse import quote
from zoneinfo import ZoneInfo

import numpy as np
import streamlit as st

from ferflow.emotions import EMOTIONS
from ferflow.errors import ConfigError
from ferflow.progress import AtWork, list_progress
from viewer import theme
from viewer.library import ORDERS, STATUSES, Choice, Library, ListedVideo, Order, Status, Totals
from viewer.settings import results
from viewer.strip import STYLE, legend_html, shares_html, strip_html
from viewer.theme import EMOTION_COLORS, INK_COLORS, LINE, MUTED, escaped

_VIDEOS_A_PAGE = 100
_MOST_AT_WORK = 3
_LOOK_SECONDS = 3.0
_MOST_FOLDERS = 500
# In the table of totals.


def show() -> None:
    """Show the page."""
    st.html(f"<style>{STYLE}{_STYLE}</style>")
    theme.title("Videos", "What was found in all of them, side by side.")
    _show_library()


@st.fragment(run_every=_LOOK_SECONDS)
def _show_library() -> None:
    try:
        library = _library()
        library.refresh()
        at_work = list_progress(results())
    except FileNotFoundError:
        _show_nothing_yet()
        return
    except (ConfigError, OSError) as error:
        theme.unreadable("The results", error)
        return
    everything = library.totals(Choice())
    if library.damaged:
        _show_damage(library)
    if not everything.videos:
        _show_nothing_yet()
        return
    choice, order = _choose(library)
    totals = library.totals(choice)
    if not totals.videos:
        theme.empty("No video fits these filters.", "Change them, or look at all videos.")
        with st.container(horizontal_alignment="center"):
            st.button("Show all videos", on_click=_forget_choice)
        return
    _show_totals(totals)
    if at_work:
        _show_at_work(at_work)
    first = _choose_page(totals.videos)
    videos = library.videos(choice, order, first=first, count=_VIDEOS_A_PAGE)
    strips = library.strips([video.video_id for video in videos if video.face_count])
    st.html(_table_html(videos, strips, _time_zone()))
    with st.expander("Totals of each folder", icon=":material/folder:"):
        st.html(_folders_html(library.folders(choice)))


@st.cache_resource(show_spinner="Looking through the results. With ten thousand new ones this takes some seconds.")
def _library() -> Library:
    library = Library(results())
    library.refresh()
    return library


def _choose(library: Library) -> tuple[Choice, Order]:
    """Ask for filters and order; they are part of the page's address."""
    with st.container(horizontal=True, vertical_alignment="bottom", key="filters"):
        text = st.text_input(
            "Name", key="name", placeholder="part of a file's name", bind="query-params", type="search", width=240
        )
        status: Status | None = st.selectbox(
            "Status", STATUSES, index=None, key="status", placeholder="any", bind="query-params", width=160
        )
        emotion = st.selectbox(
            "Mostly", EMOTIONS, index=None, key="emotion", placeholder="any emotion", bind="query-params", width=160
        )
        folders = _folders_to_choose(library)
        folder = st.selectbox(
            "Folder",
            folders,
            index=None,
            key="folder",
            placeholder="all",
            bind="query-params",
            format_func=lambda name: _shortened(name, folders),
            width=240,
        )
        order: Order = st.selectbox("Order", ORDERS, key="order", bind="query-params", width=160)
    asked = Choice(text or "", status, emotion, folder or ""), order
    if st.session_state.get("asked", asked) != asked:
        # Of other videos, or in another order, the same page shows something else.
        st.session_state["page"] = 1
    st.session_state["asked"] = asked
    return asked


def _forget_choice() -> None:
    for name in ("name", "status", "emotion", "folder"):
        st.session_state[name] = "" if name == "name" else None


def _folders_to_choose(library: Library) -> list[str]:
    """Every folder with videos, and those that hold several of them."""
    folders = [totals.folder for totals in library.folders(Choice())]
    parents: dict[str, set[str]] = {}
    for folder in folders:
        parent, _, name = folder.rpartition("/")
        while parent and not parent.endswith("/"):
            parents.setdefault(parent, set()).add(name)
            parent, _, name = parent.rpartition("/")
    return sorted({*folders, *(parent for parent, names in parents.items() if len(names) > 1)})


def _shortened(folder: str, folders: Sequence[str]) -> str:
    """A folder's name without what all of them begin with."""
    parts = [name.split("/") for name in folders]
    common = next((at for at, names in enumerate(zip(*parts, strict=False)) if len(set(names)) > 1), len(min(parts)))
    return "/".join(folder.split("/")[max(min(common, folder.count("/")), 0) :]) or folder


def _choose_page(video_count: int) -> int:
    """Ask for a page if there are several; gives how many videos are passed over."""
    pages = -(-video_count // _VIDEOS_A_PAGE)
    if pages == 1:
        return 0
    with st.container(horizontal=True, horizontal_alignment="right", vertical_alignment="center", key="pages"):
        page = min(max(int(st.session_state.get("page", 1)), 1), pages)
        first, last = (page - 1) * _VIDEOS_A_PAGE, min(page * _VIDEOS_A_PAGE, video_count)
        st.markdown(f"{first + 1:,} to {last:,} of {video_count:,}", width="content")
        for label, to, icon in (("Back", page - 1, "chevron_left"), ("Next", page + 1, "chevron_right")):
            st.button(
                label,
                icon=f":material/{icon}:",
                disabled=not 1 <= to <= pages,
                on_click=lambda to=to: st.session_state.update(page=to),
            )
    return first


def _show_nothing_yet() -> None:
    theme.empty("No video has been analysed yet.", "As soon as one is finished it appears here.")
    with st.container(horizontal_alignment="center"):
        st.page_link(st.session_state.pages["drop"], label="Drop a video", icon=":material/upload:")


def _show_damage(library: Library) -> None:
    count = len(library.damaged)
    what = "A file of the table of videos is" if count == 1 else f"{count} files of the table of videos are"
    st.warning(
        f"{what} damaged, and left out: {', '.join(path.name for path in library.damaged[:3])}"
        f"{' and more' if count > 3 else ''}. Remove {'it' if count == 1 else 'them'} from "
        f"{library.damaged[0].parent} and analyse the videos again.",
        icon=":material/warning:",
    )


def _time_zone() -> tzinfo:
    try:
        return ZoneInfo(st.context.timezone or "UTC")
    except (KeyError, ValueError):
        return UTC


def _show_totals(totals: Totals) -> None:
    theme.tiles(
        [
            ("video" if totals.videos == 1 else "videos", f"{totals.videos:,}"),
            ("failed", f"{totals.failed:,}"),
            ("without a face", f"{totals.without_face:,}"),
            ("of video", _said_duration(totals.duration_seconds)),
            ("face" if totals.face_count == 1 else "faces", _short_number(totals.face_count)),
            ("to analyse them", _said_duration(totals.processing_seconds)),
        ]
    )
    st.html(f"{shares_html(totals.emotion_shares)}{legend_html(totals.emotion_shares)}")


def _show_at_work(states: Sequence[AtWork]) -> None:
    """Videos that are not in the table yet."""
    names = [f"{Path(state.source).name} ({state.share:.0%})" for state in states[:_MOST_AT_WORK]]
    if more := len(states) - len(names):
        names.append(f"{more} more")
    label = theme.plain(f"At work now: {', '.join(names)}")
    st.page_link(st.session_state.pages["drop"], label=label, icon=":material/hourglass_top:")


def _table_html(videos: Sequence[ListedVideo], strips: dict[str, np.ndarray], zone: tzinfo) -> str:
    heads = ("Video", "Status", "Emotions over its time", "Mostly", "Length", "People", "Faces", "Analysed", "Took")
    numbers = ("Length", "People", "Faces", "Took")
    head = "".join(f"<th{_NUMBER if name in numbers else ''}>{name}</th>" for name in heads)
    rows = "".join(_row_html(video, strips.get(video.video_id), zone) for video in videos)
    return f'<table class="ff-videos"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _row_html(video: ListedVideo, strip: np.ndarray | None, zone: tzinfo) -> str:
    name, folder = escaped(video.name), escaped(video.folder)
    address = f"video?video={quote(video.video_id, safe='')}"
    link = f'<a class="ff-within" href="{address}" target="_self" title="{name}">{name}</a>'
    analysed = video.processed_at.astimezone(zone)
    when = f'<td data-name="Analysed" title="{analysed:%Y-%m-%d %H:%M:%S}">{_when(analysed)}</td>'
    if video.status == "failed":
        error = video.error or "no reason was kept"
        middle = f'<td class="ff-wide" colspan="5">{escaped(theme.capitalised(error))}</td>'
    else:
        seen = strip_html(strip) if strip is not None else "<em>No face was found.</em>"
        note = f"<small>{escaped(video.error)}</small>" if video.error else ""
        middle = (
            f'<td class="ff-wide">{seen}{note}</td><td data-name="Mostly">{_emotion_html(video)}</td>'
            f'<td data-name="Length"{_NUMBER}>{_duration(video.duration_seconds or 0)}</td>'
            f'<td data-name="People"{_NUMBER}>{video.track_count:,}</td>'
            f'<td data-name="Faces"{_NUMBER}>{video.face_count:,}</td>'
        )
    kind = ' class="ff-status ff-failed"' if video.status == "failed" else ""
    status = f'<td data-name="Status"><span{kind}>{video.status.capitalize()}</span></td>'
    took = _duration(video.processing_seconds) if video.processing_seconds else ""
    return (
        f'<tr><th scope="row">{link}<small title="{folder}">{folder}</small></th>{status}{middle}{when}'
        f'<td data-name="Took"{_NUMBER}>{took}</td></tr>'
    )


def _emotion_html(video: ListedVideo) -> str:
    if video.dominant_emotion not in EMOTION_COLORS:
        return "–"
    emotion = video.dominant_emotion
    style = f"background:{EMOTION_COLORS[emotion]};color:{INK_COLORS[emotion]}"
    return f'<span class="ff-emotion" style="{style}">{emotion} {video.dominant_share or 0:.0%}</span>'


def _folders_html(folders: Sequence[Totals]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escaped(totals.folder) or "–"}</th><td data-name="Videos">{totals.videos:,}</td>'
        f'<td data-name="Failed">{totals.failed:,}</td><td data-name="Length">'
        f'{_duration(totals.duration_seconds)}</td><td data-name="Faces">{totals.face_count:,}</td>'
        f'<td class="ff-wide">{shares_html(totals.emotion_shares)}</td></tr>'
        for totals in folders[:_MOST_FOLDERS]
    )
    heads = "".join(f"<th>{name}</th>" for name in ("Folder", "Videos", "Failed", "Length", "Faces", "Emotions"))
    more = f"<p>and {len(folders) - _MOST_FOLDERS:,} more folders</p>" if len(folders) > _MOST_FOLDERS else ""
    return f'<table class="ff-videos"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>{more}'


def _duration(seconds: float) -> str:
    """`4.2 s`, `3:05`, `1:02:07`, `862 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02}"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes < 6000 else f"{minutes / 60:,.0f} h"


def _said_duration(seconds: float) -> str:
    """The same where no heading tells that it is a duration: `3:05 min`."""
    # As rounded as it is shown.
    unit = "" if seconds < 60 or round(seconds) >= 360_000 else " min" if round(seconds) < 3600 else " h"
    return _duration(seconds) + unit


def _short_number(number: int) -> str:
    return f"{number:,}" if number < 1_000_000 else f"{number / 1e6:,.1f} M"


def _when(moment: datetime) -> str:
    today = datetime.now(moment.tzinfo)
    return f"{moment:%H:%M}" if moment.date() == today.date() else f"{moment.day} {moment:%b} {moment.year}"


_NUMBER = ' class="ff-number"'
_STYLE = f"""
.ff-videos {{width: 100%; border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums}}
.ff-videos th, .ff-videos td {{border: 0; border-bottom: 1px solid {LINE}; padding: .5rem .75rem .5rem 0;
    text-align: left; vertical-align: middle; font-weight: 400; white-space: nowrap}}
.ff-videos .ff-number {{text-align: right}}
.ff-videos thead th {{font-size: .8rem; color: {MUTED}}}
.ff-videos tbody th {{max-width: 16rem}}
.ff-videos tbody th a {{display: block; overflow: hidden; text-overflow: ellipsis; font-weight: 600; color: inherit;
    text-decoration: none}}
.ff-videos tbody th a:hover, .ff-videos tbody th a:focus {{text-decoration: underline}}
.ff-videos small {{display: block; overflow: hidden; text-overflow: ellipsis; color: {MUTED}; font-size: .75rem}}
.ff-videos tbody tr:hover {{background: #f3f5f8}}
.ff-videos .ff-wide {{width: 40%; white-space: normal}}
.ff-emotion {{padding: .1rem .5rem; border-radius: 1rem; font-size: .8rem}}
@media (max-width: 760px) {{
    .ff-videos, .ff-videos tbody {{display: block}}
    .ff-videos thead {{display: none}}
    .ff-videos tr {{display: flex; flex-wrap: wrap; gap: .3rem 1rem; padding: .75rem 0;
        border-bottom: 1px solid {LINE}}}
    .ff-videos th, .ff-videos td {{border: 0; padding: 0}}
    .ff-videos tbody th, .ff-videos .ff-wide {{width: 100%; max-width: 100%; overflow-wrap: anywhere}}
    .ff-videos td[data-name]:not([data-name="Mostly"]):not([data-name="Status"])::before {{
        content: attr(data-name) " "; color: {MUTED}}}
    .ff-videos td:empty {{display: none}}
    .st-key-filters {{display: grid; grid-template-columns: 1fr 1fr}}
    .st-key-filters > div {{width: 100% !important}}
    .st-key-filters > div:nth-child(1) {{grid-column: span 2}}
}}
"""
