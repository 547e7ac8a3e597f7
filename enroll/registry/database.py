"""The registry's database: opened, brought to the present schema, and handed out one transaction at a time."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final, Self, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from enroll.registry.commits import CommitMark
from enroll.registry.reserve import Reserve, reserve_of
from fleet.errors import FleetError, reason_of

_T = TypeVar("_T")

_BUSY_SECONDS: Final = 10.0
_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_FULL = ("database or disk is full", "disk I/O error")
_BUSY = ("database is locked", "database is busy")


class RegistryUnavailable(FleetError):
    """The registry cannot be written or read now; nothing was half done, and a retry may succeed."""


class RegistryFull(RegistryUnavailable):
    """It cannot be written because there is no room for it."""


class Registry:
    """The registry at one database. Safe to use from several threads: each transaction has its own connection."""

    def __init__(self, engine: Engine, reserve: Reserve) -> None:
        self._engine = engine
        self.reserve = reserve
        self._idle: deque[Connection] = deque()
        self._shared = threading.local()

    @classmethod
    def open(cls, path: Path, *, is_urgent: bool = False) -> Self:
        """The SQLite registry at `path`, made (0600) if missing and brought to the present schema.

        `is_urgent`: for that its reserve may be given up. Raises: RegistryUnavailable; FleetError if a newer release
        wrote it.
        """
        reserve = reserve_of(path)
        while True:
            try:
                return cls._open(path, reserve)
            except RegistryFull:
                if not is_urgent or not reserve.give_up():
                    raise

    @classmethod
    def _open(cls, path: Path, reserve: Reserve) -> Self:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise RegistryUnavailable(
                f"the registry cannot be opened: {reason_of(error)}", hint=f"it must be writable: {path}"
            ) from error
        registry = cls(_sqlite_engine(path), reserve)
        try:
            registry.migrate()
        except BaseException:
            registry.close()
            raise
        return registry

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection; no transaction may be open."""
        while self._idle:
            self._idle.pop().close()

    def read(self) -> AbstractContextManager[Connection]:
        """A transaction that sees one state throughout and changes nothing. Raises: RegistryUnavailable."""
        return self._transaction("BEGIN")

    @contextmanager
    def group(self) -> Iterator[None]:
        """One commit for every `write` of this thread in here; each of them still fails alone.

        If the commit fails, nothing of any of them was done. Raises: RegistryUnavailable.
        """
        with self._transaction("BEGIN IMMEDIATE") as connection:
            self._shared.connection = connection
            try:
                yield
            finally:
                self._shared.connection = None

    def write(self) -> AbstractContextManager[Connection]:
        """A transaction, the only one that writes while it lasts: committed and on disk at exit, or without a trace.

        Within `group` it is on disk at the group's exit. Raises: RegistryUnavailable.
        """
        shared: Connection | None = getattr(self._shared, "connection", None)
        return self._transaction("BEGIN IMMEDIATE") if shared is None else _savepoint(shared)

    def urgently(self, work: Callable[[Connection], _T]) -> _T:
        """What `work` gives, in a `write`. Where the disk is full the reserve is given up for it, as far as need be.

        `work` may be done several times, and all but one of them without a trace. Raises: RegistryUnavailable.
        """
        size = self.reserve.size_bytes
        try:
            while True:
                try:
                    with self.write() as connection:
                        return work(connection)
                except RegistryFull:
                    if not self.reserve.give_up():
                        raise
        finally:
            self.reserve.take_back(size)

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[Connection]:
        try:
            connection = self._connection()
            driver = connection.connection.cursor()
            try:
                driver.execute(begin)
                yield connection
                driver.execute("COMMIT")
            except BaseException:
                connection.connection.rollback()  # nothing, if the database did so itself
                raise
            finally:
                self._idle.append(connection)
        except (exc.DatabaseError, sqlite3.DatabaseError) as error:  # `Statement` runs on the driver's own cursor
            explained = _explained(error.orig if isinstance(error, exc.DatabaseError) else error)
            if explained is None:
                raise
            raise explained from error

    def _connection(self) -> Connection:
        """One that nobody uses. They stay open: SQLAlchemy's own way to lend one, and to begin, takes 30 us."""
        try:
            return self._idle.pop()
        except IndexError:
            connection = self._engine.connect()
            connection.begin()  # as SQLAlchemy and Alembic see it, for ever: they begin and end none of their own
            return connection

    def commit_mark(self) -> CommitMark:
        """A new mark that tells of every later commit; close it."""
        return CommitMark(self._engine.connect())

    def migrate(self) -> None:
        """Bring the schema up to date; one plain query, without loading Alembic, when it is so already."""
        head = max(path.name[:4] for path in (_MIGRATIONS / "versions").glob("[0-9]*.py"))
        with self.read() as connection:
            found = _version(connection)
        if found == head:
            return
        with self.write() as connection:
            found = _version(connection)
            if found is not None and found > head:
                raise FleetError(
                    f"a newer release wrote this registry (schema {found}, this one knows {head})",
                    hint="install the newer mqtt-fleet again",
                )
            _upgrade(connection)


def _sqlite_engine(path: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite+pysqlite", database=str(path)),
        connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False},
        poolclass=NullPool,
        paramstyle="named",  # for `Statement`: the driver puts them in order
        isolation_level="AUTOCOMMIT",  # `_transaction` begins and ends them
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        # FULL: with WAL the default may lose the last commits in a power cut, and each one is a promise to a device.
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine


def _version(connection: Connection) -> str | None:
    if not connection.dialect.has_table(connection, "alembic_version"):
        return None
    row = connection.exec_driver_sql("SELECT version_num FROM alembic_version").first()
    return None if row is None else str(row[0])


def _upgrade(connection: Connection, revision: str = "head") -> None:
    from alembic import command  # a tenth of a second that only a new registry costs
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


@contextmanager
def _savepoint(connection: Connection) -> Iterator[Connection]:
    cursor = connection.connection.cursor()
    cursor.execute("SAVEPOINT one")
    try:
        yield connection
    except BaseException:
        cursor.execute("ROLLBACK TO one")
        cursor.execute("RELEASE one")
        raise
    cursor.execute("RELEASE one")


def _explained(error: BaseException | None) -> FleetError | None:
    """What a failure of the disk or of another process means; None for a mistake of ours."""
    text = str(error)
    if type(error) is sqlite3.DatabaseError:  # its subclasses are other things
        return FleetError(f"the registry is damaged: {text}", hint="restore it from a backup")
    if not isinstance(error, sqlite3.OperationalError):
        return None
    if any(sign in text for sign in _FULL):
        return RegistryFull(f"the registry cannot be written: {text}", hint="free space on its disk")
    if any(sign in text for sign in _BUSY):
        return RegistryUnavailable(f"the registry is in use: {text}", hint="try again in a moment")
    return RegistryUnavailable(f"the registry cannot be used: {text}", hint="check its disk and its file permissions")
