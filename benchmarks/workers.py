"""clips in a bucket -> seconds with one and with two workers, what each video asks of the store and of Prefect

A PostgreSQL-backed Prefect server, an S3 server, and workers on hosts of their own (network namespaces): needs root and
what .ci/run installs.

    python -m benchmarks.workers VIDEOS [--copies 3] [--workers 1 2 1 2]
"""

import argparse
import base64
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # The servers are those of the tests.

from hosts import SERVER_ADDRESS, network, postgresql  # noqa: E402
from prefect_server import serve_prefect  # noqa: E402
from s3_server import serve_s3  # noqa: E402

from ferflow.storage import list_files, place  # noqa: E402
from flows.up_command import with_settings  # noqa: E402
from models.wheels import cache_folder  # noqa: E402

_PASSWORD = "admin:only-a-benchmark"
_PER_RUN = 4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="+", help="clips of a few seconds")
    parser.add_argument("--copies", type=int, default=3, help="of each clip, told apart by their bytes")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1, 2, 1, 2], help="rounds, with so many workers each"
    )
    args = parser.parse_args()
    clips = [content for path in args.videos for content in _told_apart(path, args.copies)]
    for count in args.workers:
        _measure(clips, count)


def _told_apart(path: Path, copies: int) -> list[bytes]:
    # MP4 players pass over what follows the last box that they know.
    box = (16).to_bytes(4, "big") + b"free"
    return [path.read_bytes() + box + number.to_bytes(8, "big") for number in range(copies)]


def _measure(clips: list[bytes], worker_count: int) -> None:
    with tempfile.TemporaryDirectory() as name, network(worker_count) as hosts, postgresql() as database:
        home = Path(name)
        with serve_s3(home, SERVER_ADDRESS) as s3:
            os.environ |= s3.environment
            bucket: Any = place("s3://bench/all")
            bucket.fs.mkdir("bench")
            for number, content in enumerate(clips):
                (bucket / "inbox" / f"clip_{number:03}.mp4").write_bytes(content)
            settings = with_settings({}) | {
                "PREFECT_SERVER_DATABASE_CONNECTION_URL": database.url,
                "PREFECT_SERVER_API_AUTH_STRING": _PASSWORD,
                "PREFECT_API_AUTH_STRING": _PASSWORD,
            }
            with serve_prefect(home / "server", host=SERVER_ADDRESS, port=0, **settings) as server:
                environment = server.environment | s3.environment
                environment |= {
                    "PREFECT_WORKER_QUERY_SECONDS": "2",
                    "FERFLOW_INBOX": f"{bucket}/inbox",
                    "FERFLOW_RESULTS": f"{bucket}/results",
                    "FERFLOW_FOLDER": name,
                    "FERFLOW_CACHE": str(cache_folder()),
                    "PYTHONPATH": str(ROOT),
                    # A worker is to be one core's work: otherwise the first already takes what the second would.
                    "OMP_NUM_THREADS": "1",
                }

                def prefect(*command: str) -> None:
                    subprocess.run(
                        [sys.executable, "-m", "prefect", *command],
                        env=environment,
                        cwd=ROOT,
                        check=True,
                        capture_output=True,
                    )

                prefect("work-pool", "create", "ferflow", "--type", "process")
                prefect("--no-prompt", "deploy", "--name", "analyze-videos")
                worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "ferflow", "--limit", "1"]
                processors = sorted(os.sched_getaffinity(0))
                names = [str(file.path) for file in list_files(bucket / "inbox")]
                for number, host in enumerate(hosts):
                    there = home / host.name
                    there.mkdir()
                    host.start(
                        ["taskset", "-c", str(processors[number % len(processors)]), *worker],
                        environment | {"PREFECT_HOME": str(there), "TMPDIR": str(there)},
                        home / f"{host.name}.log",
                    )
                time.sleep(15)  # Until the workers ask for runs.
                log = home / "client.rgw.log"
                before = log.stat().st_size
                started = time.monotonic()
                program = (
                    "import json, sys; from prefect.deployments import run_deployment\n"
                    "for sources in json.load(sys.stdin): run_deployment('analyze-videos/analyze-videos', timeout=0,"
                    f" parameters={{'sources': sources, 'results': '{bucket}/results', 'workers': 1}})"
                )
                chunks = [names[first : first + _PER_RUN] for first in range(0, len(names), _PER_RUN)]
                subprocess.run(
                    [sys.executable, "-c", program], input=json.dumps(chunks), text=True, env=environment, check=True
                )
                while len(list(list_files(bucket / "results" / "videos"))) < len(names) + 1:
                    time.sleep(1)
                seconds = time.monotonic() - started
                print(f"{worker_count} workers: {len(names)} clips in {seconds:.0f} s", flush=True)
                if worker_count == 1:
                    _print_requests(log, before, len(names))
                    _print_rows(server, len(names))


def _print_requests(log: Path, start: int, video_count: int) -> None:
    with log.open() as file:
        file.seek(start)
        requests = Counter(
            "LIST" if "list-type" in path else method
            for method, path in re.findall(r'"(\w+) (\S*) HTTP', file.read())
            # The benchmark's own look at what is done.
            if not path.startswith("/bench?list-type=2&prefix=all%2Fresults%2Fvideos%2F&")
        )
    print("store, requests a video:", {name: round(count / video_count, 1) for name, count in requests.most_common()})


def _print_rows(server: Any, video_count: int) -> None:
    token = base64.b64encode(_PASSWORD.encode()).decode()
    for kind in ("flow_runs", "task_runs", "logs", "artifacts"):
        path = f"{kind}/count" if kind != "logs" else "logs/filter"
        request = urllib.request.Request(
            f"{server.url}/{path}",
            json.dumps({"limit": 200} if kind == "logs" else {}).encode(),
            {"Content-Type": "application/json", "Authorization": f"Basic {token}"},
        )
        with urllib.request.urlopen(request) as answer:
            found = json.load(answer)
        print(f"Prefect, {kind} a video: {(len(found) if isinstance(found, list) else found) / video_count:.1f}")


if __name__ == "__main__":
    main()
