"""Principals, keys and certificates: reads and writes within a caller's transaction."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, bindparam, delete, func, or_, select, update

from enroll.registry.records import LIVE, CertificateRecord, CertificateState, PrincipalRecord
from enroll.registry.schema import certificates, keys, memberships, principals
from enroll.registry.statement import Row, Statement, insert_into
from fleet.identity import DeviceId, Principal, Role, Serial, State

_NO_NAMES: Final = "[]"  # most lists, and decoded several times in each enrolment
SHARD_CERTIFICATES: Final = 10_000  # DESIGN section 5: the public CRL builder is quadratic
SERVERS_SHARD: Final = 0

_PRINCIPAL = select(
    principals.c.id,
    principals.c.role,
    principals.c.state,
    principals.c.epoch,
    principals.c.groups,
    principals.c.created_at,
)
CERTIFICATE_COLUMNS: Final = (
    certificates.c.number,
    certificates.c.serial,
    certificates.c.principal,
    certificates.c.profile,
    certificates.c.key,
    certificates.c.epoch,
    certificates.c.generation,
    certificates.c.parent,
    certificates.c.state,
    certificates.c.not_before,
    certificates.c.not_after,
    certificates.c.der,
)
IS_LIVE: Final = or_(*(certificates.c.state == state.value for state in LIVE))
_CERTIFICATE = select(*CERTIFICATE_COLUMNS)
_CERTIFICATES = _CERTIFICATE.where(certificates.c.principal == bindparam("id")).order_by(certificates.c.number)

_PRINCIPAL_BY_ID = Statement(_PRINCIPAL.where(principals.c.id == bindparam("id")))
_PRINCIPALS = Statement(_PRINCIPAL.order_by(principals.c.id))
_PRINCIPALS_OF_ROLE = Statement(_PRINCIPAL.where(principals.c.role == bindparam("role")).order_by(principals.c.id))
_ADD_PRINCIPAL = insert_into(principals, "id", "role", "state", "epoch", "groups", "created_at")
_UPDATE_PRINCIPAL = Statement(
    update(principals)
    .where(principals.c.id == bindparam("of"))
    .values({name: bindparam(name) for name in ("state", "epoch", "groups")})
)
_JOIN = insert_into(memberships, "name", "principal")
_LEAVE = Statement(
    delete(memberships).where(memberships.c.name == bindparam("name"), memberships.c.principal == bindparam("of"))
)
_CERTIFICATE_BY_SERIAL = Statement(_CERTIFICATE.where(certificates.c.serial == bindparam("serial")))
_CERTIFICATE_BY_NUMBER = Statement(_CERTIFICATE.where(certificates.c.number == bindparam("of")))
_CERTIFICATES_OF = Statement(_CERTIFICATES)
_LIVE_OF = Statement(_CERTIFICATES.where(IS_LIVE))
_KEY = Statement(select(keys.c.principal).where(keys.c.spki_sha256 == bindparam("key")))
_ADD_KEY = insert_into(keys, "spki_sha256", "principal", "created_at")
_LAST_NUMBER = Statement(select(func.coalesce(func.max(certificates.c.number), 0)))
_ADD_CERTIFICATE = insert_into(
    certificates, *(column.name for column in CERTIFICATE_COLUMNS), "issuer", "shard", "created_at"
)
_SET_STATE = Statement(
    update(certificates).where(certificates.c.serial == bindparam("of")).values(state=bindparam("state"))
)


def find_principal(transaction: Connection, id: DeviceId) -> PrincipalRecord | None:
    """The principal of that id."""
    row = _PRINCIPAL_BY_ID.first(transaction, id=id)
    return None if row is None else _principal(row)


def list_principals(transaction: Connection, role: Role | None = None) -> list[PrincipalRecord]:
    """All principals, or those of a role, by id."""
    if role is None:
        return [_principal(row) for row in _PRINCIPALS.all(transaction)]
    return [_principal(row) for row in _PRINCIPALS_OF_ROLE.all(transaction, role=role.value)]


def add_principal(transaction: Connection, record: PrincipalRecord) -> None:
    """Add a principal whose id was never used."""
    _ADD_PRINCIPAL.run(
        transaction,
        id=record.id,
        role=record.principal.role.value,
        state=record.state.value,
        epoch=record.epoch,
        groups=encode_names(record.groups),
        created_at=record.created_at,
    )
    _regroup(transaction, record.id, (), record.groups)


def update_principal(transaction: Connection, record: PrincipalRecord) -> None:
    """Store the state, epoch and groups of a principal that is there; its role never changes."""
    before = find_principal(transaction, record.id)
    _regroup(transaction, record.id, () if before is None else before.groups, record.groups)
    _UPDATE_PRINCIPAL.run(
        transaction,
        of=record.id,
        state=record.state.value,
        epoch=record.epoch,
        groups=encode_names(record.groups),
    )


def _regroup(transaction: Connection, id: DeviceId, before: Sequence[str], after: Sequence[str]) -> None:
    if before == after:
        return
    for name in set(before) - set(after):
        _LEAVE.run(transaction, of=id, name=name)
    for name in set(after) - set(before):
        _JOIN.run(transaction, name=name, principal=id)


def is_key_known(transaction: Connection, key: bytes) -> bool:
    """Whether a certificate was ever issued for the key with that SHA-256."""
    return _KEY.first(transaction, key=key) is not None


def add_key(transaction: Connection, key: bytes, principal: DeviceId | None, now: datetime) -> None:
    """Bind a key to its principal for ever; fails if it is anyone's already."""
    _ADD_KEY.run(transaction, spki_sha256=key, principal=principal, created_at=now)


def last_number(transaction: Connection) -> int:
    """The number of the newest certificate; 0 if there is none."""
    row = _LAST_NUMBER.first(transaction)
    assert row is not None
    return int(row[0])


def shard_of(number: int) -> int:
    """The CRL shard of the client certificate with that number; SERVERS_SHARD is the servers', who have another CA."""
    return 1 + number // SHARD_CERTIFICATES


def add_certificate(
    transaction: Connection, record: CertificateRecord, *, issuer: str, shard: int, now: datetime
) -> None:
    """Add what was signed; fails if its serial, or its number, is another one's."""
    _ADD_CERTIFICATE.run(
        transaction,
        number=record.number,
        serial=record.serial,
        principal=record.principal,
        profile=record.profile,
        key=record.key,
        epoch=record.epoch,
        generation=record.generation,
        parent=record.parent,
        state=record.state.value,
        not_before=record.not_before,
        not_after=record.not_after,
        der=record.der,
        issuer=issuer,
        shard=shard,
        created_at=now,
    )


def certificate_by_number(transaction: Connection, number: int) -> CertificateRecord | None:
    """The certificate with that number."""
    row = _CERTIFICATE_BY_NUMBER.first(transaction, of=number)
    return None if row is None else certificate_of(row)


def find_certificate(transaction: Connection, serial: Serial) -> CertificateRecord | None:
    """The certificate with that serial."""
    row = _CERTIFICATE_BY_SERIAL.first(transaction, serial=serial)
    return None if row is None else certificate_of(row)


def certificates_of(transaction: Connection, id: DeviceId) -> list[CertificateRecord]:
    """Every certificate of a principal, oldest first."""
    return [certificate_of(row) for row in _CERTIFICATES_OF.all(transaction, id=id)]


def live_certificates_of(transaction: Connection, id: DeviceId) -> list[CertificateRecord]:
    """The certificates with which a principal may connect while it is active: two at most."""
    return [certificate_of(row) for row in _LIVE_OF.all(transaction, id=id)]


def set_certificate_states(transaction: Connection, serials: Iterable[Serial], state: CertificateState) -> None:
    """Move certificates to a state."""
    for serial in serials:
        _SET_STATE.run(transaction, of=serial, state=state.value)


def encode_names(groups: Sequence[str]) -> str:
    """A list of names as the tables keep it."""
    return json.dumps(list(groups)) if groups else _NO_NAMES


def decode_names(text: str) -> tuple[str, ...]:
    """The inverse of `encode_names`."""
    return () if text == _NO_NAMES else tuple(json.loads(text))


def _principal(row: Row) -> PrincipalRecord:
    name, role, state, epoch, groups, created_at = row
    return PrincipalRecord(Principal(Role(role), DeviceId(name)), State(state), epoch, decode_names(groups), created_at)


def certificate_of(row: Row) -> CertificateRecord:
    """The record in a row of `CERTIFICATE_COLUMNS`."""
    number, serial, principal, profile, key, epoch, generation, parent, state, not_before, not_after, der = row
    return CertificateRecord(
        number,
        Serial(serial),
        None if principal is None else DeviceId(principal),
        profile,
        key,
        epoch,
        generation,
        None if parent is None else Serial(parent),
        CertificateState(state),
        not_before,
        not_after,
        der,
    )
