"""folders and buckets, looked at again and again -> runs over the videos that are new and whole in them"""

import contextlib
import contextvars
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from ferflow.aside import move_aside
from ferflow.cut_off import may_grow
from ferflow.errors import ConfigError, FerflowError, StoppedError
from ferflow.inbox import Inbox
from ferflow.rows import KnownSource
from ferflow.sources import KnownSources, is_listed, list_videos, open_results
from ferflow.storage import StoredFile, absolute, content_id, is_local, place, stat_file, utf8, what_is_wrong
from ferflow.watch_settings import WatchSettings
from flows.folder_events import FolderEvents
from models.warm import version_in_use

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0
# Between two tries to begin a run where that is not possible, and between two questions for runs elsewhere.
_PAUSE_PER_QUESTION = 20.0
# Times as long as a question for runs elsewhere took, the next one comes at the earliest: it takes 3 to 5 ms for each
# run of 100 videos that waits there.
_LONGEST_WAIT_SECONDS = 3600.0
_RUNS_AT_ONCE = 2
# Each has processes of its own, as many as `workers` says, and they stay: two make the memory twice as large.
_SECONDS_APART = 3.0
# As long as a file takes to settle and to be gathered: what is dropped at once is one run, and what comes later waits
# no longer than it would anyway.
_LEFT = "What was not finished is left alone until its file changes, somebody starts it, or the watch starts anew."

Fate = Literal["done", "failed"]
"""What became of a video; a copy shares its original's."""


class Runs(Protocol):
    """Where videos are analysed: in this process, as a flow run of it, or by the workers of a deployment."""

    def ready(self) -> None:
        """Make sure that a run can begin.

        Raises:
            ConfigError: it cannot now; it may later.
        """
        ...

    def analyze(self, files: Sequence[StoredFile]) -> Mapping[str, Fate] | None:
        """Analyse videos, and tell by their path what became of those that are dealt with; from several threads.

        Returns:
            None where runs elsewhere do it: what becomes of the videos the results will say.

        Raises:
            Exception: whatever ended the run.
        """
        ...

    def stop(self) -> None:
        """End the runs that are under way, if they are of this process, and every later one; from any thread."""
        ...

    def unfinished(self) -> set[str] | None:
        """Paths of videos that runs elsewhere have not finished; None where there are none elsewhere."""
        ...

    def cancelled(self) -> set[str]:
        """Paths of videos in runs elsewhere that somebody has cancelled."""
        ...


class Watcher:
    """Finds new videos and has them analysed, each content once; what is done is known from the results.

    While a run is under way the watch goes on looking, and what comes meanwhile has a run of its own beside it: a clip
    does not wait for an hour of video. So that a thousand files are still a few runs, no more than two run at once, the
    second begins some seconds after the first and takes all that is waiting, and each takes as much as a run may.
    Runs have a thread each and share the processors by the system's turns; all else, above all who has which file, is
    done by the thread that watches, so that a file is in one run alone, and whoever cancels a run stops that one. Of
    copies in two runs one is claimed by the other, as between two watches, and is asked for again later.
    """

    def __init__(
        self,
        settings: WatchSettings,
        runs: Runs,
        *,
        say: Callable[[str], None],
    ) -> None:
        """Nothing is looked at yet.

        Args:
            settings: where to look, and what becomes of what is there.
            runs: where videos are analysed.
            say: told in a sentence what a person should know, each once.

        Raises:
            ConfigError: a source or the results folder cannot be used.
        """
        self._settings = settings
        self._runs = runs
        self._say = say
        self.sources = [absolute(place(source)) for source in settings.sources]
        """Where new videos arrive."""
        for source in self.sources:
            if is_local(source) and source.exists() and not source.is_dir():
                raise ConfigError(f"{source}: this is a file; name the folder in which new videos arrive.")
            if any(is_local(folder) != is_local(source) for folder in self._aside(source)):
                raise ConfigError(f"{source}: its videos cannot be moved between a bucket and a folder.")
        self._results = open_results(place(settings.results))
        self._known_sources = KnownSources(self._results)
        self._inbox = Inbox(
            settle_seconds=settings.settle_seconds,
            second_look_seconds=settings.second_look_seconds,
            look=_look,
            may_grow=may_grow,
        )
        self._sweeps_at = dict.fromkeys(self.sources, -math.inf)
        self._runs_at = self._asks_at = self._began_at = -math.inf
        self._under_way: dict[Future[Mapping[str, Fate] | None], Sequence[StoredFile]] = {}
        self._is_outdated = True
        self._model_version: str | None = None
        self._perhaps_known: dict[str, tuple[str, Mapping[str, Fate]]] = {}
        self._said: dict[object, str] = {}
        self._stop = threading.Event()
        self._events = FolderEvents([source for source in self.sources if is_local(source)])

    def watch(self) -> None:
        """Go on until `stop` is called; what goes wrong is said and tried again later."""
        with self._events, ThreadPoolExecutor(_RUNS_AT_ONCE, thread_name_prefix="run") as threads:
            while not self._stop.is_set():
                try:
                    self.notice(self._events.wait(self._seconds_to_wait()))
                    self._hear_of_ended_runs()
                    if time.monotonic() >= self._begins_at() and (files := self.take()):
                        self._begin(files, threads)
                except Exception as error:  # Nobody foresaw it; the watch goes on, and a sweep finds what was missed.
                    logger.exception("The watch stumbled.")
                    self._tell("watch", f"An error that nobody foresaw: {error!r}. The watch goes on.")
                    self._stop.wait(_RETRY_SECONDS)
        self._hear_of_ended_runs()

    def stop(self) -> None:
        """Let `watch` come back soon; may be called by another thread or from a signal's handler."""
        self._stop.set()
        self._runs.stop()
        self._events.wake()

    def look(self) -> list[StoredFile]:
        """Look once, and once more after the settle time if anything is new; gives what is whole then."""
        self.notice()
        if self._inbox.next_at(time.monotonic()) == math.inf:
            return []
        time.sleep(self._settings.settle_seconds + 0.05)
        return self.take()

    def notice(self, changed: Iterable[Path] = ()) -> None:
        """Look at what has changed, and through those sources whose time has come."""
        now = time.monotonic()
        changed = set(changed)
        for path in changed - set(self.sources):
            self._notice_one(path, now)
        due = [source for source in self.sources if now >= self._sweeps_at[source] or source in changed]
        if due:
            try:
                known = self._known_anew()
            except Exception as error:  # What is known must be known, or all of it would be done again.
                self._tell("results", _why(self._results.root, error))
                self._sweeps_at |= dict.fromkeys(self.sources, now + _RETRY_SECONDS)
                return
            self._tell_no_more("results", f"{self._results.root} can be read again.")
            for source in self.sources if known is not None else due:
                if not self._sweep(source, known or _Known()):
                    # Once it is there it is to hear what is known.
                    self._is_outdated = True
        self._follow(now)

    def take(self) -> list[StoredFile]:
        """Files for the next run; none while no run can begin."""
        now = time.monotonic()
        if now < self._runs_at:
            return []
        files = []
        for file in self._inbox.take(now, self._settings.videos_per_run):
            tag, fates = self._perhaps_known.pop(str(file.path), ("", {}))
            fate = _fate_by_content(file, fates) if tag == file.tag else None
            if fate is None:
                files.append(file)
            else:
                self._settle(file, fate)
        if files:
            try:
                self._runs.ready()
            except Exception as error:  # Whatever the way in which a server is away.
                self._tell("runs", f"{error} New videos wait.")
                for file in files:
                    self._inbox.put_back(file)
                self._runs_at = now + _RETRY_SECONDS
                return []
            self._tell_no_more("runs", "Videos are analysed again.")
        return files

    def _begins_at(self) -> float:
        """When a run may begin beside those that are under way."""
        if not self._under_way:
            return -math.inf
        return math.inf if len(self._under_way) >= _RUNS_AT_ONCE else self._began_at + _SECONDS_APART

    def _begin(self, files: Sequence[StoredFile], threads: Executor) -> None:
        """Run over files that `take` gave."""
        # In a copy of this thread's context: by it Prefect knows its settings.
        run = threads.submit(contextvars.copy_context().run, self._runs.analyze, files)
        self._under_way[run] = files
        self._began_at = time.monotonic()
        run.add_done_callback(lambda _: self._events.wake())

    def _hear_of_ended_runs(self) -> None:
        for run in [run for run in self._under_way if run.done()]:
            self._hear_of_run(run, self._under_way.pop(run))

    def _hear_of_run(self, run: "Future[Mapping[str, Fate] | None]", files: Sequence[StoredFile]) -> None:
        """What nothing came of is tried again later."""
        fates: Mapping[str, Fate] | None = {}
        try:
            fates = run.result()
        except StoppedError as error:
            if self._stop.is_set():
                return
            self._leave(files)
            self._say(f"{error} {_LEFT}")
            return
        except Exception as error:
            # Not the end of the watch: the next video may have more luck, and this one later.
            is_foreseen = isinstance(error, FerflowError | OSError)
            logger.log(logging.DEBUG if is_foreseen else logging.ERROR, "A run broke off.", exc_info=error)
            self._tell("a run", f"{error} What was not finished is tried again later.")
        else:
            self._said.pop("a run", None)
        if fates is not None:
            self.account(files, fates)

    def account(self, files: Iterable[StoredFile], fates: Mapping[str, Fate]) -> None:
        """What became of files that `take` gave; those of which nothing is said are tried again later."""
        now = time.monotonic()
        for file in files:
            fate = fates.get(str(file.path))
            if fate is not None:
                self._settle(file, fate)
            else:
                # Until then another run may have done it, and the results say so.
                self._inbox.give_back(file, now)
                self._is_outdated = True

    def _leave(self, files: Iterable[StoredFile]) -> None:
        """Somebody has stopped the work on these; the results may know some of them by now."""
        for file in files:
            self._inbox.done(file)
        self._is_outdated = True

    @property
    def _sent(self) -> list[StoredFile]:
        """The files in work that no run of this process is at."""
        at_work = {str(file.path) for files in self._under_way.values() for file in files}
        return [file for file in self._inbox.in_work if str(file.path) not in at_work]

    def _follow(self, now: float) -> None:
        """Ask what became of videos that were sent elsewhere."""
        in_work = self._sent
        if not in_work or now < self._asks_at:
            return
        self._asks_at = now + _RETRY_SECONDS
        try:
            unfinished = self._runs.unfinished()
            self._asks_at = max(self._asks_at, now + _PAUSE_PER_QUESTION * (time.monotonic() - now))
            ended = [file for file in in_work if unfinished is not None and str(file.path) not in unfinished]
            if ended:
                known = _Known.of(self._known_sources.look(), self._is_current)
                fates = {
                    str(file.path): known.fate(file) or _fate_by_content(file, known.alike(file)) for file in ended
                }
                cancelled = self._runs.cancelled() if None in fates.values() else set()
                self._leave(file for file in ended if str(file.path) in cancelled)
                self.account(ended, {path: fate for path, fate in fates.items() if fate is not None})
        except Exception as error:  # Whatever the way in which a server is away.
            self._tell("runs", str(error))

    def _sweep(self, source: Path, known: "_Known") -> bool:
        """Look through a source; False for one that is not there, which is waited for."""
        now = time.monotonic()
        interval = self._settings.sweep_seconds if is_local(source) else self._settings.bucket_seconds
        self._sweeps_at[source] = now + interval
        try:
            if is_local(source) and not source.is_dir():
                self._tell(source, f"{source}: this folder is not there; it is waited for.")
                return False
            self._inbox.sweep(source, self._screened(list_videos(source), source, known), now)
        except Exception as error:  # Each store's library has errors of its own.
            self._tell(source, _why(source, error))
            return False
        self._tell_no_more(source, f"{source} can be read again.")
        return True

    def _notice_one(self, path: Path, now: float) -> None:
        source = next((source for source in self.sources if is_local(source) and path.is_relative_to(source)), None)
        if source is None:
            return
        files: Iterable[StoredFile] = ()
        with contextlib.suppress(OSError):  # Not to be seen; a later event or a sweep may see it.
            if path.is_dir():
                files = [file for file in list_videos(path) if is_listed(file.path, source)]
            elif is_listed(path, source):
                files = [stat_file(path)]
        for file in self._screened(files, source, _Known()):
            self._inbox.see(file, now)

    def _screened(self, files: Iterable[StoredFile], source: Path, known: "_Known") -> Iterator[StoredFile]:
        """Files without those that were moved aside; of those that are known, the inbox hears."""
        aside = self._aside(source)
        for file in files:
            if any(file.path.is_relative_to(folder) for folder in aside):
                continue
            fate = known.fate(file)
            if fate is not None:
                self._settle(file, fate)
            elif alike := known.alike(file):
                self._perhaps_known[str(file.path)] = file.tag, alike
            yield file

    def _settle(self, file: StoredFile, fate: Fate) -> None:
        """A video is dealt with, and the results say so."""
        self._inbox.done(file)
        if self._settings.after == "leave":
            return
        source = next(source for source in self.sources if file.path.is_relative_to(source))
        done, failed = self._aside(source)
        folder = done if fate == "done" else failed
        below = str(file.path.parent)[len(str(source)) :].strip("/\\")
        try:
            if (now := _look(file.path)) is not None and now.tag == file.tag:
                move_aside(file.path, folder / below if below else folder)
        except OSError as error:
            self._tell(folder, f"{file.path}: it cannot be moved to {folder} ({error.strerror or error}); it stays.")

    def _aside(self, source: Path) -> tuple[Path, ...]:
        """Where dealt-with videos of a source go: analysed ones and failed ones."""
        if self._settings.after == "leave":
            return ()
        names = self._settings.done_folder, self._settings.failed_folder
        return tuple(
            place(name) if "://" in name or Path(name).is_absolute() else source.parent / name for name in names
        )

    def _known_anew(self) -> "_Known | None":
        """What the results say, if that may be other than what is known here."""
        if self._settings.redo_outdated:
            version = version_in_use(self._settings.settings.model)
            if version != self._model_version:
                self._model_version = version
                self._inbox.forget_done()
                self._is_outdated = True
        if not self._is_outdated:
            return None
        known = _Known.of(self._known_sources.look(), self._is_current)
        self._is_outdated = False
        self._perhaps_known.clear()
        return known

    def _is_current(self, known: KnownSource) -> bool:
        return not self._settings.redo_outdated or (
            known.model_version == self._model_version and known.settings_hash == self._settings.settings.settings_hash
        )

    def _seconds_to_wait(self) -> float:
        now = time.monotonic()
        times = [*self._sweeps_at.values(), max(self._inbox.next_at(now), self._runs_at, self._begins_at())]
        if self._sent:
            times.append(self._asks_at)
        return min(max(min(times) - now, 0.0), _LONGEST_WAIT_SECONDS)

    def _tell(self, about: object, sentence: str) -> None:
        """Say what is wrong, once."""
        if self._said.get(about) != sentence:
            self._said[about] = sentence
            self._say(sentence)

    def _tell_no_more(self, about: object, sentence: str) -> None:
        """Say that it is right again."""
        if self._said.pop(about, None) is not None:
            self._say(sentence)


@dataclass(frozen=True, slots=True)
class _Known:
    """What the results say of files, for as long as it is needed."""

    by_path: Mapping[str, KnownSource] = field(default_factory=dict)
    by_tag: Mapping[str, Fate] = field(default_factory=dict)
    by_length: Mapping[str, Mapping[str, Fate]] = field(default_factory=dict)

    @classmethod
    def of(cls, sources: Mapping[str, KnownSource], is_current: Callable[[KnownSource], bool]) -> "_Known":
        by_path = {path: known for path, known in sources.items() if known.source_tag is not None and is_current(known)}
        by_length: dict[str, dict[str, Fate]] = {}
        for known in by_path.values():
            by_length.setdefault(_length(known.source_tag), {})[known.video_id] = _fate(known)
        return cls(by_path, {known.source_tag or "": _fate(known) for known in by_path.values()}, by_length)

    def fate(self, file: StoredFile) -> Fate | None:
        """What became of a file, as far as that is known without reading it."""
        known = self.by_path.get(utf8(str(file.path)))
        if known is not None and known.source_tag == file.tag:
            return _fate(known)
        # A bucket's tag is made of the bytes.
        return None if is_local(file.path) else self.by_tag.get(file.tag)

    def alike(self, file: StoredFile) -> Mapping[str, Fate]:
        """Those that it may be a copy of, being of the same length: by their id."""
        return self.by_length.get(_length(file.tag), {}) if is_local(file.path) else {}


def _fate(known: KnownSource) -> Fate:
    return "failed" if known.status == "failed" else "done"


def _length(tag: str | None) -> str:
    return (tag or "").partition("-")[0]


def _fate_by_content(file: StoredFile, fates: Mapping[str, Fate]) -> Fate | None:
    if not fates:
        return None
    try:
        return fates.get(content_id(file.path))
    except OSError:
        return None


def _look(path: Path) -> StoredFile | None:
    try:
        return stat_file(path)
    except Exception:  # Gone, or not to be seen at the moment: then the next listing tells of it again.
        return None


def _why(source: Path, error: Exception) -> str:
    """A sentence on a place that cannot be read."""
    wrong = what_is_wrong(source, error)
    if isinstance(wrong, ConfigError):
        return f"{wrong} It is tried again."
    return f"{source}: this cannot be read ({getattr(wrong, 'strerror', None) or wrong}); it is tried again."
