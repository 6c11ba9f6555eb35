"""the state that a task ended in -> whether it is worth another try"""

from typing import Any


def can_pass(task: Any, task_run: Any, state: Any) -> bool:
    """Whether a fault may be gone a little later: a network disk, memory; not a broken file or a missing model."""
    return isinstance(state.data, OSError | MemoryError)
