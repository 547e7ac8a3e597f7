"""Which commands each device takes, as it said last: reads and writes within a caller's transaction."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Final

from sqlalchemy import Column, Connection, ForeignKey, Integer, Table, Text, bindparam, select
from sqlalchemy.dialects.sqlite import insert as upsert

from enroll.registry.records import PrincipalRecord
from enroll.registry.schema import Instant, metadata, principals
from fleet.identity import DeviceId

catalogues: Final = Table(
    "catalogues",
    metadata,
    Column("principal", ForeignKey("principals.id"), primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("commands", Text, nullable=False),  # JSON as in `up/commands`
    Column("changed_at", Instant, nullable=False),
)
"""One row for each device that has said so. `epoch`: who takes over an id is another machine, and has not said it."""

_SAID: Final = select(catalogues.c.epoch, catalogues.c.commands).where(catalogues.c.principal == bindparam("of"))
_OF: Final = (
    select(catalogues.c.principal, catalogues.c.commands)
    .join(principals, (principals.c.id == catalogues.c.principal) & (principals.c.epoch == catalogues.c.epoch))
    .where(catalogues.c.principal.in_(bindparam("ids", expanding=True)))
)


def put(transaction: Connection, device: PrincipalRecord, commands: str, now: datetime) -> bool:
    """Keep what the device takes, if that is not known: whether it was news."""
    if transaction.execute(_SAID, {"of": device.id}).first() == (device.epoch, commands):
        return False
    values = {"epoch": device.epoch, "commands": commands, "changed_at": now}
    statement = upsert(catalogues).values(principal=device.id, **values)
    transaction.execute(statement.on_conflict_do_update(index_elements=["principal"], set_=values))
    return True


def texts_of(transaction: Connection, ids: Collection[DeviceId]) -> dict[DeviceId, str]:
    """What those of these devices take that have said so; some hundred ids at once."""
    return {DeviceId(device): text for device, text in transaction.execute(_OF, {"ids": list(ids)})}
