"""What is known of a certificate beside itself, and alarms of what two may use: in a caller's transaction.

An alarm holds for one enrolment (`epoch`): a device that was given its name anew begins without any.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import (
    Column,
    Connection,
    ForeignKey,
    Integer,
    Select,
    String,
    Table,
    Text,
    bindparam,
    delete,
    func,
    select,
)
from sqlalchemy import update as updating
from sqlalchemy.dialects.sqlite import insert as upsert

from enroll.registry.schema import Instant, certificates, metadata, principals
from enroll.registry.statement import Row, Statement, insert_into
from fleet.identity import DeviceId, Serial, State

provenance: Final = Table(
    "provenance",
    metadata,
    Column("serial", ForeignKey("certificates.serial"), primary_key=True),
    Column("address", String(64), nullable=False),
    Column("hardware", String(64), nullable=False),
    Column("model", String(64), nullable=False),
    Column("confirmed_at", Instant, nullable=True),
    Column("seen_at", Instant, nullable=True),
    Column("seen_address", String(64), nullable=False),
    Column("kept_at", Instant, nullable=True),
    sqlite_with_rowid=False,
)
"""Who asked for a renewed certificate, and who last came to the service with any; a first one that never did: no row.

`kept_at`: an admin decided that its holder is the right one; though it has ended, it may be renewed.
"""

alarms: Final = Table(
    "alarms",
    metadata,
    Column("principal", ForeignKey("principals.id"), primary_key=True),
    Column("kind", String(24), primary_key=True),
    Column("serial", String(40), primary_key=True),  # '' where no certificate is meant
    Column("epoch", Integer, nullable=False),
    Column("first_at", Instant, nullable=False),
    Column("last_at", Instant, nullable=False),
    Column("count", Integer, nullable=False),
    Column("address", String(64), nullable=False),
    Column("hardware", String(64), nullable=False),
    Column("model", String(64), nullable=False),
    Column("detail", Text, nullable=False),
    sqlite_with_rowid=False,
)
"""What an admin has to look at; gone once it was decided. The audit log keeps what was."""


class AlarmKind(StrEnum):
    """Why two may use one identity. Programs may rely on the words."""

    FORKED = "forked"  # two successors of one certificate are wanted: no more are given
    TWO_AGENTS = "two-agents"  # two agents say hello in turn
    OTHER_HARDWARE = "other-hardware"  # it says that it is another machine than before
    ENDED_CERTIFICATE = "ended-certificate"  # a certificate is shown that a later one has ended


@dataclass(frozen=True, slots=True)
class AlarmRecord:
    """One alarm. The address, the hardware serial and the model are those of whoever gave rise to it last."""

    principal: DeviceId
    kind: AlarmKind
    serial: Serial | None
    epoch: int
    first_at: datetime
    last_at: datetime
    count: int
    address: str = ""
    hardware: str = ""
    model: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Who asked for a certificate, since when it is in use, and who last came to the service with it.

    `issued_at` is there where all of a principal's were asked for.
    """

    serial: Serial
    address: str = ""
    hardware: str = ""
    model: str = ""
    confirmed_at: datetime | None = None
    seen_at: datetime | None = None
    seen_address: str = ""
    kept_at: datetime | None = None
    issued_at: datetime | None = None


_ALARM = (
    alarms.c.principal,
    alarms.c.kind,
    alarms.c.serial,
    alarms.c.epoch,
    alarms.c.first_at,
    alarms.c.last_at,
    alarms.c.count,
    alarms.c.address,
    alarms.c.hardware,
    alarms.c.model,
    alarms.c.detail,
)
_LATEST = ("last_at", "address", "hardware", "model", "detail")
_IS_THIS = (
    alarms.c.principal == bindparam("of"),
    alarms.c.kind == bindparam("which"),
    alarms.c.serial == bindparam("about"),
)
_AGAIN = Statement(
    updating(alarms)
    .where(*_IS_THIS, alarms.c.epoch == bindparam("in_epoch"))
    .values({name: bindparam(name) for name in _LATEST} | {"count": alarms.c.count + 1})
)
_OUTDATED = Statement(delete(alarms).where(*_IS_THIS))
_RAISE: Final = insert_into(alarms, *(column.name for column in alarms.c))
_OF = Statement(
    select(*_ALARM)
    .where(alarms.c.principal == bindparam("of"), alarms.c.epoch == bindparam("in_epoch"))
    .order_by(alarms.c.kind, alarms.c.first_at)
)
_FROZEN = Statement(
    select(alarms.c.serial).where(
        alarms.c.principal == bindparam("of"),
        alarms.c.kind == AlarmKind.FORKED.value,
        alarms.c.epoch == bindparam("in_epoch"),
    )
)
_CLEAR = Statement(delete(alarms).where(alarms.c.principal == bindparam("of")))
_COUNT = Statement(
    select(func.count(alarms.c.principal.distinct()))
    .select_from(alarms)
    .join(principals, principals.c.id == alarms.c.principal)
    .where(principals.c.epoch == alarms.c.epoch, principals.c.state != State.REVOKED.value)
)
_PROVENANCE = select(*provenance.c)
_OF_SERIAL = Statement(_PROVENANCE.where(provenance.c.serial == bindparam("of")))
_OF_PRINCIPAL = Statement(
    select(certificates.c.serial, *tuple(provenance.c)[1:], certificates.c.created_at)
    .select_from(certificates)
    .outerjoin(provenance, certificates.c.serial == provenance.c.serial)
    .where(certificates.c.principal == bindparam("of"))
)
_ASKED = insert_into(provenance, "serial", "address", "hardware", "model", "seen_address")
_LAST_GENERATION = Statement(
    select(func.max(certificates.c.generation)).where(
        certificates.c.principal == bindparam("of"), certificates.c.epoch == bindparam("in_epoch")
    )
)


def _noting(*columns: str) -> Statement:
    """A statement that sets these columns of a certificate's row, which it makes if there is none."""
    values: dict[str, Any] = {name: bindparam(name) for name in columns}
    empty: dict[str, Any] = dict.fromkeys(("address", "hardware", "model", "seen_address"), "")
    made = upsert(provenance).values(empty | {"serial": bindparam("of")} | values)
    return Statement(made.on_conflict_do_update(index_elements=["serial"], set_=values))


_SEEN = _noting("seen_at", "seen_address")
_CONFIRMED = _noting("confirmed_at", "seen_at", "seen_address")
_KEPT = _noting("kept_at")


def raise_alarm(transaction: Connection, record: AlarmRecord) -> bool:
    """Note an alarm, or that there is cause for it again; whether it is new."""
    which = {"of": record.principal, "which": record.kind.value, "about": record.serial or ""}
    latest: dict[str, Any] = {name: getattr(record, name) for name in _LATEST}
    if _AGAIN.run(transaction, **which, **latest, in_epoch=record.epoch):
        return False
    _OUTDATED.run(transaction, **which)
    _RAISE.run(
        transaction,
        principal=record.principal,
        kind=record.kind.value,
        serial=record.serial or "",
        epoch=record.epoch,
        first_at=record.first_at,
        count=1,
        **latest,
    )
    return True


def alarms_of(transaction: Connection, id: DeviceId, epoch: int) -> list[AlarmRecord]:
    """The open alarms of a principal's enrolment."""
    return [_alarm(row) for row in _OF.all(transaction, of=id, in_epoch=epoch)]


def is_frozen(transaction: Connection, id: DeviceId, epoch: int) -> bool:
    """Whether the principal is given no certificate until an admin has decided."""
    return _FROZEN.first(transaction, of=id, in_epoch=epoch) is not None


def clear(transaction: Connection, id: DeviceId) -> int:
    """Close all alarms of a principal; how many there were."""
    return _CLEAR.run(transaction, of=id)


def count_alarmed(transaction: Connection) -> int:
    """How many principals have an open alarm."""
    row = _COUNT.first(transaction)
    assert row is not None
    return int(row[0])


def alarmed() -> Select[tuple[str]]:
    """The ids of principals that have an open alarm, as a part of another query over `principals`."""
    return (
        select(alarms.c.principal)
        .join(principals, principals.c.id == alarms.c.principal)
        .where(principals.c.epoch == alarms.c.epoch, principals.c.state != State.REVOKED.value)
    )


def kinds_of(transaction: Connection, ids: Iterable[DeviceId]) -> dict[DeviceId, tuple[AlarmKind, ...]]:
    """The kinds of open alarms of those of these principals that have any; alarms are few, so all are read."""
    wanted, found = set(ids), dict[DeviceId, tuple[AlarmKind, ...]]()
    query = (
        select(alarms.c.principal, alarms.c.kind)
        .distinct()
        .where(alarms.c.principal.in_(alarmed()))
        .join(principals, (principals.c.id == alarms.c.principal) & (principals.c.epoch == alarms.c.epoch))
        .order_by(alarms.c.principal, alarms.c.kind)
    )
    for principal, kind in transaction.execute(query):
        if (id_ := DeviceId(principal)) in wanted:
            found[id_] = (*found.get(id_, ()), AlarmKind(kind))
    return found


def asked(transaction: Connection, serial: Serial, address: str, hardware: str, model: str) -> None:
    """Note who asked for a certificate that was just signed."""
    _ASKED.run(transaction, serial=serial, address=address, hardware=hardware, model=model, seen_address="")


def seen(transaction: Connection, serial: Serial, address: str, now: datetime) -> None:
    """Somebody came to the service with the certificate."""
    _SEEN.run(transaction, of=serial, seen_at=now, seen_address=address)


def confirmed(transaction: Connection, serial: Serial, address: str, now: datetime) -> None:
    """The certificate is in use, as whoever holds it says, or as its use to renew proves."""
    _CONFIRMED.run(transaction, of=serial, confirmed_at=now, seen_at=now, seen_address=address)


def keep(transaction: Connection, serial: Serial, now: datetime | None) -> None:
    """It may be renewed though it has ended, from `now` on; with None, not any more."""
    _KEPT.run(transaction, of=serial, kept_at=now)


def provenance_of(transaction: Connection, serial: Serial) -> Provenance:
    """What is known of the certificate; without a row nothing is."""
    row = _OF_SERIAL.first(transaction, of=serial)
    return Provenance(serial) if row is None else _provenance(row)


def provenances_of(transaction: Connection, id: DeviceId) -> dict[Serial, Provenance]:
    """What is known of each certificate of a principal."""
    found = dict[Serial, Provenance]()
    for serial, address, hardware, model, confirmed_at, seen_at, seen_address, kept_at, issued_at in _OF_PRINCIPAL.all(
        transaction, of=id
    ):
        texts, seen_text = (address or "", hardware or "", model or ""), seen_address or ""
        found[Serial(serial)] = Provenance(Serial(serial), *texts, confirmed_at, seen_at, seen_text, kept_at, issued_at)
    return found


def last_generation(transaction: Connection, id: DeviceId, epoch: int) -> int:
    """The highest generation that was given in an enrolment, ended ones too: 0 if there is none."""
    row = _LAST_GENERATION.first(transaction, of=id, in_epoch=epoch)
    return 0 if row is None or row[0] is None else int(row[0])


def _alarm(row: Row) -> AlarmRecord:
    principal, kind, serial, *others = row
    return AlarmRecord(DeviceId(principal), AlarmKind(kind), Serial(serial) if serial else None, *others)


def _provenance(row: Row) -> Provenance:
    serial, *others = row
    return Provenance(Serial(serial), *others)
