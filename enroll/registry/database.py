"""The registry's database: opened, brought to the present schema, and handed out one transaction at a time."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, Self, TypeVar

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


@dataclass(frozen=True, slots=True)
class Begun(Generic[_T]):
    """What a group of transactions came to, but for its commit."""

    outcome: _T
    has_changes: bool
    _rest: ExitStack

    def commit(self) -> None:
        """On disk when this returns, which may take long; else nothing of it was done. From any thread, once.

        Raises: RegistryUnavailable.
        """
        self._rest.close()


class Registry:
    """The registry at one database. Safe to use from several threads: each transaction has its own connection."""

    def __init__(self, engine: Engine, reserve: Reserve) -> None:
        self._engine = engine
        self.reserve = reserve
        self._idle: deque[Connection] = deque()
        self._hasty: deque[Connection] = deque()
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
        for idle in (self._idle, self._hasty):
            while idle:
                idle.pop().close()

    def read(self) -> AbstractContextManager[Connection]:
        """A transaction that sees one state throughout and changes nothing. Within `group` it sees what that did.

        Raises: RegistryUnavailable.
        """
        group = self._group
        return self._transaction("BEGIN") if group is None else group.reading()

    @contextmanager
    def group(self) -> Iterator[None]:
        """One commit for every `write` of this thread in here; each of them still fails alone.

        If the commit fails, nothing of any of them was done. Raises: RegistryUnavailable.
        """
        with self._transaction("BEGIN IMMEDIATE") as connection, self._sharing(connection):
            yield

    def begin_group(self, work: Callable[[], _T]) -> Begun[_T] | None:
        """Do `work`, whose writes are a `group`, up to the commit. None, and nothing was done, if it cannot be begun.

        So it is while somebody else writes: unlike every other way to write, or to read, it waits for nobody, and for
        no disk but to read. Whoever may wait commits.
        Raises: what `work` raises, RegistryUnavailable.
        """
        with ExitStack() as rest:
            try:
                connection = rest.enter_context(self._transaction("BEGIN IMMEDIATE", is_hasty=True))
            except RegistryUnavailable:
                return None
            with self._sharing(connection) as group:
                outcome = work()
            return Begun(outcome, group.has_changes, rest.pop_all())

    @contextmanager
    def _sharing(self, connection: Connection) -> Iterator[_Group]:
        """While this lasts, whatever this thread writes is written within the transaction of `connection`."""
        self._shared.group = group = _Group(connection)
        try:
            yield group
        finally:
            self._shared.group = None

    def write(self) -> AbstractContextManager[Connection]:
        """A transaction, the only one that writes while it lasts: committed and on disk at exit, or without a trace.

        Within `group` it is on disk at the group's exit. Raises: RegistryUnavailable.
        """
        group = self._group
        return self._transaction("BEGIN IMMEDIATE") if group is None else group.writing()

    @property
    def _group(self) -> _Group | None:
        """What this thread's transactions are parts of."""
        return getattr(self._shared, "group", None)

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
    def _transaction(self, begin: str, *, is_hasty: bool = False) -> Iterator[Connection]:
        idle = self._hasty if is_hasty else self._idle
        try:
            try:
                connection = idle.pop()
            except IndexError:
                connection = self._connect(is_hasty=is_hasty)
            driver = connection.connection.cursor()
            try:
                driver.execute(begin)
                yield connection
                driver.execute("COMMIT")
            except BaseException:
                connection.connection.rollback()  # nothing, if the database did so itself
                raise
            finally:
                idle.append(connection)
        except (exc.DatabaseError, sqlite3.DatabaseError) as error:  # `Statement` runs on the driver's own cursor
            explained = _explained(error.orig if isinstance(error, exc.DatabaseError) else error)
            if explained is None:
                raise
            raise explained from error

    def _connect(self, *, is_hasty: bool) -> Connection:
        """A new one, to stay open: SQLAlchemy's own way to lend one, and to begin, takes 30 us.

        `is_hasty`: it does not wait for another one that writes.
        """
        connection = self._engine.connect()
        connection.begin()  # as SQLAlchemy and Alembic see it, for ever: they begin and end none of their own
        if is_hasty:
            connection.connection.cursor().execute("PRAGMA busy_timeout=0")
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


class _Group:
    """Transactions that are parts of one, each of which fails alone."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        driver = connection.connection.driver_connection
        assert driver is not None
        self._driver = driver
        self._unchanged = driver.total_changes

    @property
    def has_changes(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self._driver.total_changes != self._unchanged)

    def reading(self) -> AbstractContextManager[Connection]:
        """One of them that changes nothing. Raises: RegistryUnavailable."""
        self._check_lasts()
        return nullcontext(self._connection)

    def _check_lasts(self) -> None:
        """Raises: RegistryUnavailable once the database, or a failure here, has ended the group."""
        if not self._driver.in_transaction:
            raise RegistryUnavailable("what was to be written together came to nothing", hint="try again in a moment")

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One of them. The first that changes something needs no savepoint: if it fails, the group begins anew.

        Raises: RegistryUnavailable.
        """
        self._check_lasts()
        execute, has_savepoint = self._driver.cursor().execute, self.has_changes
        if has_savepoint:
            execute("SAVEPOINT one")
        try:
            yield self._connection
        except BaseException:
            if self._driver.in_transaction:  # the database itself may have ended it: on a full disk
                self._undo(has_savepoint=has_savepoint)
            raise
        if has_savepoint:
            execute("RELEASE one")

    def _undo(self, *, has_savepoint: bool) -> None:
        """Take back what one of them did."""
        execute = self._driver.cursor().execute
        if has_savepoint:
            execute("ROLLBACK TO one")
            execute("RELEASE one")
        elif self.has_changes:
            execute("ROLLBACK")
            execute("BEGIN IMMEDIATE")
            self._unchanged = self._driver.total_changes


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
