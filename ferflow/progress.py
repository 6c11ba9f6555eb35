"""a video at work <-> a small file in the results that says how far it is, for whoever looks at them

It lies in the results because those are the one place that the process at work and the page both reach: with or without
Prefect, in this process or on another host, in a folder or a bucket. Prefect's own progress tells of runs, not videos,
and only where there is a server.
"""

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ferflow.storage import Results, is_local, list_files, part_file

_EVERY_SECONDS = 1.0
# A file is exchanged in 0.1 ms. The first time comes after that, so that of short clips nothing is told.
_TO_BUCKET_AFTER_SECONDS, _TO_BUCKET_EVERY_SHARE, _TO_BUCKET_EVERY_SECONDS = 5.0, 0.1, 120.0
# A bucket charges for each: some 50 in an hour, the more seldom the longer it takes.
_STALE_SECONDS = 300.0
# What has not been told anew for so long is of a process that is gone, or halted.


@dataclass(frozen=True, slots=True)
class AtWork:
    """How far the work on a video is."""

    video_id: str
    """Hash of its bytes."""
    source: str
    """The file's path or address."""
    share: float
    """How much of all the work is done, 0 to 1."""
    stage: str
    """What is being done."""
    frames_done: int
    """Frames that the stage under way is done with."""
    frames_expected: int | None
    """Frames that there probably are; None if nothing tells."""
    began_at: float
    """When the work was begun, seconds since 1970."""
    told_at: float
    """When this was told."""

    @property
    def seconds_left(self) -> float | None:
        """How long it will probably take still; None as long as too little is done to tell."""
        if self.share < 0.02:
            return None
        return (self.told_at - self.began_at) * (1 - self.share) / self.share


class Teller:
    """Tells of one video's work in its results; what cannot be told is left out."""

    def __init__(self, results: Results, video_id: str, source: str, *, stages: Sequence[str]) -> None:
        """Nothing is told yet.

        Args:
            results: where to tell it.
            video_id: the video.
            source: its path or address.
            stages: what its frames are gone through for, in this order; each counts the same.
        """
        self._path = _path(results, video_id)
        self._parts = results.parts if is_local(results.root) else None
        self._video_id, self._source, self._stages = video_id, source, stages
        self._began_at = self._told_at = time.time()

    def tell(self, stage: str, done: int, expected: int | None) -> None:
        """So many frames of a stage are done; most calls do nothing, so it may be called often."""
        now = time.time()
        if now - self._told_at < self._pause_seconds(now):
            return
        self._told_at = now
        share = (self._stages.index(stage) + (min(done / expected, 1.0) if expected else 0.0)) / len(self._stages)
        state = AtWork(self._video_id, self._source, share, stage, done, expected, self._began_at, now)
        with contextlib.suppress(OSError), part_file(self._path, folder=self._parts) as part:
            part.write_text(json.dumps(asdict(state)), encoding="utf-8")

    def end(self) -> None:
        """It is at work no more."""
        if self._told_at > self._began_at:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _pause_seconds(self, now: float) -> float:
        if self._parts is not None:
            return _EVERY_SECONDS
        share = (now - self._began_at) * _TO_BUCKET_EVERY_SHARE
        return min(max(share, _TO_BUCKET_AFTER_SECONDS), _TO_BUCKET_EVERY_SECONDS)


def find_progress(results: Results, video_id: str) -> AtWork | None:
    """How far the work on a video is; None if nobody is at work on it."""
    return _read(_path(results, video_id))


def list_progress(results: Results) -> list[AtWork]:
    """Every video that somebody is at work on, the one that was begun first at the beginning.

    Raises:
        OSError: the results' bucket cannot be read.
    """
    found = [_read(file.path) for file in list_files(_folder(results)) if file.path.suffix == ".json"]
    return sorted((state for state in found if state is not None), key=lambda state: state.began_at)


def _folder(results: Results) -> Path:
    return results.root / ".progress"


def _path(results: Results, video_id: str) -> Path:
    return _folder(results) / f"{video_id}.json"


def _read(path: Path) -> AtWork | None:
    try:
        told: dict[str, Any] = json.loads(path.read_bytes())
        state = AtWork(**told)
    except (OSError, ValueError, TypeError):
        return None
    return state if time.time() - state.told_at < _STALE_SECONDS else None
