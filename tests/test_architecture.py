"""The layout that keeps changes small: who may import whom, what importing costs, what the repository may name."""

import ast
import importlib.metadata
import json
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MAY_IMPORT = {
    "ferflow": set(),
    "models": {"ferflow"},
    "training": {"ferflow", "models"},
    "tasks": {"ferflow", "models", "training"},
    "flows": {"ferflow", "models", "training", "tasks"},
    "viewer": {"ferflow", "models"},
}
ONLY_HOME = {"av": {"ferflow/frames.py"}, "pyarrow": {"ferflow/rows.py", "ferflow/merged_rows.py"}}
RUN_MODELS = {"ai_edge_litert", "keras", "mediapipe", "tensorflow"}
SLOW = {"tensorflow", "keras", "mediapipe", "prefect", "matplotlib.pyplot"}
OF_MODELS = {"InstalledModel", "ModelStore", "Promotion", "Verdict", "cache_folder", "read_description"}
"""What the viewer may take from `models/`: what there is. What runs one is for the camera alone."""
ORCHESTRATED = {
    "flows/analyze_videos.py",
    "flows/compact_results.py",
    "flows/retrain_emotion_model.py",
    "flows/run_page.py",
    "flows/train_emotion_model.py",
    "flows/watch_inbox.py",
    "flows/watch_labelled.py",
}
"""Modules that say what runs under Prefect, as all of tasks/ does; they alone load it as they are imported."""

MODULES = sorted(path.relative_to(ROOT).as_posix() for room in MAY_IMPORT for path in ROOT.glob(f"{room}/**/*.py"))


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    room = module.split("/")[0]
    elsewhere = {name.split(".")[0] for name in _imports(module)} & MAY_IMPORT.keys() - {room}
    assert elsewhere <= MAY_IMPORT[room]


@pytest.mark.parametrize("module", MODULES)
def test_video_files_and_tables_are_read_in_few_places(module: str) -> None:
    imported = {name.split(".")[0] for name in _imports(module)}
    assert {name for name in imported & ONLY_HOME.keys() if module not in ONLY_HOME[name]} == set()


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("viewer/")])
def test_the_viewer_runs_no_model_but_for_the_camera(module: str) -> None:
    assert {name.split(".")[0] for name in _imports(module)} & RUN_MODELS == set()
    if module != "viewer/live_page.py":
        assert set(_names_from("models", module)) <= OF_MODELS


@pytest.mark.parametrize("module", MODULES)
def test_a_module_begins_by_saying_what_it_is_for(module: str) -> None:
    text = (ROOT / module).read_text(encoding="utf-8")
    assert text.startswith('"""')
    assert ast.get_docstring(ast.parse(text))


def test_importing_loads_nothing_slow() -> None:
    # One process for all modules, so that the second does not hide behind what the first has loaded.
    program = (
        "import importlib, json, sys\n"
        "loaded = {}\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    before = set(sys.modules)\n"
        "    importlib.import_module(name)\n"
        "    loaded[name] = sorted(set(sys.modules) - before)\n"
        "print(json.dumps(loaded))"
    )
    names = [_dotted(module) for module in MODULES if not module.startswith("tasks/") and module != "viewer/app.py"]
    names = [name for name in names if name not in {_dotted(module) for module in ORCHESTRATED}]
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(names)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert {name: slow for name, loaded in json.loads(done.stdout).items() if (slow := SLOW & set(loaded))} == {}


def test_help_answers_at_once() -> None:
    # Processor time, because the time on the clock depends on what else the machine does.
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([Path(sys.executable).with_name("ferflow"), "--help"], cwd=ROOT, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5


def test_there_is_one_opencv() -> None:
    installed = {distribution.metadata["Name"].lower() for distribution in importlib.metadata.distributions()}
    assert {name for name in installed if name.startswith("opencv")} == {"opencv-python-headless"}


def test_the_repository_names_no_machine_and_no_package_registry() -> None:
    # Put together from pieces, or this file would name them.
    machine = r"/(?:home|root|Users|work|mnt)/\w"
    registry = r"(?:pypi|pythonhosted|npmjs|anaconda)\.(?:org|com)|\b(?:simple/)?index-url\b"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    found = []
    for name in listed:
        path = ROOT / name
        if not name or name == "uv.lock" or path == Path(__file__) or not path.is_file():
            continue
        content = path.read_bytes()
        if b"\0" in content[:8192]:
            continue
        for line in content.decode("utf-8").splitlines():
            found += [f"{name}: {match[0]}" for match in re.finditer(f"{machine}|{registry}", line)]
    assert found == []


def _imports(module: str) -> Iterator[str]:
    """Every module that one imports, at its top or inside its functions."""
    for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def _names_from(room: str, module: str) -> Iterator[str]:
    """What a module takes from another room: names, or whole modules."""
    for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == room:
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == room)


def _dotted(module: str) -> str:
    return module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
