"""The file of sessions and retained messages: SQLite, each batch one transaction, on disk when `write` returns.

One thread's. A file that is damaged is kept aside, never opened again and never a reason not to start. Every message
carries a CRC: SQLite does not notice a page whose text has changed.

Many rows go into one statement, and many come out of one as JSON: sqlite3 lets go of Python's lock once a step, and
waits for it again, so what is done row by row is done at the pace of whoever is busy on the event loop.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Final

from broker.engines.amqtt.journal import Batch, Queued, StoredRetained, StoredSession, StoredWill
from broker.engines.amqtt.packets import Publish, Will
from fleet.errors import FleetError
from fleet.identity import DeviceId, Principal, Role

VERSION: Final = 1
_SHARED_FROM_BYTES: Final = 512  # a payload that several sessions are owed is kept once from here on
_CHUNKS: Final = (256, 64, 16, 4, 1)  # rows of one statement; each is compiled once
_LOADED_AT_ONCE: Final = 500
_SWEPT_EVERY: Final = 200  # commits
_IDS: Final = 65_536  # packet ids of a session, and so the first number of the next one's
_DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_SCHEMA: Final = """
CREATE TABLE session (number INTEGER PRIMARY KEY, client_id TEXT, owner TEXT, role TEXT, epoch INTEGER, absent REAL);
CREATE TABLE filter (session INTEGER, filter TEXT, qos INTEGER, PRIMARY KEY (session, filter)) WITHOUT ROWID;
CREATE TABLE owed (session INTEGER, topic TEXT, qos INTEGER, PRIMARY KEY (session, topic)) WITHOUT ROWID;
CREATE TABLE received (id INTEGER PRIMARY KEY);
CREATE TABLE queue (
    row INTEGER PRIMARY KEY, session INTEGER, size INTEGER, qos INTEGER, retain INTEGER, packet_id INTEGER,
    released INTEGER, sender TEXT, body INTEGER, crc INTEGER, topic TEXT, payload BLOB
);
CREATE INDEX queue_of_session ON queue (session, size);
CREATE INDEX queue_of_body ON queue (body) WHERE body IS NOT NULL;
CREATE TABLE body (id INTEGER PRIMARY KEY, payload BLOB);
CREATE TABLE retained (
    topic TEXT PRIMARY KEY, qos INTEGER, owner TEXT, owner_epoch INTEGER, subject_epoch INTEGER, crc INTEGER,
    payload BLOB
);
CREATE TABLE will (
    client_id TEXT PRIMARY KEY, owner TEXT, role TEXT, epoch INTEGER, qos INTEGER, retain INTEGER, topic TEXT,
    payload BLOB
);
PRAGMA user_version = 1
"""
_LOAD: Final = """
SELECT json_group_array(json_array(row, qos, retain, packet_id, released, sender, crc, topic, hex(payload))) FROM (
    SELECT row, qos, retain, packet_id, released, sender, crc, topic, COALESCE(body.payload, queue.payload) AS payload
    FROM queue LEFT JOIN body ON body.id = queue.body WHERE session = ? AND row > ? AND row <= ? ORDER BY row LIMIT ?
)
"""


class Damaged(Exception):
    """What is in the file is not what was written."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """One message of QoS 1 or 2 as it was kept; `packet_id` is 0 where it was never sent."""

    row: int
    message: Publish
    qos: int
    retain: bool
    packet_id: int
    is_released: bool
    sender: DeviceId | None


@dataclass(frozen=True, slots=True)
class Summary:
    """One session, without its messages: how many there are, and how large."""

    number: int
    session: StoredSession
    filters: Mapping[str, int]
    count: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Kept:
    """What a store held when it was opened; of messages for sessions only how many."""

    sessions: tuple[Summary, ...] = ()
    retained: tuple[StoredRetained, ...] = ()
    wills: tuple[tuple[str, StoredWill], ...] = ()
    newest_session: int = 0
    newest_row: int = 0
    damaged: int = 0  # retained messages that were not what was written


@dataclass(slots=True)
class Contents:
    """What one session held."""

    waiting: list[Waiting] = field(default_factory=list)
    received: list[int] = field(default_factory=list)
    owed: dict[str, int] = field(default_factory=dict)
    damaged: int = 0


class Store:
    """`path` and the files that SQLite keeps beside it, 0600. Raises: sqlite3.Error, OSError, Damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database: sqlite3.Connection | None = None
        self._has_bodies = False
        self._until_sweep = _SWEPT_EVERY

    @property
    def damaged_path(self) -> Path:
        """Where the last damaged file is kept."""
        return self.path.with_suffix(".damaged")

    def open(self) -> Kept:
        """Open the file, or make it; what it holds."""
        database = self._connected()
        self._sweep(database)
        damaged: list[str] = []
        retained = tuple(_read_retained(database, damaged))
        (newest_session,) = database.execute("SELECT COALESCE(MAX(number), 0) FROM session").fetchone()
        (newest_row,) = database.execute("SELECT COALESCE(MAX(row), 0) FROM queue").fetchone()
        wills = tuple(_read_wills(database))
        return Kept(tuple(_read_sessions(database)), retained, wills, newest_session, newest_row, len(damaged))

    def close(self) -> None:
        """Let go of the file."""
        database, self._database = self._database, None
        if database is not None:
            with contextlib.suppress(sqlite3.Error):
                database.close()

    def keep_aside(self) -> None:
        """Put a damaged file out of the way; the next `open` makes a new one."""
        self.close()
        self.path.replace(self.damaged_path)
        for suffix in ("-wal", "-shm"):  # of the old file: SQLite would take it for the new one's
            with contextlib.suppress(FileNotFoundError):
                beside = self.path.with_name(self.path.name + suffix)
                beside.replace(self.damaged_path.with_name(self.damaged_path.name + suffix))

    def begin_anew(self) -> None:
        """Keep a damaged file aside, and make a new one."""
        self.keep_aside()
        self._connected()

    def _connected(self) -> sqlite3.Connection:
        if self._database is None:
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            database = sqlite3.connect(self.path, isolation_level=None, timeout=0)
            try:
                _prepare(database)
            except BaseException:
                database.close()
                raise
            self._database = database
        return self._database

    # Writing

    def write(self, batch: Batch) -> None:
        """Put a batch on disk, whole or not at all. Again is no error."""
        if batch.is_empty():
            return
        database = self._connected()
        try:
            database.execute("BEGIN IMMEDIATE")
            self._write(database, batch)
            database.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                if database.in_transaction:
                    database.execute("ROLLBACK")
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # what it takes may be the room that is missing
            raise

    def _write(self, database: sqlite3.Connection, batch: Batch) -> None:
        purged = batch.purged
        for number in purged:
            _purge(database, number)
        if batch.sessions:
            _insert(database, "session", 6, _session_rows(batch.sessions, purged))
        _replace(database, "filter", ("session", "filter"), batch.filters, purged)
        _replace(database, "owed", ("session", "topic"), batch.owed, purged)
        if batch.received:
            ids = {of * _IDS + id_: is_there for (of, id_), is_there in batch.received.items() if of not in purged}
            _delete(database, "received", "id", [id_ for id_, is_there in ids.items() if not is_there])
            _insert(database, "received", 1, [(id_,) for id_, is_there in ids.items() if is_there])
        if batch.queued:
            self._insert_queued(database, batch.queued, purged)
        if batch.moved:
            _move(database, batch.moved)
        _delete(database, "queue", "row", list(batch.done))
        if batch.retained:
            _write_retained(database, batch.retained)
        if batch.wills:
            _write_wills(database, batch.wills)
        self._until_sweep -= 1
        if self._has_bodies and self._until_sweep <= 0:
            self._sweep(database)

    def _insert_queued(self, database: sqlite3.Connection, queued: Mapping[int, Queued], purged: set[int]) -> None:
        kept = [(row, each) for row, each in queued.items() if each.session not in purged]
        bodies = _shared(kept)
        _insert(database, "body", 2, [(row, message.payload) for row, message in bodies.values()])
        self._has_bodies = self._has_bodies or bool(bodies)
        _insert(database, "queue", 12, [_queued_row(row, each, bodies) for row, each in kept])

    def _sweep(self, database: sqlite3.Connection) -> None:
        """Remove the payloads that nobody is owed any more."""
        database.execute("DELETE FROM body WHERE NOT EXISTS (SELECT 1 FROM queue WHERE queue.body = body.id)")
        self._until_sweep = _SWEPT_EVERY
        (self._has_bodies,) = database.execute("SELECT EXISTS (SELECT 1 FROM body)").fetchone()

    # Reading

    def load(self, number: int, newest_row: int) -> Contents:
        """What a session holds, of messages those up to a row."""
        database, found = self._connected(), Contents()
        ids = database.execute("SELECT id FROM received WHERE id BETWEEN ? AND ?", _range(number)).fetchall()
        found.received.extend(id_ - number * _IDS for (id_,) in ids)
        found.owed.update(database.execute("SELECT topic, qos FROM owed WHERE session = ?", (number,)))
        last, count = 0, _LOADED_AT_ONCE
        while count == _LOADED_AT_ONCE:
            (text,) = database.execute(_LOAD, (number, last, newest_row, _LOADED_AT_ONCE)).fetchone()
            rows = json.loads(text)
            count = len(rows)
            for row in rows:
                _take_waiting(row, found)
                last = row[0]
        return found


# How tables are read and written


def _prepare(database: sqlite3.Connection) -> None:
    """Settings, and the schema of a new file."""
    database.execute("PRAGMA locking_mode = EXCLUSIVE")  # no shared memory beside it, and nobody else in it
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("PRAGMA wal_autocheckpoint = 2000")
    database.execute("PRAGMA journal_size_limit = 16777216")
    database.execute("PRAGMA cache_size = -8192")
    if database.execute("PRAGMA user_version").fetchone() == (0,):
        database.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA.split(";"):
            database.execute(statement)
        database.execute("COMMIT")
    found = database.execute("PRAGMA user_version").fetchone()
    if found != (VERSION,):
        raise Damaged(f"it is of version {found[0]}, not {VERSION}")


def _insert(database: sqlite3.Connection, table: str, columns: int, rows: Sequence[tuple[object, ...]]) -> None:
    values = f"({', '.join('?' * columns)})"
    for chunk in _chunks(rows):
        statement = f"INSERT OR REPLACE INTO {table} VALUES {', '.join([values] * len(chunk))}"  # noqa: S608 - ours
        database.execute(statement, tuple(chain.from_iterable(chunk)))


def _delete(database: sqlite3.Connection, table: str, key: str, keys: Sequence[object]) -> None:
    for chunk in _chunks(keys):
        database.execute(f"DELETE FROM {table} WHERE {key} IN ({', '.join('?' * len(chunk))})", chunk)  # noqa: S608


def _move(database: sqlite3.Connection, moved: Mapping[int, tuple[int, bool]]) -> None:
    rows = [(row, packet_id, is_released) for row, (packet_id, is_released) in moved.items()]
    for chunk in _chunks(rows):
        database.execute(
            "UPDATE queue SET packet_id = v.column2, released = v.column3"  # noqa: S608 - nothing but question marks
            f" FROM (VALUES {', '.join(['(?, ?, ?)'] * len(chunk))}) v WHERE row = v.column1",
            tuple(chain.from_iterable(chunk)),
        )


def _chunks(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    at = 0
    for size in _CHUNKS:
        while len(rows) - at >= size:
            yield rows[at : at + size]
            at += size


def _replace(
    database: sqlite3.Connection,
    table: str,
    key: tuple[str, str],
    changes: Mapping[tuple[int, str], int | None],
    purged: set[int],
) -> None:
    if not changes:
        return
    gone = [each for each, qos in changes.items() if qos is None]
    database.executemany(f"DELETE FROM {table} WHERE {key[0]} = ? AND {key[1]} = ?", gone)  # noqa: S608 - ours
    _insert(
        database, table, 3, [(*each, qos) for each, qos in changes.items() if qos is not None and each[0] not in purged]
    )


def _purge(database: sqlite3.Connection, number: int) -> None:
    database.execute("DELETE FROM session WHERE number = ?", (number,))
    for table in ("filter", "owed", "queue"):
        database.execute(f"DELETE FROM {table} WHERE session = ?", (number,))  # noqa: S608 - ours
    database.execute("DELETE FROM received WHERE id BETWEEN ? AND ?", _range(number))


def _range(number: int) -> tuple[int, int]:
    return number * _IDS, number * _IDS + _IDS - 1


def _shared(queued: Sequence[tuple[int, Queued]]) -> dict[int, tuple[int, Publish]]:
    """Large messages that several sessions are owed, by their identity: each with the first row of those.

    Everyone who gets a message is told of it in one go, so those rows follow each other.
    """
    found: dict[int, tuple[int, Publish]] = {}
    for (row, one), (_, other) in pairwise(queued):
        message = one.publish
        if message is other.publish and message.size >= _SHARED_FROM_BYTES:
            found.setdefault(id(message), (row, message))
    return found


def _queued_row(row: int, each: Queued, bodies: Mapping[int, tuple[int, Publish]]) -> tuple[object, ...]:
    message = each.publish
    payload = message.payload
    body = bodies.get(id(message)) if bodies else None
    return (
        *(row, each.session, message.size, each.qos, each.retain, each.packet_id, each.is_released, each.sender),
        *(
            (None, zlib.crc32(payload), message.topic, payload)
            if body is None
            else (body[0], zlib.crc32(payload), message.topic, None)
        ),
    )


def _session_rows(sessions: Mapping[int, StoredSession], purged: set[int]) -> list[tuple[object, ...]]:
    return [
        (number, each.client_id, each.owner.id, each.owner.role.value, each.epoch, each.absent_since)
        for number, each in sessions.items()
        if number not in purged
    ]


def _write_retained(database: sqlite3.Connection, changes: Mapping[str, StoredRetained | None]) -> None:
    _delete(database, "retained", "topic", [topic for topic, kept in changes.items() if kept is None])
    rows = []
    for topic, kept in changes.items():
        if kept is not None:
            payload, epochs = kept.message.payload, (kept.owner_epoch, kept.subject_epoch)
            rows.append((topic, kept.message.qos, kept.owner, *epochs, zlib.crc32(payload), payload))
    _insert(database, "retained", 7, rows)


def _write_wills(database: sqlite3.Connection, changes: Mapping[str, StoredWill | None]) -> None:
    _delete(database, "will", "client_id", [client_id for client_id, kept in changes.items() if kept is None])
    rows = []
    for client_id, kept in changes.items():
        if kept is not None:
            will, owner = kept.will, (kept.owner.id, kept.owner.role.value, kept.epoch)
            rows.append((client_id, *owner, will.qos, will.retain, will.topic, will.payload))
    _insert(database, "will", 8, rows)


def _read_sessions(database: sqlite3.Connection) -> Iterator[Summary]:
    filters: dict[int, dict[str, int]] = {}
    for number, topic_filter, qos in database.execute("SELECT session, filter, qos FROM filter"):
        filters.setdefault(number, {})[topic_filter] = qos
    queues = {
        number: (count, size)
        for number, count, size in database.execute("SELECT session, COUNT(*), SUM(size) FROM queue GROUP BY session")
    }
    for number, client_id, owner, role, epoch, absent in database.execute("SELECT * FROM session ORDER BY number"):
        session = StoredSession(client_id, Principal(Role(role), DeviceId(owner)), epoch, absent)
        yield Summary(number, session, filters.get(number, {}), *queues.get(number, (0, 0)))


def _read_retained(database: sqlite3.Connection, damaged: list[str]) -> Iterator[StoredRetained]:
    for topic, qos, owner, owner_epoch, subject_epoch, crc, payload in database.execute("SELECT * FROM retained"):
        if zlib.crc32(payload) != crc:
            damaged.append(topic)
            continue
        message = Publish.of(topic, payload, qos, retain=True)
        yield StoredRetained(message, DeviceId(owner) if owner is not None else None, owner_epoch, subject_epoch)


def _read_wills(database: sqlite3.Connection) -> Iterator[tuple[str, StoredWill]]:
    for client_id, owner, role, epoch, qos, retain, topic, payload in database.execute("SELECT * FROM will"):
        will = Will(topic, payload, qos, bool(retain))
        yield client_id, StoredWill(will, Principal(Role(role), DeviceId(owner)), epoch)


def _take_waiting(row: Sequence[Any], found: Contents) -> None:
    number, qos, retain, packet_id, is_released, sender, crc, topic, digits = row
    payload = bytes.fromhex(digits)
    if zlib.crc32(payload) != crc:
        found.damaged += 1
        return
    message = Publish.of(topic, payload, qos, retain=False)
    of = DeviceId(sender) if sender is not None else None
    found.waiting.append(Waiting(number, message, qos, bool(retain), packet_id, bool(is_released), of))


def is_damage(error: BaseException) -> bool:
    """Whether this says that the file is not what was written, rather than that it cannot be used now."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE
    return isinstance(error, Damaged | ValueError | TypeError | FleetError)


def reason_of(error: BaseException) -> str:
    """What went wrong, in a few words."""
    return (error.strerror or "") if isinstance(error, OSError) else str(error)
