"""What comes with every certificate of a principal: its epoch, the news of it, and the same answer again."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from enroll import audit
from enroll.registry import Transaction, feed, identity, messaging, revocations
from enroll.registry.records import LIVE, CertificateRecord, PrincipalRecord, Reason
from enroll.service.admission import NotAllowed
from fleet.identity import DeviceId, Principal, Serial, State

_ASK_AGAIN: Final = "ask for a new one: enroll token create"


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate for whoever asked. `is_repeated`: the same key was given it before."""

    principal: Principal
    serial: Serial
    generation: int
    not_after: datetime
    is_repeated: bool
    der: bytes = field(repr=False)


def repeat_number(transaction: Transaction, number: int, device: DeviceId) -> Issued:
    """`repeat`, for what is noted by its number."""
    certificate = identity.certificate_by_number(transaction, number)
    assert certificate is not None
    return repeat(transaction, certificate.serial, device)


def repeat(transaction: Transaction, serial: Serial, device: DeviceId) -> Issued:
    """What this key was given before, unless it was ended since. Raises: NotAllowed."""
    certificate = identity.find_certificate(transaction, serial)
    assert certificate is not None
    principal = identity.find_principal(transaction, device)
    if principal is None or certificate.principal != device:
        raise NotAllowed(f"this key was used for {certificate.principal}", hint=_ASK_AGAIN)
    if certificate.state not in LIVE or principal.state is not State.ACTIVE:
        raise NotAllowed(f"the certificate that {device} was given was ended since", hint=_ASK_AGAIN)
    return given(principal, certificate, is_repeated=True)


def store(transaction: Transaction, principal: PrincipalRecord, now: datetime) -> None:
    """Add the principal, or begin its next epoch: what its predecessor held ends."""
    if principal.epoch == 1:
        identity.add_principal(transaction, principal)
        return
    ended = [certificate.serial for certificate in identity.live_certificates_of(transaction, principal.id)]
    revocations.revoke(transaction, ended, Reason.SUPERSEDED, now)
    identity.update_principal(transaction, principal)
    messaging.orphan_commands(transaction, principal.id, now)


def issued(
    transaction: Transaction, principal: PrincipalRecord, certificate: CertificateRecord, now: datetime, **source: str
) -> Issued:
    """Tell brokers and the audit log of a certificate; `source` says what it was given for."""
    feed.announce(transaction, principal.id)
    audit.record(
        transaction,
        now,
        "certificate.issued",
        principal=str(principal.principal),
        serial=certificate.serial,
        epoch=certificate.epoch,
        generation=certificate.generation,
        key=certificate.key.hex(),
        **source,
    )
    return given(principal, certificate, is_repeated=False)


def given(principal: PrincipalRecord, certificate: CertificateRecord, *, is_repeated: bool) -> Issued:
    """The certificate as its principal gets it."""
    return Issued(
        principal.principal,
        certificate.serial,
        certificate.generation,
        certificate.not_after,
        is_repeated,
        certificate.der,
    )
