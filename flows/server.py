"""the environment -> a Prefect server that answers, or a sentence on what is wrong"""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ferflow.errors import ConfigError, FerflowError, StoppedError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State


def is_wanted(choice: bool | None) -> bool:
    """Whether a command runs as a flow: as `--prefect` or `--no-prefect` says, else if a server is named."""
    return bool(os.environ.get("PREFECT_API_URL")) if choice is None else choice


def leave_logging_to_prefect() -> None:
    """Undo this process's own set-up, before Prefect is imported: it would leave the run's name out of its lines."""
    logging.getLogger().handlers.clear()


def result_on_server(flow: Any, *arguments: Any) -> Any:
    """Run a flow in this process, on the Prefect server that is configured, and give what it gave.

    Raises:
        ConfigError: no server is configured, none answers, it wants a password, or it went away and stayed away.
        StoppedError: somebody cancelled it, just as it began or ended.
        Exception: what the flow failed with.
    """
    find_server()
    with server_may_leave():
        return result_of(flow(*arguments, return_state=True))


def result_of(ended: "State[Any]") -> Any:
    """What a flow run of this process gave.

    Raises:
        StoppedError: somebody cancelled it, just as it began or ended.
        Exception: what it failed with.
    """
    from prefect import get_client
    from prefect.states import Cancelled

    if ended.is_cancelling():
        # Nothing of the flow was there to heed it, and Prefect leaves it at that.
        message = "Cancelled. What was finished is kept."
        assert ended.state_details.flow_run_id is not None
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(ended.state_details.flow_run_id, Cancelled(message=message))
        raise StoppedError(message)
    result = ended.result(raise_on_failure=False)
    if isinstance(result, BaseException):
        raise result
    return result


def failed(error: FerflowError) -> "State[Any]":
    """The state of a run that failed for a reason that was foreseen, whose sentence is all that a person needs."""
    from prefect.states import Failed

    leave_lines_of_code_out()
    return Failed(message=str(error), data=error)


def cancelled(left: str) -> "State[Any]":
    """The state of a run that somebody cancelled; `left` says what becomes of what it was at."""
    from prefect.states import Cancelled

    message = f"Cancelled. {left}"
    return Cancelled(message=message, data=StoppedError(message))


def leave_lines_of_code_out() -> None:
    """Let this process's runs be logged with the sentence of their state alone.

    In a serving process or a worker, Prefect raises what a failed run's state holds, and logs that too.
    """
    logging.getLogger("prefect.flow_runs").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    # The second is what it raises of a state that holds what became of each video.
    return not (isinstance(error, FerflowError) or "Unexpected result for failed state" in str(error))


@contextlib.contextmanager
def server_may_leave() -> Iterator[None]:
    """Say it in a sentence if the server goes away during the run in this block, and does not come back.

    Raises:
        ConfigError: it did.
    """
    import httpx
    from prefect.events.worker import EventsWorker
    from prefect.settings import get_current_settings

    def is_away(error: BaseException | None) -> bool:
        is_down = isinstance(error, httpx.HTTPStatusError) and error.response.is_server_error
        return is_down or isinstance(error, httpx.TransportError)

    def without_lines_of_code(record: logging.LogRecord) -> bool:
        if record.exc_info and is_away(record.exc_info[1]):
            record.exc_info = None
        return True

    logger = logging.getLogger("prefect.flow_runs")
    logger.addFilter(without_lines_of_code)
    try:
        yield
    except httpx.HTTPError as error:
        if not is_away(error):
            raise
        # Six events a video were not told. Before this process ends, Prefect would try each for 7 s.
        untold = EventsWorker.instance()._queue
        with untold.mutex:
            untold.queue.clear()
        raise ConfigError(
            f"{get_current_settings().api.url}: this Prefect server has gone away, or has lost its database. Finished "
            "videos are kept; once it is back, the same command goes on with the others (with --no-prefect at once)."
        ) from error
    finally:
        logger.removeFilter(without_lines_of_code)


def find_server() -> None:
    """Make sure that a server answers, before a flow is begun.

    Raises:
        ConfigError: none is configured, none answers, or it wants a password.
    """
    import httpx
    from prefect import get_client
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if url is None:
        # Prefect would start a server for this run alone, which takes longer than most videos and shows nothing.
        raise ConfigError(
            "No Prefect server is configured; start one with `ferflow up` in another window "
            "and set PREFECT_API_URL=http://127.0.0.1:4200/api."
        )
    try:
        with get_client(sync_client=True) as client:
            client.api_version()
    except httpx.HTTPStatusError as error:
        if error.response.status_code == httpx.codes.UNAUTHORIZED:
            raise ConfigError(f"{url}: this Prefect server wants a password; set PREFECT_API_AUTH_STRING.") from error
        raise ConfigError(
            f"{url}: this is no Prefect server ({error.response.reason_phrase}); check PREFECT_API_URL."
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ConfigError(
            f"{url}: no Prefect server answers there; start one with `ferflow up` in another window, or correct "
            "or unset PREFECT_API_URL."
        ) from error
