"""How each device came and went, the last so many times; reads and writes within a caller's transaction."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, bindparam, select
from sqlalchemy.dialects.sqlite import insert as upsert

from enroll.registry.records import PresenceChange
from enroll.registry.schema import presence_changes
from fleet.identity import DeviceId

KEPT: Final = 100
"""So many changes of each device."""

_COLUMNS: Final = (
    presence_changes.c.number,
    presence_changes.c.at,
    presence_changes.c.online,
    presence_changes.c.reason,
    presence_changes.c.said,
    presence_changes.c.address,
    presence_changes.c.broker,
    presence_changes.c.before,
)
_ADD = upsert(presence_changes)
_PUT = _ADD.on_conflict_do_update(
    index_elements=["principal", "slot"], set_={column.name: _ADD.excluded[column.name] for column in _COLUMNS}
)
_LAST = (
    select(*_COLUMNS)
    .where(presence_changes.c.principal == bindparam("of"))
    .order_by(presence_changes.c.number.desc())
    .limit(bindparam("limit"))
)


def add(transaction: Connection, device: DeviceId, change: PresenceChange) -> None:
    """Keep a change of a principal that is there, in the place of the oldest."""
    values = {
        "principal": device,
        "slot": change.number % KEPT,
        "number": change.number,
        "at": change.at,
        "online": change.is_online,
        "reason": change.reason,
        "said": change.said,
        "address": change.address,
        "broker": change.broker,
        "before": change.before,
    }
    transaction.execute(_PUT, values)


def last(transaction: Connection, device: DeviceId, limit: int = KEPT) -> list[PresenceChange]:
    """The last changes of a device, the newest first."""
    return [PresenceChange(*row) for row in transaction.execute(_LAST, {"of": device, "limit": limit})]
