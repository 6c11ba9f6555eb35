"""labelled faces -> a model directory: training and retraining as Prefect tasks that show how far they are"""

import threading
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE

from ferflow.errors import Stopped
from models.store import ModelStore
from tasks.faults import can_pass, can_stop
from training import fit
from training import retrain as retraining
from training.dataset import Leaks
from training.fit import Step
from training.progress import Pace, hear_training
from training.retrain_settings import RetrainSettings

_SECONDS_BETWEEN_UPDATES = 15.0


# A training that is tried again goes on from its checkpoint.
_OPTIONS: dict[str, Any] = {
    "retries": 2,
    "retry_delay_seconds": [15, 120],
    "retry_condition_fn": can_pass,
    "persist_result": False,
    "cache_policy": NO_CACHE,
}


@task(task_run_name="train: {data.name}", **_OPTIONS)
@can_stop
def train_model(data: Path, config: Path | None, out_dir: Path, leaks: Leaks, stop: threading.Event) -> Path:
    """Train an emotion model or go on with an interrupted training; gives its directory."""
    with hear_training(get_run_logger().info):
        return fit.train(data, config, out_dir, leaks=leaks, on_step=_Progress(stop).step)


@task(task_run_name="retrain: {settings.labelled_name}", **_OPTIONS)
@can_stop
def retrain_model(settings: RetrainSettings, stop: threading.Event) -> Path | None:
    """Fine-tune the model in use and judge what comes out; gives its directory, None if there was too little new."""
    with hear_training(get_run_logger().info):
        done = retraining.retrain(settings, ModelStore(), on_step=_Progress(stop).step)
    return None if done is None else done.directory


class _Progress:
    """Shows on Prefect's page which share of a training is done, and ends it when `stop` is set."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._pace = Pace()
        self._artifact: UUID | None = None
        self._updated = 0.0

    def step(self, step: Step) -> None:
        """Move the share, now and then.

        Raises:
            Stopped: the training is to end.
        """
        if self._stop.is_set():
            raise Stopped("Stopped between two steps.")
        self._pace.watch(step)
        now, percent = time.monotonic(), 100 * self._pace.done
        if self._artifact is None:
            what = "Share of the training that is done"
            made = create_progress_artifact(percent, key="training-progress", description=what)
            assert isinstance(made, UUID)
            self._artifact, self._updated = made, now
        elif now - self._updated > _SECONDS_BETWEEN_UPDATES or self._pace.done == 1:
            update_progress_artifact(self._artifact, percent)
            self._updated = now
