"""what lies in the inbox, from look to look, and a clock -> which files are whole and new now"""

import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ferflow.storage import StoredFile, is_local

_FIRST_GATHERING_SECONDS, _LONGEST_GATHERING_SECONDS = 1.5, 30.0
# So long whole files wait for others that keep coming, the longer the longer that has gone on: of a thousand videos
# copied at leisure each run takes as many as came since the last, or half as many again.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 60.0, 900.0
# Before a file is handed out again that nothing came of; doubled each time.
_SMALLER_LOTS = 4


@dataclass(slots=True)
class _Waiting:
    """A file that is not done with."""

    file: StoredFile
    """As it was seen last."""
    since: float
    """When it was first seen like this."""
    changed_at: float
    """When it was last changed, as the disk says."""
    due: float
    """Not to be handed out before; never, while it is in work."""
    waits_for_more: bool = False
    """It has been found to be one that may grow."""
    tries: int = 0
    """How often nothing came of it."""


class Inbox:
    """The files that are not done with: on their way, whole, or in work.

    Times are seconds of any clock that never goes back. A file that was handed out by `take` is in work until
    `done` or `give_back` tells what came of it; should its bytes change meanwhile, it is a new file again.
    """

    def __init__(
        self,
        *,
        settle_seconds: float,
        second_look_seconds: float,
        look: Callable[[Path], StoredFile | None],
        may_grow: Callable[[Path], bool],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Nothing is in it.

        Args:
            settle_seconds: a file of a folder is whole when it has been seen unchanged for so long.
            second_look_seconds: one that may grow nevertheless, when it has not been changed for so long.
            look: gives a file as it is now; None if it is gone.
            may_grow: tells a file that ends before its own end, or does not say where that is.
            wall_clock: gives the seconds since 1970, which the times of files are compared with.
        """
        self._settle_seconds = settle_seconds
        self._second_look_seconds = second_look_seconds
        self._look = look
        self._may_grow = may_grow
        self._wall_clock = wall_clock
        self._waiting: dict[str, _Waiting] = {}
        self._done: dict[str, str] = {}
        self._arrived_at = self._arriving_since = -math.inf

    def see(self, file: StoredFile, now: float) -> None:
        """A file is there, new or as before."""
        name = str(file.path)
        if self._done.get(name) == file.tag:
            return
        known = self._waiting.get(name)
        if known is not None and known.file.tag == file.tag:
            return
        if known is None:
            if now - self._arrived_at > self._settle_seconds:
                self._arriving_since = now
            self._arrived_at = now
        # A bucket's object appears when all of it is there.
        settle_seconds = self._settle_seconds if is_local(file.path) else 0.0
        changed_at = now - max(self._wall_clock() - file.modified_at, 0.0)
        self._waiting[name] = _Waiting(file, now, changed_at, now + settle_seconds)

    def sweep(self, folder: Path, files: Iterable[StoredFile], now: float) -> None:
        """These files and no others are in a folder; what is known of others that were in it is forgotten.

        Of an empty folder nothing is forgotten: it may be a disk that is not there at the moment.
        """
        present = set()
        for file in files:
            present.add(str(file.path))
            self.see(file, now)
        if not present:
            return
        below = tuple(f"{str(folder).rstrip('/')}{separator}" for separator in ("/", os.sep))
        for names in (self._waiting, self._done):
            for name in [name for name in names if name.startswith(below) and name not in present]:
                names.pop(name)

    def take(self, now: float, most: int) -> list[StoredFile]:
        """Whole files, those that came first first; they are in work from now on.

        Files that nothing came of go after the others, among themselves, and each time in smaller lots: one that spoils
        every run that it is in is soon alone.

        Args:
            now: the time.
            most: no more than so many.
        """
        if now < self._gathered_at(now):
            return []
        whole: list[StoredFile] = []
        tries: int | None = None
        for name, waiting in sorted(self._due(now), key=lambda item: (item[1].tries, item[1].since)):
            if len(whole) >= max(most // _SMALLER_LOTS ** (tries or 0), 1) or tries not in (None, waiting.tries):
                break
            file = self._look(waiting.file.path)
            if file is None:
                del self._waiting[name]
            elif file.tag != waiting.file.tag:
                self.see(file, now)
            elif self._is_awaited(waiting, now):
                waiting.waits_for_more = True
                waiting.due = waiting.changed_at + self._second_look_seconds
            else:
                waiting.due, tries = math.inf, waiting.tries
                whole.append(file)
        return whole

    def next_at(self, now: float) -> float:
        """When `take` may give something, as far as is known now; infinity if nothing waits."""
        return max(min((waiting.due for waiting in self._waiting.values()), default=math.inf), self._gathered_at(now))

    @property
    def in_work(self) -> list[StoredFile]:
        """The files that were handed out and of which nothing has been heard."""
        return [waiting.file for waiting in self._waiting.values() if waiting.due == math.inf]

    def done(self, file: StoredFile) -> None:
        """A file with these bytes need not be handed out again."""
        name = str(file.path)
        known = self._waiting.get(name)
        if known is not None and known.file.tag == file.tag:
            del self._waiting[name]
        self._done[name] = file.tag

    def give_back(self, file: StoredFile, now: float) -> None:
        """Nothing came of a file: it is handed out again after a while, each time a longer one."""
        known = self._waiting.get(str(file.path))
        if known is not None and known.file.tag == file.tag:
            known.due = now + min(_FIRST_PAUSE_SECONDS * 2**known.tries, _LONGEST_PAUSE_SECONDS)
            known.tries += 1

    def put_back(self, file: StoredFile) -> None:
        """A file was not begun: it is handed out again at once."""
        known = self._waiting.get(str(file.path))
        if known is not None and known.file.tag == file.tag:
            known.due = known.since

    def forget_done(self) -> None:
        """Whatever is done is to be told anew."""
        self._done.clear()

    def _due(self, now: float) -> list[tuple[str, _Waiting]]:
        return [(name, waiting) for name, waiting in self._waiting.items() if waiting.due <= now]

    def _gathered_at(self, now: float) -> float:
        """Until when whole files wait for others that are coming; minus infinity if none is whole."""
        due = min((waiting.due for _, waiting in self._due(now)), default=-math.inf)
        patience = min(max((now - self._arriving_since) / 2, _FIRST_GATHERING_SECONDS), _LONGEST_GATHERING_SECONDS)
        return min(self._arrived_at + self._settle_seconds, due + patience)

    def _is_awaited(self, waiting: _Waiting, now: float) -> bool:
        if (
            waiting.waits_for_more
            or now >= waiting.changed_at + self._second_look_seconds
            or not is_local(waiting.file.path)
        ):
            return False
        try:
            return self._may_grow(waiting.file.path)
        except OSError:  # Gone since it was looked at; the next look will say so.
            return True
