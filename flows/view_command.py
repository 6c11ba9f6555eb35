"""`ferflow view` -> the page that people look at, until Ctrl-C"""

import argparse
import os
import socket
import sys
from pathlib import Path

from ferflow.errors import ConfigError
from flows.arguments import add_places

PORTS = range(8501, 8601)
"""Where the page may be, if nobody says where."""

_SERVER = Path(__file__).parents[1] / "viewer" / "server.py"
THIS_MACHINE = ("127.0.0.1", "localhost", "::1")
"""Addresses on which nobody else can reach a server."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where videos come from, where results are, and where the page is."""
    add_places(parser)
    parser.add_argument(
        "--port", metavar="N", type=int, help=f"of the page ({PORTS[0]}, or the next that nobody else uses)"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="of the page: this machine alone (%(default)s), or 0.0.0.0 to let others in: it asks for no password, so "
        "put something that does in front of it",
    )


def run(args: argparse.Namespace) -> int:
    """Become the page's process, which ends when somebody stops it.

    Raises:
        ConfigError: the port is taken, or the settings have no meaning.
    """
    from ferflow.watch_settings import TOLD_TO_VIEWER
    from flows.serve_command import places

    watching = places(args)
    port = free_port(args.host, PORTS if args.port is None else [args.port])
    options = {
        "server.address": args.host,
        "server.port": port,
        "browser.serverAddress": reachable(args.host),
        "server.maxUploadSize": watching.max_upload_mb,
    }
    command = [sys.executable, "-m", "streamlit", "run", str(_SERVER)]
    command += [f"--{name}={value}" for name, value in options.items()]
    sys.stdout.write(f"The page         http://{reachable(args.host)}:{port}\nCtrl-C stops it.\n")
    if args.host not in THIS_MACHINE:
        sys.stdout.write("Whoever reaches this address sees the results and can add videos; it asks for no password.\n")
    sys.stdout.flush()
    os.execve(sys.executable, command, os.environ | {TOLD_TO_VIEWER: watching.model_dump_json()})


def free_port(host: str, ports: "range | list[int]") -> int:
    """The first port of an address that nobody uses.

    Raises:
        ConfigError: there is none.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in ports:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise ConfigError(f"--port {ports[0]}: another program uses this port of {host}; name another, or none.")


def reachable(host: str) -> str:
    """How this machine calls itself where a server listens."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
