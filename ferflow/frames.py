"""video file <-> frames, each with its exact time; the only `import av`."""

from __future__ import annotations

import contextlib
import heapq
import logging
import math
import os
import re
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import av.error
import cv2
import numpy as np
from av.audio import AudioStream
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.codec import Codec
from av.container import InputContainer, OutputContainer
from av.stream import Disposition
from av.video import VideoStream
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from ferflow.child_process import outside_limits
from ferflow.errors import PieceError, VideoError
from ferflow.limits import DEFAULT_LIMITS, Limits
from ferflow.records import Frame, VideoInfo
from ferflow.storage import part_file

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    ".3gp .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .webm .wmv".split()
)
"""Names by which a video is recognised in a folder; a file that is named outright may have any."""

_READ_FORMATS = (
    "mov,matroska,avi,flv,live_flv,mpegts,mpeg,asf,asf_o,ogg,mxf,gif,apng,rm,wtv,dv,nut,ivf,gxf,yuv4mpegpipe,"
    "h261,h263,h264,hevc,vvc,av1,obu,mpegvideo,m4v,mjpeg,vc1,dirac,dnxhd,"  # Pictures without a container.
    "image2,bmp_pipe,jpeg_pipe,png_pipe,tiff_pipe,webp_pipe,"  # A photo is a video of one frame.
    "aac,aiff,flac,mp3,wav"  # So that it can be said that these hold only sound.
)
# What FFmpeg may take a file for: formats whose pictures are in the file itself. It has others that open whatever files
# or addresses a text names (concat, hls, dash, sdp, vobsub), or run it as a program (lavfi).

SOUND_RATE = 48_000
"""Sound samples a second of a video that is made from nothing."""

PIECE_SECONDS = 60.0
"""A video at least twice as long is cut into pieces of at least this length."""
THREADED_FROM_PX = 1_000_000
"""Pixels of a picture from which on FFmpeg's threads are worth their while. A smaller one takes a fifth more CPU time
with them, and hardly less time: the processors are at work on other frames or videos anyway (benchmarks/threads.py)."""
ENCODING = {"preset": "ultrafast", "crf": "25", "g": "50"}
"""How x264 is asked to write: a third of the CPU time of veryfast at 23, and as good to look at (PSNR 40 to 47 dB on
four clips, against 41 to 48); the files are two to four times as large, 0.8 to 1.7 times their sources. A key frame
every 50 frames, so that any frame of 1920 x 1080 is reached in 0.19 s (x264's 250: up to 0.9 s); they grow by 2 %."""

_INDEXED_FORMATS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"})
# Formats that keep every picture's own time, and where FFmpeg finds a key frame without guessing.
_TOLD_EVERY_PACKETS = 1000

_RESTARTED_CLOCK_FORMATS = frozenset({"mpeg", "mpegts"})
# Formats whose clock starts anywhere (a broadcast's may say 26 hours): players show their first moment as 0.
_GUESSED_DURATION_FORMATS = frozenset({"mpeg", "mpegvideo", "h264", "hevc", "m4v"})
# Formats that do not say how long they are: FFmpeg guesses it from the bit rate. Their times, at best one for many
# pictures, are guessed too, and after a seek otherwise than from the beginning on.
_COPIED_FROM_RATE = {"aac": 1, "mp3": 16_000}
# Sound that every browser plays inside MP4, and from how many samples a second on FFmpeg writes it there; any other is
# converted to AAC.
_FINEST_TIME_BASE = Fraction(1, 1_000_000)
# MP4 counts time in 32 bits: with a nanosecond clock it would end after 4 seconds.
_FRAMES_AHEAD = 4
# Frames that are decoded and drawn on while earlier ones are encoded: 25 MB at 1080p.
_HEARD_GAP_SECONDS = 0.1
# Containers round the times of sound; encoders want them without steps.
_USUAL_STEP = Fraction(1, 25)
# Seconds a frame is shown where neither the file nor its neighbours say.
_DECODED_THROUGH_SECONDS = 5
# To a frame as near as this, decoding on is cheaper than seeking: x264 sets a key frame every 250 frames, 10 seconds,
# so that a seek decodes 5 of them on the way.
_SEEK_EARLIER_SECONDS = (0, 1, 15)
# Where frames are decoded in another order than they are shown, a seek may lead to a key frame that is shown after the
# frame looked for, and in a transport stream to any frame; then it is tried again from earlier on.


_MOST_OBLONG, _SQUARE_ENOUGH = 4, 0.02
# Width of a pixel over its height; what is beyond is a mistake of the file. Many have 1.001, from rounding their size.


class VideoReader:
    """A video file, opened and found to hold at least one frame; read it with `frames`, once.

    Frames are decoded as they are asked for, so memory does not depend on the length. Damaged stretches are
    skipped and a file that ends early ends early: `info` says so afterwards. What names other files or addresses (a
    playlist) is refused.

    Raises:
        VideoError: the file cannot be read, holds no video or not one frame that can be decoded, or is beyond the
            limits.
    """

    def __init__(self, path: Path, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self._path = path
        self._limits = limits
        self._container = _open(path, limits)
        try:
            self._stream = _video_stream(path, self._container)
            _check_claims(path, self._stream, limits)
            self._start = _clock_start(self._container)
            self.time_base = Fraction(self._stream.time_base or Fraction(1, 90_000))
            """Every frame's time is a multiple of it."""
            self._damaged_packets = 0
            self._is_mended = False
            self._read_error: str | None = None
            self._frame_count = 0
            self._first_pts: Fraction | None = None
            self._last_packet_seconds: list[Fraction] = []
            self._end = Fraction(0)
            self._decoded = self._decode()
            self._first = next(self._decoded, None)
            if self._first is None:
                _check_refused(path, limits)
                raise VideoError(f"{path}: no frame of this video can be decoded; the file is damaged or incomplete.")
        except BaseException:
            self._container.close()
            raise
        width, height = self._first.width, self._first.height
        with_square_pixels = _square(width, height, self._stream.sample_aspect_ratio, limits)
        width, height = with_square_pixels if self._first.rotation % 180 == 0 else with_square_pixels[::-1]
        self.width: int = width
        """Pixels across, as a viewer sees the picture: upright, and each pixel as wide as it is high."""
        self.height: int = height
        """Pixels down."""
        self.rate: Fraction = Fraction(self._stream.average_rate or 1 / _USUAL_STEP)
        """Frames a second as the file states it: a hint, never a clock."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # It and this refer to each other: left so, the decoder's 8 MB would stay until Python looks for circles.
        self._decoded.close()
        self._container.close()

    @property
    def frames_expected(self) -> int | None:
        """How many frames there probably are, for a progress bar; None if nothing tells."""
        if self._stream.frames:
            return self._stream.frames
        end = self._container_end()
        return None if end is None else max(round(end * self.rate), 1)

    @property
    def info(self) -> VideoInfo:
        """What is known of the video; complete once `frames` has ended."""
        start = self._first_pts or Fraction(0)
        shown = self._end - start
        return VideoInfo(
            width=self.width,
            height=self.height,
            frame_count=self._frame_count,
            duration_seconds=float(self._end),
            fps=float(self._frame_count / shown) if shown else float(self.rate),
            has_audio=bool(self._container.streams.audio),
            warning=self._warning(),
        )

    def info_of(self, *, frame_count: int, end: Fraction) -> VideoInfo:
        """What `info` says once `frames` has ended, where another reader has decoded the frames.

        Args:
            frame_count: how many there are.
            end: when the last one ends, in seconds.
        """
        assert self._first is not None
        self._first_pts = (self._first.pts or 0) * self.time_base - self._start
        self._frame_count, self._end = frame_count, end
        return self.info

    @property
    def end(self) -> Fraction:
        """When the last decoded frame ends, in seconds."""
        return self._end

    def frames(
        self,
        *,
        max_fps: float | None = None,
        size_wh: tuple[int, int] | None = None,
        cuts: Sequence[Fraction] = (),
    ) -> Iterator[Frame]:
        """Decode frame after frame.

        Args:
            max_fps: leave frames out so that no two given ones are closer than 1 / max_fps seconds; a given
                frame's duration then reaches to the next given one. None gives every frame.
            size_wh: scale to this width and height in pixels; None keeps the video's.
            cuts: times of frames that are given however close the one before is, see `find_cuts`.
        """
        return self._given(self._timed(), max_fps=max_fps, size_wh=size_wh, cuts=cuts)

    def piece(self, start: Fraction | None, end: Fraction | None, *, max_fps: float | None = None) -> Iterator[Frame]:
        """Decode the frames from one cut to the next: those of `frames` with all cuts, their indices counted from 0.

        Args:
            start: one of the cuts; None begins with the video.
            end: the next one; None ends with the video.
            max_fps: as for `frames`.

        Raises:
            PieceError: something about the video makes them other frames than those of the whole.
        """
        if start is not None:
            ahead = self._from_key_frame(latest=start)
            met = next(((pts, picture) for pts, picture in ahead if pts >= start), None)
            # Only a picture that builds on no other looks the same without those before it.
            if met is None or met[0] != start or met[1].pict_type != PictureType.I:
                raise PieceError(f"{self._path}: no seek leads to the frame at {float(start):.3f} s.")
            self._first, self._decoded = met[1], (picture for _, picture in ahead)
        yield from self._given(self._timed(until=end), max_fps=max_fps)
        if self._is_mended or self._damaged_packets or self._read_error or (end is not None and self._end != end):
            raise PieceError(f"{self._path}: what is around {float(self._end):.3f} s is damaged.")

    def _given(
        self,
        timed: Iterator[tuple[Fraction, VideoFrame]],
        *,
        max_fps: float | None,
        size_wh: tuple[int, int] | None = None,
        cuts: Sequence[Fraction] = (),
    ) -> Iterator[Frame]:
        shortest_step = 0 if max_fps is None else Fraction(1) / Fraction(max_fps).limit_denominator(1000)
        given: tuple[int, Fraction, VideoFrame] | None = None
        for index, (pts, picture) in enumerate(timed):
            # Half a tick of tolerance: times such as 0.033 stand for 1/30.
            if (
                given is not None
                and pts - given[1] + self.time_base / 2 < shortest_step
                and bisect_right(cuts, pts) == bisect_right(cuts, given[1])
            ):
                continue
            if given is not None:
                yield self._frame(*given, until=pts, size_wh=size_wh)
            given = index, pts, picture
        if given is not None:
            yield self._frame(*given, until=self._end, size_wh=size_wh)

    def images_at(self, pts_seconds: Mapping[int, float]) -> Iterator[tuple[int, np.ndarray]]:
        """Decode the frames that seeking leads to, as `read_images_at` does all."""
        if self._container.format.name in _GUESSED_DURATION_FORMATS:
            return
        half_a_tick = self.time_base / 2
        ahead: Iterator[tuple[Fraction, VideoFrame]] = iter(())
        met: tuple[Fraction, VideoFrame] | None = None
        for index, seconds in sorted(pts_seconds.items(), key=lambda place: place[1]):
            pts = Fraction(seconds)
            if met is None or not -half_a_tick <= pts - met[0] <= _DECODED_THROUGH_SECONDS:
                ahead = self._from_key_frame(latest=pts + half_a_tick)
                met = next(ahead, None)
            while met is not None and met[0] < pts - half_a_tick:
                met = next(ahead, None)
            if met is not None and met[0] <= pts + half_a_tick:
                yield index, self._image(met[1])

    def images_of(self, indices: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Decode everything up to the last of some frames, and give these; of a fresh reader only, as `frames` is."""
        missing = set(indices)
        for index, (_, picture) in enumerate(self._timed()):
            if index in missing:
                yield index, self._image(picture)
                missing.remove(index)
            if not missing:
                return

    def _from_key_frame(self, *, latest: Fraction) -> Iterator[tuple[Fraction, VideoFrame]]:
        """Pictures and their times, from a key frame on that is shown by then; none if no seek leads to one."""
        for earlier in _SEEK_EARLIER_SECONDS:
            try:
                self._container.seek((latest - earlier + self._start) // self.time_base, stream=self._stream)
            except av.error.FFmpegError:
                continue
            pictures = self._whole_pictures()
            first = next(pictures, None)
            if first is not None and first[0] <= latest:
                yield first
                yield from pictures
                return

    def _whole_pictures(self) -> Iterator[tuple[Fraction, VideoFrame]]:
        """What is decoded after a seek, without the pictures that build on some from before it."""
        is_whole = False
        for picture in self._decode():
            is_whole = is_whole or bool(picture.key_frame)
            if picture.pts is None:
                return
            if is_whole:
                yield picture.pts * self.time_base - self._start, picture

    def _decode(self) -> Generator[VideoFrame]:
        """Every picture that can be had, damaged packets and a torn end passed over."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError as error:
                self._read_error = error.strerror
                break
            if packet.duration:
                self._last_packet_seconds = [packet.duration * self.time_base]
            try:
                yield from packet.decode()
            except av.error.EOFError:
                return
            except av.error.FFmpegError as error:
                if isinstance(error, av.error.DecoderNotFoundError):
                    raise VideoError(f"{self._path}: no decoder for its video format is installed.") from error
                self._damaged_packets += 1
        try:
            yield from self._stream.codec_context.decode(None)
        except av.error.FFmpegError:
            self._damaged_packets += 1

    def _timed(self, *, until: Fraction | None = None) -> Iterator[tuple[Fraction, VideoFrame]]:
        """Pictures with rising times; counts them and keeps the end of the last."""
        assert self._first is not None
        previous: Fraction | None = None
        step = 1 / self.rate
        picture: VideoFrame | None = self._first
        while picture is not None:
            if picture.pts is None:
                pts = Fraction(0) if previous is None else previous + step
                self._is_mended = True
            else:
                pts = picture.pts * self.time_base - self._start
                if previous is not None and pts <= previous:
                    pts = previous + self.time_base
                    self._is_mended = True
            if previous is None:
                self._first_pts = pts
            if until is not None and pts >= until:
                self._end = pts
                return
            self._frame_count += 1
            self._limits.check_frames(self._path, self._frame_count)
            # Packets state durations in the order of decoding, so of the last frame two are told; the shorter is sane.
            stated = [picture.duration * self.time_base] if picture.duration else []
            self._end = pts + min([*stated, *self._last_packet_seconds], default=step)
            yield pts, picture
            previous = pts
            picture = next(self._decoded, None)

    def _frame(
        self, index: int, pts: Fraction, picture: VideoFrame, *, until: Fraction, size_wh: tuple[int, int] | None
    ) -> Frame:
        image_rgb = self._image(picture, size_wh=size_wh)
        return Frame(index=index, pts=pts, duration=until - pts, image_rgb=image_rgb)

    def _image(self, picture: VideoFrame, *, size_wh: tuple[int, int] | None = None) -> np.ndarray:
        width, height = size_wh or (self.width, self.height)
        quarter_turns = picture.rotation // 90 % 4
        if quarter_turns % 2:
            width, height = height, width
        scaled = picture.reformat(
            width=width,
            height=height,
            format="rgb24",
            interpolation="AREA" if (width, height) != (picture.width, picture.height) else None,
            threads=1,
        )
        # PyAV gives a view of padded lines for some widths, which MediaPipe reads as a picture without faces.
        return np.ascontiguousarray(np.rot90(scaled.to_ndarray(), quarter_turns))

    def _container_end(self) -> Fraction | None:
        """When the longest of all streams ends, as the file itself states; None if it does not."""
        container = self._container
        if container.duration is None or container.format.name in _GUESSED_DURATION_FORMATS:
            return None
        return Fraction((container.start_time or 0) + container.duration, av.time_base) - self._start

    def _stated_end(self) -> Fraction | None:
        """When the video ends as the file itself states; None if it does not."""
        if self._stream.duration is not None and self._container.format.name not in _GUESSED_DURATION_FORMATS:
            ticks = (self._stream.start_time or 0) + self._stream.duration
            return ticks * self.time_base - self._start
        # A sound track is often a little longer than its video, so the end of both says nothing about one.
        return None if self._container.streams.audio else self._container_end()

    def _warning(self) -> str | None:
        if self._read_error is not None:
            return (
                f"the file is damaged after {float(self._end):.1f} s ({self._read_error}); what comes before was read."
            )
        stated = self._stated_end()
        if stated is not None and stated - self._end > max(Fraction(1, 2), stated / 100):
            return f"the file ends early: {float(self._end):.1f} of {float(stated):.1f} seconds could be read."
        if self._damaged_packets:
            return f"{self._damaged_packets} damaged parts of the video could not be decoded and were skipped."
        return None


def find_cuts(
    path: Path,
    *,
    piece_seconds: float = PIECE_SECONDS,
    limits: Limits = DEFAULT_LIMITS,
    progress: Callable[[int, int | None], None] | None = None,
) -> tuple[Fraction, ...]:
    """Find where a long video may be cut, so that its pieces can be decoded side by side: see `VideoReader.piece`.

    Reads the packets, decodes none. What it gives depends on the file alone.

    Args:
        path: the video.
        piece_seconds: shortest length of a piece.
        limits: what the video may claim.
        progress: told of the packets that were read.

    Returns:
        Times of key frames, rising. None for a video shorter than two pieces, and for one whose index or times do not
        promise that a piece shows what the whole shows.

    Raises:
        VideoError: the video cannot be opened, or is more than the limits allow.
    """
    with _open(path, limits) as container:
        stream = _video_stream(path, container)
        time_base = Fraction(stream.time_base or 0)
        stated = container.duration
        if (
            container.format.name not in _INDEXED_FORMATS
            or not time_base
            or (stated is not None and stated < 2 * piece_seconds * av.time_base)
        ):
            return ()
        times, key_times, previous = array("q"), [], None
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                # Matroska states no times of decoding.
                decoded_at = previous if packet.dts is None else packet.dts
                is_set_back = packet.dts is not None and previous is not None and packet.dts <= previous
                if packet.pts is None or packet.is_corrupt or is_set_back:
                    return ()
                previous = decoded_at
                times.append(packet.pts)
                if packet.is_keyframe and not packet.is_discard:
                    key_times.append(packet.pts)
                if progress is not None and len(times) % _TOLD_EVERY_PACKETS == 0:
                    progress(len(times), stream.frames or None)
        except av.error.FFmpegError:
            return ()
        start = _clock_start(container)
    limits.check_frames(path, len(times))
    ticks = np.sort(np.frombuffer(times, np.int64))
    if not len(ticks) or (np.diff(ticks) == 0).any():
        return ()
    shortest = piece_seconds / time_base
    cuts = [int(ticks[0])]
    for key in sorted(key_times):
        if key - cuts[-1] >= shortest and ticks[-1] - key >= shortest:
            cuts.append(key)
    with _open(path, limits) as container:
        stream = _video_stream(path, container)
        # The last first: reading up to one would teach FFmpeg the way to those before it.
        found = [tick for tick in cuts[:0:-1] if _leads_to(container, stream, tick)]
    return tuple(tick * time_base - start for tick in reversed(found))


def _leads_to(container: InputContainer, stream: VideoStream, ticks: int) -> bool:
    """Whether seeking to a key frame's time leads to it at once."""
    try:
        container.seek(ticks, stream=stream)
        return next(container.demux(stream)).pts == ticks
    except (av.error.FFmpegError, StopIteration):
        return False


def read_images_at(path: Path, pts_seconds: Mapping[int, float]) -> Iterator[tuple[int, np.ndarray]]:
    """Decode single frames of a video without those far from them.

    Seeks from one to the next. Where the times of a file do not lead to a frame, it is counted to instead.

    Args:
        path: the video.
        pts_seconds: when each wanted frame appears, by its index, both as `VideoReader.frames` gives them.

    Yields:
        The index of each frame and its picture, uint8 (height, width, 3) RGB as in `Frame`: in order of time, but
        those counted to last. A frame that the video does not have is left out.

    Raises:
        VideoError: the video cannot be read.
    """
    missing = dict(pts_seconds)
    with VideoReader(path) as reader:
        for index, image_rgb in reader.images_at(missing.copy()):
            del missing[index]
            yield index, image_rgb
    if missing:
        with VideoReader(path) as reader:
            yield from reader.images_of(missing)


def read_frame_times(path: Path) -> np.ndarray:
    """When each frame of a video appears, in seconds and in order: float64 (n,), as `VideoReader.frames` counts them.

    Nothing is decoded, so a frame that is damaged counts too. An hour of 30 frames a second takes 0.6 s.

    Raises:
        VideoError: the video cannot be read.
    """
    with _open(path) as container:
        stream = _video_stream(path, container)
        time_base = Fraction(stream.time_base or Fraction(1, 90_000))
        start = _clock_start(container)
        ticks = np.array([packet.pts for packet in container.demux(stream) if packet.pts is not None], np.int64)
    # As exact as fractions, which would take a second for an hour.
    over = time_base.denominator * start.denominator
    counted = np.sort(ticks) * time_base.numerator * start.denominator - start.numerator * time_base.denominator
    times: np.ndarray = counted / over
    return times


def rewrite_video(
    source: Path,
    target: Path,
    draw: Callable[[Frame], None],
    *,
    max_short_side_px: int | None = 1080,
    parts: Path | None = None,
    limits: Limits = DEFAULT_LIMITS,
    decoded: Callable[[tuple[int, int]], Generator[Frame] | None] = lambda _: None,
) -> None:
    """Draw on every frame of a video and write it as MP4 that browsers play, sound and frame times kept.

    H.264 (x264, yuv420p, BT.601) with the index at the front; AAC and MP3 sound is copied bit by bit where MP4 allows
    it, other sound converted to AAC. The file appears when it is complete.

    Args:
        source: the video.
        target: the MP4 to write.
        draw: changes `image_rgb` of each frame in place; it is of the size at which it is written.
        max_short_side_px: scale down what is larger, 1080 meaning 1920 x 1080 or 1080 x 1920; None keeps the size.
        parts: folder for the unfinished file, on the target's disk; None for one beside the target.
        limits: what the source may claim.
        decoded: gives its frames of a width and height, if they are there from an earlier reading.

    Raises:
        VideoError: the source cannot be read, or MP4 cannot hold what is in it.
    """
    with (
        _refusal_told(source),
        VideoReader(source, limits=limits) as reader,
        _open(source, limits) as sound_source,
        part_file(target, folder=parts) as part,
    ):
        size_wh = _written_size(reader.width, reader.height, max_short_side_px)
        kept = decoded(size_wh)
        drawn = _drawn(kept or reader.frames(size_wh=size_wh), draw)
        with (
            # Closed before the reader is, in which its thread may be at work.
            contextlib.closing(drawn if kept else _ahead(drawn)) as frames,
            av.open(part, "w", format="mp4", options={"movflags": "+faststart"}) as output,
        ):
            pictures = _encoded(
                frames,
                output,
                size_wh,
                rate=reader.rate,
                time_base=reader.time_base,
            )
            sound = _sound_packets(sound_source, output)
            for packet in heapq.merge(pictures, sound, key=_decoding_time):
                output.mux(packet)
            with outside_limits():  # All is written, and is now moved to make room for the index: 2 GB take a while.
                output.close()


@contextlib.contextmanager
def _refusal_told(source: Path) -> Iterator[None]:
    """Says in a sentence what FFmpeg refuses to write; a full disk is another matter."""
    try:
        yield
    except av.error.FFmpegError as error:
        if isinstance(error, OSError | MemoryError):
            raise
        raise VideoError(
            f"{source}: the annotated video cannot be written ({error.strerror}); the times or the sound of this one "
            "are odd, such as days between two frames. Convert it with another program, or leave the drawing out."
        ) from error


def _decoding_time(packet: av.Packet[Any]) -> Fraction:
    return (packet.dts or 0) * packet.time_base


def write_video(
    target: Path, frames: Iterable[Frame], *, size_wh: tuple[int, int], rate: Fraction, sound: np.ndarray
) -> None:
    """Write pictures and sound that no file holds yet, as `rewrite_video` writes its MP4.

    Args:
        target: the MP4 to write.
        frames: the pictures in order of time.
        size_wh: their width and height in pixels, both even.
        rate: of how many a second their times are multiples.
        sound: float32 (2, n) of -1 to 1, left and right, SOUND_RATE a second.
    """
    with part_file(target) as part, av.open(part, "w", format="mp4", options={"movflags": "+faststart"}) as output:
        pictures = _encoded(frames, output, size_wh, rate=rate, time_base=1 / rate)
        track = output.add_stream("aac", rate=SOUND_RATE)
        samples = AudioFrame.from_ndarray(sound, format="fltp", layout="stereo")
        samples.sample_rate, samples.time_base, samples.pts = SOUND_RATE, Fraction(1, SOUND_RATE), 0
        for packet in pictures:
            output.mux(packet)
        output.mux(track.encode(samples))
        output.mux(track.encode(None))


def _ahead(frames: Iterator[Frame]) -> Generator[Frame]:
    """The same frames, of which a thread makes the next ones meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        coming = deque(pool.submit(next, frames, None) for _ in range(_FRAMES_AHEAD))
        try:
            while (frame := coming.popleft().result()) is not None:
                coming.append(pool.submit(next, frames, None))
                yield frame
        finally:
            for frame_to_come in coming:
                frame_to_come.cancel()


def _drawn(frames: Iterable[Frame], draw: Callable[[Frame], None]) -> Generator[Frame]:
    for frame in frames:
        draw(frame)
        yield frame


def _encoded(
    frames: Iterable[Frame],
    output: OutputContainer,
    size_wh: tuple[int, int],
    *,
    rate: Fraction,
    time_base: Fraction,
) -> Iterator[av.Packet[Any]]:
    """Add the video stream; the iterator then takes the frames and encodes them."""
    video = output.add_stream("libx264", options=ENCODING)
    encoder = video.codec_context
    encoder.width, encoder.height = size_wh
    if math.prod(size_wh) < THREADED_FROM_PX:
        encoder.thread_count = 1
    encoder.pix_fmt = "yuv420p"
    encoder.framerate = rate
    encoder.time_base = max(time_base, _FINEST_TIME_BASE)
    encoder.sample_aspect_ratio = Fraction(1)
    encoder.colorspace = Colorspace.ITU601  # What OpenCV converts to (BT.601); primaries and curve are the source's.
    encoder.color_primaries = ColorPrimaries.BT709
    encoder.color_trc = ColorTrc.BT709
    encoder.color_range = ColorRange.MPEG

    def packets() -> Iterator[av.Packet[Any]]:
        durations: dict[int, int] = {}
        for frame in frames:
            # FFmpeg's own conversion takes six to ten times as long, 9 ms a frame of 1080p.
            planes: np.ndarray = cv2.cvtColor(frame.image_rgb, cv2.COLOR_RGB2YUV_I420)
            # Without a copy, but for heights that PyAV takes for others: it reckons them in steps of four lines.
            wrap = VideoFrame.from_numpy_buffer if frame.image_rgb.shape[0] % 4 == 0 else VideoFrame.from_ndarray
            picture = wrap(planes, format="yuv420p")
            picture.time_base = encoder.time_base
            picture.pts = round(frame.pts / encoder.time_base)
            durations[picture.pts] = round(frame.duration / encoder.time_base)
            yield from with_durations(video.encode(picture), durations)
        yield from with_durations(video.encode(None), durations)

    def with_durations(encoded: list[av.Packet[Any]], durations: dict[int, int]) -> Iterator[av.Packet[Any]]:
        for packet in encoded:
            if packet.pts is not None:
                packet.duration = durations.pop(packet.pts, packet.duration)
            yield packet

    return packets()


def _sound_packets(source: InputContainer, output: OutputContainer) -> Iterator[av.Packet[Any]]:
    """Add the sound stream, if the source has one; the iterator then copies or converts it.

    Sound that is broken is left out from there on: the pictures matter more.
    """
    if not source.streams.audio:
        return iter(())
    track = source.streams.audio[0]
    decoder = track.codec_context
    if decoder is None:
        logger.warning("%s: no decoder for its sound is installed; it is left out", source.name)
        return iter(())
    rate = decoder.sample_rate
    is_copied = rate >= _COPIED_FROM_RATE.get(decoder.codec.canonical_name, math.inf)
    if is_copied:
        target = output.add_stream_from_template(track)
    else:
        target = output.add_stream("aac", rate=rate if rate in (Codec("aac", "w").audio_rates or ()) else SOUND_RATE)
        target.codec_context.layout = "mono" if decoder.layout.nb_channels == 1 else "stereo"

    def packets() -> Iterator[av.Packet[Any]]:
        try:
            if is_copied:
                yield from _copied_sound(source, track, target)
            else:
                for samples in _steady_sound(source, track, target.codec_context):
                    yield from target.encode(samples)
                yield from target.encode(None)
        except av.error.FFmpegError as error:
            logger.warning("%s: its sound is damaged and ends early (%s)", source.name, error.strerror)

    return packets()


def _copied_sound(source: InputContainer, track: AudioStream, target: AudioStream) -> Iterator[av.Packet[Any]]:
    start_ticks = round(_clock_start(source) / (track.time_base or 1))
    previous: int | None = None
    for packet in source.demux(track):
        # MP4 refuses times that do not rise; damaged files have them.
        if packet.dts is None or packet.pts is None or (previous is not None and packet.dts <= previous):
            continue
        previous = packet.dts
        packet.pts, packet.dts = packet.pts - start_ticks, packet.dts - start_ticks
        packet.stream = target
        yield packet


def _steady_sound(source: InputContainer, track: AudioStream, encoder: AudioCodecContext) -> Iterator[AudioFrame]:
    """Sound for an encoder: its times follow from the number of samples, but for gaps that can be heard."""
    start, rate = _clock_start(source), encoder.sample_rate
    expected: int | None = None
    for samples in _resampled(source, track, encoder):
        ticks = expected or 0
        if samples.pts is not None and samples.time_base is not None:
            ticks = round((samples.pts * samples.time_base - start) * rate)
        if expected is not None and ticks - expected < rate * _HEARD_GAP_SECONDS:
            ticks = expected
        samples.time_base, samples.pts = Fraction(1, rate), ticks
        expected = ticks + samples.samples
        yield samples


def _resampled(source: InputContainer, track: AudioStream, encoder: AudioCodecContext) -> Iterator[AudioFrame]:
    """Decoded sound at the rate of an encoder, and with as many channels; broadcasts change theirs on the way."""
    resampler: AudioResampler | None = None
    kind: tuple[str, str, int] | None = None
    for packet in source.demux(track):
        for samples in packet.decode():
            if resampler is None or kind != (samples.format.name, samples.layout.name, samples.sample_rate):
                if resampler is not None:
                    yield from resampler.resample(None)
                kind = samples.format.name, samples.layout.name, samples.sample_rate
                resampler = AudioResampler(encoder.format, encoder.layout, encoder.sample_rate)
            yield from resampler.resample(samples)
    if resampler is not None:
        yield from resampler.resample(None)


def _written_size(width: int, height: int, max_short_side_px: int | None) -> tuple[int, int]:
    """The size to write: within the limit, both sides even as yuv420p wants them."""
    scale = 1.0
    if max_short_side_px is not None:
        longest = max_short_side_px * 16 / 9
        scale = min(1.0, max_short_side_px / min(width, height), longest / max(width, height))
    return _even(width * scale), _even(height * scale)


def _square(width: int, height: int, aspect: Fraction | None, limits: Limits) -> tuple[int, int]:
    """The size at which a picture of oblong pixels, as on DV tapes, DVDs and in broadcasts, has square ones.

    The side that is too short grows, so that nothing is lost.
    """
    if not aspect or not 1 / _MOST_OBLONG <= aspect <= _MOST_OBLONG or abs(aspect - 1) < _SQUARE_ENOUGH:
        return width, height
    size = (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))
    return size if size[0] * size[1] <= limits.max_pixels else (width, height)


def _even(length_px: float) -> int:
    return max(-(-round(length_px) // 2) * 2, 2)


def _check_claims(path: Path, stream: VideoStream, limits: Limits) -> None:
    """Refuse what a file says of itself, and have FFmpeg refuse larger pictures that it meets later."""
    if stream.codec_context is None:
        raise VideoError(f"{path}: no decoder for its video format is installed.")
    limits.check_picture(path, stream.codec_context.width, stream.codec_context.height)
    limits.check_frames(path, stream.frames, size_bytes=path.stat().st_size)
    stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}


def _check_refused(path: Path, limits: Limits) -> None:
    """Refuse a file whose pictures are so large that FFmpeg did not decode one: only its log says how large."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture(local=False) as said, _open(path, limits):
            pass
    finally:
        av.logging.set_level(level)
    for size in re.findall(r"Picture size (\d+)x(\d+) exceeds", "".join(text for *_, text in said)):
        limits.check_picture(path, *map(int, size))


def _open(path: Path, limits: Limits = DEFAULT_LIMITS) -> InputContainer:
    """Open a video or say in one sentence why that is impossible."""
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise VideoError(f"{path}: the file is empty (0 bytes); copy or record it again.")
        # Bytes that are not valid in a name's encoding must not matter: decoding and naming are not strict.
        # For some formats FFmpeg decodes a picture only to see how large it is.
        options = {
            "protocol_whitelist": "file",
            "format_whitelist": _READ_FORMATS,
            "pattern_type": "none",  # a%d.jpg is one photo, not all of a1.jpg, a2.jpg and so on.
            "max_pixels": str(limits.max_pixels),
        }
        return av.open(os.fspath(path.absolute()), metadata_errors="replace", options=options)
    except FileNotFoundError as error:
        raise VideoError(f"{path}: there is no such file.") from error
    except PermissionError as error:
        raise VideoError(f"{path}: the file cannot be read; ask its owner for permission to read it.") from error
    except IsADirectoryError as error:
        raise VideoError(f"{path}: this is a folder, not a video.") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: {_why_unreadable(path)}") from error


def _why_unreadable(path: Path) -> str:
    """What a look at the first bytes tells about a file that FFmpeg refuses."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        return f"the file cannot be read ({error.strerror}); check the disk, or where the link leads."
    if head[4:8] == b"ftyp":
        return "its index (moov) is missing: the recording or the copy was cut off; copy or record it again."
    # An odd last character may be one that the end of the sample cut.
    if head[:-4].decode("utf-8", errors="ignore").replace("\n", "").replace("\r", "").replace("\t", "").isprintable():
        return "this is a text file, not a video, whatever its name says."
    return "this is not a video in any known format, or its beginning is damaged."


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    """The moving pictures of a file; the cover picture of a song is none."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            has_decoder = stream.codec_context is not None  # Without one a stream has no size either.
            if has_decoder and stream.width * stream.height >= THREADED_FROM_PX:
                stream.thread_type = "AUTO"
            return stream
    kind = "only sound, no pictures" if container.streams.audio else "no pictures"
    raise VideoError(f"{path}: the file holds {kind}; there is nothing to look for faces in.")


def _clock_start(container: InputContainer) -> Fraction:
    """Seconds by which to shift a file's times so that they begin where players begin to count."""
    if container.format.name in _RESTARTED_CLOCK_FORMATS and container.start_time is not None:
        return Fraction(container.start_time, av.time_base)
    return Fraction(0)
