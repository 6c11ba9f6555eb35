"""files and folders -> the videos in them, each content once, and which are still to be done."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ferflow.config import Settings
from ferflow.errors import ConfigError
from ferflow.frames import VIDEO_SUFFIXES
from ferflow.records import VideoSummary
from ferflow.rows import TABLES, read_video, write_empty_table
from ferflow.storage import Results, content_id, unreadable_id

_COLUMNS_ONLY = "columns.parquet"
# A part of each table without rows; it is also what a results folder is known by.


@dataclass(frozen=True, slots=True)
class Job:
    """One video and what is known of it before it is looked at."""

    source: Path
    """The file."""
    video_id: str
    """Hash of its bytes, or of its path if they cannot be read."""
    model_version: str
    """The weights that were in use when its turn came."""
    earlier: VideoSummary | None
    """The result that stands in the results folder for this content, model and settings; None if it is to be done."""
    copy_of: Path | None = None
    """A file named before that holds the same bytes, and whose result stands for both."""


def find_videos(sources: Iterable[Path]) -> list[Path]:
    """Every video in files and folders, folders with all that is below them, in order and none twice.

    A file that is named outright counts whatever its name; in a folder the name's ending decides. Hidden and
    half-copied files, and annotated videos in a results folder, are passed over.

    Raises:
        ConfigError: a source does not exist, or there is no video in any.
    """
    found: dict[Path, None] = {}
    sources = [source.absolute() for source in sources]
    for source in sources:
        if source.is_dir():
            found |= dict.fromkeys(_walk(source))
        elif source.exists():
            found[source] = None
        else:
            raise ConfigError(f"{source}: there is no such file or folder; check the name.")
    if not found:
        names = ", ".join(map(str, sources))
        raise ConfigError(f"{names}: no video in there; ferflow looks for {' '.join(sorted(VIDEO_SUFFIXES))}.")
    return list(found)


def open_results(root: Path) -> Results:
    """A results folder, made if it is not there, whose tables can be read from the first moment on.

    Raises:
        ConfigError: the folder cannot be made or written to.
    """
    results = Results(root.absolute())
    try:
        for name, schema in TABLES.items():
            path = results.table(name) / _COLUMNS_ONLY
            if not path.exists():
                write_empty_table(path, schema, parts=results.parts)
    except OSError as error:
        raise ConfigError(
            f"{root}: nothing can be written to this results folder ({error.strerror}); choose another with --results."
        ) from error
    return results


def plan_jobs(
    videos: Sequence[Path],
    results: Results,
    *,
    model_version: Callable[[], str],
    settings: Settings,
    force: bool = False,
) -> Iterator[Job]:
    """What is to be done about each video, one after the other; of the same content only once.

    Args:
        videos: the files.
        results: where earlier results may be.
        model_version: tells the weights to use; asked when a video's turn comes, because others may be promoted
            while a long run goes on.
        settings: the settings to use.
        force: do again what has been done.
    """
    seen: dict[str, Path] = {}
    for source in videos:
        try:
            video_id = content_id(source)
        except OSError:
            video_id = unreadable_id(source)
        else:
            # It could not be read once and now it can: that failure is no more.
            results.rows("videos", unreadable_id(source)).unlink(missing_ok=True)
        version = model_version()
        if video_id in seen:
            yield Job(source, video_id, version, None, copy_of=seen[video_id])
            continue
        seen[video_id] = source
        earlier = None if force else read_video(results.rows("videos", video_id))
        if earlier is not None and not _is_current(earlier, results, version, settings):
            earlier = None
        yield Job(source, video_id, version, earlier)


def _is_current(summary: VideoSummary, results: Results, model_version: str, settings: Settings) -> bool:
    files = [summary.annotated_path, summary.timeline_path]
    return (
        summary.model_version == model_version
        and summary.settings_hash == settings.settings_hash
        and all((results.root / file).exists() for file in files if file is not None)
    )


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        here = Path(parent)
        hidden_or_ours = {"annotated"} if _is_results(here) else set()
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in hidden_or_ours)
        for name in sorted(files):
            if not name.startswith((".", "~")) and Path(name).suffix.lower() in VIDEO_SUFFIXES:
                yield here / name


def _is_results(folder: Path) -> bool:
    return (folder / "videos" / _COLUMNS_ONLY).exists()
