"""jobs + the stages of one video -> every video dealt with, several at a time, a broken one recorded"""

import contextlib
import contextvars
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ferflow.child_process import Progress
from ferflow.config import Settings
from ferflow.errors import FerflowError, Overtaken, SourceError, Stopped, StoppedError, VideoError
from ferflow.progress import Teller
from ferflow.records import VideoSummary
from ferflow.rows import read_video
from ferflow.sources import Job
from ferflow.stages import describe_failure, record_failure, remove_picture, remove_results
from ferflow.storage import Results, unreadable_id, utf8

_CPU_SHARE = Path("/sys/fs/cgroup/cpu.max")
# Microseconds of processor time in so many of time, or "max".
_LOOK_SECONDS = 0.5
# Between two looks for a long video to take a share in.


@dataclass(frozen=True, slots=True)
class Stages:
    """The three stages of one video, in their order: plain functions, or Prefect tasks around them."""

    analyze: Callable[[Job, Results, Settings, Progress], Path]
    """Video -> its faces file."""
    annotate: Callable[[Job, Path, Results, Settings, Progress], Path]
    """Video and its faces file -> the annotated video."""
    summarize: Callable[[Job, Path, Path | None, Results, Settings], Path]
    """Faces file and, if it is wanted, the annotated video -> the file with the video's row."""
    help: Callable[[Job, Results, Settings, Progress], bool] | None = None
    """Takes a share in the analysis of a long video that another thread is at; says whether there was one to take."""
    help_other_run: Callable[[Job, Results, Settings, Progress], None] | None = None
    """The same for a video that another run is at."""


class Listener(Protocol):
    """Hears what happens, from any thread."""

    def stage(self, job: Job, name: str, done: int, expected: int | None) -> None:
        """A stage of a video has dealt with `done` of its frames, of `expected` if that is known."""
        ...

    def copied(self, job: Job) -> None:
        """A file holds the same bytes as `job.copy_of`; there is nothing to do about it."""
        ...

    def elsewhere(self, job: Job) -> None:
        """Another run is at work on a video; there is nothing to do about it here."""
        ...

    def finished(self, job: Job, summary: VideoSummary) -> None:
        """A video's result is there, new or from an earlier run (then it is `job.earlier`)."""
        ...


def default_workers() -> int:
    """Videos at a time: one for each processor that this process may use; a video keeps hardly more than one busy."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # Containers are given a share of the time instead.
        quota, period = map(int, _CPU_SHARE.read_text().split())
        count = min(count, max(quota // period, 1))
    return count


def process_each(
    jobs: Iterator[Job],
    results: Results,
    stages: Stages,
    *,
    settings: Settings,
    workers: int,
    listener: Listener,
    stop: threading.Event | None = None,
) -> None:
    """Take video after video through its stages, each in one of a few threads.

    A thread takes its next video when it has finished one, so a video waits for nobody, results appear in the
    order of the videos and a backlog of any length needs no more memory than `workers` videos. A long video is shared:
    by threads that find no further video, and by as many more as there are processors.

    Args:
        jobs: what is to be done, asked for one by one; of those with an earlier result, and of copies, the
            listener is only told.
        results: where to write.
        stages: what to do with each.
        settings: handed to each stage.
        workers: videos at a time, a thread each.
        listener: hears of everything, also of failed videos.
        stop: once it is set, by anybody, the work ends within a frame and nothing unfinished is left.

    Raises:
        StoppedError: it was stopped.
        FerflowError: the models or the settings are at fault; no further video was begun.
        OSError: the results folder or the disk is at fault; no further video was begun.
        ExceptionGroup: errors that nobody foresaw, of single videos; all others are done. These have no row, so that
            the next run tries them again.
    """
    taking = threading.Lock()
    stop = stop or threading.Event()
    ending = threading.Event()
    unforeseen: list[tuple[Job, Exception]] = []
    shared: list[Job] = []
    left = workers
    none_left = threading.Event()

    def is_over() -> bool:
        return stop.is_set() or ending.is_set()

    def take() -> Job | None:
        with taking:
            return None if is_over() else next(jobs, None)

    def heed_stop(*_: object) -> None:
        if is_over():
            raise Stopped("Stopped.")

    @contextlib.contextmanager
    def sharing(job: Job) -> Iterator[None]:
        shared.append(job)
        try:
            yield
        finally:
            shared.remove(job)

    def share() -> None:
        """Take a share in the long videos that other threads are at, until no thread is at a video."""
        with contextlib.suppress(Stopped):
            while stages.help is not None and not none_left.is_set() and not is_over():
                if not any(stages.help(job, results, settings, heed_stop) for job in [*shared]):
                    none_left.wait(_LOOK_SECONDS)

    def leave() -> None:
        nonlocal left
        with taking:
            left -= 1
            if left == 0:
                none_left.set()

    def work() -> None:
        try:
            while (job := take()) is not None:
                try:
                    with contextlib.closing(job):
                        if job.copy_of is not None:
                            listener.copied(job)
                        elif job.is_elsewhere:
                            with sharing(job):
                                if stages.help_other_run is not None:
                                    stages.help_other_run(job, results, settings, heed_stop)
                            listener.elsewhere(job)
                        else:
                            listener.finished(job, job.earlier or process(job))
                except Overtaken:
                    listener.elsewhere(job)
                except (FerflowError, OSError):
                    raise
                except Exception as error:
                    unforeseen.append((job, error))
        except Stopped:
            pass
        except BaseException:
            ending.set()
            raise
        finally:
            leave()
        share()

    def untold(job: Job, error: SourceError) -> VideoSummary:
        """Nothing is written about a video of which nothing is known, so that the next run tries it again."""
        video_id = unreadable_id(job.source)
        return describe_failure(
            job.source, error, video_id=video_id, model_version=job.model_version, settings=settings
        )

    def process(job: Job) -> VideoSummary:
        if job.fault is not None:
            return untold(job, SourceError(f"{job.source}: {job.fault}"))

        def go_on() -> None:
            if is_over():
                raise Stopped(f"{job.name}: stopped before it was finished.")
            if job.is_lost():
                raise Overtaken(f"{job.name}: another run has taken it over.")

        names = ("faces", "drawing") if settings.annotate else ("faces",)
        teller = Teller(results, job.video_id, utf8(str(job.source)), stages=names)

        def progress(stage: str) -> Progress:
            def tell(done: int, expected: int | None) -> None:
                go_on()
                listener.stage(job, stage, done, expected)
                teller.tell(stage, done, expected)

            go_on()
            return tell

        try:
            with sharing(job):
                faces_path = stages.analyze(job, results, settings, progress("faces"))
            annotated_path = None
            if settings.annotate:
                annotated_path = stages.annotate(job, faces_path, results, settings, progress("drawing"))
            go_on()
            path = stages.summarize(job, faces_path, annotated_path, results, settings)
        except VideoError as error:
            if job.is_lost():
                raise Overtaken(f"{job.name}: another run has taken it over.") from error
            if isinstance(error, SourceError):
                _take_back(job, results)
                return untold(job, error)
            path = record_failure(
                job.source,
                error,
                results,
                video_id=job.video_id,
                model_version=job.model_version,
                settings=settings,
                tag=job.tag,
            )
        finally:
            teller.end()
        summary = read_video(path)
        assert summary is not None
        _remove_pictures_of(job, summary, results)
        return summary

    helpers = max(default_workers() - workers, 0)
    with ThreadPoolExecutor(workers + helpers, thread_name_prefix="video") as pool:
        # In a copy of this thread's context each: by it a task knows the flow run that it belongs to.
        threads = [pool.submit(contextvars.copy_context().run, do) for do in [work] * workers + [share] * helpers]
        try:
            for thread in threads:
                thread.result()
        finally:
            ending.set()
    if stop.is_set():
        raise StoppedError("Stopped. Finished videos are kept, and the others are taken up where this ended.")
    if unforeseen:
        names = ", ".join(job.name for job, _ in unforeseen)
        errors = [error for _, error in unforeseen]
        raise ExceptionGroup(f"{names}: an error that nobody foresaw; the other videos are done", errors)


def _take_back(job: Job, results: Results) -> None:
    """Take away what was made of a file that changed or vanished: it may be of two files, or of none that is there."""
    row = read_video(results.rows("videos", job.video_id))
    try:
        is_of_no_file = job.has_changed()
    except OSError:
        is_of_no_file = row is None  # Else what it was before is all that is left.
    if is_of_no_file and not (row is not None and row.settings_hash):  # With them another run has finished it.
        remove_results(results, job.source, video_id=job.video_id)


def _remove_pictures_of(job: Job, summary: VideoSummary, results: Results) -> None:
    """Take away the pictures of the replaced result that have other names: of another file, or an older ferflow's."""
    if job.outdated is None:
        return
    for named in (job.outdated.annotated_path, job.outdated.timeline_path):
        if named is not None and named not in (summary.annotated_path, summary.timeline_path):
            remove_picture(results, named, video_id=job.video_id)
