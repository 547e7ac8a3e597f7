"""Principals, keys and certificates: reads and writes within a caller's transaction."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from enroll.registry.records import LIVE, CertificateRecord, CertificateState, Intent, PrincipalRecord
from enroll.registry.schema import certificates, keys, principals
from fleet.identity import DeviceId, Principal, Role, Serial, State

SHARD_CERTIFICATES: Final = 10_000  # DESIGN section 5: the public CRL builder is quadratic

_PRINCIPAL = select(
    principals.c.id,
    principals.c.role,
    principals.c.state,
    principals.c.epoch,
    principals.c.groups,
    principals.c.created_at,
)
CERTIFICATE_COLUMNS = (
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
_CERTIFICATE = select(*CERTIFICATE_COLUMNS).where(certificates.c.state != CertificateState.INTENDED.value)
_PRINCIPAL_BY_ID = _PRINCIPAL.where(principals.c.id == bindparam("id"))
_CERTIFICATE_BY_SERIAL = _CERTIFICATE.where(certificates.c.serial == bindparam("serial"))
_CERTIFICATES_OF = _CERTIFICATE.where(certificates.c.principal == bindparam("id")).order_by(certificates.c.number)
_LIVE_OF = _CERTIFICATES_OF.where(certificates.c.state.in_([state.value for state in LIVE]))
_KEY = select(keys.c.principal).where(keys.c.spki_sha256 == bindparam("key"))
_INTEND = insert(certificates)
_SET_RESULT = (
    update(certificates)
    .where(certificates.c.number == bindparam("at"), certificates.c.state == CertificateState.INTENDED.value)
    .values({name: bindparam(name) for name in ("state", "shard", "not_before", "not_after", "der")})
)
_SET_STATE = update(certificates).where(certificates.c.serial == bindparam("of")).values(state=bindparam("state"))
_UPDATE_PRINCIPAL = (
    update(principals)
    .where(principals.c.id == bindparam("of"))
    .values({name: bindparam(name) for name in ("state", "epoch", "groups")})
)


def find_principal(transaction: Connection, id: DeviceId) -> PrincipalRecord | None:
    """The principal of that id."""
    row = transaction.execute(_PRINCIPAL_BY_ID, {"id": id}).first()
    return None if row is None else _principal(row)


def list_principals(transaction: Connection, role: Role | None = None) -> list[PrincipalRecord]:
    """All principals, or those of a role, by id."""
    query = _PRINCIPAL if role is None else _PRINCIPAL.where(principals.c.role == role.value)
    return [_principal(row) for row in transaction.execute(query.order_by(principals.c.id))]


def add_principal(transaction: Connection, record: PrincipalRecord) -> None:
    """Add a principal whose id was never used."""
    transaction.execute(
        insert(principals),
        {
            "id": record.id,
            "role": record.principal.role.value,
            "state": record.state.value,
            "epoch": record.epoch,
            "groups": encode_groups(record.groups),
            "created_at": record.created_at,
        },
    )


def update_principal(transaction: Connection, record: PrincipalRecord) -> None:
    """Store the state, epoch and groups of a principal that is there; its role never changes."""
    fields = {"state": record.state.value, "epoch": record.epoch, "groups": encode_groups(record.groups)}
    transaction.execute(_UPDATE_PRINCIPAL, {"of": record.id, **fields})


def is_key_known(transaction: Connection, key: bytes) -> bool:
    """Whether a certificate was ever issued for the key with that SHA-256."""
    return transaction.execute(_KEY, {"key": key}).first() is not None


def add_key(transaction: Connection, key: bytes, principal: DeviceId | None, now: datetime) -> None:
    """Bind a key to its principal for ever; fails if it is anyone's already."""
    transaction.execute(insert(keys), {"spki_sha256": key, "principal": principal, "created_at": now})


def intend(transaction: Connection, intent: Intent, now: datetime) -> tuple[int, int]:
    """Claim a serial before it is signed: its number, and the CRL shard it belongs to.

    A shard has one issuer: 0 is the servers', the others fill up with clients' certificates.
    """
    values = {
        "serial": intent.serial,
        "issuer": intent.issuer,
        "profile": intent.profile,
        "principal": intent.principal,
        "key": intent.key,
        "epoch": intent.epoch,
        "generation": intent.generation,
        "parent": intent.parent,
        "state": CertificateState.INTENDED.value,
        "created_at": now,
    }
    number = int(transaction.execute(_INTEND, values).lastrowid)
    return number, 0 if intent.principal is None else 1 + number // SHARD_CERTIFICATES


def set_result(transaction: Connection, record: CertificateRecord, shard: int) -> None:
    """Store what was signed for the intent of that number."""
    values = {
        "state": record.state.value,
        "shard": shard,
        "not_before": record.not_before,
        "not_after": record.not_after,
        "der": record.der,
    }
    transaction.execute(_SET_RESULT, {"at": record.number, **values})


def find_certificate(transaction: Connection, serial: Serial) -> CertificateRecord | None:
    """The certificate with that serial, if it was signed."""
    row = transaction.execute(_CERTIFICATE_BY_SERIAL, {"serial": serial}).first()
    return None if row is None else certificate_of(row)


def certificates_of(transaction: Connection, id: DeviceId) -> list[CertificateRecord]:
    """Every certificate of a principal, oldest first."""
    return [certificate_of(row) for row in transaction.execute(_CERTIFICATES_OF, {"id": id})]


def live_certificates_of(transaction: Connection, id: DeviceId) -> list[CertificateRecord]:
    """The certificates with which a principal may connect while it is active: two at most."""
    return [certificate_of(row) for row in transaction.execute(_LIVE_OF, {"id": id})]


def set_certificate_states(transaction: Connection, serials: Iterable[Serial], state: CertificateState) -> None:
    """Move certificates to a state."""
    for serial in serials:
        transaction.execute(_SET_STATE, {"of": serial, "state": state.value})


def encode_groups(groups: Sequence[str]) -> str:
    """Group names as the tables keep them."""
    return json.dumps(list(groups))


def decode_groups(text: str) -> tuple[str, ...]:
    """The inverse of `encode_groups`."""
    return tuple(json.loads(text))


def _principal(row: Row[*tuple[Any, ...]]) -> PrincipalRecord:
    name, role, state, epoch, groups, created_at = row
    return PrincipalRecord(
        Principal(Role(role), DeviceId(name)), State(state), epoch, decode_groups(groups), created_at
    )


def certificate_of(row: Row[*tuple[Any, ...]]) -> CertificateRecord:
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
