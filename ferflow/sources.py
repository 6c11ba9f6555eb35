"""files, folders and buckets -> the videos in them, each content once, and which are still to be done."""

import contextlib
import dataclasses
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from ferflow.claims import Claims, can_hold
from ferflow.compaction import take_out
from ferflow.config import Settings
from ferflow.errors import ConfigError, SourceError, VideoError
from ferflow.frames import VIDEO_SUFFIXES
from ferflow.merged_rows import find_video
from ferflow.records import VideoSummary
from ferflow.rows import (
    COLUMNS_ONLY,
    TABLES,
    KnownSource,
    read_analysis,
    read_known_sources,
    write_empty_table,
    write_video,
)
from ferflow.storage import (
    Results,
    StoredFile,
    absolute,
    content_id,
    fetched,
    holding_tables,
    is_local,
    list_files,
    printable,
    reach,
    stat_file,
    unreadable_id,
    utf8,
)

logger = logging.getLogger(__name__)

_REQUESTS_AT_ONCE = 16
_ATTEMPTS = 5
_CHANGED = "it was changed or replaced while it was read; the next run analyses it once more."
_GONE = "there is no such file."
_NO_FILE = "this is a pipe or a device, not a file; name a video or a folder of videos."


@dataclass(frozen=True, slots=True)
class Job:
    """One video and what is known of it before it is looked at."""

    source: Path
    """The file, in a folder or a bucket."""
    file: Path
    """The file on this machine: the same, or a copy of a bucket's that is kept until the job is closed."""
    video_id: str
    """Hash of its bytes, or of its path if they cannot be read."""
    tag: str | None
    """By what the file is known again, see `storage.StoredFile`; None if it is not to be seen."""
    model_version: str
    """The weights that were in use when its turn came."""
    earlier: VideoSummary | None
    """The result that stands in the results folder for this content, model and settings; None if it is to be done."""
    fault: str | None = None
    """Why it cannot be told what is in the file: there is nothing to do about it now."""
    outdated: VideoSummary | None = None
    """The result for this content that is to be replaced."""
    copy_of: Path | None = None
    """A file named before that holds the same bytes, and whose result stands for both."""
    is_elsewhere: bool = False
    """Another run is at work on it: there is nothing to do here."""
    is_forced: bool = False
    """What an unfinished run left of it is made anew too."""
    is_lost: Callable[[], bool] = field(default=lambda: False, compare=False, repr=False)
    """Whether another run has taken it over meanwhile, because this process was not seen for long."""
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, compare=False, repr=False)
    """The claim on the video and the copy of its file."""

    @property
    def name(self) -> str:
        """Of the file, without its folder, as text of one line: a name may hold anything."""
        return printable(self.source.name)

    @contextlib.contextmanager
    def at_hand(self) -> Iterator[Path]:
        """The file on this machine, also if the job was planned on another.

        Raises:
            SourceError: it is gone, meanwhile another file has taken its place, or it was written to.
        """
        with contextlib.ExitStack() as copy:
            file = self.file
            if not file.exists():
                try:
                    file = copy.enter_context(fetched(self.source))
                except FileNotFoundError as error:
                    raise SourceError(f"{self.source}: {_GONE}") from error
            try:
                yield file
            except VideoError:
                # What was found to be wrong with it may be that it changed, or cannot be read now.
                if is_local(self.source):
                    with _faults_told(self.source):
                        self._check_unchanged()
                        with self.source.open("rb") as opened:
                            opened.read(1)
                raise
        with contextlib.suppress(FileNotFoundError):  # All of it had been read.
            self._check_unchanged()

    def has_changed(self) -> bool:
        """Whether another file has taken its place, or it was written to.

        Raises:
            OSError: it is not there or not to be seen.
        """
        return self.tag is not None and is_local(self.source) and stat_file(self.source).tag != self.tag

    def _check_unchanged(self) -> None:
        if self.has_changed():
            raise SourceError(f"{self.source}: {_CHANGED}")

    def close(self) -> None:
        """Give up the claim on the video and the copy of its file; it is finished or will not be."""
        self.held.close()


def find_videos(sources: Iterable[Path]) -> list[Path]:
    """Every video in files and folders, folders with all that is below them, in order and none twice.

    A file that is named outright counts whatever its name; in a folder the name's ending decides. Hidden and
    half-copied files, and annotated videos in a results folder, are passed over.

    A named file that is not there is among them as long as there is another, so that it is told when its turn comes.

    Raises:
        ConfigError: no source exists, or there is no video in any.
    """
    found: dict[Path, None] = {}
    faults: dict[Path, str] = {}
    sources = [absolute(source) for source in sources]
    for source in sources:
        there = reach(source)
        if there == "folder":
            found |= dict.fromkeys(_walk(source) if is_local(source) else (file.path for file in list_videos(source)))
            continue
        found[source] = None
        if there is None:
            faults[source] = "there is no such file or folder; check the name."
        elif not _is_regular(source):
            faults[source] = _NO_FILE
    if len(faults) == len(found):
        for source, fault in faults.items():
            raise ConfigError(f"{source}: {fault}")
        names = ", ".join(map(str, sources))
        raise ConfigError(f"{names}: no video in there; ferflow looks for {' '.join(sorted(VIDEO_SUFFIXES))}.")
    return list(found)


def list_videos(folder: Path) -> Iterator[StoredFile]:
    """Every video in a folder or a bucket's prefix with all that is below it, in order, as its listing shows it.

    Raises:
        OSError: the bucket cannot be listed.
    """
    if not is_local(folder):
        yield from _walk_bucket(folder)
        return
    for path in _walk(folder):
        with contextlib.suppress(OSError):  # Gone meanwhile, or a link that leads nowhere.
            yield stat_file(path)


def is_listed(path: Path, folder: Path) -> bool:
    """Whether a file in a folder of this machine, or in one below it, is one that `list_videos` would name."""
    if not _is_video(path.name) or not _is_regular(path):
        return False
    parents = [folder / parent for parent in path.relative_to(folder).parents]
    return not any(_is_passed_over(parent) for parent in parents if parent != folder)


def open_results(root: Path) -> Results:
    """A results folder, made if it is not there, whose tables can be read from the first moment on.

    Raises:
        ConfigError: the folder cannot be made or written to, or is of a store that cannot hold claims.
    """
    results = Results(absolute(root))
    reach(root)
    try:
        if not is_local(root) and not results.table("videos").exists() and not can_hold(results):
            raise ConfigError(
                f"{root}: this store makes a file anew where there is one, though asked not to, so two processes could "
                "not be kept from the same video; choose a folder or another store with --results."
            )
        for name, schema in TABLES.items():
            path = results.table(name) / COLUMNS_ONLY
            if not path.exists():
                write_empty_table(path, schema, parts=results.parts)
    except OSError as error:
        raise ConfigError(
            f"{root}: nothing can be written to this results folder ({error.strerror or error}); "
            "choose another with --results."
        ) from error
    return results


def plan_jobs(
    videos: Sequence[Path],
    results: Results,
    *,
    model_version: Callable[[], str],
    settings: Settings,
    force: bool = False,
    only_help: bool = False,
    claims: Claims | None = None,
) -> Iterator[Job]:
    """What is to be done about each video, one after the other; of the same content only once.

    Whoever takes a job closes it.

    Args:
        videos: the files.
        results: where earlier results may be.
        model_version: tells the weights to use; asked when a video's turn comes, because others may be promoted
            while a long run goes on.
        settings: the settings to use.
        force: do again what has been done.
        only_help: leave out all but those that another run is at work on.
        claims: those of this process in the results folder; None for claims of their own.

    Raises:
        OSError: the results folder is at fault.
    """
    claims = claims or Claims(results)
    # Those of a bucket are not all fetched again only to see that they are known.
    is_worth_it = not force and len(videos) > 1 and not all(map(is_local, videos))
    known = KnownSources(results).look() if is_worth_it else {}
    claimed = claims.claimed()
    seen: dict[str, Path] = {}

    def plan(source: Path, version: str) -> Job:
        with contextlib.ExitStack() as held:
            video_id, file, tag = _identify(source, known, held)
            if video_id in seen:
                return Job(source, file, video_id, tag, version, None, copy_of=seen[video_id])
            row = None if force else _row(video_id, results)
            earlier = _current(row, results, version, settings)
            is_elsewhere = False
            if only_help:
                is_elsewhere = earlier is None and claims.is_held(video_id)
            elif earlier is None:
                if file is source and not is_local(source):
                    with _faults_told(source):
                        file = held.enter_context(fetched(source))
                if held.enter_context(claims.hold(video_id)):
                    # Whoever had it until now may have finished it.
                    row = _row(video_id, results)
                    earlier = None if force else _current(row, results, version, settings)
                    if earlier is None:
                        take_out(results, video_id)
                        _outdate(row, results)
                else:
                    is_elsewhere = True
            elif video_id in claimed:
                with claims.hold(video_id):
                    pass
            seen[video_id] = source
            return Job(
                *(source, file, video_id, tag, version, earlier),
                outdated=row if earlier is None else None,
                is_elsewhere=is_elsewhere,
                is_forced=force,
                is_lost=partial(claims.is_lost, video_id),
                held=held.pop_all(),
            )

    for source in videos:
        version = model_version()
        try:
            job = plan(source, version)
        except SourceError as error:
            fault = str(error).removeprefix(f"{source}: ")
            job = Job(source, source, unreadable_id(source), None, version, None, fault=fault)
        if only_help and not job.is_elsewhere:
            job.close()
        else:
            yield job


class KnownSources:
    """What the results say of each file. Asked again, it reads only what came or changed since."""

    def __init__(self, results: Results) -> None:
        """Nothing is read yet."""
        self._results = results
        self._files: dict[Path, tuple[str, list[KnownSource]]] = {}

    def look(self) -> Mapping[str, KnownSource]:
        """The newest row of each file, by its path or address as text.

        Raises:
            OSError: the results are not to be read.
        """
        for _ in range(_ATTEMPTS):
            # In a bucket files may be merged between the listing and the reading.
            with holding_tables(self._results.root), contextlib.suppress(FileNotFoundError):
                return self._look()
        with holding_tables(self._results.root):
            return self._look()

    def _look(self) -> Mapping[str, KnownSource]:
        listed = {
            file.path: file.tag for file in list_files(self._results.table("videos")) if file.path.suffix == ".parquet"
        }
        changed = [path for path, tag in listed.items() if path not in self._files or self._files[path][0] != tag]
        with ThreadPoolExecutor(1 if is_local(self._results.root) else _REQUESTS_AT_ONCE) as pool:
            read = dict(zip(changed, pool.map(_read_known, changed), strict=True))
        self._files = {
            path: (tag, read[path] if path in read else self._files[path][1]) for path, tag in listed.items()
        }
        known: dict[str, KnownSource] = {}
        for row in (row for _, rows in self._files.values() for row in rows):
            if row.source not in known or known[row.source].processed_at <= row.processed_at:
                known[row.source] = row
        return known


def _read_known(path: Path) -> list[KnownSource]:
    try:
        return read_known_sources(path)
    except VideoError as error:
        # Its video counts as not done, and its row is written anew once that is.
        logger.warning("%s", error)
        return []


def _identify(
    source: Path, known: Mapping[str, KnownSource], held: contextlib.ExitStack
) -> tuple[str, Path, str | None]:
    """A video's id, its file on this machine if that was needed to tell, and its tag.

    Raises:
        SourceError: it cannot be read now, or changed while it was read.
    """
    with _faults_told(source):
        tag = stat_file(source).tag
        before = known.get(utf8(str(source)))
        if before is not None and before.source_tag == tag:
            return before.video_id, source, tag
        if not _is_regular(source):
            raise SourceError(f"{source}: {_NO_FILE}")
        file = held.enter_context(fetched(source))
        video_id = content_id(file)
        if is_local(source) and stat_file(source).tag != tag:
            raise SourceError(f"{source}: {_CHANGED}")
    return video_id, file, tag


@contextlib.contextmanager
def _faults_told(source: Path) -> Iterator[None]:
    """What the disk or the store says of a file is a sentence about it, and none about what is in it."""
    try:
        yield
    except FileNotFoundError as error:
        raise SourceError(f"{source}: {_GONE}") from error
    except PermissionError as error:
        raise SourceError(f"{source}: the file cannot be read; ask its owner for permission to read it.") from error
    except OSError as error:
        raise SourceError(
            f"{source}: the file cannot be read ({error.strerror or error}); check the disk, or where the link leads. "
            "The next run tries it again."
        ) from error


def _row(video_id: str, results: Results) -> VideoSummary | None:
    try:
        return find_video(results, video_id)
    except VideoError:
        # A file of its own that is damaged is written anew; one of many videos is not, behind their owner's back.
        if not results.rows("videos", video_id).exists():
            raise
        return None


def _outdate(row: VideoSummary | None, results: Results) -> None:
    """See to it that a row whose faces are about to be replaced is taken for nobody's result, also if that ends early.

    It stays, because until then it is true, and should the file be gone by the next run, all that is left.
    """
    if row is not None:
        outdated = dataclasses.replace(row, settings_hash="")
        write_video(results.rows("videos", row.video_id), outdated, parts=results.parts)


def _current(row: VideoSummary | None, results: Results, model_version: str, settings: Settings) -> VideoSummary | None:
    """The row, if there is nothing to do about its video."""
    if row is None or row.model_version != model_version or row.settings_hash != settings.settings_hash:
        return None
    files = [row.annotated_path, row.timeline_path]
    if not all((results.root / file).exists() for file in files if file is not None):
        return None
    return None if _is_damaged(results.rows("faces", row.video_id)) else row


def _is_damaged(faces: Path) -> bool:
    """Whether a video's file of the faces table is there and cannot be read; in a bucket it would cost two requests."""
    return is_local(faces) and faces.exists() and read_analysis(faces) is None


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, onerror=_say_passed_over):
        here = Path(parent)
        folders[:] = sorted(name for name in folders if not _is_passed_over(here / name))
        for name in sorted(files):
            if not _is_video(name):
                continue
            if _is_regular(here / name):
                yield here / name
            else:
                _say_once(f"{here / name}: this is a pipe or a device, not a file; it is passed over.")


def _say_passed_over(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        _say_once(f"{error.filename}: this folder cannot be read ({error.strerror}); what is in it is passed over.")


@cache
def _say_once(sentence: str) -> None:
    # A folder that is watched is listed again and again.
    logger.warning("%s", sentence)


def _walk_bucket(folder: Path) -> Iterator[StoredFile]:
    bucket: Any = folder
    depth = len(bucket.parts)
    files = list(list_files(folder))
    ours = {
        str(file.path.parent.parent)
        for file in files
        if file.path.name == COLUMNS_ONLY and file.path.parent.name == "videos"
    }
    for file in files:
        is_hidden = any(name.startswith(".") for name in file.path.parts[depth:-1])
        is_drawn = any(parent.name == "annotated" and str(parent.parent) in ours for parent in file.path.parents)
        if not is_hidden and not is_drawn and _is_video(file.path.name):
            yield file


def _is_video(name: str) -> bool:
    """Half-copied files have names of their own, such as .part, .crdownload or ~ at the end, which are no video's."""
    return not name.startswith((".", "~")) and Path(name).suffix.lower() in VIDEO_SUFFIXES


def _is_regular(path: Path) -> bool:
    """Whether a file is none that never ends or waits for a writer; one that cannot be seen is told in its turn."""
    if not is_local(path):
        return True
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def _is_passed_over(folder: Path) -> bool:
    return folder.name.startswith(".") or (folder.name == "annotated" and _is_results(folder.parent))


def _is_results(folder: Path) -> bool:
    return (folder / "videos" / COLUMNS_ONLY).exists()
