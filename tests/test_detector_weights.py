"""The detector's two weights files: fetched once, verified always, and a plain answer where that cannot be done."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from lacking import lacking

from ferflow.errors import ModelError
from models import wheels
from models.detector_weights import (
    FULL_RANGE_SPARSE,
    SHORT_RANGE,
    SOURCE_VARIABLE,
    detector_weights_paths,
    fetch_detector_weights,
)
from models.wheels import CACHE_VARIABLE, cache_folder

NAMES = {SHORT_RANGE.name, FULL_RANGE_SPARSE.name}


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two right files, as an offline machine would be given it."""
    folder = tmp_path_factory.mktemp("source")
    for path in detector_weights_paths():
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """`offline(complaint)`: uv is there and fails with this complaint, and there is no pip."""

    def break_uv(complaint: str) -> None:
        tools = tmp_path / "tools"
        tools.mkdir()
        (tools / "uv").write_text(f"#!/bin/sh\necho '{complaint}' >&2\nexit 2\n")
        (tools / "uv").chmod(0o755)
        monkeypatch.setenv("PATH", str(tools))
        monkeypatch.setattr(wheels, "_has_module", lambda name: False)
        monkeypatch.delenv(SOURCE_VARIABLE, raising=False)

    return break_uv


def test_a_folder_is_a_source(tmp_path: Path, source: Path) -> None:
    paths = fetch_detector_weights(source=source, cache=tmp_path)
    assert paths.short_range.stat().st_size == SHORT_RANGE.size_bytes
    assert paths.full_range_sparse.stat().st_size == FULL_RANGE_SPARSE.size_bytes
    assert _files(tmp_path) == NAMES


def test_a_wheel_is_a_source(tmp_path: Path, source: Path) -> None:
    wheel = tmp_path / "mediapipe-0.10.21-cp311-cp311-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for weights in (SHORT_RANGE, FULL_RANGE_SPARSE):
            archive.write(source / weights.name, weights.wheel_member)
    fetch_detector_weights(source=wheel, cache=tmp_path / "cache")
    assert _files(tmp_path / "cache") == NAMES


def test_the_environment_names_source_and_cache(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SOURCE_VARIABLE, str(source))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "a cache with ümlaut"))
    assert detector_weights_paths().short_range.parent.parent == tmp_path / "a cache with ümlaut"


def test_the_cache_follows_the_platform_where_nothing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "ferflow"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "ferflow"


def test_files_that_are_there_are_left_alone(tmp_path: Path, source: Path, offline) -> None:
    paths = fetch_detector_weights(source=source, cache=tmp_path)
    before = [path.stat() for path in paths]
    offline("no network")
    assert fetch_detector_weights(cache=tmp_path) == paths
    assert [path.stat().st_mtime_ns for path in paths] == [stat.st_mtime_ns for stat in before]


def test_a_damaged_file_in_the_cache_is_fetched_again(tmp_path: Path, source: Path) -> None:
    paths = fetch_detector_weights(source=source, cache=tmp_path)
    for damage in (b"", paths.short_range.read_bytes()[:-1], b"x" * SHORT_RANGE.size_bytes):
        paths.short_range.write_bytes(damage)
        fetch_detector_weights(source=source, cache=tmp_path)
        assert paths.short_range.read_bytes() == (source / SHORT_RANGE.name).read_bytes()


def test_a_source_with_other_content_is_refused_with_the_remedy(tmp_path: Path, source: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(source, other)
    (other / FULL_RANGE_SPARSE.name).write_bytes(b"another model")
    with pytest.raises(ModelError, match=rf"{FULL_RANGE_SPARSE.name} is not the file .* mediapipe==0\.10\.21 wheel"):
        fetch_detector_weights(source=other, cache=tmp_path / "cache")
    assert FULL_RANGE_SPARSE.name not in _files(tmp_path / "cache")


def test_a_source_without_the_files_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.whl").write_text("no wheel")
    for wrong in ("empty", "text.whl"):
        with pytest.raises(ModelError, match=r"holds no readable .*: take face_detection_short_range\.tflite from the"):
            fetch_detector_weights(source=tmp_path / wrong, cache=tmp_path / "cache")
    with pytest.raises(ModelError, match=r"nowhere, which does not exist: name a folder"):
        fetch_detector_weights(source=tmp_path / "nowhere", cache=tmp_path / "cache")


def test_without_network_and_source_the_message_says_what_to_do(tmp_path: Path, offline) -> None:
    offline("error: Failed to fetch: connection refused")
    with pytest.raises(ModelError) as caught:
        fetch_detector_weights(cache=tmp_path / "cache")
    message = str(caught.value)
    assert "connection refused" in message
    assert "python -m models.detector_weights" in message
    assert SOURCE_VARIABLE in message
    assert _files(tmp_path / "cache") == set()


def test_without_uv_and_pip_the_message_says_so(tmp_path: Path, offline, monkeypatch: pytest.MonkeyPatch) -> None:
    offline("")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ModelError, match="neither uv nor pip was found"):
        fetch_detector_weights(cache=tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_named_with_the_remedy(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match=rf"cannot be kept in .*file.*set {CACHE_VARIABLE} to a folder"):
        fetch_detector_weights(source=source, cache=tmp_path / "file")


@pytest.mark.parametrize("tool", ["uv", "pip"])
def test_over_the_network_the_package_index_has_the_weights(tmp_path: Path, tool: str) -> None:
    """The one test that downloads (36 MB): the command that `make` and the image run, end to end."""
    found = shutil.which(tool) or shutil.which("pip3" if tool == "pip" else tool)
    if found is None:
        lacking(f"no {tool}")
    tools, scratch = tmp_path / "tools", tmp_path / "scratch"
    tools.mkdir()
    scratch.mkdir()
    (tools / tool).write_text(f'#!/bin/sh\nexec "{found}" "$@"\n')
    (tools / tool).chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != SOURCE_VARIABLE}
    # pyenv's commands are scripts that need a few ordinary tools.
    environment |= {"PATH": f"{tools}:/usr/bin:/bin" if tool == "uv" else f"{tools}:/bin", "TMPDIR": str(scratch)}
    environment[CACHE_VARIABLE] = str(tmp_path / "cache")
    run = subprocess.run(
        [sys.executable, "-m", "models.detector_weights"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=Path(__file__).parents[1],
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert {Path(line).name for line in run.stdout.split()} == NAMES == _files(tmp_path / "cache")
    assert list(scratch.glob("ferflow-*")) == []


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}
