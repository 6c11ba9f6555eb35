"""hosts of the tests' own on one machine: network namespaces with processes, names and addresses of their own"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prefect_server import eventually

SERVER_ADDRESS = "10.213.0.1"
"""Of this machine, as the hosts see it."""


@dataclass(slots=True)
class Host:
    """A network namespace that a cable connects with this machine."""

    name: str
    cable: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Run a command on the host, where it sees no other host's processes."""
        inside = [
            "ip",
            "netns",
            "exec",
            self.name,
            "unshare",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--uts",
        ]
        named = ["sh", "-c", f'hostname {self.name}; exec "$@"', "sh", *command]
        with log.open("ab") as file:
            self.processes.append(subprocess.Popen([*inside, *named], env=dict(environment), stdout=file, stderr=file))

    def cut_off(self) -> None:
        """Pull the cable."""
        _ip("link", "set", self.cable, "down")

    def kill(self) -> None:
        """Pull the plug."""
        for process in self.processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
        self.processes.clear()


@contextlib.contextmanager
def network(count: int) -> Iterator[list[Host]]:
    """So many hosts, each connected with this machine and, through it, with the others."""
    lacking = [name for name in ("ip", "unshare") if shutil.which(name) is None]
    if os.geteuid() or lacking:
        why = "hosts of one's own need root" if os.geteuid() else f"{lacking} missing: `apt-get install iproute2`"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    mark = uuid.uuid4().hex[:6]
    bridge = f"ff{mark}"
    hosts: list[Host] = []
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{SERVER_ADDRESS}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for number in range(count):
            host = Host(f"host-{mark}-{number}", f"ff{mark}{number}")
            _ip("netns", "add", host.name)
            hosts.append(host)
            _ip("link", "add", host.cable, "type", "veth", "peer", "name", "eth0", "netns", host.name)
            _ip("link", "set", host.cable, "master", bridge, "up")
            _ip("-n", host.name, "addr", "add", f"10.213.0.{number + 2}/24", "dev", "eth0")
            _ip("-n", host.name, "link", "set", "eth0", "up")
            _ip("-n", host.name, "link", "set", "lo", "up")
        yield hosts
    finally:
        for host in hosts:
            host.kill()
            _ip("netns", "del", host.name)
        _ip("link", "del", bridge)


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """A PostgreSQL server on the loopback, as a connection that Prefect takes."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not versions:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no PostgreSQL: `sudo apt-get install postgresql`")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Not in pytest's folder, which only root may enter.
    home = Path(tempfile.mkdtemp(prefix="ferflow-postgresql-"))
    shutil.chown(home, "postgres")
    bin_folder = versions[-1]

    def run(*command: str) -> None:
        subprocess.run(command, user="postgres", cwd=home, check=True, capture_output=True, timeout=120)

    try:
        run(str(bin_folder / "initdb"), "-D", f"{home}/data", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = ["-p", str(port), "-k", str(home), "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=300"]
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                [str(bin_folder / "postgres"), "-D", f"{home}/data", *options],
                user="postgres",
                cwd=home,
                stdout=log,
                stderr=log,
            )
        try:
            ready = [str(bin_folder / "pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-q"]
            eventually(lambda: subprocess.run(ready, check=False).returncode == 0, "PostgreSQL")
            run(str(bin_folder / "createdb"), "-h", "127.0.0.1", "-p", str(port), "prefect")
            yield f"postgresql+asyncpg://postgres@127.0.0.1:{port}/prefect"
        finally:
            process.send_signal(signal.SIGQUIT)
            process.wait()
    finally:
        shutil.rmtree(home)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
