"""Whose expired certificate may be followed by another, and what an admin wants to know before. Needs no CA."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from enroll.registry import Registry, Transaction, identity, overview, revocations
from enroll.registry.records import LIVE, ApprovalRecord, CertificateRecord, CertificateState, Revocation
from enroll.service.admission import NotAllowed, Peer, holder
from fleet.errors import NotFound
from fleet.identity import DeviceId, Role, Serial

_ENROL_AGAIN: Final = "enrol again with a new token: enroll token create --replace"


class NeverConfirmed(NotAllowed):
    """The certificate before it is the one that its device is known to have used."""

    def __init__(self, device: DeviceId) -> None:
        super().__init__(f"this certificate of {device} was never confirmed", hint="use the one before it")


class NotExpired(NotAllowed):
    """The certificate is good: its holder renews with it."""


def recoverable(transaction: Transaction, serial: Serial) -> Peer:
    """The device that may have a successor of `serial`: active, and this the last certificate that it confirmed.

    Whether it has expired is the caller's to ask. Raises: NotAdmitted, NeverConfirmed, NotAllowed.
    """
    peer = holder(transaction, serial)
    record, certificate = peer.record, peer.certificate
    if record.principal.role is not Role.DEVICE:
        raise NotAllowed(f"{record.principal} is no device: its certificate does not recover", hint=_ENROL_AGAIN)
    if certificate.state is CertificateState.PENDING:
        raise NeverConfirmed(record.id)
    live = identity.live_certificates_of(transaction, record.id)
    later = [each for each in live if each.generation > certificate.generation]
    if certificate.state not in LIVE or any(each.state is CertificateState.CONFIRMED for each in later):
        raise NotAllowed(f"{record.id} has confirmed a later certificate", hint="use that one")
    return peer


def successors(transaction: Transaction, peer: Peer, now: datetime) -> list[CertificateRecord]:
    """The certificates that follow that of `peer`, and with which somebody can connect now."""
    live = identity.live_certificates_of(transaction, peer.record.id)
    return [each for each in live if each.generation > peer.certificate.generation and now < each.not_after]


@dataclass(frozen=True, slots=True)
class History:
    """What is known of a device that asks for a successor of `used`. `followed_by`: which of its others is good."""

    used: CertificateRecord
    followed_by: Serial | None
    certificates: tuple[tuple[CertificateRecord, Revocation | None], ...]
    last_seen: datetime | None

    def why(self, now: datetime) -> str:
        """Why it did not get one by itself."""
        if self.followed_by is not None:
            return f"{self.followed_by} followed it, and is good: does somebody else have its key?"
        return f"{self.used.serial} expired {(now - self.used.not_after).days} days ago, past the grace"


def history(registry: Registry, request: ApprovalRecord, now: datetime) -> History | None:
    """That of the device that made the request; None if it is no recovery. Raises: NotFound."""
    if request.recovers is None:
        return None
    with registry.read() as transaction:
        used = identity.find_certificate(transaction, request.recovers)
        summary = overview.summary(transaction, request.device)
        if used is None or summary is None:
            raise NotFound(f"there is no {request.device}", hint="enroll device list")
        following = successors(transaction, Peer(summary.record, used), now)
        every = [
            (each, revocations.find(transaction, each.serial))
            for each in identity.certificates_of(transaction, request.device)
        ]
        followed_by = following[-1].serial if following else None
        last_seen = summary.presence.last_seen if summary.presence else None
        return History(used, followed_by, tuple(every), last_seen)
