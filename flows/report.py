"""what happens during a run -> a progress bar on a terminal, plain lines elsewhere"""

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ferflow.records import VideoSummary
from ferflow.sources import Job
from ferflow.storage import Results, is_local, printable


class Report:
    """Listens to a run of so many videos and tells a person about it, on standard error."""

    def __init__(self, video_count: int) -> None:
        self.done: list[VideoSummary] = []
        """Videos analysed in this run."""
        self.failed: list[VideoSummary] = []
        """Videos that could not be analysed, in this run or in an earlier one that still holds."""
        self.unchanged = 0
        """Videos whose results were there already."""
        self.copies = 0
        """Files with the same content as another."""
        self.elsewhere_count = 0
        """Videos that another run is at work on."""
        self._video_count = video_count
        self._lock = threading.Lock()
        self._bars: dict[Job, tuple[TaskID, str, float]] = {}
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._all = self._progress.add_task("videos", total=video_count, speed="", visible=video_count > 1)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def stage(self, job: Job, name: str, done: int, expected: int | None) -> None:
        """Move a video's bar."""
        if self._progress.disable:
            return
        now = time.monotonic()
        with self._lock:
            bar, shown_stage, started = self._bars.get(job, (None, "", now))
            if shown_stage != name:
                if bar is not None:
                    self._progress.remove_task(bar)
                bar, started = (
                    self._progress.add_task(printable(f"{job.source.name}: {name}"), total=expected, speed=""),
                    now,
                )
                self._bars[job] = bar, name, started
        speed = f"{done / (now - started):.0f} frames/s" if now > started else ""
        assert bar is not None
        self._progress.update(bar, completed=done, total=expected, speed=speed)

    def copied(self, job: Job) -> None:
        """Say that a file needs no work."""
        with self._lock:
            self.copies += 1
        assert job.copy_of is not None
        self._tell(f"{job.source.name}: the same content as {job.copy_of.name}")

    def elsewhere(self, job: Job) -> None:
        """Say that another run does it."""
        with self._lock:
            self.elsewhere_count += 1
        self._tell(f"{job.source.name}: another run is at work on it")

    def finished(self, job: Job, summary: VideoSummary) -> None:
        """Say in a line what became of a video."""
        with self._lock:
            if summary.status == "failed":
                self.failed.append(summary)
            elif job.earlier is not None:
                self.unchanged += 1
            else:
                self.done.append(summary)
            if job in self._bars:
                self._progress.remove_task(self._bars.pop(job)[0])
        self._tell(describe(summary) if job.earlier is None or summary.status == "failed" else None)

    def _tell(self, line: str | None) -> None:
        count = len(self.done) + len(self.failed) + self.unchanged + self.copies + self.elsewhere_count
        self._progress.update(self._all, completed=count)
        if line is not None:
            self._console.print(f"[{count}/{self._video_count}] {printable(line)}", markup=False)

    def conclusion(self, results: Results) -> str:
        """A few lines for the end of the run: how many, and where to look."""
        root = results.root
        if is_local(root) and root.is_relative_to(Path.cwd()):
            root = root.relative_to(Path.cwd())
        copies = f", {_count(self.copies, 'copy', 'copies')} of others" if self.copies else ""
        elsewhere = f", {self.elsewhere_count} in another run" if self.elsewhere_count else ""
        lines = [
            f"{len(self.done)} analysed, {self.unchanged} already done, {len(self.failed)} failed{copies}{elsewhere}.",
            f"Tables:           {root / 'faces'}, {root / 'segments'}, {root / 'videos'}",
            f"Annotated videos: {root / 'annotated'}",
            f"Timelines:        {root / 'timelines'}",
        ]
        return "\n".join(lines)


def describe(summary: VideoSummary) -> str:
    """One line on one video."""
    name = summary.source.rsplit("/", 1)[-1]
    if summary.info is None:
        return f"{name}: failed: {summary.error}"
    mostly = f", mostly {summary.dominant_emotion}" if summary.dominant_emotion else ""
    speed = summary.info.frame_count / summary.processing_seconds if summary.processing_seconds else 0.0
    line = (
        f"{name}: {_count(summary.info.frame_count, 'frame')}, {_count(summary.face_count, 'face')},"
        f" {_count(summary.track_count, 'track')}{mostly};"
        f" {summary.processing_seconds:.1f} s ({speed:.0f} frames/s)"
    )
    return line if summary.error is None else f"{line}. Note: {summary.error}"


def _count(number: int, thing: str, things: str | None = None) -> str:
    return f"{number} {thing if number == 1 else things or thing + 's'}"
