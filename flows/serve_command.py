"""`ferflow serve` -> what can be started from Prefect's page, registered there and run in this folder"""

import argparse
import asyncio
import contextlib
import logging
import threading
from pathlib import Path

from ferflow.storage import absolute, place
from ferflow.watch_settings import WatchSettings, load_watch_settings
from flows.arguments import add_places
from flows.server import find_server, leave_logging_to_prefect

logger = logging.getLogger(__name__)

_RUNS_AT_A_TIME = 2
# A training and an analysis. An analysis takes 0.2 GB, and as much for each processor.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where videos come from and where results go."""
    add_places(parser)


def places(args: argparse.Namespace) -> WatchSettings:
    """Where videos come from and where results go, with whole paths.

    Raises:
        ConfigError: the settings file cannot be read or says what has no meaning.
    """
    given = load_watch_settings(args.config, sources=args.inbox, results=args.results)
    sources = [str(absolute(place(source))) for source in given.sources]
    return given.model_copy(update={"sources": sources, "results": str(absolute(place(given.results)))})


def run(args: argparse.Namespace) -> int:
    """Serve until it is stopped."""
    watching = places(args)
    leave_logging_to_prefect()
    find_server()
    from prefect.runner import Runner

    from flows.automations import ship_automations
    from flows.deployments import keep_forms_current, offers, refresh_forms, registered

    runner = Runner(pause_on_shutdown=False, limit=_RUNS_AT_A_TIME)
    for offer in offers(str(Path.cwd()), watching):
        if (deployment := registered(offer)) is not None:
            runner.add_deployment(deployment)
        else:
            logger.warning(
                "%s: this is deployed to a work pool, whose workers carry it out; it is left as it is. Delete it in "
                "Prefect's page, and begin this command anew, to have it carried out here.",
                offer.name,
            )
    refresh_forms()
    with contextlib.suppress(Exception):  # A server that has none goes without; a watch ships them too.
        ship_automations()
    threading.Thread(target=keep_forms_current, name="forms", daemon=True).start()
    asyncio.run(runner.start())
    return 0
