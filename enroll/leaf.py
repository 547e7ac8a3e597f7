"""Leaf certificates: the first of a kind is built field by field, every later one is that with other fields in it.

`cryptography`'s builder, and a check of what it built, take each field through several Python objects. Its DER codec
takes the whole in microseconds, to the same bytes (RFC 5280, 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.serialization import Encoding

from fleet import pki
from fleet.pki import PublicKey

_UTC_TIME_ENDS = 2050  # RFC 5280, 4.1.2.5


@dataclass(frozen=True, slots=True)
class Leaf:
    """What is a leaf's own; the rest is its profile's and its issuer's. Its dates are in whole seconds."""

    subject: x509.Name
    key: PublicKey
    serial: int
    not_before: datetime
    not_after: datetime
    alternative_names: x509.SubjectAlternativeName
    distribution_points: x509.CRLDistributionPoints

    @property
    def extensions(self) -> tuple[x509.ExtensionType, ...]:
        """Those that are its own, none of which is critical."""
        identifier = x509.SubjectKeyIdentifier.from_public_key(self.key)
        return identifier, self.alternative_names, self.distribution_points

    def built(self, builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
        """A builder that holds all but what is a leaf's own, with that."""
        builder = builder.subject_name(self.subject).public_key(self.key).serial_number(self.serial)
        builder = builder.not_valid_before(self.not_before).not_valid_after(self.not_after)
        for extension in self.extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder


@asn1.sequence
class _Validity:
    not_before: asn1.UTCTime | asn1.GeneralizedTime
    not_after: asn1.UTCTime | asn1.GeneralizedTime


@asn1.sequence
class _Extension:
    kind: x509.ObjectIdentifier
    critical: Annotated[bool, asn1.Default(False)]
    value: bytes


@asn1.sequence
class _ToBeSigned:
    version: Annotated[int, asn1.Explicit(0)]
    serial: int
    algorithm: asn1.TLV
    issuer: asn1.TLV
    validity: _Validity
    subject: asn1.TLV
    key: asn1.TLV
    extensions: Annotated[list[_Extension], asn1.Explicit(3)]


@asn1.sequence
class _Certificate:
    to_be_signed: asn1.TLV
    algorithm: asn1.TLV
    signature: asn1.BitString


class Form:
    """What all certificates like `sample` have in common: those of its profile and its issuer."""

    def __init__(self, sample: x509.Certificate) -> None:
        certificate = asn1.decode_der(_Certificate, sample.public_bytes(Encoding.DER))
        self._algorithm = certificate.algorithm
        self._filled = certificate.to_be_signed.parse(_ToBeSigned)
        self._places = {found.kind: place for place, found in enumerate(self._filled.extensions)}

    def to_be_signed(self, leaf: Leaf) -> bytes:
        """The DER of the TBSCertificate of `leaf`."""
        alike, extensions = self._filled, self._filled.extensions.copy()
        for own in leaf.extensions:
            extensions[self._places[own.oid]] = _Extension(kind=own.oid, critical=False, value=own.public_bytes())
        return asn1.encode_der(
            _ToBeSigned(
                version=alike.version,
                serial=leaf.serial,
                algorithm=alike.algorithm,
                issuer=alike.issuer,
                validity=_Validity(not_before=_time(leaf.not_before), not_after=_time(leaf.not_after)),
                subject=_tlv(leaf.subject.public_bytes()),
                key=_tlv(pki.spki(leaf.key)),
                extensions=extensions,
            )
        )

    def signed(self, to_be_signed: bytes, signature: bytes) -> x509.Certificate:
        """The certificate of it."""
        certificate = _Certificate(
            to_be_signed=_tlv(to_be_signed),
            algorithm=self._algorithm,
            signature=asn1.BitString(signature, 0),
        )
        return x509.load_der_x509_certificate(asn1.encode_der(certificate))


def _tlv(der: bytes) -> asn1.TLV:
    return asn1.decode_der(asn1.TLV, der)


def _time(moment: datetime) -> asn1.UTCTime | asn1.GeneralizedTime:
    return asn1.UTCTime(moment) if moment.year < _UTC_TIME_ENDS else asn1.GeneralizedTime(moment)
