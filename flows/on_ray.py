"""the stages of one video -> the same, each carried out by whichever machine of a Ray cluster is free"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from ferflow.errors import ConfigError
from ferflow.sources import Job
from flows.each_video import Stages

LOCAL = "local"
"""Instead of an address: a cluster of this machine alone, for as long as the run."""

_LOOK_SECONDS = 1.0


@contextlib.contextmanager
def on_ray(address: str, stages: Stages) -> Iterator[Stages]:
    """Connect to a cluster while the block runs; without an address nothing changes.

    Args:
        address: such as ray://head:10001; LOCAL; or empty.
        stages: the three Prefect tasks. How far each is, is not heard from there; a cancelled run ends after the stages
            that are being carried out.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers.
    """
    if not address:
        yield stages
        return
    try:
        import ray
        from prefect_ray import RayTaskRunner
    except ImportError as error:
        raise ConfigError(
            f"ray = {address}: Ray is not installed here; `uv sync --extra ray` adds it, or leave the setting empty."
        ) from error
    with contextlib.ExitStack() as connection:
        try:
            runner: Any = RayTaskRunner(address=None if address == LOCAL else address)
            cluster = connection.enter_context(runner)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(f"ray = {address}: no Ray cluster answers there ({error}).") from error

        def there(task: Any, *names: str) -> Callable[..., Any]:
            def run(job: Job, *arguments: Any) -> Any:
                parameters = dict(zip(names, (_sendable(job), *arguments), strict=True))
                tell = parameters.pop("progress", None)
                future = cluster.submit(task, parameters=parameters)
                # Not result(timeout=...): a TimeoutError may be what became of the task.
                while not ray.wait([future.wrapped_future], timeout=_LOOK_SECONDS)[0]:
                    if tell is not None:
                        tell(0, None)  # Raises where the run is to end.
                return future.result()

            return run

        yield Stages(
            there(stages.analyze, "job", "results", "settings", "progress"),
            there(stages.annotate, "job", "faces_path", "results", "settings", "progress"),
            there(stages.summarize, "job", "faces_path", "annotated_path", "results", "settings"),
        )


def _sendable(job: Job) -> Job:
    """Without what belongs to this process: its claim and its copy of the file."""
    return dataclasses.replace(job, held=contextlib.ExitStack(), is_lost=_is_kept)


def _is_kept() -> bool:
    return False
