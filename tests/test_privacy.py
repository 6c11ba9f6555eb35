"""Nothing leaves the machine while a video is analysed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from lacking import lacking

_ADDRESS = re.compile(r'sa_family=AF_INET6?, .*?(?:inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)")')


def outside(trace: str) -> list[str]:
    """Lines of a trace in which something is sent to, or asked of, an address that is not this machine's."""
    found = []
    for line in trace.splitlines():
        address = _ADDRESS.search(line)
        if address and (address[1] or address[2]) not in {"127.0.0.1", "::1", "0.0.0.0", "::"}:
            found.append(line)
    return found


def traced(command: list[str], log: Path) -> str:
    """Run a command and give every call of it, and of what it started, that names a network address."""
    strace = shutil.which("strace")
    if strace is None:
        lacking("no strace: `sudo apt-get install strace`")
    calls = "trace=connect,sendto,sendmsg,sendmmsg"
    subprocess.run([strace, "-f", "-qq", "-e", calls, "-o", log, *command], check=True, capture_output=True)
    return log.read_text()


def test_analysing_a_video_reaches_no_other_machine(make_video, astronaut, tmp_path):
    clip = make_video(tmp_path / "clip.mp4", frame_count=10, image=astronaut)
    # Newer releases of MediaPipe report when a detector is closed, and it takes them a moment.
    program = (
        "import sys, time; from flows.cli import main; from models.warm import close_models; "
        f"status = main(['analyze', {str(clip)!r}, '--results', {str(tmp_path / 'results')!r}, '--no-prefect']); "
        "close_models(); time.sleep(3); sys.exit(status)"
    )
    assert outside(traced([sys.executable, "-c", program], tmp_path / "trace.txt")) == []


def test_a_call_to_another_machine_would_be_seen(tmp_path):
    program = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.1', 53))"
    assert len(outside(traced([sys.executable, "-c", program], tmp_path / "trace.txt"))) == 1


def test_prefect_and_its_server_report_nothing():
    program = (
        "import flows, prefect.settings as s; print(s.get_current_settings().server.analytics_enabled);"
        "import os; print(os.environ['DO_NOT_TRACK'])"
    )
    environment = {k: v for k, v in os.environ.items() if k not in {"DO_NOT_TRACK", "PREFECT_SERVER_ANALYTICS_ENABLED"}}
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    ).stdout
    assert printed.split() == ["False", "1"]
