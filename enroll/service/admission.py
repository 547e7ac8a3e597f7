"""Who holds a client certificate, and whether it may be used now; the two ways to be told no."""

from __future__ import annotations

from dataclasses import dataclass

from enroll.registry import Transaction, identity
from enroll.registry.records import LIVE, CertificateRecord, PrincipalRecord
from fleet.errors import Denied
from fleet.identity import Serial, State

_ENROL_AGAIN = "enrol again with a new token: enroll token create --replace"


class NotAllowed(Denied):
    """Whoever asks is known, and may not have this: HTTP 403."""


class NotAdmitted(Denied):
    """The client certificate is not (or no longer) that of an active principal."""


@dataclass(frozen=True, slots=True)
class Peer:
    """An active principal and the live certificate it came with."""

    record: PrincipalRecord
    certificate: CertificateRecord


def admit(transaction: Transaction, serial: Serial) -> Peer:
    """Whose certificate `serial` is. Role and state come from the registry, never from the certificate.

    The caller has verified the chain, so the serial is one of the fleet's client CA.
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
    if certificate.state not in LIVE or certificate.epoch != record.epoch:
        raise NotAdmitted(f"this certificate of {record.principal} is {certificate.state}", hint=_ENROL_AGAIN)
    return Peer(record, certificate)
