"""a real S3 server for the tests: Ceph's object gateway on the loopback, its one disk in memory"""

import contextlib
import http.client
import itertools
import json
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from lacking import lacking
from prefect_server import eventually

PROGRAMS = ("ceph-mon", "ceph-osd", "ceph-mgr", "radosgw", "radosgw-admin", "monmaptool", "ceph")


@dataclass(frozen=True, slots=True)
class S3Server:
    """A gateway that answers, and who may use it."""

    url: str
    """Its address."""
    key: str
    """Access key."""
    secret: str
    """Secret key."""
    guest: tuple[str, str]
    """Access key and secret key of somebody who may use what a bucket's policy lets `guest` use."""

    @property
    def environment(self) -> dict[str, str]:
        """What a person would set to use it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory) -> Iterator[S3Server]:
    """Start the gateway once for all tests."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        packages = "radosgw ceph-mon ceph-osd ceph-mgr ceph-common"
        lacking(f"no {', '.join(missing)} for an S3 server: `sudo apt-get install {packages}`")
    with serve_s3(tmp_path_factory.mktemp("ceph"), "127.0.0.1") as server:
        yield server


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch) -> Path:
    """An empty bucket of the test's own, whose key stands where the store's own tools look for it."""
    from ferflow.storage import place

    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    forget_stores()
    root: Any = place(f"s3://test-{uuid.uuid4().hex}")
    root.fs.mkdir(root.path)
    return root


@contextlib.contextmanager
def serve_s3(home: Path, host: str) -> Iterator[S3Server]:
    """Start a gateway that listens on an address of this machine; stop it and all behind it at the end."""
    monitor, gateway, cluster = _free_port(host), _free_port(host), str(uuid.uuid4())
    config = home / "ceph.conf"
    config.write_text(f"""
[global]
fsid = {cluster}
mon host = v2:{host}:{monitor}
public addr = {host}
cluster addr = {host}
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc secure
ms bind ipv6 = false
run dir = {home}
admin socket = {home}/$name.asok
log file = {home}/$name.log
pid file =
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 2147483648
mon allow pool size one = true
mon osd full ratio = 1.0
mon osd nearfull ratio = 1.0
mon data = {home}/mon
mon data avail crit = 1
mon data avail warn = 1
osd data = {home}/osd
osd journal = {home}/osd/journal
mgr data = {home}/mgr
mgr initial modules =
[client.rgw]
rgw data = {home}/rgw
rgw frontends = beast endpoint={host}:{gateway}
rgw thread pool size = 32
rgw run sync thread = false
rgw enable usage log = false
""")
    for folder in ("osd", "mgr", "rgw"):
        (home / folder).mkdir()
    started: list[subprocess.Popen[bytes]] = []

    def run(*command: str) -> str:
        done = subprocess.run([command[0], "-c", str(config), *command[1:]], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
        return done.stdout

    def start(*command: str) -> None:
        with (home / f"{command[0]}.out").open("wb") as log:
            started.append(
                subprocess.Popen([command[0], "-c", str(config), "-f", *command[1:]], stdout=log, stderr=log)
            )

    try:
        monmap = str(home / "monmap")
        run("monmaptool", "--create", "--fsid", cluster, "--addv", "a", f"[v2:{host}:{monitor}]", monmap)
        run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        start("ceph-mon", "-i", "a")
        osd = str(uuid.uuid4())
        run("ceph", "--connect-timeout", "30", "osd", "new", osd)
        run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        start("ceph-mgr", "-i", "x")
        start("ceph-osd", "-i", "0")
        (key, secret), guest = (("testkey", uuid.uuid4().hex), ("guestkey", uuid.uuid4().hex))
        for name, keys in {"test": (key, secret), "guest": guest}.items():
            user = ["user", "create", f"--uid={name}", f"--display-name={name}"]
            run("radosgw-admin", *user, f"--access-key={keys[0]}", f"--secret={keys[1]}")
        start("radosgw", "-n", "client.rgw")
        url = f"http://{host}:{gateway}"

        def is_up() -> bool:
            assert all(process.poll() is None for process in started), _tails(home)
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
                return answer.status == 200
            return False

        eventually(is_up, "the S3 server")
        forget_stores()
        yield S3Server(url, key, secret, guest)
    finally:
        forget_stores()
        for process in reversed(started):
            process.send_signal(signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def in_trouble(
    server: S3Server, faults: Iterable[str], *, before: Callable[[str], object] = str
) -> Iterator[tuple[str, list[str]]]:
    """The gateway behind an address at which not all goes well.

    Args:
        server: the gateway.
        faults: what becomes of the requests, in turn and over again: `SlowDown` and `InternalError` are answered, at
            `reset` the connection is cut, at `cut` after half of what is asked for, `silence` lasts for three seconds,
            and an empty one is dealt with.
        before: told of each request, as `GET /bucket/key`, before anything becomes of it; may take its time.

    Yields:
        The address, and the faults so far.
    """
    turns, taking = itertools.cycle(faults), threading.Lock()
    happened: list[str] = []
    gateway = server.url.removeprefix("http://")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def deal(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            before(f"{self.command} {self.path}")
            with taking:
                fault = next(turns)
                happened.extend([fault] if fault else [])
            if fault == "reset":
                self.cut()
            elif fault == "silence":
                time.sleep(3)
                self.close_connection = True
            elif fault and fault != "cut":
                answer = f"<Error><Code>{fault}</Code><Message>later</Message></Error>".encode()
                self.give(503 if fault == "SlowDown" else 500, {"Content-Type": "application/xml"}, answer)
            else:
                headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
                connection = http.client.HTTPConnection(gateway, timeout=60)
                with contextlib.closing(connection):
                    connection.request(self.command, self.path, body or None, headers)
                    answered = connection.getresponse()
                    self.give(answered.status, dict(answered.getheaders()), answered.read(), is_cut=fault == "cut")

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = deal

        def cut(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

        def give(self, status: int, headers: dict[str, str], body: bytes, *, is_cut: bool = False) -> None:
            self.send_response(status)
            if self.command != "HEAD" and status not in (204, 304):
                headers = {**headers, "Content-Length": str(len(body))}
            for name, value in headers.items():
                if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # Who asked may not want to hear all of it.
                self.wfile.write(body[: len(body) // 2] if is_cut else body)
            if is_cut:
                time.sleep(0.2)  # What was written arrives before the cut.
                self.cut()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}", happened
        finally:
            listening.shutdown()
            thread.join()


def forget_stores() -> None:
    """A driver keeps the address that the environment named when it was made, and so does a child process."""
    from fsspec import get_filesystem_class

    from ferflow.child_process import end_children

    get_filesystem_class("s3").clear_instance_cache()
    end_children()


def _free_port(host: str) -> int:
    with socket.socket() as listener:
        listener.bind((host, 0))
        port: int = listener.getsockname()[1]
        return port


def _tails(home: Path) -> str:
    return json.dumps({path.name: path.read_text(errors="replace")[-1500:] for path in home.glob("*.out")}, indent=1)
