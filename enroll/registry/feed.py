"""The outbox and the directory entries that it points at: within a caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, bindparam, func, insert, select

from enroll.registry.records import LIVE
from enroll.registry.schema import certificates, meta, outbox, principals
from fleet.directory import Entry
from fleet.identity import DeviceId, Principal, Role, Serial, State

PAGE_ENTRIES: Final = 500

_HEAD = select(func.coalesce(func.max(outbox.c.seq), 0))
_CHANGED = (
    select(outbox.c.principal, func.max(outbox.c.seq))
    .where(outbox.c.seq > bindparam("after"))
    .group_by(outbox.c.principal)
    .order_by(func.max(outbox.c.seq))
    .limit(bindparam("limit"))
)
_LATEST = select(func.coalesce(func.max(outbox.c.seq), 0)).where(outbox.c.principal == principals.c.id)
_ENTRY = select(principals.c.id, principals.c.role, principals.c.state, principals.c.epoch, _LATEST.scalar_subquery())
_ENTRY_OF = _ENTRY.where(principals.c.id == bindparam("id"))
_ENTRIES_AFTER = _ENTRY.where(principals.c.id > bindparam("id")).order_by(principals.c.id).limit(PAGE_ENTRIES)
_SERIALS = select(certificates.c.principal, certificates.c.serial).where(
    certificates.c.state.in_([state.value for state in LIVE])
)
_SERIALS_OF = _SERIALS.where(certificates.c.principal == bindparam("id"))
_SERIALS_BETWEEN = _SERIALS.where(
    certificates.c.principal >= bindparam("first"), certificates.c.principal <= bindparam("last")
)
_HOLDER = select(certificates.c.principal).where(certificates.c.serial == bindparam("serial"))
_FEED = select(meta.c.value).where(meta.c.name == "feed")


def set_feed(transaction: Connection, feed: str) -> None:
    """Name a new registry's feed."""
    transaction.execute(insert(meta), {"name": "feed", "value": feed})


def feed_id(transaction: Connection) -> str:
    """The name of this registry's feed; brokers take a snapshot when it changes."""
    return str(transaction.execute(_FEED).scalar_one())


def announce(transaction: Connection, principal: DeviceId) -> int:
    """Tell brokers, once this transaction has committed, that the principal changed; its sequence number."""
    return int(transaction.execute(insert(outbox), {"principal": principal}).lastrowid)


def head(transaction: Connection) -> int:
    """The last sequence number given."""
    return int(transaction.execute(_HEAD).scalar_one())


def changes(transaction: Connection, after: int, limit: int) -> list[Entry]:
    """The present entries of up to `limit` principals that changed after `after`, in order of their last change."""
    rows = transaction.execute(_CHANGED, {"after": after, "limit": limit}).all()
    found = (entry_of(transaction, DeviceId(principal)) for principal, _ in rows)
    return [entry for entry in found if entry is not None]


def entry_of(transaction: Connection, id: DeviceId) -> Entry | None:
    """The present entry of a principal."""
    row = transaction.execute(_ENTRY_OF, {"id": id}).first()
    if row is None:
        return None
    serials = [Serial(serial) for _, serial in transaction.execute(_SERIALS_OF, {"id": id})]
    return _entry(row._tuple(), serials)


def entry_of_serial(transaction: Connection, serial: Serial) -> Entry | None:
    """The present entry of whoever holds `serial`."""
    holder = transaction.execute(_HOLDER, {"serial": serial}).scalar_one_or_none()
    return None if holder is None else entry_of(transaction, DeviceId(holder))


def page(transaction: Connection, after: DeviceId | None) -> list[Entry]:
    """Up to PAGE_ENTRIES entries of principals whose id comes after `after`, by id; empty at the end."""
    rows = transaction.execute(_ENTRIES_AFTER, {"id": after or ""}).all()
    if not rows:
        return []
    serials: dict[str, list[Serial]] = {}
    for principal, serial in transaction.execute(_SERIALS_BETWEEN, {"first": rows[0].id, "last": rows[-1].id}):
        serials.setdefault(principal, []).append(Serial(serial))
    return [_entry(row._tuple(), serials.get(row.id, [])) for row in rows]


def _entry(row: tuple[str, str, str, int, int], serials: Sequence[Serial]) -> Entry:
    name, role, state, epoch, seq = row
    return Entry(seq, Principal(Role(role), DeviceId(name)), State(state), epoch, frozenset(serials))
