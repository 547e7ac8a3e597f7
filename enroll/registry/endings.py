"""Certificates that end at a known time before their own: reads and writes within a caller's transaction."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import Column, Connection, ForeignKey, Index, Integer, Table, bindparam, delete, func, select

from enroll.registry.schema import Instant, metadata
from enroll.registry.statement import Statement, insert_into
from fleet.identity import Serial

endings: Final = Table(
    "endings",
    metadata,
    Column("serial", ForeignKey("certificates.serial"), primary_key=True),
    Column("at", Instant, nullable=False),
    Index(None, "at"),
    sqlite_with_rowid=False,
)
"""Which live certificate ends when: the predecessor of one that was confirmed."""

_PLANNED = Statement(select(endings.c.at).where(endings.c.serial == bindparam("of")))
_PLAN: Final = insert_into(endings, "serial", "at")
_DUE = Statement(
    select(endings.c.serial)
    .where(endings.c.at <= bindparam("now"))
    .order_by(endings.c.at)
    .limit(bindparam("limit", type_=Integer))
)
_FIRST = Statement(select(func.min(endings.c.at)))
_DONE = Statement(delete(endings).where(endings.c.serial == bindparam("of")))


def plan(transaction: Connection, serial: Serial, at: datetime) -> None:
    """The certificate ends at that time; an earlier plan for it stays."""
    if planned(transaction, serial) is None:
        _PLAN.run(transaction, serial=serial, at=at)


def planned(transaction: Connection, serial: Serial) -> datetime | None:
    """When the certificate will be ended, if that is planned."""
    row = _PLANNED.first(transaction, of=serial)
    return None if row is None else row[0]


def due(transaction: Connection, now: datetime, limit: int) -> list[Serial]:
    """Up to `limit` certificates whose time has come, the earliest first."""
    return [Serial(serial) for (serial,) in _DUE.all(transaction, now=now, limit=limit)]


def first(transaction: Connection) -> datetime | None:
    """When the next certificate ends."""
    row = _FIRST.first(transaction)
    return None if row is None else row[0]


def done(transaction: Connection, serial: Serial) -> None:
    """Nothing is planned for the certificate any more."""
    _DONE.run(transaction, of=serial)
