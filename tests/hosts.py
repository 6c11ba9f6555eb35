"""hosts of the tests' own on one machine: network namespaces with processes, names and addresses of their own"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lacking import lacking
from prefect_server import eventually, free_port

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
    if os.geteuid():
        lacking("hosts of one's own need root")
    if missing := [name for name in ("ip", "unshare") if shutil.which(name) is None]:
        lacking(f"no {', '.join(missing)}: `sudo apt-get install iproute2`")
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


@dataclass(slots=True)
class Database:
    """A PostgreSQL server on the loopback, which can be stopped and started again."""

    home: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The connection, as Prefect takes it."""
        return f"postgresql+asyncpg://postgres@127.0.0.1:{self.port}/prefect"

    def run(self, program: str, *arguments: str) -> int:
        """One of PostgreSQL's programs, as the user that owns the data; gives its exit status."""
        command = [str(_programs() / program), *arguments]
        return subprocess.run(command, user="postgres", cwd=self.home, capture_output=True, timeout=120).returncode

    def start(self) -> None:
        options = ["-p", str(self.port), "-k", str(self.home), "-c", "listen_addresses=127.0.0.1"]
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(_programs() / "postgres"), "-D", f"{self.home}/data", *options, "-c", "max_connections=300"],
                user="postgres",
                cwd=self.home,
                stdout=log,
                stderr=log,
            )
        ready = ["-h", "127.0.0.1", "-p", str(self.port), "-q"]
        eventually(lambda: self.run("pg_isready", *ready) == 0, "PostgreSQL")

    def stop(self) -> None:
        """Without waiting for those who are connected."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()


@contextlib.contextmanager
def postgresql() -> Iterator[Database]:
    """A PostgreSQL server with an empty database for Prefect."""
    _programs()
    # Not in pytest's folder, which only root may enter.
    home = Path(tempfile.mkdtemp(prefix="ferflow-postgresql-"))
    shutil.chown(home, "postgres")
    database = Database(home, free_port())
    try:
        assert database.run("initdb", "-D", f"{home}/data", "-A", "trust", "-E", "UTF8", "--no-sync") == 0
        database.start()
        assert database.run("createdb", "-h", "127.0.0.1", "-p", str(database.port), "prefect") == 0
        yield database
    finally:
        database.stop()
        shutil.rmtree(home)


def _programs() -> Path:
    """The folder of the newest PostgreSQL's programs."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not versions:
        lacking("no PostgreSQL: `sudo apt-get install postgresql`")
    return versions[-1]


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
