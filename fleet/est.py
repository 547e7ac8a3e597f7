"""Enrollment over Secure Transport, both sides of the wire (RFC 7030, 8951): paths, values, CSR and PKCS#7 codecs.

Who sends the bytes is each program's own shell. What is accepted is wider than what is sent: base64 wrapped, unwrapped
or as PEM; Content-Transfer-Encoding is ignored on input (RFC 8951, section 3).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import AttributeOID, NameOID, PublicKeyAlgorithmOID, SignatureAlgorithmOID

from fleet import pki
from fleet.errors import FleetError
from fleet.identity import DeviceId, InvalidDeviceId
from fleet.pki import PublicKey, WeakKey, check_public_key

BASE: Final = "/.well-known/est"
CACERTS: Final = f"{BASE}/cacerts"
CSRATTRS: Final = f"{BASE}/csrattrs"
SIMPLE_ENROLL: Final = f"{BASE}/simpleenroll"
SIMPLE_REENROLL: Final = f"{BASE}/simplereenroll"
CONFIG: Final = "/v1/config"
RENEWAL_INFO: Final = "/v1/renewal-info"
CONFIRM: Final = "/v1/confirm"
HEALTH: Final = "/healthz"

PAIRING_USER: Final = "pairing"
"""The user of HTTP Basic, with an empty password, for a device that has no token."""
REQUEST_HEADER: Final = "Enroll-Request"
"""In a 202 the id of the request that an admin has to approve; in a 403 `denied` if one said no."""
SERIAL_HEADER: Final = "Device-Serial"
MODEL_HEADER: Final = "Device-Model"
"""What a device says of its hardware, for the admin who has to approve it; nobody believes it."""
PROBLEM_HEADER: Final = "Enroll-Problem"
IDENTITY_USED_TWICE: Final = "identity-used-twice"
"""In a 403: two devices hold this identity, and an admin has to decide. Also the `problem` of a configuration."""
NEVER_CONFIRMED: Final = "never-confirmed"
"""In a 403 to one that recovers: the certificate before this one is the one to do it with."""
NOT_EXPIRED: Final = "not-expired"
"""In a 403 to one that recovers: by the service's clock, which counts, its certificate is good."""

PKCS10: Final = "application/pkcs10"
PKCS7: Final = "application/pkcs7-mime"
PKCS7_CERTS_ONLY: Final = f"{PKCS7}; smime-type=certs-only"
CSRATTRS_TYPE: Final = "application/csrattrs"

MAX_BODY_BYTES: Final = 16_384  # an RSA 4096 CSR in wrapped base64 has under 3,000
MAX_ANSWER_BYTES: Final = 262_144

_PEM = re.compile(
    rb"-----BEGIN (?:NEW )?CERTIFICATE REQUEST-----(.*?)-----END (?:NEW )?CERTIFICATE REQUEST-----", re.DOTALL
)
_WEAK_HASHES = ("md5", "sha1")


class InvalidCsr(FleetError):
    """The body is not a certificate signing request that can be signed; the message says why."""


@dataclass(frozen=True, slots=True)
class EstRequest:
    """One HTTP request, as a value. Header names are lower-case; `peer` is the verified client certificate's DER.

    `tls_unique` is the connection's channel binding (RFC 5929, 3), None under TLS 1.3, which has none.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)
    query: Mapping[str, str] = field(default_factory=dict)
    peer: bytes | None = None
    address: str = ""
    tls_unique: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class EstResponse:
    """One HTTP answer, as a value."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def encode_body(der: bytes) -> bytes:
    """DER as base64 in lines of 76 characters (RFC 7030, 4.2.1; RFC 2045, 6.8)."""
    return base64.encodebytes(der)


def decode_body(body: bytes) -> bytes:
    """The DER in a base64 or PEM body. Raises: InvalidCsr."""
    pem = _PEM.search(body)
    try:
        der = base64.b64decode(b"".join((pem[1] if pem else body).split()), validate=True)
    except (ValueError, binascii.Error) as error:
        raise InvalidCsr("the body is not base64", hint="send the DER of a PKCS#10 request in base64") from error
    if not der:
        raise InvalidCsr("the body is empty", hint="send the DER of a PKCS#10 request in base64")
    return der


@dataclass(frozen=True, slots=True)
class Csr:
    """What is taken from a signing request: the id and the key, and nothing else goes into a certificate.

    `challenge` is its challengePassword: which connection it was made for (DESIGN section 4; RFC 7030, 3.5).
    """

    device: DeviceId
    public_key: PublicKey
    challenge: bytes | None = None


def parse_csr(der: bytes) -> Csr:
    """The id and key of a request whose signature proves possession of that key (RFC 2986).

    Raises: InvalidCsr, InvalidDeviceId, pki.WeakKey.
    """
    try:
        request = x509.load_der_x509_csr(without_null_parameters(der))
        key = check_public_key(request.public_key())
        kind: x509.ObjectIdentifier = request.public_key_algorithm_oid  # type: ignore[attr-defined] # the stub's mistake
        if kind == PublicKeyAlgorithmOID.RSASSA_PSS:  # the certificate would be for a plain RSA key
            raise WeakKey("a key for RSASSA-PSS alone is not accepted", hint="make it a plain RSA key, or P-256")
        algorithm = request.signature_hash_algorithm
        if algorithm is not None and algorithm.name in _WEAK_HASHES:
            raise InvalidCsr(f"the request is signed with {algorithm.name}", hint="sign it with SHA-256 or better")
        if not _is_signed(request, key):
            raise InvalidCsr("the request's signature does not fit its key", hint="make key and request anew")
        return Csr(_device_of(der), key, _challenge_of(request))
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise InvalidCsr(
            "the body is not a PKCS#10 certificate signing request", hint="`openssl req -new` makes one"
        ) from error


def _is_signed(request: x509.CertificateSigningRequest, key: PublicKey) -> bool:
    """Whether its signature fits its key; for most of them without parsing the key once more."""
    if isinstance(key, ec.EllipticCurvePublicKey) and (
        request.signature_algorithm_oid == SignatureAlgorithmOID.ECDSA_WITH_SHA256
    ):
        return pki.is_signed(key, request.tbs_certrequest_bytes, request.signature)
    return request.is_signature_valid


def _challenge_of(request: x509.CertificateSigningRequest) -> bytes | None:
    """Raises: InvalidCsr when there are two, ValueError."""
    found = [a.value for a in request.attributes if a.oid == AttributeOID.CHALLENGE_PASSWORD]
    if len(found) > 1:
        raise InvalidCsr("the request has two challengePasswords", hint="make it with one, or without")
    return found[0] if found else None


def check_connection(csr: Csr, tls_unique: bytes | None) -> None:
    """That a request which says for which connection it was made came over that one (RFC 7030, 3.5).

    Whoever relays a request over a connection of his own is found out by it; he could as well choose TLS 1.3 for his
    own, so what cannot be compared there is refused and not passed over. One that says nothing is taken.
    Raises: InvalidCsr.
    """
    if csr.challenge is None:
        return
    if tls_unique is None:
        raise InvalidCsr(
            "the request has a challengePassword, and TLS 1.3 has no tls-unique to compare it with",
            hint="make the request without, or connect with TLS 1.2",
        )
    if csr.challenge != base64.b64encode(tls_unique):
        raise InvalidCsr(
            "the request's challengePassword is not the tls-unique of this connection",
            hint="make the request anew for each connection, or without a challengePassword",
        )


@asn1.sequence
class _NameAttribute:
    type: x509.ObjectIdentifier
    value: asn1.TLV


@asn1.sequence
class _CertificationRequestInfo:
    version: int
    subject: list[asn1.SetOf[_NameAttribute]]
    public_key: asn1.TLV
    attributes: asn1.TLV


@asn1.sequence
class _AlgorithmIdentifier:
    algorithm: x509.ObjectIdentifier
    parameters: asn1.Null | None


@asn1.sequence
class _CertificationRequest:
    info: asn1.TLV
    algorithm: asn1.TLV
    signature: asn1.BitString


_STRING_TAGS = (b"\x0c", b"\x13")  # UTF8String, PrintableString: what RFC 5280, 4.1.2.4 asks for


def _device_of(der: bytes) -> DeviceId:
    """The id in a subject that is exactly one common name. Raises: InvalidDeviceId for any other subject, ValueError.

    `request.subject` would do but for names past X.520's bounds, of which `cryptography` warns and goes on.
    """
    info = asn1.decode_der(_CertificationRequest, der).info.parse(_CertificationRequestInfo)
    attributes = [attribute for names in info.subject for attribute in names.as_list()]
    if len(attributes) != 1 or attributes[0].type != NameOID.COMMON_NAME:
        raise InvalidDeviceId("/".join(bytes(a.value.data).decode("latin-1") for a in attributes))
    value = attributes[0].value
    if bytes(value.tag_bytes) not in _STRING_TAGS:
        raise InvalidDeviceId(bytes(value.data).decode("latin-1"))
    return DeviceId(bytes(value.data).decode("utf-8", "replace"))


_ECDSA_WITH_SHA2 = "1.2.840.10045.4.3."


def without_null_parameters(der: bytes) -> bytes:
    """`der`, or the same request without the NULL that mbedTLS 2.28 and tpm2-openssl put behind ecdsa-with-SHA*.

    RFC 5758, 3.2 forbids these parameters and `cryptography` refuses them; they lie outside what is signed.
    Raises: ValueError.
    """
    request = asn1.decode_der(_CertificationRequest, der)
    try:
        algorithm = request.algorithm.parse(_AlgorithmIdentifier)
    except ValueError:
        return der
    if algorithm.parameters is None or not algorithm.algorithm.dotted_string.startswith(_ECDSA_WITH_SHA2):
        return der
    plain = asn1.encode_der(_AlgorithmIdentifier(algorithm=algorithm.algorithm, parameters=None))
    return asn1.encode_der(
        _CertificationRequest(
            info=request.info, algorithm=asn1.decode_der(asn1.TLV, plain), signature=request.signature
        )
    )


def build_csr(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, device: DeviceId) -> bytes:
    """The DER of a request for `device`, signed by `key`."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, algorithm).public_bytes(Encoding.DER)


def encode_certificates(certificates: Sequence[x509.Certificate]) -> bytes:
    """A certs-only PKCS#7 in base64 (RFC 7030, 4.1.3)."""
    return encode_body(pkcs7.serialize_certificates(list(certificates), Encoding.DER))


def encode_certificate(der: bytes) -> bytes:
    """What `encode_certificates` makes of one certificate, without taking that apart (RFC 5652, 5.1)."""
    signed_data = _tlv(0x30, _NOTHING_SIGNED + _tlv(0xA0, der) + _NO_SIGNERS)
    return encode_body(_tlv(0x30, _SIGNED_DATA + _tlv(0xA0, signed_data)))


_SIGNED_DATA: Final = bytes.fromhex("06092a864886f70d010702")
_NOTHING_SIGNED: Final = bytes.fromhex("020101 3100 300b06092a864886f70d010701")  # version, digest algorithms, data
_NO_SIGNERS: Final = bytes.fromhex("3100")


def _tlv(tag: int, content: bytes) -> bytes:
    """A value in DER (X.690, 8.1.3)."""
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    size = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(size))) + size + content


def decode_certificates(body: bytes) -> list[x509.Certificate]:
    """The inverse of `encode_certificates`; the order is not kept by every server. Raises: ValueError."""
    if len(body) > MAX_ANSWER_BYTES:
        raise ValueError("the answer is too large")
    try:
        certificates = pkcs7.load_der_pkcs7_certificates(base64.b64decode(b"".join(body.split()), validate=True))
    except UnsupportedAlgorithm as error:
        raise ValueError("the answer holds no certificates that can be read") from error
    if not certificates:
        raise ValueError("the answer holds no certificates")
    return certificates
