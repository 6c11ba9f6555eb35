"""videos -> what other packages make of them, each in an environment of its own, made once"""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Usage, run
from models.wheels import cache_folder

_HERE = Path(__file__).parent
_FER_PYTHON = "bin/python"


@dataclass(frozen=True, slots=True)
class Peer:
    """Another package that finds faces and their emotions in videos."""

    name: str
    """As the tables have it."""
    command: tuple[str | Path, ...]
    """To which the folder for its files and the videos are added."""

    def analyze(self, files: Sequence[Path], folder: Path) -> Usage:
        """Run it on some videos, in one process."""
        return run([*self.command, folder, *files], cwd=folder)


def find_peers() -> list[Peer]:
    """The `fer` package 25.10.3 and, where there is npm, `@vladmandic/human` 3.3.6: the fastest that we know."""
    return [_fer(), *([_human()] if _has_npm() else [])]


def _fer() -> Peer:
    """Boxes, emotions and an annotated video; it cannot be installed beside ferflow."""
    folder, requirements = cache_folder() / "fer-environment", _HERE / "fer_requirements.txt"
    if not _is_made_from(requirements, folder):
        print("Making an environment for the fer package (1 GB, once) ...", flush=True)
        # Not in the project's folder, whose settings of uv are not meant for it.
        subprocess.run(["uv", "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True, cwd="/")
        install = ["uv", "pip", "install", "--quiet", "--no-config", "--no-deps", "--compile-bytecode"]
        which = ["--python", folder / _FER_PYTHON, "--requirement", requirements]
        subprocess.run([*install, *which], check=True, cwd="/")
        shutil.copy(requirements, folder)
    return Peer("fer", (folder / _FER_PYTHON, _HERE / "fer_analyze.py"))


def _human() -> Peer:
    """Boxes and emotions, and no annotated video."""
    folder, wanted = cache_folder() / "human-environment", _HERE / "human"
    if not _is_made_from(wanted / "package-lock.json", folder):
        print("Making an environment for human (130 MB, once) ...", flush=True)
        part = folder.with_suffix(".part")
        for old in (part, folder):
            shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(wanted, part)
        subprocess.run(["npm", "ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"], check=True, cwd=part)
        part.rename(folder)
    return Peer("human", (sys.executable, _HERE / "human_analyze.py", folder))


def _has_npm() -> bool:
    if shutil.which("npm") and shutil.which("node"):
        return True
    print("@vladmandic/human is left out: install Node.js and npm to measure it too.", flush=True)
    return False


def _is_made_from(wanted: Path, folder: Path) -> bool:
    made = folder / wanted.name
    return made.exists() and made.read_bytes() == wanted.read_bytes()
