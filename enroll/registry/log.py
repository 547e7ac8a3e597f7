"""The audit table: appended to and read within a caller's transaction. `enroll/audit.py` makes the digests."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import Connection, insert, select

from enroll.registry.records import AuditRecord
from enroll.registry.schema import audit

_LAST = select(audit.c.digest).order_by(audit.c.seq.desc()).limit(1)
_ALL = select(audit.c.seq, audit.c.at, audit.c.event, audit.c.fields, audit.c.digest).order_by(audit.c.seq)


def last_digest(transaction: Connection) -> bytes | None:
    """The digest of the newest entry; None in an empty log."""
    digest: bytes | None = transaction.execute(_LAST).scalar_one_or_none()
    return digest


def append(transaction: Connection, at: datetime, event: str, fields: str, digest: bytes) -> None:
    """Add an entry."""
    transaction.execute(insert(audit), {"at": at, "event": event, "fields": fields, "digest": digest})


def entries(transaction: Connection) -> Iterator[AuditRecord]:
    """Every entry, oldest first."""
    for row in transaction.execute(_ALL):
        yield AuditRecord(*row)
