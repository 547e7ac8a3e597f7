"""Requests that an admin has to approve: reads and writes within a caller's transaction."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, and_, bindparam, delete, func, or_, select, update

from enroll.registry.records import ApprovalRecord, ApprovalState
from enroll.registry.schema import approvals
from enroll.registry.statement import Row, Statement, insert_into
from fleet.identity import DeviceId, Serial

_COLUMNS: Final = (
    *("id", "token", "device", "key", "state", "address", "network", "hardware_serial", "model"),
    *("created_at", "expires_at", "decided_by", "reason", "certificate", "recovers"),
)
_CHANGING: Final = ("state", "expires_at", "decided_by", "reason", "certificate")
_APPROVAL = select(*(approvals.c[name] for name in _COLUMNS))
_IS_WAITING: Final = approvals.c.state == ApprovalState.WAITING.value
_IS_OPEN: Final = or_(_IS_WAITING, approvals.c.state == ApprovalState.APPROVED.value)
_IS_IN_TIME: Final = approvals.c.expires_at > bindparam("now")
_IS_PAIRING: Final = and_(approvals.c.token.is_(None), approvals.c.recovers.is_(None))

_BY_ID = Statement(_APPROVAL.where(approvals.c.id == bindparam("of")))
_OF_KEY = Statement(_APPROVAL.where(approvals.c.key == bindparam("of")))
_IN_TIME = Statement(_APPROVAL.where(_IS_IN_TIME).order_by(approvals.c.created_at, approvals.c.id))
_OPEN_OF_DEVICE = Statement(_APPROVAL.where(approvals.c.device == bindparam("of"), _IS_OPEN, _IS_IN_TIME))
_OPEN_OF_TOKEN = Statement(_APPROVAL.where(approvals.c.token == bindparam("of"), _IS_OPEN, _IS_IN_TIME))
_ADD = insert_into(approvals, *_COLUMNS)
_CHANGE = Statement(
    update(approvals).where(approvals.c.id == bindparam("of")).values({name: bindparam(name) for name in _CHANGING})
)
_FORGET = Statement(delete(approvals).where(approvals.c.expires_at <= bindparam("now")))


def _count(*conditions: ColumnElement[bool]) -> Statement:
    return Statement(select(func.count()).select_from(approvals).where(_IS_OPEN, _IS_IN_TIME, *conditions))


_OPEN_PROVEN = _count(~_IS_PAIRING)
_OPEN_PAIRINGS = _count(_IS_PAIRING)
_OPEN_PAIRINGS_OF_NETWORK = _count(_IS_PAIRING, approvals.c.network == bindparam("network"))


def add(transaction: Connection, record: ApprovalRecord) -> None:
    """Add a request; its id is new."""
    _ADD.run(transaction, **asdict(record) | {"state": record.state.value})


def change(transaction: Connection, record: ApprovalRecord) -> None:
    """Store state, time, who decided and why, and the certificate; all else never changes."""
    changing = {name: getattr(record, name) for name in _CHANGING}
    _CHANGE.run(transaction, of=record.id, **changing | {"state": record.state.value})


def forget_over(transaction: Connection, now: datetime) -> int:
    """Delete what is past its time; how many that were."""
    return _FORGET.run(transaction, now=now)


def find(transaction: Connection, id: str) -> ApprovalRecord | None:
    """The request of that id, past its time or not."""
    row = _BY_ID.first(transaction, of=id)
    return None if row is None else _approval(row)


def find_of_key(
    transaction: Connection, key: bytes, token: str | None, recovers: Serial | None = None
) -> ApprovalRecord | None:
    """The request of the key with that SHA-256 that came with the token or certificate, or as a pairing.

    Past its time or not.
    """
    found = (_approval(row) for row in _OF_KEY.all(transaction, of=key))
    return next((record for record in found if (record.token, record.recovers) == (token, recovers)), None)


def in_time(transaction: Connection, now: datetime) -> list[ApprovalRecord]:
    """Every request whose time has not come, oldest first."""
    return [_approval(row) for row in _IN_TIME.all(transaction, now=now)]


def open_of_device(transaction: Connection, device: DeviceId, now: datetime) -> list[ApprovalRecord]:
    """What may still become a certificate for `device`."""
    return [_approval(row) for row in _OPEN_OF_DEVICE.all(transaction, of=device, now=now)]


def open_of_token(transaction: Connection, token: str, now: datetime) -> list[ApprovalRecord]:
    """What may still become a certificate by that token."""
    return [_approval(row) for row in _OPEN_OF_TOKEN.all(transaction, of=token, now=now)]


def count_open_proven(transaction: Connection, now: datetime) -> int:
    """How many requests that are no pairings may still become a certificate."""
    return _number(_OPEN_PROVEN.first(transaction, now=now))


def count_open_pairings(transaction: Connection, now: datetime, network: str | None = None) -> int:
    """How many pairings may still become a certificate: all, or those from one network."""
    if network is None:
        return _number(_OPEN_PAIRINGS.first(transaction, now=now))
    return _number(_OPEN_PAIRINGS_OF_NETWORK.first(transaction, now=now, network=network))


def _number(row: Row | None) -> int:
    assert row is not None
    return int(row[0])


def _approval(row: Row) -> ApprovalRecord:
    fields: dict[str, Any] = dict(zip(_COLUMNS, row, strict=True))
    recovers = fields["recovers"]
    fields |= {"device": DeviceId(fields["device"]), "state": ApprovalState(fields["state"])}
    return ApprovalRecord(**fields | {"recovers": None if recovers is None else Serial(recovers)})
