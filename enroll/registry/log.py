"""The audit table: appended to and read within a caller's transaction. `enroll/audit.py` makes the digests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, Integer, bindparam, select

from enroll.registry.records import AuditRecord
from enroll.registry.schema import audit
from enroll.registry.statement import Statement, insert_into

_APPEND = insert_into(audit, "at", "event", "fields", "digest")
_LAST = Statement(select(audit.c.digest).order_by(audit.c.seq.desc()).limit(1))
_ENTRY = select(audit.c.seq, audit.c.at, audit.c.event, audit.c.fields, audit.c.digest)
_ALL = Statement(_ENTRY.order_by(audit.c.seq))
_LAST_MARK = Statement(select(audit.c.seq, audit.c.digest).order_by(audit.c.seq.desc()).limit(1))
_DIGEST_OF = Statement(select(audit.c.digest).where(audit.c.seq == bindparam("of")))
_MARK: Final = re.compile(r"([0-9]{1,18})-([0-9a-f]{32})")
_NEWEST = Statement(_ENTRY.order_by(audit.c.seq.desc()).limit(bindparam("limit", type_=Integer)))


def last_digest(transaction: Connection) -> bytes | None:
    """The digest of the newest entry; None in an empty log."""
    row = _LAST.first(transaction)
    return None if row is None else bytes(row[0])


def mark(transaction: Connection) -> str:
    """The newest entry by number and digest: whoever keeps it can tell later whether this is the same log."""
    row = _LAST_MARK.first(transaction)
    return "" if row is None else _mark(*row)


def holds(transaction: Connection, mark: str) -> bool:
    """Whether the entry of that mark is in this log: not if it was restored from a backup that is older."""
    found = _MARK.fullmatch(mark)
    row = None if found is None else _DIGEST_OF.first(transaction, of=int(found[1]))
    return found is not None and row is not None and mark == _mark(int(found[1]), row[0])


def _mark(seq: int, digest: bytes) -> str:
    return f"{seq}-{digest.hex()[:32]}"


def append(transaction: Connection, at: datetime, event: str, fields: str, digest: bytes) -> None:
    """Add an entry."""
    _APPEND.run(transaction, at=at, event=event, fields=fields, digest=digest)


def entries(transaction: Connection) -> Iterator[AuditRecord]:
    """Every entry, oldest first."""
    for row in _ALL.each(transaction):
        yield AuditRecord(*row)


def newest(transaction: Connection, limit: int) -> list[AuditRecord]:
    """The `limit` newest entries, oldest first."""
    return [AuditRecord(*row) for row in _NEWEST.all(transaction, limit=limit)][::-1]
