"""Manufacturers' certificates (IDevID, IEEE 802.1AR): which CA may stand for hardware, what its leaf says (pure)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from enroll.registry.records import ManufacturerCa
from fleet import pki
from fleet.errors import Denied, InvalidInput

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")
_SERIAL: Final = re.compile(r"[!-~](?:[ -~]{0,62}[!-~])?")


def check_name(name: str) -> str:
    """`name` if a manufacturer can be called so. Raises: InvalidInput."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"{name[:80]!r} is not a manufacturer's name", hint="use a-z, 0-9, _ and -: as infineon")
    return name


def check_serial(serial: str) -> str:
    """`serial` if it can be a hardware's. Raises: InvalidInput."""
    if not _SERIAL.fullmatch(serial):
        raise InvalidInput(f"{serial[:80]!r} is not a serial number", hint="1 to 64 printable ASCII characters")
    return serial


def fingerprint_of(certificate: x509.Certificate) -> bytes:
    """What a CA is known by: the SHA-256 of its certificate."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()


def check_authority(ca: x509.Certificate, ours: Iterable[x509.Certificate], now: datetime) -> None:
    """Raises: InvalidInput, Denied for what cannot stand for a manufacturer's hardware.

    One of our own, or one that is called or keyed like one of ours, would make every certificate of the fleet a claim,
    or keep the fleet's own certificates from being verified.
    """
    constraints = pki.extension(ca, x509.BasicConstraints)
    if constraints is None or not constraints.value.ca:
        raise InvalidInput("the certificate is not a CA's", hint="give the CA that signs the devices' certificates")
    if not ca.not_valid_before_utc <= now <= ca.not_valid_after_utc:
        raise InvalidInput("the CA's certificate is not valid now", hint="ask the manufacturer for the present one")
    for own in ours:
        if ca.subject == own.subject or ca.public_key() == own.public_key() or _key_id(ca) == _key_id(own):
            raise Denied("that is one of this fleet's own CAs, or looks like it", hint="give the manufacturer's")


def _key_id(certificate: x509.Certificate) -> bytes | None:
    found = pki.extension(certificate, x509.SubjectKeyIdentifier)
    return None if found is None else found.value.digest


def authority_of(leaf: x509.Certificate, authorities: Iterable[ManufacturerCa], now: datetime) -> ManufacturerCa | None:
    """Which of the CAs signed the leaf, verified again here: Python 3.11 does not tell which anchor TLS found."""
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        return None
    for authority in authorities:
        ca = x509.load_der_x509_certificate(authority.der)
        if ca.not_valid_before_utc <= now <= ca.not_valid_after_utc and _is_issued_by(leaf, ca):
            return authority
    return None


def _is_issued_by(leaf: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def hardware_serial_of(leaf: x509.Certificate) -> str | None:
    """The one serialNumber in the leaf's subject (IEEE 802.1AR, 8.6); None for a CA, or anything else."""
    try:
        constraints = pki.extension(leaf, x509.BasicConstraints)
        found = leaf.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return None
    if (constraints is not None and constraints.value.ca) or len(found) != 1:
        return None
    serial = found[0].value
    return serial if isinstance(serial, str) and _SERIAL.fullmatch(serial) else None
