"""The log of what was done: each entry's digest covers the entry and the digest before it.

Whoever changes, drops or reorders an entry breaks every digest after it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

from enroll.registry import Transaction, log
from enroll.registry.records import AuditRecord

GENESIS: Final = bytes(32)
_CANONICAL: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=str)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def record(transaction: Transaction, now: datetime, event: str, **fields: object) -> None:
    """Append an entry in the transaction that does what it tells of."""
    text = _CANONICAL.encode(fields)
    previous = log.last_digest(transaction) or GENESIS
    log.append(transaction, now, event, text, digest(previous, now, event, text))


def digest(previous: bytes, at: datetime, event: str, fields: str) -> bytes:
    """SHA-256 over the digest before, the time in microseconds since 1970, the event and the fields as JSON."""
    micros = (at - _EPOCH) // timedelta(microseconds=1)
    head = previous + _CANONICAL.encode([micros, event]).encode()
    return hashlib.sha256(head + b"\n" + fields.encode()).digest()


def first_broken(entries: Iterable[AuditRecord]) -> int | None:
    """The sequence number of the first entry that does not follow from the one before it; None if all do."""
    previous, expected = GENESIS, 1
    for entry in entries:
        if entry.seq != expected or entry.digest != digest(previous, entry.at, entry.event, entry.fields):
            return entry.seq
        previous, expected = entry.digest, entry.seq + 1
    return None
