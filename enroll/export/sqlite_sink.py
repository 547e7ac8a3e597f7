"""Telemetry in a SQLite database: each message exactly once, by (device, boot, seq, stream).

A batch is one transaction, on disk (WAL, synchronous FULL) before `write` returns. A message without an envelope has no
key: the broker may bring it a second time after a crash, and then it is there twice.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from enroll.export.readings import Reading
from enroll.export.sink import SinkBusy, Written, claim, is_in_place, reason
from fleet.errors import FleetError, InvalidInput
from fleet.messages import format_time

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS telemetry (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    device TEXT NOT NULL,
    stream TEXT NOT NULL,
    boot TEXT,
    seq INTEGER,
    sent_at TEXT,
    received_at TEXT NOT NULL,
    data TEXT,
    payload BLOB,
    UNIQUE (device, boot, seq, stream)
)
"""
COLUMNS: Final = "device, stream, boot, seq, sent_at, received_at, data, payload"
_INSERT: Final = f"INSERT INTO telemetry ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"  # noqa: S608 - ours
_BUSY_SECONDS: Final = 5.0


class SqliteSink:
    """A table `telemetry` in the database at `path`, made if it is not there."""

    def __init__(self, path: Path) -> None:
        """Raises: FleetError if the file is no database, or cannot be written, or another export has it."""
        self._path = path
        self._is_broken = False
        self._claim = _claimed(path)
        try:
            self.database = self._open()
        except sqlite3.Error as error:
            os.close(self._claim)
            raise _not_ours(path, error) from error

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            database.execute(_SCHEMA)
            database.execute(f"SELECT n, {COLUMNS} FROM telemetry LIMIT 0")  # noqa: S608 - ours
        except BaseException:
            database.close()
            raise
        return database

    def write(self, readings: Sequence[Reading]) -> Written:
        """All of them in one transaction; those whose key is there already are passed over.

        Raises: SinkBusy, FleetError if the database was taken away.
        """
        if not is_in_place(self._claim, self._path):
            raise FleetError(
                f"{self._path} was moved or removed meanwhile", hint="start the export again: it makes one"
            )
        rows = [_row(reading) for reading in readings]
        try:
            stored = self._insert(rows)
        except sqlite3.OperationalError as error:
            self._is_broken = True
            raise SinkBusy(f"{self._path} cannot be written: {error}") from error
        except sqlite3.DatabaseError as error:
            raise FleetError(f"{self._path} is damaged: {error}", hint="move it away, or restore it") from error
        return Written(stored, seen_before=len(rows) - stored)

    def _insert(self, rows: Sequence[tuple[object, ...]]) -> int:
        if self._is_broken:  # after an I/O error nothing in this connection's memory is believed
            self.database.close()
            self.database = self._open()
            self._is_broken = False
        with transaction(self.database):
            before = self.database.total_changes
            self.database.executemany(_INSERT, rows)
            return self.database.total_changes - before

    def tend(self) -> None:
        """Nothing is ever due."""

    def close(self) -> None:
        """Close the database; what was written is in the one file, and its log is gone."""
        with contextlib.suppress(sqlite3.Error):  # a full disk: the log stays, and is read by whoever opens it
            self.database.close()
        os.close(self._claim)


def _claimed(path: Path) -> int:
    """The file, made if it is not there, kept from other exports. SQLite's own locks are of another kind."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise FleetError(f"{path} cannot be written: {reason(error)}", hint="name another file") from error
    try:
        claim(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All that is done inside, or nothing."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise


def _row(reading: Reading) -> tuple[object, ...]:
    sent_at = reading.sent_at
    return (
        str(reading.device),
        reading.stream,
        reading.boot,
        reading.seq,
        None if sent_at is None else format_time(sent_at),
        format_time(reading.received_at),
        reading.json,
        reading.payload,
    )


def _not_ours(path: Path, error: sqlite3.Error) -> FleetError:
    if isinstance(error, sqlite3.OperationalError) and "no such column" not in str(error):
        return FleetError(f"{path} cannot be written: {error}", hint="is there room, and may this user write there?")
    return InvalidInput(f"{path} is not a database that an export made: {error}", hint="name another file")
