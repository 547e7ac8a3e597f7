"""What devices were asked to send, and how far it has come: reads and writes within a caller's transaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    bindparam,
    case,
    delete,
    func,
    select,
    update,
)

from enroll.registry.schema import Instant, metadata
from enroll.registry.statement import Statement, insert_into
from fleet.identity import DeviceId

uploads: Final = Table(
    "uploads",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("device", ForeignKey("principals.id"), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("what", String(16), nullable=False),
    Column("name", Text, nullable=False),
    Column("max_bytes", BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False),
    Column("total", BigInteger, nullable=True),
    Column("digest", LargeBinary(32), nullable=True),
    Column("finished_at", Instant, nullable=True),
    Index(None, "device"),
    sqlite_with_rowid=False,
)
"""One row for each upload whose file is there or may still come. `id` is the command's that asked for it."""


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """One upload. `total` and `digest`: what the device announced with the first piece; `name`: of a file.

    Nothing is taken after `expires_at`.
    """

    id: str
    device: DeviceId
    epoch: int
    what: str
    name: str
    max_bytes: int
    created_at: datetime
    expires_at: datetime
    total: int | None = None
    digest: bytes | None = None
    finished_at: datetime | None = None

    @property
    def is_finished(self) -> bool:
        return self.finished_at is not None


_NAMES: Final = tuple(column.name for column in uploads.columns)
_ALL = select(*uploads.columns)
_FIND = Statement(_ALL.where(uploads.c.id == bindparam("of")))
_OF = Statement(_ALL.where(uploads.c.device == bindparam("of")).order_by(uploads.c.created_at, uploads.c.id))
_EACH = Statement(_ALL.order_by(uploads.c.created_at, uploads.c.id))
_ADD = insert_into(uploads, *_NAMES)
_IS_THIS = uploads.c.id == bindparam("of")
_REMOVE = Statement(delete(uploads).where(_IS_THIS))
_ANNOUNCE = Statement(update(uploads).where(_IS_THIS).values(total=bindparam("all"), digest=bindparam("hash")))
_FINISH = Statement(update(uploads).where(_IS_THIS).values(finished_at=bindparam("at")))
# What it takes up, or may still come to.
_RESERVED = func.coalesce(
    func.sum(case((uploads.c.finished_at.is_not(None), uploads.c.total), else_=uploads.c.max_bytes)), 0
)
_RESERVED_ALL = Statement(select(_RESERVED))
_RESERVED_OF = Statement(select(_RESERVED).where(uploads.c.device == bindparam("of")))


def add(transaction: Connection, record: UploadRecord) -> None:
    """Add one of a principal that is there."""
    _ADD.run(transaction, **{name: getattr(record, name) for name in _NAMES})


def find(transaction: Connection, id: str) -> UploadRecord | None:
    """The upload of that id."""
    row = _FIND.first(transaction, of=id)
    return None if row is None else _record(row)


def listed(transaction: Connection, device: DeviceId | None = None) -> list[UploadRecord]:
    """All of a device, or of everybody, the oldest first."""
    rows = _EACH.all(transaction) if device is None else _OF.all(transaction, of=device)
    return [_record(row) for row in rows]


def reserved_bytes(transaction: Connection, device: DeviceId | None = None) -> int:
    """What the uploads of a device, or of everybody, take up or may still come to."""
    row = _RESERVED_ALL.first(transaction) if device is None else _RESERVED_OF.first(transaction, of=device)
    return 0 if row is None else int(row[0])


def announce(transaction: Connection, id: str, total: int | None, digest: bytes | None) -> None:
    """Note what is going to come; or, with None, that nothing is known of it again."""
    _ANNOUNCE.run(transaction, of=id, all=total, hash=digest)


def finish(transaction: Connection, id: str, now: datetime) -> None:
    """Its file is whole."""
    _FINISH.run(transaction, of=id, at=now)


def remove(transaction: Connection, id: str) -> None:
    """Forget one."""
    _REMOVE.run(transaction, of=id)


def _record(row: tuple[object, ...]) -> UploadRecord:
    fields = dict(zip(_NAMES, row, strict=True))
    fields["device"] = DeviceId(str(fields["device"]))
    return UploadRecord(**fields)  # type: ignore[arg-type] # the table's own columns
