"""videos -> results, in this process and without a server: the same stages as under Prefect, models kept warm."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from ferflow.config import Settings
from ferflow.errors import VideoError
from ferflow.records import VideoSummary
from ferflow.rows import read_video
from ferflow.sources import Job, plan_jobs
from ferflow.stages import analyze_video, annotate_video, record_failure, summarize_video
from ferflow.storage import Results
from models.warm import warm_classifier, warm_detector


class Listener(Protocol):
    """Hears what happens, from any thread."""

    def stage(self, job: Job, name: str, done: int, expected: int | None) -> None:
        """A stage of a video has dealt with `done` of its frames, of `expected` if that is known."""
        ...

    def finished(self, job: Job, summary: VideoSummary) -> None:
        """A video's result is there, new or from an earlier run (then it is `job.earlier`)."""
        ...


class _Stopped(Exception):
    """The other threads were told to stop."""


def analyze_in_process(
    videos: Sequence[Path], results: Results, *, settings: Settings, force: bool, workers: int, listener: Listener
) -> None:
    """Analyse videos, several at a time; a broken one is recorded and the others go on.

    Args:
        videos: the files.
        results: where to write.
        settings: what to do.
        force: do again what has been done.
        workers: videos at a time, a thread each.
        listener: hears of everything, also of failed videos.

    Raises:
        ModelError: a model is missing or does not fit; nothing was analysed.
    """
    model_version = warm_classifier(settings.model).version
    jobs = plan_jobs(videos, results, model_version=model_version, settings=settings, force=force)
    taking = threading.Lock()
    stopped = threading.Event()

    def work() -> None:
        try:
            for job in _taken(jobs, taking, stopped):
                summary = job.earlier or _process(job, results, settings, listener, stopped)
                listener.finished(job, summary)
        except _Stopped:
            pass
        except BaseException:
            stopped.set()
            raise

    with ThreadPoolExecutor(workers, thread_name_prefix="video") as pool:
        threads = [pool.submit(work) for _ in range(workers)]
        try:
            for thread in threads:
                thread.result()
        finally:
            stopped.set()


def _taken(jobs: Iterator[Job], taking: threading.Lock, stopped: threading.Event) -> Iterator[Job]:
    while not stopped.is_set():
        with taking:
            job = next(jobs, None)
        if job is None:
            return
        yield job


def _process(
    job: Job, results: Results, settings: Settings, listener: Listener, stopped: threading.Event
) -> VideoSummary:
    def progress(stage: str, done: int, expected: int | None) -> None:
        if stopped.is_set():
            raise _Stopped
        listener.stage(job, stage, done, expected)

    classifier = warm_classifier(settings.model)
    try:
        faces_path = analyze_video(
            job.source,
            results,
            video_id=job.video_id,
            detector=warm_detector(),
            classifier=classifier,
            settings=settings,
            progress=lambda done, expected: progress("faces", done, expected),
        )
        annotated_path = None
        if settings.annotate:
            annotated_path = annotate_video(
                job.source,
                faces_path,
                results,
                settings=settings,
                progress=lambda done, expected: progress("drawing", done, expected),
            )
        path = summarize_video(faces_path, annotated_path, results, settings=settings)
    except VideoError as error:
        path = record_failure(
            job.source,
            error,
            results,
            video_id=job.video_id,
            model_version=classifier.version,
            settings=settings,
        )
    summary = read_video(path)
    assert summary is not None
    return summary
