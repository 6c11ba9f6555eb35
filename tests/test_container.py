"""What the container files say, as their own tools read it; building and running them needs an engine."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from lacking import lacking

from ferflow.watch_settings import load_watch_settings
from models.detector_weights import detector_weights_paths

ROOT = Path(__file__).parents[1]
PASSWORDS = {"FERFLOW_PASSWORD": "a", "POSTGRES_PASSWORD": "b"}


def compose(**environment: str) -> subprocess.CompletedProcess[str]:
    found = shutil.which("docker-compose")
    if found is None:
        lacking("no docker-compose: `sudo apt-get install docker-compose`")
    keep = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    return subprocess.run([found, "-f", "compose.yaml", "config"], cwd=ROOT, env=keep | environment, **PIPES)


PIPES = {"capture_output": True, "text": True, "check": False}


def test_without_passwords_nothing_starts():
    for name in PASSWORDS:
        refused = compose(**{other: value for other, value in PASSWORDS.items() if other != name})
        assert refused.returncode != 0
        assert "put a password into .env" in refused.stderr


def test_only_this_machine_reaches_the_page_and_nobody_runs_as_root():
    done = compose(**PASSWORDS)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:4200:4200/tcp", "127.0.0.1:8501:8501/tcp"]
    ours = {name: service for name, service in services.items() if name != "database"}
    assert ours.keys() == {"server", "deployments", "watch", "worker", "viewer"}
    assert {service["user"] for service in ours.values()} == {"10001"}
    assert all(service["read_only"] for service in ours.values())
    assert all(service["environment"]["PREFECT_API_AUTH_STRING"] == "admin:a" for service in ours.values())
    assert services["server"]["environment"]["PREFECT_SERVER_API_AUTH_STRING"] == "admin:a"


def test_no_container_writes_into_the_code():
    done = compose(**PASSWORDS)
    mounted = {
        Path(volume.split(":")[0]).resolve()
        for service in yaml.safe_load(done.stdout)["services"].values()
        for volume in service.get("volumes", [])
        if volume.startswith(("/", "."))
    }
    assert mounted == {ROOT / "inbox", ROOT / "results", ROOT / "data"}
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"/inbox/", "/results/", "/data/", "/.env"} <= set(ignored)


def test_what_prefect_writes_beside_its_code_is_written_where_it_may():
    """In an image whose code nobody may change, a server without a place for its page's files serves no page."""
    words = (ROOT / "Dockerfile").read_text().split()
    written = dict(word.split("=", 1) for word in words if word.startswith(("PREFECT_", "MPLCONFIGDIR")))
    assert written.keys() >= {"PREFECT_HOME", "PREFECT_UI_STATIC_DIRECTORY", "MPLCONFIGDIR"}
    assert all(place.startswith("/tmp") for place in written.values())


def image_environment() -> dict[str, str]:
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    return dict(word.split("=", 1) for line in lines if line.startswith("ENV ") for word in line.split()[1:])


def test_what_is_brought_from_a_bucket_is_kept_where_every_user_may_write():
    """Seen to fail: it was to lie beside the detector's weights, in a folder that root had made."""
    kept_in = image_environment()["FERFLOW_CACHE"]
    assert Path(kept_in).is_relative_to("/tmp")
    done = compose(**PASSWORDS)
    services = yaml.safe_load(done.stdout)["services"]
    for name in ("watch", "worker", "viewer"):
        service = services[name]
        writable = [*service["tmpfs"], *(volume.split(":")[1] for volume in service["volumes"])]
        place = Path(service["environment"].get("FERFLOW_CACHE", kept_in))
        assert any(place.is_relative_to(folder) for folder in writable), name


def test_the_weights_in_the_image_are_found_from_an_empty_cache(tmp_path):
    """What the Dockerfile does and sets, in a folder: nothing is fetched when a container starts."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    (built_in,) = re.findall(r"FERFLOW_CACHE=(\S+) python -m models.detector_weights", dockerfile)

    def weights(**places: str) -> list[Path]:
        environment = {name: f"{tmp_path}{place}" for name, place in places.items()}
        command = [sys.executable, "-m", "models.detector_weights"]
        done = subprocess.run(command, cwd=ROOT, env={"PATH": "/nowhere"} | environment, **PIPES)
        assert done.returncode == 0, done.stderr
        return [Path(line) for line in done.stdout.splitlines()]

    # This machine's own are what is fetched when the image is built.
    shutil.copytree(detector_weights_paths()[0].parent, f"{tmp_path}{built_in}/detector")
    assert weights(FERFLOW_CACHE=built_in)[0].parent == tmp_path / built_in[1:] / "detector"
    names = ("FERFLOW_CACHE", "FERFLOW_DETECTOR_WEIGHTS")
    found = weights(**{name: image_environment()[name] for name in names})
    assert [path.read_bytes() for path in found] == [path.read_bytes() for path in detector_weights_paths()]


def test_the_watch_of_the_containers_is_one_that_loads():
    settings = load_watch_settings(ROOT / "configs" / "compose.toml")
    assert (settings.sources, settings.results) == (["/inbox"], "/results")
    assert settings.deployment == "analyze-videos/analyze-videos"


def test_the_image_holds_what_is_installed_and_what_is_deployed():
    copied = {line.split()[1] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("COPY ")}
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {*packages["packages"], "prefect.yaml"} <= copied
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {name for name in copied if not name.startswith("--")} <= let_in


def test_a_changed_line_of_code_leaves_the_packages_as_they_are():
    """Seen to fail: code and packages were one layer of 3 GB, copied and sent anew for each change."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copies = [line.split()[1:-1] for line in lines if line.startswith("COPY ")]
    assert copies[:2] == [["pyproject.toml", "uv.lock"], ["--from=packages", "/app"]]
    assert not any(what.startswith("--") for copy in copies[2:] for what in copy)


def test_the_dockerfile_is_written_as_its_checker_wants_it():
    found = shutil.which("hadolint") or shutil.which("hadolint", path=str(ROOT / ".venv" / "bin"))
    if found is None:
        lacking("no hadolint: `uv sync` brings it")
    done = subprocess.run([found, "Dockerfile"], cwd=ROOT, **PIPES)
    assert done.returncode == 0, done.stdout
