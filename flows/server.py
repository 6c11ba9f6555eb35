"""the environment -> a Prefect server that answers, or a sentence on what is wrong"""

import logging
import os
from typing import Any

from ferflow.errors import ConfigError


def is_wanted(choice: bool | None) -> bool:
    """Whether a command runs as a flow: as `--prefect` or `--no-prefect` says, else if a server is named."""
    return bool(os.environ.get("PREFECT_API_URL")) if choice is None else choice


def leave_logging_to_prefect() -> None:
    """Undo this process's own set-up, before Prefect is imported: it would leave the run's name out of its lines."""
    logging.getLogger().handlers.clear()


def result_on_server(flow: Any, *arguments: Any) -> Any:
    """Run a flow in this process, on the Prefect server that is configured, and give what it gave.

    Raises:
        ConfigError: no server is configured, none answers, or it wants a password.
        Exception: what the flow failed with.
    """
    find_server()
    ended = flow(*arguments, return_state=True).result(raise_on_failure=False)
    if isinstance(ended, BaseException):
        raise ended
    return ended


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
