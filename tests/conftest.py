"""what tests stand on -> real media, real faces, and the folder of shared videos"""

import contextlib
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from browser import browser, page  # noqa: F401
from fault_table import name_faults, pytest_configure, pytest_terminal_summary  # noqa: F401
from lacking import lacking
from prefect_server import on_server, server  # noqa: F401
from s3_server import bucket, s3_server  # noqa: F401

_TICKS_PER_SECOND = 90_000
_SAMPLES_PER_SECOND = 48_000
_SAME_EACH_TIME = {"fflags": "bitexact"}
"""Matroska otherwise draws numbers at random as names of its tracks."""
_SHARED = Path(__file__).parents[1].parent / "shared"
_TAKE_MINUTES = (
    "test_hosts.py",
    "test_speed.py",
    "test_watch.py",
    "test_up.py",
    "test_more_hands.py",
    "test_viewer.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes are begun first, then those of many tests, so that both processes end together."""
    name_faults(items)
    count = Counter(item.path for item in items)

    def place(item: pytest.Item) -> tuple[int, int]:
        name = item.path.name
        return _TAKE_MINUTES.index(name) if name in _TAKE_MINUTES else len(_TAKE_MINUTES), -count[item.path]

    items.sort(key=lambda item: (*place(item), item.path))


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    """`make_video(path, ...)` writes a real video, its format chosen by the path's ending, and returns the path."""
    return _make_video


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """A portrait whose face fills a fifth of the picture: uint8 (512, 512, 3) RGB."""
    import skimage.data

    return np.ascontiguousarray(skimage.data.astronaut())


@pytest.fixture(scope="session")
def grace_hopper() -> np.ndarray:
    """A portrait whose face fills a tenth of the picture: uint8 (600, 512, 3) RGB."""
    import matplotlib.cbook
    import matplotlib.image

    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        return np.ascontiguousarray(matplotlib.image.imread(file, format="jpg"))


@pytest.fixture(scope="session", autouse=True)
def own_store(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the person who runs the tests has promoted is neither used nor changed."""
    os.environ["FERFLOW_MODELS"] = str(tmp_path_factory.mktemp("no-models"))


@pytest.fixture(scope="session")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Directories of two emotion models that anybody could have trained: tiny, valid, of different versions."""
    import keras

    from ferflow.faces import Framing
    from models.emotion_classifier import ModelDescription, save_model

    description = ModelDescription(
        name="tiny",
        crop_size_px=48,
        temperature=1.0,
        framing=Framing(side_per_box=1.1, down_per_box=0.0, is_levelled=True),
        commit=None,
        recipe={},
        data={},
        metrics={"test": {"accuracy": 0.25, "image_count": 4}},
        history=[],
    )
    parent = tmp_path_factory.mktemp("models")

    def make(bias: float) -> Path:
        layers = keras.layers
        faces = keras.Input((48, 48, 1), dtype="uint8")
        x = layers.Rescaling(1 / 255)(faces)
        x = layers.Conv2D(4, 3, activation="relu", kernel_initializer="ones")(x)
        x = layers.GlobalAveragePooling2D()(x)
        x = layers.Dense(7, bias_initializer=keras.initializers.Constant(bias), kernel_initializer="zeros")(x)
        return save_model(parent, keras.Model(faces, layers.Softmax()(x)), description=description)

    with warnings.catch_warnings():
        # Keras 3.15 hands numpy 2.4 tensors whose __array__ takes no copy keyword.
        warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy", DeprecationWarning)
        return make(0.0), make(1.0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of videos and labelled faces beside the checkout; a clone elsewhere has none and skips the test."""
    if not _SHARED.is_dir():
        pytest.skip(f"{_SHARED} is not there: these videos are not part of the repository")
    return _SHARED


@pytest.fixture(scope="session")
def real_beginnings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The first seconds of real clips, as their makers encoded them; none where the shared videos are not there."""
    if not _SHARED.is_dir():
        return []
    names = (
        "eamm_disgusted.mp4",  # H.264
        "pyfeat_face_noface.mov",  # HEVC
        "torchcodec_av1_video.mkv",
        "torchcodec_h264_10bits.mp4",
        "single_vfr.mp4",  # its rate changes after 1.3 s
        "rotated90_displaymatrix.mp4",
        "lipnet_GRID_bbaf2n.mpg",  # MPEG-1
        "huimiang_1543684773.avi",  # MJPEG
        "intel_face-demographics-walking.gif",
    )
    folder = tmp_path_factory.mktemp("real-beginnings")
    return [_copy_beginning(_SHARED / "videos" / name, folder / name, seconds=1.5) for name in names]


@pytest.fixture(scope="session")
def ffprobe() -> str:
    """FFmpeg's own judge of a written video, which decodes without this project's code."""
    found = shutil.which("ffprobe")
    if found is None:
        lacking("no ffprobe: `sudo apt-get install ffmpeg`")
    return found


@contextlib.contextmanager
def _usual_priority() -> Iterator[None]:
    """Take back the highest priority there is (SCHED_FIFO, 99), which SVT-AV1 gives to the thread that encodes as root.

    Every process that is begun from it has that too: browsers and servers then leave nothing for others.
    """
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameter)


def _make_video(
    path: Path,
    *,
    frame_count: int = 10,
    fps: int | Fraction = 10,
    width: int = 320,
    height: int = 240,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    pts: Sequence[float] | None = None,
    audio_seconds: float = 0,
    image: np.ndarray | Callable[[int], np.ndarray] | None = None,
    options: dict[str, str] | None = None,
    pixel_aspect: str = "1/1",
) -> Path:
    """Encode a video.

    Args:
        path: the file; its ending chooses the format.
        frame_count: number of frames; with `pts` their number counts.
        fps: frames a second.
        width: pixels across; an image decides it.
        height: pixels down; an image decides it.
        codec: FFmpeg's name of the video encoder.
        pix_fmt: FFmpeg's name of the pixel format.
        pts: seconds at which each frame appears, for a rate that varies.
        audio_seconds: length of a stereo tone; 0 for no sound track.
        image: uint8 (height, width, 3) RGB shown in every frame, or what makes one of a frame's index;
            None is a grey ramp that moves, different in each frame and without a face.
        options: further options of the encoder.
        pixel_aspect: width of a pixel over its height.
    """
    ramp = (np.indices((height, width)).sum(axis=0) % 256).astype(np.uint8)

    def draw(index: int) -> np.ndarray:
        if image is None:
            return np.repeat(np.roll(ramp, 8 * index, axis=1)[..., None], 3, axis=2)
        return np.ascontiguousarray(image(index) if callable(image) else image)

    height, width = draw(0).shape[:2]
    time_base = 1 / Fraction(fps) if pts is None else Fraction(1, _TICKS_PER_SECOND)
    ticks = list(range(frame_count)) if pts is None else [round(seconds * _TICKS_PER_SECOND) for seconds in pts]
    usual_step = round(1 / fps / time_base)

    path.parent.mkdir(parents=True, exist_ok=True)
    with _usual_priority(), av.open(path, "w", options=_SAME_EACH_TIME) as output:
        video: Any = output.add_stream(codec, rate=Fraction(fps), options=options or {})
        video.width, video.height, video.pix_fmt = width, height, pix_fmt
        video.codec_context.time_base = time_base
        video.codec_context.sample_aspect_ratio = Fraction(pixel_aspect)
        if pts is not None:
            # MP4 adds up decoding times, which are not those of showing where frames are reordered.
            video.codec_context.max_b_frames = 0
        sound: Any = output.add_stream(output.default_audio_codec, rate=_SAMPLES_PER_SECOND) if audio_seconds else None
        if sound is not None:
            sound.codec_context.layout = "stereo"
        for index, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(draw(index), format="rgb24")
            frame.pts, frame.time_base = tick, time_base
            frame.duration = ticks[index + 1] - tick if index + 1 < len(ticks) else usual_step
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        if sound is not None:
            samples = np.arange(round(audio_seconds * _SAMPLES_PER_SECOND))
            tone = (0.2 * np.sin(2 * np.pi * 440 / _SAMPLES_PER_SECOND * samples)).astype(np.float32)
            audio = av.AudioFrame.from_ndarray(np.stack([tone, tone]), format="fltp", layout="stereo")
            audio.sample_rate, audio.pts, audio.time_base = _SAMPLES_PER_SECOND, 0, Fraction(1, _SAMPLES_PER_SECOND)
            output.mux(sound.encode(audio))
            output.mux(sound.encode(None))
    return path


def _copy_beginning(video: Path, path: Path, *, seconds: float) -> Path:
    """The packets of a video's first seconds in a file of the same format; nothing is decoded."""
    with av.open(video) as source, av.open(path, "w", options=_SAME_EACH_TIME) as output:
        copies: dict[int, Any] = {
            stream.index: output.add_stream_from_template(stream, opaque=True)
            for stream in (*source.streams.video, *source.streams.audio)
        }
        begins: dict[int, float] = {}
        for packet in source.demux():
            if packet.dts is None or packet.stream.index not in copies:
                continue
            at = float(packet.dts * packet.time_base)
            if at - begins.setdefault(packet.stream.index, at) < seconds:
                packet.stream = copies[packet.stream.index]
                output.mux(packet)
    return path
