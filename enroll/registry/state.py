"""Desired and reported state of devices: reads and writes within a caller's transaction."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    ForeignKey,
    Index,
    Integer,
    Row,
    String,
    Table,
    Text,
    and_,
    bindparam,
    false,
    select,
    text,
    update,
)
from sqlalchemy.dialects.sqlite import insert as upsert

from enroll.registry.schema import Instant, metadata, presence, principals
from fleet.identity import DeviceId, State
from fleet.messages import JsonObject
from fleet.state import EMPTY, Document, Mark, owned

states: Final = Table(
    "states",
    metadata,
    Column("principal", ForeignKey("principals.id"), primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("desired", Text, nullable=False),  # a JSON object
    Column("desired_version", BigInteger, nullable=False),
    Column("desired_at", Instant, nullable=True),
    Column("known", Text, nullable=True),
    Column("known_version", BigInteger, nullable=False),
    Column("known_at", Instant, nullable=True),
    Column("sent_version", BigInteger, nullable=False),
    Column("reported", Text, nullable=False),  # a JSON object
    Column("reported_version", BigInteger, nullable=False),
    Column("reported_tag", String(32), nullable=False),
    Column("reported_at", Instant, nullable=True),
    Column("is_due", Boolean, nullable=False, server_default=false()),
    Index(None, "is_due", sqlite_where=text("is_due = 1")),
    sqlite_with_rowid=False,
)
"""What a device is to be, and is. `epoch`: who takes over an id begins with nothing.

`known` is the desired document that the device last said to have, NULL where that is the present one or none is known;
`sent_version` the last that the broker took. `is_due`: there is one it was not sent, and it is online. Those for who is
away are not looked at.
"""


@dataclass(frozen=True, slots=True)
class StateRecord:
    """Both documents of one holder of an id. `known` is what the device said last to have of the desired one."""

    device: DeviceId
    epoch: int
    desired: Document = EMPTY
    desired_at: datetime | None = None
    known: Document | None = None
    known_at: datetime | None = None
    sent_version: int = 0
    reported: Document = EMPTY
    reported_at: datetime | None = None


_COLUMNS: Final = tuple(column for column in states.c if column is not states.c.is_due)
_IS_OF_HOLDER = and_(principals.c.id == states.c.principal, principals.c.epoch == states.c.epoch)
_OF: Final = (
    select(*_COLUMNS).join(principals, _IS_OF_HOLDER).where(states.c.principal.in_(bindparam("ids", expanding=True)))
)
_DUE: Final = (
    select(*_COLUMNS)
    .join(principals, _IS_OF_HOLDER)
    .where(states.c.is_due, principals.c.state == State.ACTIVE.value)
    .limit(bindparam("limit", type_=Integer))
)
_IS_TO_BE_SENT: Final = and_(bindparam("is_ready", type_=Boolean), states.c.desired_version > states.c.sent_version)
_CAME_OR_WENT: Final = (
    update(states)
    .where(states.c.principal == bindparam("of"), states.c.is_due != _IS_TO_BE_SENT)
    .values(is_due=_IS_TO_BE_SENT)
)
_SENT: Final = (
    update(states)
    .where(
        states.c.principal == bindparam("of"),
        states.c.desired_version >= bindparam("version"),
        states.c.sent_version < bindparam("version"),
    )
    .values(
        sent_version=bindparam("version"), is_due=and_(states.c.is_due, states.c.desired_version > bindparam("version"))
    )
)
_ORPHANED: Final = update(states).where(states.c.principal == bindparam("of"), states.c.is_due).values(is_due=False)
_IS_READY: Final = select(presence.c.online & presence.c.claimed).where(presence.c.principal == bindparam("of"))


def find_states(transaction: Connection, ids: Collection[DeviceId]) -> dict[DeviceId, StateRecord]:
    """The states of the present holders of these ids, those that have any; some hundred ids at once."""
    found = map(_record, transaction.execute(_OF, {"ids": list(ids)}))
    return {record.device: record for record in found}


def due_states(transaction: Connection, limit: int) -> list[StateRecord]:
    """Up to `limit` states of which their devices, which are online, were not sent the last version."""
    return [_record(row) for row in transaction.execute(_DUE, {"limit": limit})]


def put_state(transaction: Connection, record: StateRecord) -> None:
    """Store the state of a principal that is there; while it is online, what it was not sent is due."""
    known = record.known
    is_current = known is not None and known.mark == record.desired.mark
    is_ready = bool(transaction.execute(_IS_READY, {"of": record.device}).scalar_one_or_none())
    values = {
        "epoch": record.epoch,
        "desired": _text(record.desired.value),
        "desired_version": record.desired.version,
        "desired_at": record.desired_at,
        "known": None if known is None or is_current else _text(known.value),
        "known_version": 0 if known is None else known.version,
        "known_at": record.known_at,
        "sent_version": record.sent_version,
        "reported": _text(record.reported.value),
        "reported_version": record.reported.version,
        "reported_tag": record.reported.mark.tag,
        "reported_at": record.reported_at,
        "is_due": is_ready and record.desired.version > record.sent_version,
    }
    statement = upsert(states).values(principal=record.device, **values)
    transaction.execute(statement.on_conflict_do_update(index_elements=["principal"], set_=values))


def mark_states_sent(transaction: Connection, versions: Iterable[tuple[DeviceId, int]]) -> None:
    """The broker has taken these versions of desired states."""
    for device, version in versions:
        transaction.execute(_SENT, {"of": device, "version": version})


def came_or_went(transaction: Connection, device: DeviceId, *, is_ready: bool) -> None:
    """What a device was not sent is due for as long as it is there."""
    transaction.execute(_CAME_OR_WENT, {"of": device, "is_ready": is_ready})


def orphan_state(transaction: Connection, device: DeviceId) -> None:
    """Nothing is due to a device that is no more."""
    transaction.execute(_ORPHANED, {"of": device})


def _record(row: Row[*tuple[Any, ...]]) -> StateRecord:
    device, epoch, desired, version, desired_at, known, known_version, known_at, sent, *reported, reported_at = row
    document = owned(json.loads(desired), version)
    if known is not None:
        last: Document | None = owned(json.loads(known), known_version)
    else:
        last = document if known_version == version and version else None
    value, reported_version, tag = reported
    copy = Document(json.loads(value), Mark(reported_version, tag))
    return StateRecord(DeviceId(device), epoch, document, desired_at, last, known_at, sent, copy, reported_at)


def _text(value: JsonObject) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
