"""Certificate profiles, and what is wrong with a certificate that claims one (DESIGN section 4; RFC 5280).

A profile is data; `enroll/issuer.py` builds from it and calls `violations` on what it built before anyone gets it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TypeVar, cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from fleet.errors import FleetError
from fleet.identity import DeviceId, InvalidDeviceId, Serial

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey
WRONG_SERIAL = "the serial number is not positive and at most 20 octets (RFC 5280, 4.1.2.2)"
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
# id-kp-jwt (RFC 9509): a key for signatures in JOSE, and nothing else. TLS takes such a certificate for neither a
# client's nor a server's. An arc of our own would be one under 2.25, which several ASN.1 libraries cannot read.
DISPATCH_SIGNING_USAGE = ObjectIdentifier("1.3.6.1.5.5.7.3.37")
DISPATCH_SIGNING = Profile(
    "dispatch-signing", timedelta(days=90), _HOUR, timedelta(days=397), timedelta(hours=24), DISPATCH_SIGNING_USAGE
)
PROFILES = {
    profile.name: profile for profile in (ROOT, DEVICES_CA, SERVERS_CA, CLIENT, SERVER, TEST_CLIENT, DISPATCH_SIGNING)
}


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


@cache
def _ecdsa() -> ec.ECDSA:
    """Made once, and not at start-up: it loads what only signatures need."""
    return ec.ECDSA(hashes.SHA256())


def sign(key: PrivateKey, data: bytes) -> bytes:
    """A signature that `is_signed` takes: ECDSA or PKCS#1 v1.5 with SHA-256, or Ed25519."""
    match key:
        case ec.EllipticCurvePrivateKey():
            return key.sign(data, _ecdsa())
        case ed25519.Ed25519PrivateKey():
            return key.sign(data)
        case _:
            return key.sign(data, padding.PKCS1v15(), hashes.SHA256())


def is_signed(key: PublicKey, data: bytes, signature: bytes) -> bool:
    """Whether the holder of `key` has signed it."""
    try:
        match key:
            case ec.EllipticCurvePublicKey():
                key.verify(signature, data, _ecdsa())
            case ed25519.Ed25519PublicKey():
                key.verify(signature, data)
            case _:
                key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        return False
    return True


def spki(key: PublicKey) -> bytes:
    """The DER of the key's SubjectPublicKeyInfo."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def pin_of(certificate: x509.Certificate) -> bytes:
    """The SHA-256 of the certificate's SubjectPublicKeyInfo: what a join code carries of the root (RFC 7469, 2.4)."""
    return hashlib.sha256(spki(check_public_key(certificate.public_key()))).digest()


def is_serial(number: int) -> bool:
    """Whether a certificate may have that serial number."""
    return 0 < number < 1 << 159


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


@dataclass(frozen=True, slots=True)
class _Claimed:
    """A certificate, its extensions by their kind (parsed once), and the profile that it claims."""

    certificate: x509.Certificate
    extensions: Mapping[type[x509.ExtensionType], x509.Extension[x509.ExtensionType]]
    profile: Profile

    def get(self, kind: type[_Extension]) -> x509.Extension[_Extension] | None:
        return cast("x509.Extension[_Extension] | None", self.extensions.get(kind))


def violations(certificate: x509.Certificate, profile: Profile) -> list[str]:
    """Every way in which `certificate` is not of `profile`, in words; empty when it is."""
    claimed = _Claimed(certificate, {type(found.value): found for found in certificate.extensions}, profile)
    return [problem for check in _CHECKS for problem in check(claimed)]


def _check_validity(claimed: _Claimed) -> Iterator[str]:
    profile = claimed.profile
    spans = claimed.certificate.not_valid_after_utc - claimed.certificate.not_valid_before_utc
    if spans <= timedelta(0):
        yield "not_after is not after not_before"
    if spans > profile.max_life + profile.backdate:
        yield f"it is valid for {spans}, the profile allows {profile.max_life}"


def _check_serial(claimed: _Claimed) -> Iterator[str]:
    if not is_serial(claimed.certificate.serial_number):
        yield WRONG_SERIAL


def _check_key(claimed: _Claimed) -> Iterator[str]:
    try:
        check_public_key(claimed.certificate.public_key())
    except WeakKey as error:
        yield error.message


def _check_basic_constraints(claimed: _Claimed) -> Iterator[str]:
    found, profile = claimed.get(x509.BasicConstraints), claimed.profile
    if found is None or not found.critical:
        yield "basic constraints are missing or not critical"
    elif (found.value.ca, found.value.path_length) != (profile.is_ca, profile.path_length):
        yield f"basic constraints are CA:{found.value.ca}, pathlen {found.value.path_length}"


def _check_key_usage(claimed: _Claimed) -> Iterator[str]:
    found = claimed.get(x509.KeyUsage)
    if found is None or not found.critical:
        yield "key usage is missing or not critical"
    elif found.value != key_usage(claimed.profile):
        yield "key usage is not the profile's"


def _check_extended_key_usage(claimed: _Claimed) -> Iterator[str]:
    found, wanted = claimed.get(x509.ExtendedKeyUsage), claimed.profile.extended_key_usage
    if (list(found.value) if found else []) != ([] if wanted is None else [wanted]):
        yield "extended key usage is not just the profile's"


def _check_key_identifiers(claimed: _Claimed) -> Iterator[str]:
    if claimed.get(x509.SubjectKeyIdentifier) is None:
        yield "the subject key identifier is missing"
    if claimed.get(x509.AuthorityKeyIdentifier) is None and claimed.profile != ROOT:
        yield "the authority key identifier is missing"


def _check_names(claimed: _Claimed) -> Iterator[str]:
    profile = claimed.profile
    if profile.is_ca:
        return
    subject = list(claimed.certificate.subject)
    if len(subject) != 1:
        yield "the subject is not exactly one common name"
    found = claimed.get(x509.SubjectAlternativeName)
    names = list(found.value) if found else []
    uris = [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]
    if len(uris) != 1 or not uris[0].startswith("spiffe://"):
        yield "the subject alternative names do not hold exactly one SPIFFE id"
    is_client = profile.extended_key_usage == ExtendedKeyUsageOID.CLIENT_AUTH
    if (is_client or profile == DISPATCH_SIGNING) and len(names) != 1:
        yield f"a {profile.name} certificate names more than its SPIFFE id"
    if is_client and uris and not uris[0].endswith(f"/{_common_name_text(subject)}"):
        yield "the SPIFFE id does not end in the common name"


def _check_distribution_point(claimed: _Claimed) -> Iterator[str]:
    if not claimed.profile.is_ca and claimed.get(x509.CRLDistributionPoints) is None:
        yield "the CRL distribution point is missing"


def _common_name_text(subject: Iterable[x509.NameAttribute[str | bytes]]) -> str:
    return next((str(name.value) for name in subject if name.oid == NameOID.COMMON_NAME), "")


_CHECKS: tuple[Callable[[_Claimed], Iterable[str]], ...] = (
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
    return _CA_USAGE if profile.is_ca else _LEAF_USAGE


def _usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


_CA_USAGE = _usage(is_ca=True)
_LEAF_USAGE = _usage(is_ca=False)
