"""Which starts of an agent said hello, as each tells of itself: the last few of each device; in a transaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import BigInteger, Column, Connection, ForeignKey, Integer, String, Table, bindparam, delete, select

from enroll.registry.schema import Instant, metadata
from enroll.registry.statement import Statement, insert_into
from fleet.identity import DeviceId

boots: Final = Table(
    "boots",
    metadata,
    Column("principal", ForeignKey("principals.id"), primary_key=True),
    Column("boot", String(64), primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("place", Integer, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("serial", String(40), nullable=False),
    Column("hardware", String(64), nullable=False),
    Column("first_at", Instant, nullable=False),
    Column("last_at", Instant, nullable=False),
    Column("returns", Integer, nullable=False),
    sqlite_with_rowid=False,
)
"""The last starts of each agent. `place` grows with each hello of the device: the highest spoke last."""


@dataclass(frozen=True, slots=True)
class BootRecord:
    """One start of an agent: `seq` is its last message's number, `serial` and `hardware` are what it says of itself.

    `returns`: how often of late it spoke again after another start had spoken.
    """

    boot: str
    epoch: int
    place: int
    seq: int
    serial: str
    hardware: str
    first_at: datetime
    last_at: datetime
    returns: int = 0


_NAMES: Final = ("boot", "epoch", "place", "seq", "serial", "hardware", "first_at", "last_at", "returns")
_OF = Statement(
    select(*(boots.c[name] for name in _NAMES)).where(boots.c.principal == bindparam("of")).order_by(boots.c.place)
)
_IS_THIS = (boots.c.principal == bindparam("of"), boots.c.boot == bindparam("which"))
_REMOVE = Statement(delete(boots).where(*_IS_THIS))
_ADD = insert_into(boots, "principal", *_NAMES)


def boots_of(transaction: Connection, id: DeviceId) -> list[BootRecord]:
    """The starts that are remembered, who spoke last at the end."""
    return [BootRecord(*row) for row in _OF.all(transaction, of=id)]


def put(transaction: Connection, id: DeviceId, record: BootRecord) -> None:
    """Store one, in the place of what was known of it."""
    remove(transaction, id, record.boot)
    _ADD.run(transaction, principal=id, **{name: getattr(record, name) for name in _NAMES})


def remove(transaction: Connection, id: DeviceId, boot: str) -> None:
    """Forget one."""
    _REMOVE.run(transaction, of=id, which=boot)
