"""Who a connection is: from the certificate that it showed in this very handshake, and from nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from broker.engine import Reason
from broker.trust import Trust
from fleet import pki
from fleet.identity import DeviceId, InvalidDeviceId, Serial


class IdentityRefused(Exception):
    """The certificate is good for TLS, and not for this broker. `name` is its subject, as far as it can be read."""

    def __init__(self, reason: Reason, name: str) -> None:
        super().__init__(reason.value)
        self.reason = reason
        self.name = name


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """A certificate's common name, serial and end."""

    device: DeviceId
    serial: Serial
    not_after: datetime


def identify(der: bytes | None, trust: Trust) -> PeerIdentity:
    """The identity in a leaf whose chain OpenSSL has verified. Raises: IdentityRefused."""
    if der is None:
        raise IdentityRefused(Reason.HANDSHAKE, "")
    try:
        leaf = x509.load_der_x509_certificate(der)
        subject = leaf.subject.rfc4514_string()
        is_ours, serial = leaf.issuer in trust.issuers, pki.serial_of(leaf)
    except ValueError as error:
        raise IdentityRefused(Reason.BAD_NAME, "") from error
    if not is_ours:
        raise IdentityRefused(Reason.WRONG_ISSUER, subject)
    try:
        return PeerIdentity(pki.common_name_of(leaf.subject), serial, leaf.not_valid_after_utc)
    except InvalidDeviceId as error:
        raise IdentityRefused(Reason.BAD_NAME, subject) from error
