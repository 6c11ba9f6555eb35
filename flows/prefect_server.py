"""arguments of `prefect server start` -> Prefect's server, which does not stand still where SQLite is busy

python -m flows.prefect_server --host 127.0.0.1 --port 4200

A statement fails where another one has just written ("database is locked"); Prefect then tries again. But its cursor
stays in a circle of references until Python looks for such circles, mostly on the thread that answers everybody. There
SQLite resets the statement, for which it waits for whatever the same connection is at by then, and that may be waiting
for a lock that is not given back, because nobody is answered: up to a minute, Prefect's limit. So a cursor is closed as
soon as its statement has failed, on the thread of its connection, where nothing else can be going on.
"""

import runpy
import sys
from collections.abc import Iterable
from typing import Any, Self

import aiosqlite


class ClosingCursor(aiosqlite.Cursor):
    """A cursor that holds no statement after an error."""

    async def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> Self:
        """Execute a statement.

        Raises:
            aiosqlite.Error: it failed; the cursor is closed.
        """
        try:
            await super().execute(sql, parameters)
        except aiosqlite.Error:
            await self.close()
            raise
        return self


def main() -> None:
    """Start the server and stay until it ends."""
    aiosqlite.core.Cursor = ClosingCursor  # type: ignore[misc]
    sys.argv[:1] = ["prefect", "server", "start"]
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
