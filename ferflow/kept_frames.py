"""the frames of a short video as they are decoded -> the same frames for whoever reads it next, without decoding

Drawing on a video follows its analysis, mostly on the same thread of the same process. To decode and convert a clip a
second time would take an eighth of all that it costs.
"""

import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator

from ferflow.records import Frame

_thread = threading.local()


def keeping(frames: Iterable[Frame], *, video_id: str, expected: int | None, most_bytes: float) -> Iterator[Frame]:
    """The same frames, of which this thread keeps all or, if they are too many, none, until `take` or another video's.

    Args:
        frames: all frames of a video, which nobody changes.
        video_id: hash of its bytes.
        expected: how many there probably are; None if nothing tells, and then none is kept.
        most_bytes: what they may take.
    """
    _thread.kept = None
    kept: deque[Frame] = deque()
    size_bytes = 0
    for frame in frames:
        size_bytes += frame.image_rgb.nbytes
        if expected is not None and max(size_bytes, frame.image_rgb.nbytes * expected) <= most_bytes:
            kept.append(frame)
        else:
            kept.clear()
            expected = None
        yield frame
    if kept:
        _thread.kept = video_id, kept


def take(video_id: str, size_wh: tuple[int, int]) -> Generator[Frame] | None:
    """What this thread has kept of a video, to be changed at will; it is kept no longer.

    Args:
        video_id: hash of its bytes.
        size_wh: the width and height in pixels that they must have.

    Returns:
        All frames; None if they are not there.
    """
    kept_id, kept = getattr(_thread, "kept", None) or ("", None)
    _thread.kept = None
    if not kept or kept_id != video_id or kept[0].image_rgb.shape[1::-1] != size_wh:
        return None
    return _given_away(kept)


def _given_away(kept: deque[Frame]) -> Generator[Frame]:
    while kept:
        yield kept.popleft()
