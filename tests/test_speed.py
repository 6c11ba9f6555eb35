"""`make bench QUICK=yes` prints every table from short material, but for the other packages' lines."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_TIMES_THE_BARE_LOOP = 3.0
# On short material the start is most of it, and the machine may be busy; on a quiet one it is 1.4 at most.


@pytest.fixture(scope="module")
def printed(shared) -> str:
    """What the benchmark says."""
    command = [sys.executable, "-m", "benchmarks.speed", shared / "videos", "--quick", "--without-peers"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_every_table_is_there(printed):
    assert re.findall(r"^\((\w)\)", printed, re.MULTILINE) == ["a", "b", "c", "c", "d", "e"]
    for stage in ("decode", "detect", "classify", "draw, encode"):
        assert len(re.findall(rf"^  {stage} +\d+\.\d\d$", printed, re.MULTILINE)) == 2, stage
    assert len(re.findall(r"^\d+ faces a frame +\d", printed, re.MULTILINE)) == 2
    # What a neighbour on the machine takes of one run and not of the other makes the difference negative too.
    assert re.search(r"^share of the wall time: -?\d+\.\d%, of the CPU time: -?\d+\.\d%$", printed, re.MULTILINE)


def test_the_pipeline_costs_little_more_than_the_bare_loop(printed):
    shares = re.findall(r"^bare loop .* ([\d.]+) times fewer CPU seconds", printed, re.MULTILINE)
    times = [1 / float(share) for share in shares]
    assert len(times) == 4
    assert max(times) < MOST_TIMES_THE_BARE_LOOP
