"""Whether anyone has committed to the registry: this process, or a command line beside it."""

from __future__ import annotations

import sqlite3

from sqlalchemy import Connection


class CommitMark:
    """A connection of its own that says when the database was changed through another one.

    Not thread-safe: it belongs to whoever asks.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # The driver's own connection: a poll every few milliseconds has to cost microseconds.
        self._driver = connection.connection.driver_connection
        self._seen = self._version()

    def has_moved(self) -> bool:
        """Whether anything was committed since the last call; microseconds, and no lock."""
        try:
            before, self._seen = self._seen, self._version()
        except sqlite3.OperationalError:
            return True  # whoever was waiting looks, and is told what is wrong
        return before != self._seen

    def close(self) -> None:
        self._connection.close()

    def _version(self) -> int:
        assert self._driver is not None
        return int(self._driver.execute("PRAGMA data_version").fetchone()[0])
