"""what happens in a training -> a bar on a terminal and a line an epoch; what came of it in words"""

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from ferflow.storage import is_local, place
from models.emotion_classifier import read_description
from training.dataset import describe_uncounted
from training.fit import Step
from training.progress import Pace, describe_step, hear_training
from training.retrain import Retraining
from training.retrain_settings import RetrainSettings


class TrainingReport:
    """Tells a person how far a training is, on standard error."""

    def __init__(self) -> None:
        self._pace = Pace()
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._progress = Progress(
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TextColumn("{task.description}", markup=False),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._open = contextlib.ExitStack()
        self._bar = self._progress.add_task("reading the images", total=1.0)

    def __enter__(self) -> Self:
        self._open.enter_context(self._progress)
        self._open.enter_context(hear_training(lambda line: self._console.print(line, markup=False)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def step(self, step: Step) -> None:
        """Move the bar."""
        self._pace.watch(step)
        text = describe_step(step, self._pace.seconds_left)
        self._progress.update(self._bar, completed=self._pace.done, description=text)


def describe_trained(directory: Path) -> str:
    """Say what a training left and what can be done with it."""
    description = read_description(directory)
    test = description.metrics["test"]
    return (
        f"{description.version}: {100 * test['accuracy']:.1f} % of {test['image_count']:,} test images right.\n"
        f"The model is in {directory}; take it into use with `ferflow models promote {directory}`."
    )


def describe_retrained(retraining: Retraining) -> str:
    """Say what became of a candidate and why."""
    verdict, version = retraining.verdict, retraining.directory.name
    if verdict.decision == "promoted":
        head = f"{version} is promoted: it is in use now, in place of {verdict.compared_with}."
        tail = "`ferflow models rollback` goes back."
    else:
        head = f"{version} is refused: {verdict.compared_with} stays in use."
        tail = f"It is kept, in {retraining.directory}."
    return "\n".join([head, *verdict.reasons, tail])


def describe_nothing_new(count: int, settings: RetrainSettings) -> str:
    """Say why no retraining was started, and which pictures in the folder do not count; not of those in a bucket."""
    said = (
        f"{settings.labelled}: {count} new image{'s' * (count != 1)}; a retraining starts from "
        f"{settings.min_new_images} on (min_new_images)."
    )
    folder = place(settings.labelled)
    uncounted = describe_uncounted(folder, settle_seconds=settings.settle_seconds) if is_local(folder) else []
    return " ".join([said, *uncounted])
