"""the browser's camera -> its picture with boxes and emotions, and a timeline of the last minute"""

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import streamlit as st

from ferflow.emotions import EMOTIONS
from viewer import theme
from viewer.live import SHOWN_SECONDS, LiveFaces, Sight, told
from viewer.settings import watching
from viewer.strip import STYLE, legend_html, strip_html
from viewer.theme import EMOTION_COLORS, INK_COLORS, MUTED

_LOOK_SECONDS = 1.0
_GATHER_SECONDS = 0.15
_MOMENTS = 120
_MOST_LANES = 6
_KEEP = "keep"
# Key of the switch.
_CAMERA = "camera"
# Its key in the session's state.
_CONSTRAINTS = {
    "video": {"width": {"ideal": 640}, "height": {"ideal": 480}, "frameRate": {"ideal": 20}},
    "audio": False,
}
_NO_SERVERS: dict[str, Any] = {"iceServers": []}
# Browser and this page find each other without asking anybody; the library would ask a server of Google's.
_HELP = """
The page may be told one of these by the browser:

- *NotFoundError*: there is no camera. Plug one in, and press Start again.
- *NotReadableError*: another program uses the camera. Close that one.
- *NotAllowedError*: the browser was told not to open it. Allow it beside the page's address.
"""
_LOST = "Start it again. If it went off by itself, the connection was lost, or another program took the camera."
_THIS_MACHINE = ("localhost", "127.0.0.1", "[::1]")


def show() -> None:
    """Show the page."""
    from streamlit_webrtc import WebRtcMode, webrtc_streamer

    st.html(f"<style>{STYLE}{_STYLE}</style>")
    theme.title(
        "Live",
        "What your camera sees is looked at on the machine that serves this page and goes nowhere else. "
        "Nothing is recorded unless you ask for it.",
    )
    if not _may_use_camera(st.context.url or ""):
        st.warning(
            "Browsers open the camera only for a page of the same machine or one behind https. Open this page on the "
            "machine that it runs on, or put it behind https.",
            icon=":material/no_photography:",
        )
    try:
        _try_models()
    except Exception as error:
        st.error(theme.plain(f"Nothing can be seen: {told(error)}"), icon=":material/error:")
        st.button("Try again")
        return
    live = _live_faces()
    picture, beside = st.columns((3, 2), gap="large")
    with picture:
        _gather_addresses()
        streamer = webrtc_streamer(
            _CAMERA,
            mode=WebRtcMode.SENDRECV,
            rtc_configuration=_NO_SERVERS,
            media_stream_constraints=_CONSTRAINTS,
            video_frame_callback=functools.partial(_annotate, live),
            video_html_attrs={"autoPlay": True, "controls": False, "muted": True, "style": {"width": "100%"}},
            media_toggle_controls=False,
            translations={
                "start": "Start the camera",
                "stop": "Stop",
                "select_device": "Choose a camera",
                "device_ask_permission": "Allow the use of the camera in your browser.",
                "device_access_denied": "The browser was told not to open the camera. Allow it beside the address.",
                "device_not_available": "There is no camera, or another program uses it.",
                "media_api_not_available": "Browsers lend the camera to this machine's own pages and to https only.",
            },
        )
    is_playing = bool(streamer.state.playing)
    every = _LOOK_SECONDS if is_playing else None
    with beside:
        st.fragment(_show_now, run_every=every)(live, is_playing=is_playing)
    st.fragment(_show_timeline, run_every=every)(live)
    _show_keeping(live)
    st.expander("It does not start?").markdown(_HELP)


def _gather_addresses() -> None:
    """Wait, so that one run does for many while the browser tells, one by one, at which addresses it can be reached.

    Runs that follow each other within some milliseconds are miscounted by streamlit_webrtc 0.79, which then takes the
    camera for one of a page that was left, and stops it (`component._get_or_create_context`).
    """
    if _CAMERA in st.session_state and any(st.session_state[_CAMERA].state):
        time.sleep(_GATHER_SECONDS)


@st.cache_resource(show_spinner="Loading the models, once: some seconds.")
def _try_models() -> None:
    """Before the camera starts, because loading them for the first time holds up everything else."""
    with _models():
        pass


def _live_faces() -> LiveFaces:
    """This visitor's."""
    if "live_faces" not in st.session_state:
        st.session_state.live_faces = LiveFaces(_models)
    live: LiveFaces = st.session_state.live_faces
    return live


@contextlib.contextmanager
def _models() -> Iterator[tuple[Any, Any]]:
    from models.emotion_classifier import EmotionModel
    from models.face_detector import MediaPipeFaceDetector, VideoFaceFinder
    from models.store import find_model

    classifier = EmotionModel(find_model(watching().settings.model))
    with MediaPipeFaceDetector() as detector:
        yield VideoFaceFinder(detector), classifier


def _annotate(live: LiveFaces, frame: Any) -> Any:
    """Draw on one av.VideoFrame, on a thread of the library's."""
    image_rgb = np.ascontiguousarray(frame.to_ndarray(format="rgb24"))
    live.annotate(image_rgb)
    return type(frame).from_ndarray(image_rgb, format="rgb24")


def _may_use_camera(url: str) -> bool:
    scheme, _, rest = url.partition("://")
    host = rest.split("/")[0]
    return scheme == "https" or not host or host.rsplit(":", 1)[0] in _THIS_MACHINE or host in _THIS_MACHINE


def _show_now(live: LiveFaces, *, is_playing: bool) -> None:
    if live.error is not None:
        st.error(theme.plain(f"Nothing can be seen: {live.error}"), icon=":material/error:")
        st.button("Try again", on_click=live.try_again)
        return
    if not is_playing:
        live.close()
        theme.empty("The camera is off.", _LOST if live.now else "Start it, and look into it.")
        return
    if live.is_cut_off:
        theme.empty("No picture comes any more.", "The connection is lost. Press Stop, then start the camera again.")
        return
    sights = live.lately()
    if not sights or live.now - sights[-1].seconds > 3:
        theme.empty("Getting ready …", "The first picture is looked at.")
    elif not len(sights[-1].track_ids):
        theme.empty("No face is seen.", "Come nearer, or turn towards the light.")
    else:
        rate = sum(sights[-1].seconds - sight.seconds < 2 for sight in sights) / 2
        _show_people(sights[-1])
        st.caption(f"{rate:.0f} pictures a second are looked at.")


def _show_timeline(live: LiveFaces) -> None:
    sights = live.lately()
    if not sights:
        return
    st.html(f"<h3>The last minute</h3>{_timeline_html(sights, live.now)}{legend_html()}")


@st.fragment
def _show_keeping(live: LiveFaces) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        live.is_kept = st.toggle(
            "Keep what is seen",
            help="Numbers only, no pictures, in this machine's memory until you close the page; for the download.",
            key=_KEEP,
        )
        # Always there: the browser takes nothing away at the end of a run when the other fragments' next one has begun
        # by then (Streamlit 1.67, `ForwardMsgQueue.clear`).
        has_none = not (live.is_kept or live.kept_faces)
        # A run begun by the press would take the file away before the browser asks for it (Streamlit 1.67).
        st.download_button(
            "Download CSV",
            live.csv,
            "live.csv",
            "text/csv",
            icon=":material/download:",
            on_click="ignore",
            disabled=has_none,
        )
        st.button("Forget it", on_click=_forget, args=(live,), icon=":material/delete:", disabled=has_none)


def _forget(live: LiveFaces) -> None:
    # Before the run that the press begins: what is seen until then would be kept, though the switch is off by now.
    live.is_kept = st.session_state[_KEEP]
    live.forget_kept()


def _show_people(sight: Sight) -> None:
    people = list(zip(sight.track_ids, sight.emotions, sight.probabilities, strict=True))
    for track_id, number, row in people[:_MOST_LANES]:
        emotion = EMOTIONS[number]
        style = f"background:{EMOTION_COLORS[emotion]};color:{INK_COLORS[emotion]}"
        st.html(f'<h4>Person {track_id} <span class="ff-tag" style="{style}">{emotion}</span></h4>')
        theme.bars(row.tolist(), [f"{share:.0%}" for share in row], label=f"Person {track_id}")


def _timeline_html(sights: Sequence[Sight], now: float) -> str:
    lanes = "".join(
        f"<span>Person {track_id}</span>{strip_html(_strip(sights, track_id, now))}" for track_id in _people(sights)
    )
    ticks = "".join(f"<span>{text}</span>" for text in ("1 minute ago", "30 seconds ago", "now"))
    return f'<div class="ff-lanes">{lanes}<span></span><div class="ff-ticks">{ticks}</div></div>'


def _people(sights: Sequence[Sight]) -> list[int]:
    """Those that were seen most of the time, in order of their numbers."""
    tracks = np.concatenate([sight.track_ids for sight in sights])
    numbers, counts = np.unique(tracks, return_counts=True)
    return sorted(numbers[np.argsort(-counts, kind="stable")][:_MOST_LANES].tolist())


def _strip(sights: Sequence[Sight], track_id: int, now: float) -> np.ndarray:
    """One person's last minute in moments of half a second, the last sight in each counting."""
    shown = np.zeros((_MOMENTS, len(EMOTIONS)))
    for sight in sights:
        moment = int((1 - (now - sight.seconds) / SHOWN_SECONDS) * _MOMENTS)
        for number in np.flatnonzero(sight.track_ids == track_id):
            shown[min(max(moment, 0), _MOMENTS - 1)] = np.eye(len(EMOTIONS))[sight.emotions[number]]
    return shown


_STYLE = f"""
.ff-tag {{padding: .1rem .6rem; border-radius: 1rem; font-size: .9rem; margin-left: .5rem}}
.ff-lanes {{display: grid; grid-template-columns: max-content 1fr; gap: .4rem .75rem; align-items: center;
    font-size: .875rem}}
.ff-ticks {{display: flex; justify-content: space-between; color: {MUTED}; font-size: .75rem}}
"""
