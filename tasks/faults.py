"""what a task raised -> whether it is worth another try, or was stopped"""

import errno
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect.states import Cancelled

from ferflow.errors import FerflowError, Stopped
from ferflow.storage import utf8

_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

_P = ParamSpec("_P")
_T = TypeVar("_T")


def can_pass(task: Any, task_run: Any, state: Any) -> bool:
    """Whether a fault may be gone a little later: a network disk, memory; not a broken file or a missing model.

    Nor a full disk: a person makes room, and until then each try would analyse the video in vain.
    """
    fault = state.data
    return isinstance(fault, OSError | MemoryError) and getattr(fault, "errno", None) not in _LASTING


def can_stop(work: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let a task end as cancelled where its work was stopped; whoever called it gets the `Stopped`.

    What it raises of itself is text that a server takes, also about a file whose name is none.
    """

    @functools.wraps(work)
    def run(*arguments: _P.args, **options: _P.kwargs) -> _T:
        try:
            return work(*arguments, **options)
        except Stopped as stopped:
            # Raised through Prefect, it would be called a crash.
            return Cancelled(message=str(stopped), data=stopped)  # type: ignore[return-value]
        except FerflowError as error:
            error.args = (utf8(str(error)),)
            raise

    return run
