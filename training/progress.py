"""what a training says and where it is -> lines to show, how much is done, how long the rest will take"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from training.fit import Step


class Pace:
    """Watches one training. What was done before it went on, after a kill, does not count for the speed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` tells the time in seconds."""
        self._clock = clock
        self._first: tuple[float, float] | None = None
        self.done = 0.0
        """Share of the training that is done, 0 to 1."""
        self.seconds_left: float | None = None
        """How long the rest will take at the speed so far; None before the second step."""

    def watch(self, step: Step) -> None:
        """Take in where the training is."""
        now, self.done = self._clock(), (step.epoch - 1 + step.done / step.images) / step.epochs
        if self._first is None:
            self._first = now, self.done
            return
        started, done_before = self._first
        if self.done > done_before:
            self.seconds_left = (1 - self.done) * (now - started) / (self.done - done_before)


def describe_step(step: Step, seconds_left: float | None) -> str:
    """Say in a line where a training is."""
    left = "" if seconds_left is None else f", {describe_seconds(seconds_left)} left"
    return f"epoch {step.epoch} of {step.epochs}: loss {step.loss:.3f}, accuracy {100 * step.accuracy:.1f} %{left}"


@contextlib.contextmanager
def hear_training(say: Callable[[str], None]) -> Iterator[None]:
    """Hand every line that trainings log meanwhile to `say`: what was found in the data, what each epoch left."""
    logger, handler = logging.getLogger("training"), _Saying(say)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class _Saying(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage())


def describe_seconds(seconds: float) -> str:
    """Say a time as a person would: `40 s`, `12 min`, `1 h 5 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
