"""folder or bucket: one way to list, fetch and commit a file; where each result lies.

A place in a folder is a `pathlib.Path`. One in a bucket is a path of universal-pathlib, which reads and behaves like a
Path and is typed as one here; `is_local` tells them apart. Amazon's and every other S3 service are tested; what else
universal-pathlib knows (Google's gs://, Azure's az://) works once its driver (gcsfs, adlfs) is installed.
"""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import threading
import unicodedata
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from ferflow.errors import ConfigError

_ID_LENGTH = 16
# 64 bits: among a hundred million videos two share an id with a probability below one in three thousand.

SCRATCH = "ferflow-scratch"
"""Of copies that are made for a moment."""

_S3_OPTIONS = {
    # A listing that is kept would hide what came since.
    "use_listings_cache": False,
    # Parts of 50 MB in memory at a time when an object is sent; ten would be half a gigabyte.
    "max_concurrency": 1,
    # Throttled, timed out, reset: tried again, each time after a longer wait.
    "config_kwargs": {
        "connect_timeout": 10,
        "read_timeout": 60,
        "retries": {"mode": "standard", "max_attempts": 8},
        # Newer checksums than most S3 services understand.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    },
}


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as a listing shows it."""

    path: Path
    """Where it is."""
    size_bytes: int
    """Its length."""
    tag: str
    """Changes when the bytes do: length with the time of the last change, or with the bucket's ETag."""
    modified_at: float
    """When it was last changed, seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Results:
    """A results folder: where each file of each video lies in it."""

    root: Path
    """The folder or bucket that `--results` names."""

    @property
    def parts(self) -> Path:
        """Unfinished files; hidden, so that no reader of a table meets one."""
        return self.root / ".parts"

    @property
    def pieces(self) -> Path:
        """Faces of single pieces of long videos, until all of a video's are there; hidden too."""
        return self.root / ".pieces"

    @property
    def claims(self) -> Path:
        """Who is at work on which video."""
        return self.root / ".claims"

    def key(self, video_id: str) -> str:
        """What a video's result in this folder is called where those of several folders come together.

        It is the same for every process that knows the folder by the same path or address.
        """
        folder = hashlib.sha256(os.fsencode(str(self.root))).hexdigest()[:8]
        return f"video-{video_id}-{folder}"

    def table(self, name: str) -> Path:
        """Folder of a table: `faces`, `videos` or `segments`."""
        return self.root / name

    def rows(self, table: str, video_id: str) -> Path:
        """One video's part of a table."""
        return self.table(table) / f"{video_id}.parquet"

    def annotated(self, source: str, video_id: str) -> Path:
        """The annotated video, named so that a person recognises it and no two share a name."""
        return self.root / "annotated" / f"{_readable(source)}-{video_id}.mp4"

    def timeline(self, source: str, video_id: str) -> Path:
        """The timeline picture, named like the annotated video."""
        return self.root / "timelines" / f"{_readable(source)}-{video_id}.png"

    def named(self, name: str | None) -> Path | None:
        """A file that a row of a table names; None if there is none, or not within the results.

        A row from a stranger may name anything. Whether a bucket has the file is not asked.

        Raises:
            OSError: the folder is not to be seen.
        """
        if not name or "://" in name or ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
            return None
        path = self.root / name
        # A link within the results may lead out of them.
        if is_local(path) and not (path.is_file() and path.resolve().is_relative_to(self.root.resolve())):
            return None
        return path


def place(text: str | os.PathLike[str]) -> Path:
    """Read what a person names a folder or a file by: a path, or an address such as s3://bucket/prefix.

    Raises:
        ConfigError: an address of a kind that nothing here can open, or one that holds a password.
    """
    if not isinstance(text, str):
        return text if not isinstance(text, os.PathLike) or isinstance(text, Path) else Path(text)
    scheme, separator, rest = text.partition("://")
    if not separator or "/" in scheme:
        return Path(text)
    if scheme == "file":
        return Path(rest)
    bucket_name = rest.partition("/")[0]
    # A secret may have slashes of its own.
    if "@" in bucket_name or (":" in bucket_name and "@" in rest):
        raise ConfigError(
            f"{scheme}://...@{rest.rpartition('@')[2]}: leave the key out of the address; it is taken from where the "
            "store's own tools look for it, such as AWS_ACCESS_KEY_ID or ~/.aws."
        )
    from upath import UPath

    if scheme in ("s3", "s3a"):
        import ferflow.bucket  # noqa: F401  (registers itself; takes a tenth of a second, which only buckets pay)
    try:
        options: dict[str, Any] = _S3_OPTIONS if scheme in ("s3", "s3a") else {}
        bucket: Any = UPath(text.rstrip("/"), **options)
        bucket.fs  # noqa: B018  (its driver is loaded here)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{text}: {scheme}:// cannot be opened ({error}); name a folder or s3://...") from error
    return bucket  # type: ignore[no-any-return]


def is_local(path: Path) -> bool:
    """Whether a place is a folder or file of this machine."""
    return isinstance(path, Path)


def absolute(path: Path) -> Path:
    """The same place, wherever this process stands."""
    return path.absolute() if is_local(path) else path


def reach(path: Path) -> Literal["folder", "file"] | None:
    """Make sure that a bucket can be used, before anything is begun; asks for this place alone, not for what is in it.

    Returns:
        What is there; None for nothing.

    Raises:
        ConfigError: there is no such bucket, or the key for it is missing or wrong.
    """
    if is_local(path):
        return "folder" if path.is_dir() else "file" if path.exists() else None
    bucket: Any = path
    try:
        try:
            return "folder" if bucket.fs.info(bucket.path)["type"] == "directory" else "file"
        except FileNotFoundError:
            with contextlib.suppress(PermissionError):  # The key is for one prefix of it.
                bucket.fs.info(bucket.path.partition("/")[0])
            return None
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such bucket; check the name, or make it first.") from error
    except PermissionError as error:
        raise ConfigError(
            f"{path}: the store refuses the key that it was given, or the key may not list this bucket; "
            "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials."
        ) from error
    except Exception as error:
        # Each store's library has errors of its own; what they are about is the same.
        kind = type(error).__name__
        if "Credentials" in kind:
            raise ConfigError(
                f"{path}: no key for this store was found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or fill ~/.aws/credentials."
            ) from error
        raise ConfigError(
            f"{path}: the store does not answer ({kind}); check the network, and AWS_ENDPOINT_URL for a store of your "
            "own."
        ) from error


def what_is_wrong(place: Path, error: Exception) -> Exception:
    """What is wrong with a bucket that could not be read, where that can be told: a store's own words are few.

    Args:
        place: what could not be read, or the bucket's prefix that it lies in.
        error: what was raised.

    Returns:
        A ConfigError that says what to do; for a folder, and for a bucket that can be used, the same error.
    """
    try:
        reach(place)
    except ConfigError as reason:
        return reason
    return error


def stat_file(path: Path) -> StoredFile:
    """Look at one file without reading it.

    Raises:
        OSError: it is not there or not to be seen.
    """
    if is_local(path):
        return _local_file(path, path.stat())
    bucket: Any = path
    return _stored_object(path, bucket.fs.info(bucket.path))


def list_files(folder: Path) -> Iterator[StoredFile]:
    """Every file of a folder with all that is below it, or of a bucket's prefix; those that vanish meanwhile left out.

    Raises:
        OSError: the folder or bucket is not to be seen.
    """
    if is_local(folder):
        for parent, folders, files in os.walk(folder):
            folders.sort()
            for name in sorted(files):
                path = Path(parent) / name
                with contextlib.suppress(FileNotFoundError):
                    yield _local_file(path, path.stat())
        return
    bucket: Any = folder
    root = bucket.path.rstrip("/")
    for name, info in sorted(bucket.fs.find(root, detail=True).items()):
        if not name.endswith("/"):
            yield _stored_object(folder / name.removeprefix(root).lstrip("/"), info)


@contextlib.contextmanager
def fetched(path: Path) -> Iterator[Path]:
    """A file of this machine with a file's bytes: itself, or a copy of the bucket's that is gone when the block ends.

    Raises:
        OSError: it cannot be read.
    """
    if is_local(path):
        yield path
        return
    bucket: Any = path
    folder = workspace(temporary_folder(SCRATCH)) / uuid.uuid4().hex
    folder.mkdir()
    try:
        # Under its own name, by which messages call it; the store's names may be longer than a disk's.
        copy = folder / (_readable(path.name)[:100] + path.suffix[:20])
        bucket.fs.get_file(bucket.path, str(copy))
        yield copy
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def part_file(target: Path, *, folder: Path | None = None) -> Iterator[Path]:
    """Write a file so that it appears complete or not at all.

    Yields a path of this machine whose name ends in `.part`: under `folder` (on the target's disk) or else, hidden,
    beside the target; for a bucket somewhere else. When the block ends well it is renamed to the target, or sent to the
    bucket as one object; otherwise removed. With `folder`, the parts of a results folder, it waits while a table is
    being exchanged.
    """
    if not is_local(target):
        bucket: Any = target
        part = workspace(temporary_folder(SCRATCH)) / f"{uuid.uuid4().hex}.part"
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = (target.parent if folder is None else workspace(folder)) / f".{uuid.uuid4().hex}.part"
    try:
        yield part
        if is_local(target):
            # Under its name while its bytes are not on the disk yet, it would be an empty file after a power cut.
            to_disk(part)
            with contextlib.nullcontext() if folder is None else holding_tables(folder.parent):
                os.replace(part, target)
        else:
            from ferflow.child_process import outside_limits

            with outside_limits():
                bucket.fs.put_file(str(part), bucket.path)
    except OSError as error:
        if error.errno is not None and error.filename is None and error.strerror != os.strerror(error.errno):
            # PyArrow wraps what the system says in words of its own. What else is met here keeps its own file's name.
            raise OSError(error.errno, os.strerror(error.errno), str(target)) from error
        raise
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def holding_tables(root: Path, *, alone: bool = False) -> Iterator[None]:
    """Keep the tables of a results folder of this machine from being exchanged while files of them are moved or read.

    Where the disk has no locks, nothing is exchanged (see `compaction`), and nothing is to be waited for.

    Args:
        root: the results folder; nothing in a bucket is ever exchanged.
        alone: to exchange a table: waits until nobody holds them.

    Raises:
        OSError: `alone`, and the disk has no locks.
    """
    if not is_local(root):
        yield
        return
    with contextlib.ExitStack() as held:
        with contextlib.nullcontext() if alone else contextlib.suppress(OSError, ImportError):
            import fcntl

            lock = os.open(root / ".tables.lock", os.O_CREAT | (os.O_RDWR if alone else os.O_RDONLY), 0o666)
            held.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


def relative(path: Path, results: Results) -> str:
    """How a results folder's own tables name a file in it."""
    if is_local(path):
        return path.relative_to(results.root).as_posix()  # A backslash may be part of a name.
    return str(path).removeprefix(str(results.root)).lstrip("/")


_workspaces: dict[Path, tuple[Path, IO[bytes]]] = {}
_workspaces_lock = threading.Lock()


def temporary_folder(name: str) -> Path:
    """Where this user's temporary files of one kind lie on this machine, apart from other users'; not made."""
    user = getattr(os, "getuid", lambda: 0)()  # On Windows each user has such files elsewhere.
    return Path(tempfile.gettempdir()) / f"{name}-{user}"


def workspace(parent: Path) -> Path:
    """A folder of this process's own for unfinished files; those that a killed process left beside it are removed."""
    with _workspaces_lock:
        known = _workspaces.get(parent)
        if known is not None and known[0].is_dir():
            return known[0]
        parent.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(parent)
        folder = parent / uuid.uuid4().hex
        # Locked before it has the name by which others find it.
        waiting = folder.with_suffix(".new")
        file = waiting.open("wb")
        lock_file(file)
        waiting.rename(folder.with_suffix(".lock"))
        folder.mkdir()
        if not _workspaces:
            import atexit

            atexit.register(_leave_workspaces)
        _workspaces[parent] = folder, file
        return folder


def lock_file(file: IO[bytes]) -> bool:
    """Lock a file until it is closed or its process dies; False where there are no such locks (Windows)."""
    try:
        import fcntl
    except ImportError:
        return False
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


def to_disk(path: Path) -> None:
    """Make sure that a file, or a folder's list of files, outlives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clear_abandoned(results: Results) -> None:
    """Remove the unfinished files that killed processes of this machine left behind."""
    if is_local(results.root):
        _clear_abandoned(results.parts)
    _clear_abandoned(temporary_folder(SCRATCH))


def _clear_abandoned(parent: Path) -> None:
    for lock in parent.glob("*.lock"):
        _remove_if_abandoned(lock)


def _leave_workspaces() -> None:
    for folder, file in _workspaces.values():
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.with_suffix(".lock").unlink()
        file.close()
    _workspaces.clear()


def _remove_if_abandoned(lock: Path) -> None:
    with contextlib.suppress(OSError), lock.open("rb+") as file:
        if lock_file(file):  # Held by its process as long as that lives.
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink()


def content_id(path: Path) -> str:
    """Name a file by its bytes: the first 16 hexadecimal digits of their SHA-256.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_ID_LENGTH]


def unreadable_id(path: Path) -> str:
    """Name a file whose bytes cannot be read, by its path."""
    return hashlib.sha256(b"unreadable:" + os.fsencode(str(path))).hexdigest()[:_ID_LENGTH]


def is_video_id(text: str) -> bool:
    """Whether a text can be a video's id: no path, no pattern, nothing that a page or a query would take for more."""
    return re.fullmatch(f"[0-9a-f]{{{_ID_LENGTH}}}", text) is not None


def checked_id(text: object) -> str:
    """What a file names as a video's id, if it is one: of a stranger's file it may be the way to another folder.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(text, str) or not is_video_id(text):
        raise ValueError(f"{text!r} is no video's id")
    return text


def utf8(text: str) -> str:
    """A path or a message about it as text that every table and terminal takes; odd bytes of a name become `\\xe9`."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """Text of one line that cannot steer a terminal: what is no letter or sign to be seen is written as its number."""
    return "".join(
        letter if letter.isprintable() or unicodedata.category(letter) == "Zs" else ascii(letter)[1:-1]
        for letter in utf8(text)
    )


def _local_file(path: Path, status: os.stat_result) -> StoredFile:
    return StoredFile(path, status.st_size, f"{status.st_size}-{status.st_mtime_ns}", status.st_mtime)


def _stored_object(path: Path, info: dict[str, Any]) -> StoredFile:
    changed: Any = info.get("LastModified") or info.get("mtime") or info.get("updated") or info.get("last_modified")
    tag = info.get("ETag") or info.get("etag") or info.get("md5Hash") or changed
    modified_at = changed.timestamp() if hasattr(changed, "timestamp") else 0.0
    return StoredFile(path, info["size"], f"{info['size']}-{str(tag).strip(chr(34))}", modified_at)


def _readable(source: str) -> str:
    """A file's name without its ending; short enough for any disk with what is added to it."""
    return Path(source).stem.encode()[:180].decode(errors="ignore")
