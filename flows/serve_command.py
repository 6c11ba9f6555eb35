"""`ferflow serve` -> what can be started from Prefect's page, registered there and run in this folder"""

import argparse
import asyncio
import importlib.util
import logging
import threading
from pathlib import Path

from ferflow.storage import absolute, place
from ferflow.watch_settings import WatchSettings, load_watch_settings
from flows.server import find_server, leave_logging_to_prefect

_LOOK_SECONDS = 15.0
# How soon a model that was added can be chosen in a form.
_RUNS_AT_A_TIME = 3
# Each takes half of the processors and, with the models, 0.7 GB.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where videos come from and where results go."""
    add_places(parser)


def add_places(parser: argparse.ArgumentParser) -> None:
    """What `places` reads."""
    parser.add_argument("--config", metavar="FILE", type=Path, help="a TOML file like configs/watch.toml")
    parser.add_argument(
        "--inbox",
        metavar="DIR",
        nargs="+",
        help="where new videos arrive: folders, or buckets such as s3://bucket/prefix (inbox)",
    )
    parser.add_argument("--results", metavar="DIR", help="where to write, a folder or a bucket (results)")


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
    from flows.deployments import offers, refresh_forms, registered

    runner = Runner(pause_on_shutdown=False, limit=_RUNS_AT_A_TIME)
    for offer in offers(str(Path.cwd()), watching):
        if importlib.util.find_spec(offer.flow.split(":")[0]):
            runner.add_deployment(registered(offer))
    ship_automations()
    refresh_forms()
    threading.Thread(target=_keep_forms_current, daemon=True).start()
    asyncio.run(runner.start())
    return 0


def _keep_forms_current() -> None:
    from flows.deployments import refresh_forms

    # It would say the same of a damaged model at every look; `ferflow models list` says it too.
    logging.getLogger("models.store").setLevel(logging.ERROR)
    while True:
        threading.Event().wait(_LOOK_SECONDS)
        try:
            refresh_forms()
        except Exception as error:
            logging.getLogger(__name__).warning("The forms are not refreshed: %s", error)
