"""One certificate, in the caller's transaction: its key bound, signed, recorded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from enroll.issuer import Issuer, Names, serial_number
from enroll.registry import Transaction, identity
from enroll.registry.records import CertificateRecord, CertificateState
from fleet import pki
from fleet.identity import DeviceId, Serial
from fleet.pki import Profile, PublicKey


@dataclass(frozen=True, slots=True)
class Order:
    """What to certify. `principal` is None for a server of the fleet."""

    profile: Profile
    names: Names
    public_key: PublicKey
    key: bytes  # `key_digest` of it, which the caller has looked up
    principal: DeviceId | None
    epoch: int = 1
    generation: int = 1
    parent: Serial | None = None
    state: CertificateState = CertificateState.CONFIRMED
    life: timedelta | None = None  # None: the profile's


def key_digest(key: PublicKey) -> bytes:
    """What the registry knows a key by: the SHA-256 of its SubjectPublicKeyInfo."""
    return hashlib.sha256(pki.spki(key)).digest()


def certify(
    transaction: Transaction, issuer: Issuer, order: Order, *, now: datetime, token_bytes: Callable[[int], bytes]
) -> CertificateRecord:
    """The certificate for `order`, its key bound to the principal.

    A crash before the commit leaves no certificate and no trace: the signature never left this process.
    """
    identity.add_key(transaction, order.key, order.principal, now)
    number = 1 + identity.last_number(transaction)
    shard = identity.SERVERS_SHARD if order.principal is None else identity.shard_of(number)
    serial = serial_number(token_bytes(20))
    signed = issuer.issue(
        order.profile, order.public_key, order.names, serial=serial, shard=shard, now=now, life=order.life
    )
    record = _record(number, Serial.from_int(serial), order, signed)
    identity.add_certificate(transaction, record, issuer=issuer.name, shard=shard, now=now)
    return record


def _record(number: int, serial: Serial, order: Order, signed: x509.Certificate) -> CertificateRecord:
    return CertificateRecord(
        number,
        serial,
        order.principal,
        order.profile.name,
        order.key,
        order.epoch,
        order.generation,
        order.parent,
        order.state,
        signed.not_valid_before_utc,
        signed.not_valid_after_utc,
        signed.public_bytes(Encoding.DER),
    )
