"""The outbox and the directory entries that it points at: within a caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, Integer, bindparam, func, insert, select

from enroll.registry.identity import IS_LIVE
from enroll.registry.schema import certificates, meta, outbox, principals
from enroll.registry.statement import Row, Statement, insert_into
from fleet.directory import Entry
from fleet.errors import FleetError
from fleet.identity import DeviceId, Principal, Role, Serial, State

PAGE_ENTRIES: Final = 500

_LAST = func.coalesce(func.max(outbox.c.seq), 0)
_ENTRY = select(
    principals.c.id,
    principals.c.role,
    principals.c.state,
    principals.c.epoch,
    select(_LAST).where(outbox.c.principal == principals.c.id).scalar_subquery(),
)
_SERIALS = select(certificates.c.principal, certificates.c.serial).where(IS_LIVE)

_ANNOUNCE = Statement(insert(outbox).values(principal=bindparam("principal")).returning(outbox.c.seq))
_HEAD = Statement(select(_LAST))
_CHANGED = Statement(
    select(outbox.c.seq, outbox.c.principal)
    .where(outbox.c.seq > bindparam("after"))
    .order_by(outbox.c.seq)
    .limit(bindparam("limit", type_=Integer))
)
_ENTRY_OF = Statement(_ENTRY.where(principals.c.id == bindparam("of")))
_ENTRIES_AFTER = Statement(
    _ENTRY.where(principals.c.id > bindparam("after"))
    .order_by(principals.c.id)
    .limit(bindparam("limit", type_=Integer))
)
_SERIALS_OF = Statement(_SERIALS.where(certificates.c.principal == bindparam("of")))
_SERIALS_BETWEEN = Statement(_SERIALS.where(certificates.c.principal.between(bindparam("first"), bindparam("last"))))
_HOLDER = Statement(select(certificates.c.principal).where(certificates.c.serial == bindparam("of")))
_SET_META = insert_into(meta, "name", "value")
_META = Statement(select(meta.c.value).where(meta.c.name == bindparam("of")))


def set_feed(transaction: Connection, feed: str) -> None:
    """Name a new registry's feed."""
    _SET_META.run(transaction, name="feed", value=feed)


def feed_id(transaction: Connection) -> str:
    """The name of this registry's feed; brokers take a snapshot when it changes. Raises: FleetError if it has none."""
    row = _META.first(transaction, of="feed")
    if row is None:
        raise FleetError("the registry has no feed: it was not made by enroll init", hint="enroll init --home DIR")
    return str(row[0])


def announce(transaction: Connection, principal: DeviceId) -> int:
    """Tell brokers, once this transaction has committed, that the principal changed; its sequence number."""
    row = _ANNOUNCE.first(transaction, principal=principal)
    assert row is not None
    return int(row[0])


def head(transaction: Connection) -> int:
    """The last sequence number given."""
    row = _HEAD.first(transaction)
    assert row is not None
    return int(row[0])


@dataclass(frozen=True, slots=True)
class Changes:
    """The present entries of those who changed up to `reached`, in order of their last change; `is_all` up to now."""

    entries: list[Entry]
    reached: int
    is_all: bool


def changes(transaction: Connection, after: int, limit: int) -> Changes:
    """Who changed after `after`, as up to `limit` changes tell: one that came often stands there once.

    A follower that is a million changes behind costs as many rows, not their square.
    """
    changed = _CHANGED.all(transaction, after=after, limit=limit)
    last = {DeviceId(principal): seq for seq, principal in changed}
    found = (entry_of(transaction, principal) for principal in sorted(last, key=last.__getitem__))
    entries = [entry for entry in found if entry is not None]
    return Changes(entries, changed[-1][0] if changed else after, len(changed) < limit)


def entry_of(transaction: Connection, id: DeviceId) -> Entry | None:
    """The present entry of a principal."""
    row = _ENTRY_OF.first(transaction, of=id)
    if row is None:
        return None
    return _entry(row, [Serial(serial) for _, serial in _SERIALS_OF.all(transaction, of=id)])


def entry_of_serial(transaction: Connection, serial: Serial) -> Entry | None:
    """The present entry of whoever holds `serial`."""
    row = _HOLDER.first(transaction, of=serial)
    return None if row is None or row[0] is None else entry_of(transaction, DeviceId(row[0]))


def page(transaction: Connection, after: DeviceId | None) -> list[Entry]:
    """Up to PAGE_ENTRIES entries of principals whose id comes after `after`, by id; empty at the end."""
    rows = _ENTRIES_AFTER.all(transaction, after=after or "", limit=PAGE_ENTRIES)
    if not rows:
        return []
    serials: dict[str, list[Serial]] = {}
    for principal, serial in _SERIALS_BETWEEN.all(transaction, first=rows[0][0], last=rows[-1][0]):
        serials.setdefault(principal, []).append(Serial(serial))
    return [_entry(row, serials.get(row[0], [])) for row in rows]


def _entry(row: Row, serials: Sequence[Serial]) -> Entry:
    name, role, state, epoch, seq = row
    return Entry(seq, Principal(Role(role), DeviceId(name)), State(state), epoch, frozenset(serials))
