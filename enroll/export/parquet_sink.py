"""Telemetry as Parquet files in a folder, each whole from the moment it has its name.

A Parquet file can be read only once it is finished, and the broker waits for its acknowledgement meanwhile. So what
arrives goes into a spool, a SQLite database in the folder, and from there into a file when there is enough of it, or
it has waited long enough. Which rows a file holds is recorded before it is written: after a crash the same rows are
written under the same name again. The rows of the last file stay in the spool to know what comes twice.

1 INSERT ... COMMIT      the broker is acknowledged
2 rolling = (upto, name) COMMIT
3 write .NAME.partial, fsync, rename to NAME, fsync of the folder
4 DELETE the rows before `done`, done = upto, rolling = none   COMMIT
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from enroll.export.readings import Reading
from enroll.export.sink import SinkBusy, Written, claim, reason, sync_folder
from enroll.export.sqlite_sink import COLUMNS, SqliteSink, transaction
from fleet.errors import FleetError
from fleet.extras import install_command

SPOOL: Final = ".spool.db"  # readers of a folder of Parquet files pass over what begins with a dot
GROUP_ROWS: Final = 10_000
GROUP_BYTES: Final = 16 * 1024 * 1024
"""A row group is so large at most, and so much is in memory at once while a file is written."""
_STATE: Final = "CREATE TABLE IF NOT EXISTS state (done INTEGER NOT NULL, rolling INTEGER, name TEXT)"
_ROWS: Final = f"SELECT {COLUMNS} FROM telemetry WHERE n > ? AND n <= ? ORDER BY n"  # noqa: S608 - ours
_WAITING: Final = """
SELECT count(*), max(n), min(received_at), total(length(CAST(data AS BLOB))) + total(length(payload))
FROM telemetry WHERE n > ?
"""
_PAUSE: Final = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Portion:
    """When a file is made: so many rows wait, or so many bytes of data, or one has waited so long."""

    rows: int = 100_000
    size_bytes: int = 64 * 1024 * 1024
    span: timedelta = timedelta(minutes=5)


class ParquetSink:
    """Files `telemetry-TIME-N.parquet` in a folder, made if it is not there."""

    def __init__(self, folder: Path, portion: Portion, clock: Callable[[], datetime]) -> None:
        """Finishes the file that a crash left unfinished. Raises: FleetError."""
        self._arrow = load_arrow()
        self._folder = folder
        self._portion = portion
        self._clock = clock
        self._failure: SinkBusy | None = None
        self._not_before = clock()
        self._claim = _claimed(folder)
        try:
            self._spool = SqliteSink(folder / SPOOL)
        except BaseException:
            os.close(self._claim)
            raise
        try:
            self._resume()
        except BaseException:
            self._let_go()
            raise

    def _resume(self) -> None:
        try:
            database = self._spool.database
            database.execute(_STATE)
            database.execute("INSERT INTO state (done) SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM state)")
            self._finish()
            self._look()
        except (sqlite3.Error, OSError) as error:
            raise FleetError(f"{self._folder} cannot be written: {error}", hint="is there room?") from error

    def _look(self) -> None:
        """What waits in the spool: how many rows, their bytes, and since when."""
        (done,) = self._spool.database.execute("SELECT done FROM state").fetchone()
        self._rows, _, oldest, self._size_bytes = self._spool.database.execute(_WAITING, (done,)).fetchone()
        self._oldest = None if oldest is None else datetime.fromisoformat(oldest)

    def write(self, readings: Sequence[Reading]) -> Written:
        """Into the spool. Raises: SinkBusy."""
        written = self._spool.write(readings)
        self._rows += written.stored
        self._size_bytes += sum(reading.size_bytes for reading in readings)
        self._oldest = self._oldest or self._clock()
        return written

    def tend(self) -> None:
        """Make a file if one is due. Raises: SinkBusy: the rows are safe, and it is tried again later."""
        now = self._clock()
        if self._failure is not None and now < self._not_before:
            raise self._failure
        if self._is_due(now):
            try:
                self._roll(now)
            except SinkBusy as error:
                self._failure, self._not_before = error, now + _PAUSE
                raise
            self._failure = None

    def _is_due(self, now: datetime) -> bool:
        if not self._rows or self._oldest is None:
            return False
        portion = self._portion
        is_large = self._rows >= portion.rows or self._size_bytes >= portion.size_bytes
        return is_large or now - self._oldest >= portion.span or now < self._oldest  # the clock was set back

    def _roll(self, now: datetime) -> None:
        try:
            database = self._spool.database
            (done,) = database.execute("SELECT done FROM state").fetchone()
            _, upto, _, _ = database.execute(_WAITING, (done,)).fetchone()
            if upto is not None:
                name = f"telemetry-{now:%Y%m%dT%H%M%SZ}-{upto:012}.parquet"
                database.execute("UPDATE state SET rolling = ?, name = ? WHERE rolling IS NULL", (upto, name))
                self._finish()
            self._look()
        except (sqlite3.Error, OSError) as error:
            words = reason(error) if isinstance(error, OSError) else str(error)
            raise SinkBusy(
                f"no file can be written in {self._folder}: {words}",
                hint=f"what waits is in {SPOOL}, for the next start",
            ) from error

    def _finish(self) -> None:
        """Write the file that is recorded as being written, if there is one."""
        database = self._spool.database
        done, rolling, name = database.execute("SELECT done, rolling, name FROM state").fetchone()
        if rolling is None:
            return
        self._write_file(name, database.execute(_ROWS, (done, rolling)))
        with transaction(database):
            database.execute("DELETE FROM telemetry WHERE n <= ?", (done,))
            database.execute("UPDATE state SET done = ?, rolling = NULL, name = NULL", (rolling,))

    def _write_file(self, name: str, rows: sqlite3.Cursor) -> None:
        partial = self._folder / f".{name}.partial"
        try:
            with partial.open("wb") as file:
                with self._arrow.ParquetWriter(file, _schema(), compression="zstd") as writer:
                    for table in _tables(rows):
                        writer.write_table(table)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._folder / name)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        sync_folder(self._folder)

    def close(self) -> None:
        """Put what waits into a last file. Raises: FleetError; what waits is written at the next start then."""
        try:
            self._roll(self._clock())
        finally:
            self._let_go()

    def _let_go(self) -> None:
        self._spool.close()
        os.close(self._claim)


def load_arrow() -> Any:
    """The library that writes Parquet. Raises: FleetError that says how to install it."""
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise FleetError(
            "Parquet needs the Python package pyarrow, not installed here", hint=install_command("parquet")
        ) from error
    return pyarrow.parquet


def _claimed(folder: Path) -> int:
    try:
        folder.mkdir(mode=0o750, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise FleetError(f"{folder} cannot be written: {reason(error)}", hint="name another folder") from error
    try:
        claim(descriptor, folder)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _schema() -> Any:
    import pyarrow as pa

    at = pa.timestamp("ms", tz="UTC")
    return pa.schema(
        [
            pa.field("device", pa.string(), nullable=False),
            pa.field("stream", pa.string(), nullable=False),
            pa.field("boot", pa.string()),
            pa.field("seq", pa.int64()),
            pa.field("sent_at", at),
            pa.field("received_at", at, nullable=False),
            pa.field("data", pa.string()),
            pa.field("payload", pa.binary()),
        ]
    )


def _tables(rows: sqlite3.Cursor) -> Iterator[Any]:
    """Row groups."""
    some, size = [], 0
    for row in rows:
        some.append(row)
        size += len(row[-1] or row[-2] or "")
        if len(some) >= GROUP_ROWS or size >= GROUP_BYTES:
            yield _table(some)
            some, size = [], 0
    if some:
        yield _table(some)


def _table(rows: Sequence[tuple[Any, ...]]) -> Any:
    import pyarrow as pa

    schema = _schema()
    columns = [list(column) for column in zip(*rows, strict=True)]
    for at in (schema.get_field_index("sent_at"), schema.get_field_index("received_at")):
        columns[at] = [None if text is None else datetime.fromisoformat(text) for text in columns[at]]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
