"""`ferflow up` -> Prefect's page, what can be started from it, the watcher and the viewer, until Ctrl-C"""

import argparse
import contextlib
import fcntl
import os
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

from ferflow.errors import ConfigError
from ferflow.storage import is_local, place
from ferflow.watch_settings import WatchSettings
from flows.arguments import add_places
from flows.processes import Processes, Service
from flows.serve_command import places
from flows.server import find_server
from flows.view_command import PORTS, THIS_MACHINE, free_port, reachable

STATE_FOLDER = ".ferflow"
"""In the working folder: Prefect's database, logs, and the lock by which `ferflow up` runs there only once."""

_SETTINGS = Path(__file__).parents[1] / "configs" / "prefect.env"
_PORTS = range(4200, 4300)
_LOOK_SECONDS = 0.3
_PATIENCE_SECONDS = 180
# The server answers after some seconds; it makes its database first where there is none, and machines may be busy.
_PASSWORD = "PREFECT_SERVER_API_AUTH_STRING"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where videos come from, where results go, and where the page is."""
    add_places(parser)
    parser.add_argument(
        "--port", metavar="N", type=int, help=f"of the page ({_PORTS[0]}, or the next that nobody else uses)"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="of the page: this machine alone (%(default)s), or 0.0.0.0 to let others in, which takes a password in "
        f"{_PASSWORD}=name:password",
    )


def run(args: argparse.Namespace) -> int:
    """Start everything and keep it running; 0 when somebody stopped it."""
    watching = places(args)
    with _once() as state, _stopping() as stop, Processes(_say) as processes:
        for folder in filter(is_local, map(place, [*watching.sources, watching.results])):
            folder.mkdir(parents=True, exist_ok=True)
        if (server := os.environ.get("PREFECT_API_URL")) is not None:
            find_server()
            page = server.rstrip("/").removesuffix("/api")
        else:
            page = _start_server(args.host, args.port, state, processes, stop)
            server = f"{page}/api"
        environment = with_settings(os.environ) | {"PREFECT_API_URL": server}
        options = [*(["--config", str(args.config)] if args.config else []), "--inbox", *watching.sources]
        options += ["--results", watching.results]

        def start(name: str, *command: str) -> None:
            """Run one of ferflow's own commands all the time."""
            log = state / f"{command[0]}.log"
            processes.start(Service(name, (sys.executable, "-m", "flows.cli", *command, *options), environment, log))

        if not stop.is_set():
            start("the serving process", "serve")
            start("the watcher", "watch")
            # Always of this machine alone: it asks for no password.
            port = free_port(THIS_MACHINE[0], PORTS)
            start("the viewer", "view", "--port", str(port))
            viewer = f"http://{THIS_MACHINE[0]}:{port}"
            # One that takes longer is there later; why, its log tells.
            _wait_for(f"{viewer}/_stcore/health", processes, stop)
            _say(_welcome(viewer, page, watching, state))
        while not stop.is_set():
            time.sleep(_LOOK_SECONDS)
            processes.tend()
        _say("Stopping ...")
    return 0


def with_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment with what configs/prefect.env says, where it does not say otherwise itself."""
    lines = _SETTINGS.read_text(encoding="utf-8").splitlines()
    settings = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    if _PASSWORD in environment:
        settings["PREFECT_API_AUTH_STRING"] = environment[_PASSWORD]
    return settings | dict(environment)


def _start_server(host: str, port: int | None, state: Path, processes: Processes, stop: threading.Event) -> str:
    """Start Prefect's server and wait until it answers.

    Returns:
        The address of its page, as this machine reaches it.

    Raises:
        ConfigError: it would be open to everybody, the port is taken, or it does not answer.
    """
    if host not in THIS_MACHINE and not os.environ.get(_PASSWORD):
        raise ConfigError(
            f"--host {host}: others could start runs on this machine. Set a password first, for example "
            f"`export {_PASSWORD}=admin:a-long-password`, or leave --host out."
        )
    found = free_port(host, _PORTS if port is None else [port])
    page = f"http://{reachable(host)}:{found}"
    database = f"sqlite+aiosqlite:///{state / 'prefect.db'}"
    command = (sys.executable, "-m", "flows.prefect_server", "--host", host, "--port", str(found))
    environment = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database} | with_settings(os.environ)
    log = state / "server.log"
    processes.start(Service("Prefect's server", command, environment, log))
    _say("Starting; the first time this takes half a minute ...")
    if not _wait_for(f"{page}/api/health", processes, stop):
        raise ConfigError(f"{page}: Prefect's server does not answer; {log} tells why.")
    return page


@contextlib.contextmanager
def _once() -> Iterator[Path]:
    """Hold the lock of this folder's state, and give the folder of the state."""
    folder = Path.cwd() / STATE_FOLDER
    folder.mkdir(exist_ok=True)
    with (folder / "up.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{Path.cwd()}: `ferflow up` runs in this folder already. Stop it there with Ctrl-C first, or start "
                "this one in another folder."
            ) from error
        yield folder


@contextlib.contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that Ctrl-C, a request to end and a closed terminal set, each for the first time."""
    stop = threading.Event()

    def set_it(number: int, frame: FrameType | None) -> None:
        stop.set()

    # A program started with nohup is meant to outlive its terminal.
    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN
    ]
    before = {number: signal.signal(number, set_it) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_for(url: str, processes: Processes, stop: threading.Event) -> bool:
    """Wait until an address answers, or somebody stops it all; False if it does not for long."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not stop.is_set() and not _answers(url):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_SECONDS)
        processes.tend()
    return True


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return bool(answer.status == 200)
    return False


def _welcome(viewer: str, page: str, watching: WatchSettings, state: Path) -> str:
    return (
        f"Your videos     {viewer}   drop one here, look at what was found\n"
        f"Prefect's page  {page}   start and follow runs here\n"
        f"New videos      copy them into {' or '.join(watching.sources)}\n"
        f"Results         {watching.results}\n"
        f"Logs            {state}\n"
        "Ctrl-C stops everything."
    )


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
