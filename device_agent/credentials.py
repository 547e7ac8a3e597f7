"""Keys, and the checks of what the enrollment service answers. Loads `cryptography`: for `join` and `explain` only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from device_agent.clock import Reading
from fleet import pki
from fleet.errors import FleetError, Unreachable
from fleet.identity import DeviceId, Role
from fleet.join import fingerprint
from fleet.layout import Credential

_MAX_INTERMEDIATES: Final = 3
_CLOCKS_DIFFER_BY: Final = timedelta(days=2)


class UntrustedAnswer(Unreachable):
    """The service answered what must not become this device's identity."""


def new_key_pem() -> bytes:
    """A fresh P-256 key, unencrypted: what protects it is its file's mode."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def fingerprint_of(key: ec.EllipticCurvePrivateKey) -> str:
    """What people compare of the key's public half, as `enroll request show` prints it."""
    return fingerprint(hashlib.sha256(pki.spki(key.public_key())).digest())


def load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """The inverse of `new_key_pem`. Raises: FleetError."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise FleetError("the key on disk cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FleetError("the key on disk is not an elliptic curve key")
    return key


def pinned_root(certificates: Sequence[x509.Certificate], pin: bytes) -> x509.Certificate:
    """The root with that pin. The pin alone makes it the root: who sent it does not matter. Raises: UntrustedAnswer."""
    for certificate in sorted(certificates, key=lambda each: each.not_valid_after_utc, reverse=True):
        if _pin_of(certificate) == pin and _is_issued_by(certificate, certificate) and _is_ca(certificate):
            return certificate
    raise UntrustedAnswer(
        f"no root with the pin {pin.hex()[:16]}... is there: this is not the service that the join code is for",
        hint="a captive portal or a proxy that intercepts TLS looks like this; check network and address",
    )


@dataclass(frozen=True, slots=True)
class Verified:
    """A certificate that may become this device's identity."""

    chain: tuple[x509.Certificate, ...]
    credential: Credential

    @property
    def pem(self) -> bytes:
        """The leaf, then what issued it, without the root."""
        return b"".join(map(to_pem, self.chain))


def verify_answer(
    certificates: Sequence[x509.Certificate], key_pem: bytes, device: DeviceId, root: x509.Certificate, url: str
) -> Verified:
    """The certificate that was asked for: our key, our id, a client's profile, a chain to `root`.

    Raises: UntrustedAnswer.
    """
    public = pki.spki(pki.check_public_key(load_key(key_pem).public_key()))
    leaf = next((each for each in certificates if _spki_of(each) == public), None)
    if leaf is None:
        raise UntrustedAnswer("the service answered with a certificate for another key")
    problems = min((pki.violations(leaf, profile) for profile in (pki.CLIENT, pki.TEST_CLIENT)), key=len)
    if problems:
        raise UntrustedAnswer(f"the service answered with a certificate that is no client's: {'; '.join(problems)}")
    if pki.common_name_of(leaf.subject) != device:
        raise UntrustedAnswer(f"the service answered with a certificate for {pki.common_name_of(leaf.subject)}")
    return Verified(_chain(leaf, certificates, root), _credential(leaf, device, url))


def problem_with_dates(credential: Credential, time: Reading) -> str:
    """Why it is no use, or worse; nothing if all is well.

    A certificate's beginning is a floor under the clock for ever: one from the future would lock this device out.
    Where only a lower bound of the time is known, nothing is known to be from the future.
    """
    if credential.not_after <= time.utc:
        return "the service answered with a certificate that has expired"
    if not time.is_lower_bound and credential.not_before > time.utc + _CLOCKS_DIFFER_BY:
        return f"the service answered with a certificate that begins at {credential.not_before:%Y-%m-%d %H:%M} UTC"
    return ""


def _chain(
    leaf: x509.Certificate, certificates: Sequence[x509.Certificate], root: x509.Certificate
) -> tuple[x509.Certificate, ...]:
    """The leaf and its issuers below `root`."""
    chain = [leaf]
    while not _is_issued_by(chain[-1], root):
        issuers = [each for each in certificates if each not in chain and _is_ca(each)]
        issuer = next((each for each in issuers if _is_issued_by(chain[-1], each)), None)
        if issuer is None or len(chain) > _MAX_INTERMEDIATES:
            raise UntrustedAnswer("the service answered with a certificate whose chain does not end in our root")
        chain.append(issuer)
    return tuple(chain)


def _credential(leaf: x509.Certificate, device: DeviceId, url: str) -> Credential:
    return Credential(
        device, _role_of(leaf), pki.serial_of(leaf), leaf.not_valid_before_utc, leaf.not_valid_after_utc, url
    )


def _role_of(leaf: x509.Certificate) -> Role:
    found = pki.extension(leaf, x509.SubjectAlternativeName)
    uris = found.value.get_values_for_type(x509.UniformResourceIdentifier) if found else []
    try:
        return Role(uris[0].split("/")[3])
    except (IndexError, ValueError):
        raise UntrustedAnswer("the service answered with a certificate that names no role") from None


def _is_ca(certificate: x509.Certificate) -> bool:
    found = pki.extension(certificate, x509.BasicConstraints)
    return found is not None and found.value.ca


def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _pin_of(certificate: x509.Certificate) -> bytes | None:
    try:
        return pki.pin_of(certificate)
    except pki.WeakKey:
        return None


def _spki_of(certificate: x509.Certificate) -> bytes | None:
    try:
        return pki.spki(pki.check_public_key(certificate.public_key()))
    except pki.WeakKey:
        return None


def to_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)
