"""`ferflow watch` -> videos that arrive in a folder or a bucket are analysed, until Ctrl-C"""

import argparse
import contextlib
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from ferflow.storage import printable
from flows.arguments import add_places, add_prefect
from flows.server import is_wanted, leave_logging_to_prefect

_RECONCILE_SECONDS = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes; everything else is said in a file."""
    add_places(parser)
    add_prefect(parser)


def run(args: argparse.Namespace) -> int:
    """Watch until it is stopped; 0 then."""
    from ferflow.watch_settings import load_watch_settings

    settings = load_watch_settings(args.config, sources=args.inbox, results=args.results)
    on_server = is_wanted(args.prefect) or bool(settings.deployment)
    if on_server:
        leave_logging_to_prefect()
    from flows.watch_runs import choose_runs
    from flows.watcher import Watcher

    watcher = Watcher(settings, choose_runs(settings, on_server=on_server), say=_say)
    if on_server:
        threading.Thread(target=_reconcile, name="reconcile", daemon=True).start()
    if settings.deployment:
        # Workers register no deployment; somebody has to tell its form of new models.
        from flows.deployments import keep_forms_current

        threading.Thread(target=keep_forms_current, name="forms", daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: watcher.stop())
    places = ", ".join(map(str, watcher.sources))
    _say(f"Watching {places}; results go to {settings.results}. Stop with Ctrl-C.")
    # In a thread of its own: in the first one Prefect takes the signals, and a run that is stopped looks broken.
    with ThreadPoolExecutor(1, thread_name_prefix="watch") as pool:
        pool.submit(watcher.watch).result()
    _say("Stopped; finished videos are kept, the same command goes on with the others.")
    return 0


def _reconcile() -> None:
    """Say of dead runs that they are dead, now and then; and have the server say so where no watch runs."""
    from flows.automations import ship_automations
    from flows.reconcile import reconcile_runs

    is_shipped = False
    while True:
        if not is_shipped:
            with contextlib.suppress(Exception):  # The server is away; the next time it may be there.
                ship_automations()
                is_shipped = True
        reconcile_runs()
        threading.Event().wait(_RECONCILE_SECONDS)


def _say(sentence: str) -> None:
    sys.stderr.write(f"ferflow: {printable(sentence)}\n")
    sys.stderr.flush()
