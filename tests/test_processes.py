"""flows/processes.py"""

import os
import sys

from prefect_server import eventually

from flows import processes
from flows.processes import Processes, Service


def test_a_log_does_not_grow_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_LONGEST_LOG_BYTES", 10_000)
    log = tmp_path / "talker.log"
    talk = (
        "import itertools, time\nfor number in itertools.count():\n    print(number, flush=True)\n    time.sleep(1e-4)"
    )
    with Processes(lambda _: None) as running:
        running.start(Service("the talker", (sys.executable, "-c", talk), os.environ, log))

        def shortened() -> bool:
            running.tend()
            return (tmp_path / "talker.log.old").exists()

        eventually(shortened, "a log that was shortened")
        eventually(lambda: log.stat().st_size > 100, "what is said after that")
    assert 10_000 < (tmp_path / "talker.log.old").stat().st_size < 1_000_000
    numbers = [int(line) for line in log.read_text().splitlines()[1:]]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "it goes on, without a hole"
