"""folders -> which paths in them have changed, as the system tells it"""

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

logger = logging.getLogger(__name__)

_STEP_MS = 100
# Events that come closer together than this are told at once.
_LOOK_MS = 2000
# How often to see whether the folder is still the same.
_RETRY_SECONDS = 2.0


class FolderEvents:
    """Listens to folders while it is entered; a folder may vanish and come back."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Nothing is listened to yet."""
        self._folders = folders
        self._changed: set[Path] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._told = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        for folder in self._folders:
            thread = threading.Thread(target=self._listen, args=[folder], name=f"watch {folder.name}", daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(_RETRY_SECONDS)

    def wait(self, seconds: float) -> set[Path]:
        """Files and folders that have changed since the last question; waits for one, so many seconds at most."""
        self._told.wait(max(seconds, 0.0))
        with self._lock:
            self._told.clear()
            changed, self._changed = self._changed, set()
        return changed

    def wake(self) -> None:
        """End a wait that is under way; may be called from a signal's handler."""
        self._told.set()

    def _listen(self, folder: Path) -> None:
        said = ""
        while not self._stop.is_set():
            try:
                self._listen_while_it_is_there(folder)
                said = ""
            except FileNotFoundError:
                pass  # The watcher says so.
            except (
                Exception
            ) as error:  # What the system or the library may raise is theirs; a sweep finds all the same.
                if said != str(error):
                    said = str(error)
                    logger.warning("%s: no file events here (%s); the folder is looked through instead.", folder, said)
            self._stop.wait(_RETRY_SECONDS)

    def _listen_while_it_is_there(self, folder: Path) -> None:
        from watchfiles import watch

        identity, real = _identity(folder), folder.resolve()
        # What came before somebody listened, also while it was away.
        self._tell({folder})
        for changes in watch(
            real,
            watch_filter=None,
            stop_event=self._stop,
            step=_STEP_MS,
            rust_timeout=_LOOK_MS,
            yield_on_timeout=True,
            raise_interrupt=False,
        ):
            if changes:
                self._tell({folder / Path(path).relative_to(real) for _, path in changes})
            if _identity(folder) != identity:
                return

    def _tell(self, paths: set[Path]) -> None:
        with self._lock:
            self._changed |= paths
            self._told.set()


def _identity(folder: Path) -> tuple[int, int]:
    """What differs if another folder, or another disk's, takes a folder's place."""
    status = folder.stat()
    return status.st_dev, status.st_ino
