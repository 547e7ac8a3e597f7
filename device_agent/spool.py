"""The file of messages that wait for the broker: SQLite, durable once an order is done, never a reason to stop.

It is made when the first message needs it, and SQLite is loaded no sooner. A file that is damaged is kept aside as
`spool.damaged` and replaced by a new one; a disk that is full or fails is reported, and tried again by `core`.

Each class has a table; its rows count up, so that appending fills page after page, and number and size of what is there
follow from the first row and the last. Every row carries a CRC: SQLite does not notice a page whose text has changed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, assert_never

from device_agent.core.effects import OpenSpool, ReadSpool, Removal, Row, SpoolOrder, Trim, WriteSpool
from device_agent.core.events import SpoolFailed, SpoolOpened, SpoolRead, SpoolWritten, Stored, Trimmed
from device_agent.core.shelf import Shelf
from device_agent.outbox import ROW_BYTES, Class, Losses
from fleet.identity import DeviceId
from fleet.layout import AgentHome

if TYPE_CHECKING:
    import sqlite3

VERSION: Final = 1
# How often a disk may fail to give back what it holds before the file is given up.
MAX_FAILED_READS: Final = 3
# A file that was large and is empty is made small again.
_SHRINK_PAGES: Final = 256
_TABLES: Final = {Class.TELEMETRY: "telemetry", Class.ALARM: "alarm"}
_SCHEMA: Final = """
PRAGMA user_version = 1;
CREATE TABLE telemetry (row INTEGER PRIMARY KEY, at INTEGER, upto INTEGER, topic TEXT, payload BLOB, crc INTEGER);
CREATE TABLE alarm (row INTEGER PRIMARY KEY, at INTEGER, upto INTEGER, topic TEXT, payload BLOB, crc INTEGER);
CREATE TABLE losses (telemetry INTEGER, alarms INTEGER);
INSERT INTO losses VALUES (0, 0);
"""

SpoolEvent = SpoolOpened | SpoolWritten | SpoolRead | SpoolFailed


class Damaged(Exception):
    """What is in the file is not what was written."""


class SpoolFile:
    """HOME/spool.db of one device. One thread's; the home's lock keeps other agents out."""

    def __init__(self, home: AgentHome, device: DeviceId) -> None:
        self.path = home.path / "spool.db"
        self._prefix = f"devices/{device}/up/"
        self._database: sqlite3.Connection | None = None
        self._failed_reads = 0

    @property
    def _wal(self) -> Path:
        return self.path.with_name("spool.db-wal")

    @property
    def damaged_path(self) -> Path:
        """Where the last damaged file is kept."""
        return self.path.with_name("spool.damaged")

    def perform(self, order: SpoolOrder) -> SpoolEvent:
        """Do it, durably; what came of it."""
        if isinstance(order, OpenSpool) and not self.path.exists():
            return SpoolOpened()
        import sqlite3

        try:
            event = self._perform(order)
        except (sqlite3.Error, OSError, Damaged, TypeError, ValueError) as error:
            self.close()
            self._failed_reads += not isinstance(order, WriteSpool) and not _is_refused(error)
            if _is_damage(error) or self._failed_reads >= MAX_FAILED_READS:
                return self._begin_anew(str(error))
            return SpoolFailed(str(error))
        self._failed_reads = 0
        return event

    def close(self) -> None:
        """Let go of the file."""
        if self._database is not None:
            import sqlite3

            with contextlib.suppress(sqlite3.Error):
                self._database.close()
            self._database = None

    def _perform(self, order: SpoolOrder) -> SpoolEvent:
        database = self._database = self._database or self._connect()
        match order:
            case OpenSpool():
                return self._summary(database)
            case WriteSpool():
                with _transaction(database):
                    trimmed = self._write(database, order)
                if order.removals or trimmed:
                    _shrink(database)
                return SpoolWritten(trimmed)
            case ReadSpool():
                return self._read(database, order)
            case _:
                assert_never(order)

    def _connect(self) -> sqlite3.Connection:
        import sqlite3

        if not self.path.exists():
            self._wal.unlink(missing_ok=True)  # of a file that was kept aside: SQLite would take it for the new one's
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        database = sqlite3.connect(self.path, isolation_level=None, timeout=0)
        try:
            database.execute("PRAGMA locking_mode = EXCLUSIVE")  # no shared memory beside the file
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.execute("PRAGMA wal_autocheckpoint = 256")
            database.execute("PRAGMA journal_size_limit = 1048576")
            database.execute("PRAGMA secure_delete = OFF")
            database.execute("PRAGMA cache_size = -512")
            database.text_factory = bytes  # a damaged text is for the CRC to find
            if database.execute("PRAGMA user_version").fetchone() == (0,):
                with _transaction(database):
                    for statement in _SCHEMA.split(";"):
                        database.execute(statement)
            if database.execute("PRAGMA user_version").fetchone() != (VERSION,):
                raise Damaged("it is of another version")
        except BaseException:
            database.close()
            raise
        return database

    def _write(self, database: sqlite3.Connection, order: WriteSpool) -> tuple[Trimmed, ...]:
        firsts: dict[Class, int] = {}
        for row in order.rows:
            firsts.setdefault(row.kind, row.number)
        for kind, first in firsts.items():  # what a write left that failed, and reached the disk all the same
            database.execute(_on(kind, "DELETE FROM $table WHERE row >= ?"), (first,))
        for row in order.rows:
            database.execute(_on(row.kind, "INSERT INTO $table VALUES (?, ?, ?, ?, ?, ?)"), self._encode(row))
        for removal in order.removals:
            _remove(database, removal)
        trimmed = tuple(done for trim in order.trims for done in self._trim(database, trim))
        losses = order.losses
        for done in trimmed:
            losses = losses.plus(done.kind, done.count)
        now = (losses.telemetry, losses.alarms)
        if database.execute("SELECT * FROM losses").fetchone() != now:
            database.execute("UPDATE losses SET telemetry = ?, alarms = ?", now)
        return trimmed

    def _trim(self, database: sqlite3.Connection, trim: Trim) -> Iterator[Trimmed]:
        """Drop from the oldest on, until the rest is young and small enough."""
        count, freed, upto = 0, 0, trim.after
        query = "SELECT row, at, length(topic) + length(payload) FROM $table WHERE row > ? ORDER BY row"
        rows = database.execute(_on(trim.kind, query), (trim.after,))
        with contextlib.closing(rows):
            for number, at, size in rows:
                if at >= trim.before_second and freed >= trim.excess_bytes:
                    break
                count, freed, upto = count + 1, freed + self._disk_bytes(size), number
        if count:
            database.execute(_on(trim.kind, "DELETE FROM $table WHERE row > ? AND row <= ?"), (trim.after, upto))
            yield Trimmed(trim.kind, upto, count, freed)

    def _disk_bytes(self, stored: int) -> int:
        """What `Outgoing.disk_bytes` counts for a row whose topic and payload take so much."""
        return stored + len(self._prefix) + ROW_BYTES

    def _summary(self, database: sqlite3.Connection) -> SpoolOpened:
        telemetry, alarms = (self._shelf(database, kind) for kind in (Class.TELEMETRY, Class.ALARM))
        newest = [database.execute(_on(kind, "SELECT at FROM $table ORDER BY row DESC LIMIT 1")) for kind in _TABLES]
        seconds = [int(at) for rows in newest for (at,) in rows.fetchall()]
        losses = Losses(*map(int, database.execute("SELECT telemetry, alarms FROM losses").fetchone()))
        return SpoolOpened(telemetry, alarms, max(seconds, default=0), losses)

    def _shelf(self, database: sqlite3.Connection, kind: Class) -> Shelf:
        """How much is there: rows are numbered without gaps, but for a few that were confirmed before a crash."""
        query = _on(kind, "SELECT row, upto, length(topic) + length(payload) FROM $table ORDER BY row ")
        first, last = (database.execute(query + end).fetchone() for end in ("ASC LIMIT 1", "DESC LIMIT 1"))
        if first is None or last is None:
            return Shelf()
        size = last[1] - first[1] + self._disk_bytes(first[2])
        if not 0 < first[0] <= last[0] or size <= 0:
            raise Damaged("the numbers of the messages are not in order")
        return Shelf(last=last[0], loaded=first[0] - 1, upto_bytes=last[1], size_bytes=size)

    def _encode(self, row: Row) -> tuple[object, ...]:
        topic, payload = row.message.topic.removeprefix(self._prefix), row.message.payload
        return row.number, row.at_second, row.upto_bytes, topic, payload, _crc(topic.encode(), payload)

    def _read(self, database: sqlite3.Connection, order: ReadSpool) -> SpoolRead:
        found: list[Stored] = []
        upto, damaged, size = order.after, 0, 0
        query = _on(order.kind, "SELECT row, topic, payload, crc FROM $table WHERE row > ? ORDER BY row LIMIT ?")
        rows = database.execute(query, (order.after, order.max_messages))
        with contextlib.closing(rows):
            for number, topic, payload, crc in rows:
                if found and size + len(payload or b"") > order.max_bytes:
                    break
                upto = number
                if isinstance(topic, bytes) and isinstance(payload, bytes) and crc == _crc(topic, payload):
                    found.append(Stored(number, self._prefix + topic.decode(), payload))
                    size += len(payload)
                else:
                    damaged += 1
        if upto == order.after:
            raise Damaged("messages that were written are not there")
        return SpoolRead(order.kind, tuple(found), upto, damaged)

    def _begin_anew(self, reason: str) -> SpoolOpened | SpoolFailed:
        """Keep the file aside; one of them, or they would fill the disk. Its log goes first: alone it would do harm."""
        self._failed_reads = 0
        try:
            if self._wal.exists():
                self._wal.replace(self.damaged_path.with_name("spool.damaged-wal"))
            self.path.replace(self.damaged_path)
        except OSError as error:
            return SpoolFailed(f"{reason}; it cannot be kept aside: {error.strerror or error}")
        return SpoolOpened(problem=f"{reason}; it is kept as {self.damaged_path}")


def _on(kind: Class, statement: str) -> str:
    """`statement` for the table of that class."""
    return statement.replace("$table", _TABLES[kind])


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def _is_damage(error: Exception) -> bool:
    """Whether the file is to blame, and not the moment."""
    import sqlite3

    if not isinstance(error, sqlite3.Error):
        return isinstance(error, Damaged | TypeError | ValueError)  # a column that holds what was never written
    code = getattr(error, "sqlite_errorcode", 0)
    is_unreadable = code in (sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS)
    return is_unreadable or code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


def _is_refused(error: Exception) -> bool:
    """Whether nothing can be written at present: that says nothing of what is in the file."""
    import sqlite3

    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    is_read_only = isinstance(error, OSError) and error.errno == errno.EROFS
    return is_read_only or code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY)


def _crc(topic: bytes, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(topic))


def _remove(database: sqlite3.Connection, removal: Removal) -> None:
    database.execute(_on(removal.kind, "DELETE FROM $table WHERE row <= ?"), (removal.upto,))
    database.executemany(_on(removal.kind, "DELETE FROM $table WHERE row = ?"), [(row,) for row in removal.rows])


def _shrink(database: sqlite3.Connection) -> None:
    """Give back the space of an outage that is over. Not to be able to is no failure."""
    import sqlite3

    with contextlib.suppress(sqlite3.Error):
        is_used = any(database.execute(_on(kind, "SELECT 1 FROM $table LIMIT 1")).fetchone() for kind in _TABLES)
        if not is_used and database.execute("PRAGMA page_count").fetchone()[0] > _SHRINK_PAGES:
            database.execute("VACUUM")
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
