"""one video -> its faces file, its annotated copy, its row: the stages as Prefect tasks, paths in, a path out"""

import time
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from ferflow import stages
from ferflow.child_process import Progress
from ferflow.config import Settings
from ferflow.rows import read_faces, read_video
from ferflow.sources import Job
from ferflow.storage import Results
from models.apart import analyze_apart, annotate_apart
from tasks.faults import can_pass, can_stop

# What is done is known from the results folder: Prefect need not keep or look up any result.
_OPTIONS: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": [2, 15, 60],
    "retry_condition_fn": can_pass,
    "persist_result": False,
    "cache_policy": NO_CACHE,
}


@task(task_run_name="analyze: {job.name}", **_OPTIONS)
@can_stop
def analyze_video(job: Job, results: Results, settings: Settings, progress: Progress | None = None) -> Path:
    """Find, follow and score every face of a video; gives the file of the faces table."""
    started = time.monotonic()
    path = analyze_apart(job, results, settings, progress)
    faces, analysis = read_faces(path)
    _log(job, f"{analysis.info.frame_count} frames, {len(faces.track_id)} faces found", started)
    return path


@task(task_run_name="annotate: {job.name}", **_OPTIONS)
@can_stop
def annotate_video(
    job: Job, faces_path: Path, results: Results, settings: Settings, progress: Progress | None = None
) -> Path:
    """Draw boxes and labels on a copy of a video; gives the MP4 file."""
    started = time.monotonic()
    path = annotate_apart(job, faces_path, results, settings, progress)
    _log(job, f"annotated video of {path.stat().st_size / 1e6:.1f} MB drawn", started)
    return path


@task(task_run_name="summarize: {job.name}", **_OPTIONS)
def summarize_video(
    job: Job, faces_path: Path, annotated_path: Path | None, results: Results, settings: Settings
) -> Path:
    """Write a video's segments, its timeline picture and its row; gives the file of the videos table."""
    started = time.monotonic()
    path = stages.summarize_video(faces_path, annotated_path, results, settings=settings)
    summary = read_video(path)
    assert summary is not None
    mostly = f", mostly {summary.dominant_emotion}" if summary.dominant_emotion else ""
    _log(job, f"summarized (tracks: {summary.track_count}{mostly})", started)
    return path


def _log(job: Job, what: str, started: float) -> None:
    get_run_logger().info("%s: %s in %.1f s", job.name, what, time.monotonic() - started)
