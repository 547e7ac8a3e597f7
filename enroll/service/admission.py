"""Who holds a client certificate, and whether it may be used now; the two ways to be told no."""

from __future__ import annotations

from dataclasses import dataclass

from enroll.registry import Transaction, identity
from enroll.registry.records import LIVE, CertificateRecord, CertificateState, PrincipalRecord
from fleet.errors import Denied
from fleet.identity import Serial, State

_ENROL_AGAIN = "enrol again with a new token: enroll token create --replace"


class NotAllowed(Denied):
    """Whoever asks is known, and may not have this: HTTP 403."""


class NotAdmitted(Denied):
    """The client certificate is not (or no longer) that of an active principal."""


@dataclass(frozen=True, slots=True)
class Peer:
    """An active principal and the certificate it came with, which is live unless said otherwise."""

    record: PrincipalRecord
    certificate: CertificateRecord


def admit(transaction: Transaction, serial: Serial) -> Peer:
    """Whose certificate `serial` is. Role and state come from the registry, never from the certificate.

    The caller has verified the chain, so the serial is one of the fleet's client CA.
    Raises: NotAdmitted.
    """
    return check_live(holder(transaction, serial))


def check_live(peer: Peer) -> Peer:
    """`peer` with a certificate that is good. Raises: NotAdmitted."""
    if peer.certificate.state not in LIVE:
        raise _ended(peer)
    return peer


def _ended(peer: Peer) -> NotAdmitted:
    return NotAdmitted(f"this certificate of {peer.record.principal} is {peer.certificate.state}", hint=_ENROL_AGAIN)


def holder(transaction: Transaction, serial: Serial) -> Peer:
    """As `admit`, but a later certificate may have ended this one: then it is good for nothing, and tells of a copy.

    Raises: NotAdmitted.
    """
    certificate = identity.find_certificate(transaction, serial)
    if certificate is None or certificate.principal is None:
        raise NotAdmitted("the client certificate is not in the registry", hint=_ENROL_AGAIN)
    record = identity.find_principal(transaction, certificate.principal)
    if record is None:
        raise NotAdmitted("the client certificate is nobody's", hint=_ENROL_AGAIN)
    if record.state is not State.ACTIVE:
        hint = f"enroll device resume {record.id}" if record.state is State.SUSPENDED else _ENROL_AGAIN
        raise NotAdmitted(f"{record.principal} is {record.state}", hint=hint)
    peer = Peer(record, certificate)
    if certificate.state not in (*LIVE, CertificateState.SUPERSEDED) or certificate.epoch != record.epoch:
        raise _ended(peer)
    return peer
