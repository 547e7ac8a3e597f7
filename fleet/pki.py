"""Certificate profiles, and what is wrong with a certificate that claims one (DESIGN section 4; RFC 5280).

A profile is data; `enroll/issuer.py` builds from it and calls `violations` on what it built before anyone gets it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from fleet.errors import FleetError
from fleet.identity import DeviceId, InvalidDeviceId, Serial

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey
_CURVES = ("secp256r1", "secp384r1")
_MIN_RSA_BITS = 2048
_MAX_RSA_BITS = 4096
_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


class WeakKey(FleetError):
    """A key that no certificate is issued for."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a kind of certificate looks like.

    `path_length` is None for a leaf. `min_life` and `max_life` bound what may be asked for; the backdating is
    `backdate`, and never more than a tenth of the life.
    """

    name: str
    life: timedelta
    min_life: timedelta
    max_life: timedelta
    backdate: timedelta
    extended_key_usage: ObjectIdentifier | None
    path_length: int | None = None
    is_ca: bool = False

    def backdate_of(self, life: timedelta) -> timedelta:
        """How long before its issuance a certificate of this life begins to be valid."""
        return min(self.backdate, life / 10)


_YEAR = timedelta(days=365)
_HOUR = timedelta(hours=1)

ROOT = Profile("root", 20 * _YEAR, _YEAR, 30 * _YEAR, _HOUR, None, path_length=1, is_ca=True)
DEVICES_CA = Profile(
    "devices-ca", 3 * _YEAR, _HOUR, 10 * _YEAR, _HOUR, ExtendedKeyUsageOID.CLIENT_AUTH, path_length=0, is_ca=True
)
SERVERS_CA = Profile(
    "servers-ca", 3 * _YEAR, _HOUR, 10 * _YEAR, _HOUR, ExtendedKeyUsageOID.SERVER_AUTH, path_length=0, is_ca=True
)
CLIENT = Profile("client", timedelta(days=90), _HOUR, timedelta(days=397), _HOUR, ExtendedKeyUsageOID.CLIENT_AUTH)
SERVER = Profile(
    "server", timedelta(days=90), _HOUR, timedelta(days=397), timedelta(hours=24), ExtendedKeyUsageOID.SERVER_AUTH
)
TEST_CLIENT = Profile(
    "test", timedelta(minutes=5), timedelta(seconds=30), timedelta(days=1), _HOUR, ExtendedKeyUsageOID.CLIENT_AUTH
)
PROFILES = {profile.name: profile for profile in (ROOT, DEVICES_CA, SERVERS_CA, CLIENT, SERVER, TEST_CLIENT)}


def check_public_key(key: object) -> PublicKey:
    """`key` if a certificate may carry it: P-256, P-384, Ed25519, RSA of 2048 to 4096 bits. Raises: WeakKey."""
    match key:
        case ec.EllipticCurvePublicKey() if key.curve.name in _CURVES:
            return key
        case ed25519.Ed25519PublicKey():
            return key
        case rsa.RSAPublicKey() if _MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS:
            if key.public_numbers().e < 65_537:
                raise WeakKey("an RSA key with a public exponent under 65537 is not accepted")
            return key
        case ec.EllipticCurvePublicKey():
            found = f"an EC key on {key.curve.name}"
        case rsa.RSAPublicKey():
            found = f"an RSA key of {key.key_size} bits"
        case _:
            found = f"a key of kind {type(key).__name__.removesuffix('PublicKey')}"
    raise WeakKey(f"{found} is not accepted", hint="use P-256, P-384, Ed25519, or RSA of 2048 to 4096 bits")


def spki(key: PublicKey) -> bytes:
    """The DER of the key's SubjectPublicKeyInfo."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def pin_of(certificate: x509.Certificate) -> bytes:
    """The SHA-256 of the certificate's SubjectPublicKeyInfo: what a join code carries of the root (RFC 7469, 2.4)."""
    return hashlib.sha256(spki(check_public_key(certificate.public_key()))).digest()


def serial_of(certificate: x509.Certificate) -> Serial:
    """The serial number as the directory writes it."""
    return Serial.from_int(certificate.serial_number)


def common_name_of(name: x509.Name) -> DeviceId:
    """The id in a subject that is exactly one common name. Raises: InvalidDeviceId for any other subject."""
    attributes = list(name)
    if len(attributes) != 1 or attributes[0].oid != NameOID.COMMON_NAME or not isinstance(attributes[0].value, str):
        raise InvalidDeviceId(name.rfc4514_string())
    return DeviceId(attributes[0].value)


def extension(certificate: x509.Certificate, kind: type[_Extension]) -> x509.Extension[_Extension] | None:
    """The extension of that kind, or None.

    By its exact type: `get_extension_for_class` asks an abstract class about each, for a tenth of a signature.
    """
    return next((found for found in certificate.extensions if type(found.value) is kind), None)


def violations(certificate: x509.Certificate, profile: Profile) -> list[str]:
    """Every way in which `certificate` is not of `profile`, in words; empty when it is."""
    return [problem for check in _CHECKS for problem in check(certificate, profile)]


def _check_validity(certificate: x509.Certificate, profile: Profile) -> Iterator[str]:
    spans = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    if spans <= timedelta(0):
        yield "not_after is not after not_before"
    if spans > profile.max_life + profile.backdate:
        yield f"it is valid for {spans}, the profile allows {profile.max_life}"


def _check_serial(certificate: x509.Certificate, _profile: Profile) -> Iterator[str]:
    if not 0 < certificate.serial_number < 1 << 159:
        yield "the serial number is not positive and at most 20 octets (RFC 5280, 4.1.2.2)"


def _check_key(certificate: x509.Certificate, _profile: Profile) -> Iterator[str]:
    try:
        check_public_key(certificate.public_key())
    except WeakKey as error:
        yield error.message


def _check_basic_constraints(certificate: x509.Certificate, profile: Profile) -> Iterator[str]:
    found = extension(certificate, x509.BasicConstraints)
    if found is None or not found.critical:
        yield "basic constraints are missing or not critical"
    elif (found.value.ca, found.value.path_length) != (profile.is_ca, profile.path_length):
        yield f"basic constraints are CA:{found.value.ca}, pathlen {found.value.path_length}"


def _check_key_usage(certificate: x509.Certificate, profile: Profile) -> Iterator[str]:
    found = extension(certificate, x509.KeyUsage)
    if found is None or not found.critical:
        yield "key usage is missing or not critical"
    elif found.value != key_usage(profile):
        yield "key usage is not the profile's"


def _check_extended_key_usage(certificate: x509.Certificate, profile: Profile) -> Iterator[str]:
    found = extension(certificate, x509.ExtendedKeyUsage)
    wanted = [] if profile.extended_key_usage is None else [profile.extended_key_usage]
    if (list(found.value) if found else []) != wanted:
        yield "extended key usage is not just the profile's"


def _check_key_identifiers(certificate: x509.Certificate, profile: Profile) -> Iterator[str]:
    if extension(certificate, x509.SubjectKeyIdentifier) is None:
        yield "the subject key identifier is missing"
    if extension(certificate, x509.AuthorityKeyIdentifier) is None and profile != ROOT:
        yield "the authority key identifier is missing"


def _check_names(certificate: x509.Certificate, profile: Profile) -> Iterator[str]:
    if profile.is_ca:
        return
    if len(list(certificate.subject)) != 1:
        yield "the subject is not exactly one common name"
    found = extension(certificate, x509.SubjectAlternativeName)
    names = list(found.value) if found else []
    uris = [name for name in names if isinstance(name, x509.UniformResourceIdentifier)]
    if len(uris) != 1 or not uris[0].value.startswith("spiffe://"):
        yield "the subject alternative names do not hold exactly one SPIFFE id"
    is_client = profile.extended_key_usage == ExtendedKeyUsageOID.CLIENT_AUTH
    if is_client and len(names) != 1:
        yield "a client certificate names more than its SPIFFE id"
    if is_client and uris and not uris[0].value.endswith(f"/{_common_name_text(certificate)}"):
        yield "the SPIFFE id does not end in the common name"


def _check_distribution_point(certificate: x509.Certificate, profile: Profile) -> Iterator[str]:
    if not profile.is_ca and extension(certificate, x509.CRLDistributionPoints) is None:
        yield "the CRL distribution point is missing"


def _common_name_text(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


_CHECKS: tuple[Callable[[x509.Certificate, Profile], Iterable[str]], ...] = (
    _check_validity,
    _check_serial,
    _check_key,
    _check_basic_constraints,
    _check_key_usage,
    _check_extended_key_usage,
    _check_key_identifiers,
    _check_names,
    _check_distribution_point,
)


def key_usage(profile: Profile) -> x509.KeyUsage:
    """A CA signs certificates and CRLs; a leaf makes digital signatures."""
    return x509.KeyUsage(
        digital_signature=not profile.is_ca,
        key_cert_sign=profile.is_ca,
        crl_sign=profile.is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
