"""versions of the emotion model -> which one is in use; add, promote, roll back.

The models that come with ferflow lie in models/emotion, and `in_use` there names one. A user's own lie in a folder that
$FERFLOW_MODELS names, by default ~/.local/share/ferflow/models:

    <version>/          a model directory; verdict.json in it says what a retraining made of it
    promotions.jsonl    a line for each promotion and each rollback; none means the model that comes with ferflow

The last file is replaced as a whole, so that whoever reads it meets the old model or the new one. $FERFLOW_MODELS may
name a bucket too (s3://bucket/models), for the models of many machines: each keeps a copy and looks for news every few
seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ferflow.claims import Claims
from ferflow.errors import ConfigError, ModelError
from ferflow.mirror import Mirror
from ferflow.storage import Results, is_local, part_file, place
from models.emotion_classifier import (
    DESCRIPTION_FILE,
    EmotionModel,
    ModelDescription,
    is_plain_name,
    read_description,
)
from models.trial import try_model
from models.wheels import cache_folder

MODELS_VARIABLE = "FERFLOW_MODELS"
VERDICT_FILE = "verdict.json"
EVALUATION_FILE = "evaluation.json"
"""Where `make evaluate` writes what it measures of a version, beside it."""

_SHIPPED = Path(__file__).parent / "emotion"
_PROMOTIONS = "promotions.jsonl"
_MOST_BYTES_COPIED = 1_000_000_000
_MOST_BYTES_EVALUATED = 10_000_000
# 34 kB is usual.
_LOOK_SECONDS = 10.0
_WAIT_SECONDS = 300.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a comparison with the model in use made of a candidate."""

    decision: Literal["promoted", "refused"]
    """What became of it."""
    reasons: tuple[str, ...]
    """Why, a sentence each."""
    comparison: Mapping[str, Any]
    """The numbers it rests on, as JSON can hold them."""
    decided_at: datetime
    """When, UTC."""
    compared_with: str
    """Version of the model that was in use."""


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """One version that can be promoted."""

    path: Path
    """Its directory."""
    description: ModelDescription
    """What it says of itself."""
    is_in_use: bool
    """Whether `default` means this one."""
    is_shipped: bool
    """Whether it came with ferflow."""
    verdict: Verdict | None
    """What a retraining made of it; None where there was none."""

    def metrics(self) -> Mapping[str, Any]:
        """How well it does on each set of images: measured of the form that is served, or else when it was trained."""
        try:
            with (self.path / EVALUATION_FILE).open("rb") as file:
                # No trial has looked at it. What is cut off is not read, like all that is damaged.
                served = json.loads(file.read(_MOST_BYTES_EVALUATED))["served"]["metrics"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            served = None
        return served if isinstance(served, Mapping) else self.description.metrics


@dataclass(frozen=True, slots=True)
class Promotion:
    """One change of the model in use."""

    action: Literal["promote", "rollback"]
    """A rollback takes the last promotion back that still stands."""
    version: str
    """The version promoted, or taken out of use."""
    at: str
    """When, UTC, ISO 8601."""
    reason: str
    """Why, in words; may be empty."""


class ModelStore:
    """The models that came with ferflow and a user's own."""

    def __init__(self, root: Path | None = None) -> None:
        """Nothing is read or made yet; `root` is the folder of the user's own models, `models_folder()` by default."""
        named = root or models_folder()
        self._mirror = None if is_local(named) else _mirror_of(named)
        self.root = named.absolute() if self._mirror is None else self._mirror.folder

    def versions(self) -> list[InstalledModel]:
        """Every version, those that came with ferflow first; a warning is logged for each that cannot be read."""
        self._look()
        try:
            in_use = self.in_use()
        except ModelError as error:
            _log.warning("%s", error)
            in_use = None
        found = []
        for folder in _folders(_SHIPPED) + _folders(self.root):
            try:
                installed = InstalledModel(
                    path=folder,
                    description=_read(folder),
                    is_in_use=folder == in_use,
                    is_shipped=folder.parent == _SHIPPED,
                    verdict=_read_verdict(folder),
                )
            except ModelError as error:
                _log.warning("%s", error)
            else:
                found.append(installed)
        return found

    def in_use(self) -> Path:
        """The directory of the version in use: the last promoted, or the one that comes with ferflow.

        Raises:
            ModelError: it is gone, or the list of promotions is damaged.
        """
        standing = _standing(self.promotions())
        if not standing:
            return shipped_model()
        folder = self._folder(standing[-1])
        if folder is None:
            raise ModelError(
                f"{self.root / standing[-1]}: this emotion model is in use, but it is gone. "
                "Go back to the one before: `ferflow models rollback`."
            )
        return folder

    def find(self, name: str) -> Path:
        """The directory of a model.

        Args:
            name: `default` for the one in use, a version, or the path of a model's folder.

        Raises:
            ModelError: there is no such model.
        """
        if name == "default":
            return self.in_use()
        self._look()
        folder = self._folder(name)
        if folder is None and (Path(name) / DESCRIPTION_FILE).is_file():
            folder = Path(name).absolute()
        if folder is not None:
            return folder
        versions = [folder.name for folder in _folders(_SHIPPED) + _folders(self.root)]
        near = [version for version in versions if name and name in version]
        near = near or difflib.get_close_matches(name, versions, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"installed: {', '.join(versions)}."
        raise ModelError(f"{name}: there is no emotion model of this name or in this folder; {hint}")

    def add(self, directory: Path) -> Path:
        """Copy a model directory into the store, once it has been tried; it appears complete or not at all.

        Returns:
            The directory in the store, or of the same model that is installed already.

        Raises:
            ModelError: it cannot be used, another model has its version's name, or the store cannot be written.
        """
        if (installed := self._installed(read_description(directory))) is not None:
            return installed
        with self._writing():
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".part-", dir=self.root) as part_name:
                # What is tried is the copy, which nobody else changes meanwhile.
                copied = Path(part_name) / "model"
                _copy(directory, copied)
                try:
                    try_model(copied)
                    description = read_description(copied)
                except ModelError as error:
                    raise ModelError(str(error).replace(str(copied), str(directory))) from error
                with self._locked():
                    if (installed := self._installed(description)) is not None:
                        return installed
                    os.replace(copied, self.root / description.version)
                    self._send(self.root / description.version)
        return self.root / description.version

    def promote(self, name: str, *, reason: str = "", in_place_of: str = "") -> Path:
        """Take a version into use; a model from elsewhere is added first. Workers meet it at their next video.

        Args:
            name: a version, or the path of a model's folder.
            reason: why, for the list of promotions.
            in_place_of: the version that must be in use until now; empty for any.

        Returns:
            Its directory.

        Raises:
            ModelError: there is no such model, it cannot be used, another one is in use than it is to replace, or the
                store cannot be written.
        """
        directory = self.find(name)
        if directory.parent not in (self.root, _SHIPPED):
            directory = self.add(directory)
        version = _read(directory).version
        EmotionModel(directory)  # Its files may have been damaged since they were added.
        with self._writing(), self._locked():
            promotions = self.promotions()
            in_use = [shipped_model().name, *_standing(promotions)][-1]
            if in_place_of not in ("", in_use):
                raise ModelError(
                    f"{directory}: it was to replace {in_place_of}, but {in_use} was taken into use meanwhile. Retrain "
                    "again."
                )
            if version != in_use:
                self._write([*promotions, Promotion("promote", version, _now(), reason)])
        return directory

    def rollback(self, *, reason: str = "") -> str:
        """Take the last promotion back; again, the one before it; at the end stands the model that comes with ferflow.

        Returns:
            The version that is in use now.

        Raises:
            ModelError: nothing was promoted, or the store cannot be written.
        """
        if not _standing(self.promotions()):
            raise ModelError(
                f"{shipped_model().name}: this is the emotion model that comes with ferflow, and there is none before "
                "it. Take another into use with `ferflow models promote`."
            )
        with self._writing(), self._locked():
            promotions = self.promotions()
            # A version that was deleted meanwhile is passed over.
            while standing := _standing(promotions):
                promotions.append(Promotion("rollback", standing[-1], _now(), reason))
                if len(standing) == 1 or self._folder(standing[-2]) is not None:
                    break
            self._write(promotions)
        return self.in_use().name

    def promotions(self) -> list[Promotion]:
        """Every change of the model in use, the oldest first.

        Raises:
            ModelError: the list is damaged.
        """
        self._look()
        path = self.root / _PROMOTIONS
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{path}: the list of promotions cannot be read ({error}).") from error
        try:
            promotions = [Promotion(**json.loads(line)) for line in lines]
            if not all(is_plain_name(promotion.version) for promotion in promotions):
                raise ValueError("a version is no plain name")
        except (ValueError, TypeError) as error:
            raise ModelError(
                f"{path}: the list of promotions is damaged ({error}). Delete it to go back to the emotion model that "
                "comes with ferflow, then promote again."
            ) from error
        return promotions

    def keep_verdict(self, version: str, verdict: Verdict) -> None:
        """Keep what a retraining made of a model beside it, in place of an earlier verdict.

        Raises:
            ModelError: the store holds no such version, or cannot be written.
        """
        folder = self._folder(version)
        if folder is None or folder.parent != self.root:
            raise ModelError(f"{version}: {self.root} holds no model of this version; add it first.")
        table = dataclasses.asdict(verdict) | {"decided_at": verdict.decided_at.isoformat(timespec="seconds")}
        with self._writing(), part_file(folder / VERDICT_FILE) as part:
            part.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        with self._writing():
            self._send(folder)

    def _folder(self, version: str) -> Path | None:
        """The directory of an installed version, if there is one."""
        if not is_plain_name(version):
            return None
        folders = (_SHIPPED / version, self.root / version)
        return next((folder for folder in folders if (folder / DESCRIPTION_FILE).is_file()), None)

    def _installed(self, description: ModelDescription) -> Path | None:
        """The directory of the same model, if it is installed."""
        folder = self._folder(description.version)
        if folder is not None and read_description(folder).sha256 != description.sha256:
            raise ModelError(
                f"{folder}: there is a model {description.version} already, with other files. Use that one, or delete "
                "its folder first."
            )
        return folder

    def _write(self, promotions: list[Promotion]) -> None:
        lines = [json.dumps(dataclasses.asdict(promotion), ensure_ascii=False) + "\n" for promotion in promotions]
        with part_file(self.root / _PROMOTIONS) as part:
            part.write_text("".join(lines), encoding="utf-8")
        self._send(self.root / _PROMOTIONS)

    def _look(self, *, older_than_seconds: float = _LOOK_SECONDS) -> None:
        """Bring what other machines have added to a bucket."""
        if self._mirror is not None:
            try:
                self._mirror.pull(older_than_seconds=older_than_seconds)
            except (OSError, ConfigError) as error:
                if not self.root.is_dir():
                    raise ModelError(f"The emotion models cannot be fetched: {error}") from error
                _log.warning("The emotion models that were fetched earlier are used: %s", error)

    def _send(self, path: Path) -> None:
        """Give a file or a model of this store to the other machines."""
        if self._mirror is not None:
            self._mirror.push([path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()])

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes and threads from changing the store; the system lets go if this one is killed."""
        import fcntl

        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file, contextlib.ExitStack() as others:
            fcntl.flock(file, fcntl.LOCK_EX)
            if self._mirror is not None:
                claims = Claims(Results(self._mirror.bucket))
                ends_at = time.monotonic() + _WAIT_SECONDS
                while not others.enter_context(claims.hold("models")):
                    if time.monotonic() > ends_at:
                        raise OSError(
                            None, "another machine has been changing it for too long", str(self._mirror.bucket)
                        )
                    time.sleep(1)
                self._look(older_than_seconds=0)
            yield

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ModelError(
                f"{error.filename or self.root}: this cannot be read or written ({error.strerror or error}). "
                f"Emotion models are kept in {self.root}; {MODELS_VARIABLE} names another folder."
            ) from error


def find_model(name: str) -> Path:
    """The directory of a model, as `ModelStore.find` finds it in the user's store.

    Raises:
        ModelError: there is no such model.
    """
    return ModelStore().find(name)


def models_folder() -> Path:
    """Where a user's own models are kept: $FERFLOW_MODELS, else `~/.local/share/ferflow/models`."""
    if named := os.environ.get(MODELS_VARIABLE):
        return named_place.expanduser() if is_local(named_place := place(named)) else named_place
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share").expanduser() / "ferflow" / "models"


@functools.cache
def _mirror_of(bucket: Path) -> Mirror:
    """One of a process, which knows when it last looked."""
    return Mirror(bucket, cache_folder() / "models", last=(DESCRIPTION_FILE, _PROMOTIONS))


def shipped_model() -> Path:
    """The directory of the model that comes with ferflow and is in use until another is promoted.

    Raises:
        ModelError: it is missing.
    """
    path = _SHIPPED / "in_use"
    try:
        return _SHIPPED / path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ModelError(f"{path}: the emotion model that comes with ferflow is missing; install it again.") from error


def _folders(parent: Path) -> list[Path]:
    return sorted(path.parent for path in parent.glob(f"*/{DESCRIPTION_FILE}") if is_plain_name(path.parent.name))


def _standing(promotions: list[Promotion]) -> list[str]:
    """The versions whose promotion was not taken back, in order."""
    versions: list[str] = []
    for promotion in promotions:
        if promotion.action == "promote":
            versions.append(promotion.version)
        elif versions:
            versions.pop()
    return versions


def _read(folder: Path) -> ModelDescription:
    description = read_description(folder)
    if description.version != folder.name:
        raise ModelError(f"{folder}: the model in it is called {description.version}; rename the folder to that.")
    return description


def _read_verdict(folder: Path) -> Verdict | None:
    path = folder / VERDICT_FILE
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        decided_at = datetime.fromisoformat(table.pop("decided_at"))
        verdict = Verdict(**table | {"reasons": tuple(map(str, table["reasons"])), "decided_at": decided_at})
        if verdict.decision not in ("promoted", "refused"):
            raise ValueError(f"decision is {verdict.decision!r}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path}: it is damaged ({error}). Delete it, or train the model again.") from error
    return verdict


def _copy(source: Path, target: Path) -> None:
    """Copy a directory's files; the verdict stays behind, because it is another store's."""
    copied = 0
    for parent, folders, files in os.walk(source):
        here = target / Path(parent).relative_to(source)
        here.mkdir()
        for name in folders + files:
            path = Path(parent) / name
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise ModelError(f"{path}: a model directory holds files only, no links. Copy what it points to.")
        for name in files:
            if name == VERDICT_FILE:
                continue
            copied += (Path(parent) / name).stat().st_size
            if copied > _MOST_BYTES_COPIED:
                raise ModelError(f"{source}: it holds more than 1 GB, which no model needs. Name a model directory.")
            shutil.copyfile(Path(parent) / name, here / name)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
