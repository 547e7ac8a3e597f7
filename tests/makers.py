"""A manufacturer of hardware, whose CA gives each device a certificate as IEEE 802.1AR has it; and bad ones."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

FOR_EVER = datetime(9999, 12, 31, 23, 59, 59)  # noqa: DTZ001 - RFC 5280, 4.1.2.5: no end; the builder wants it naive


@dataclass(frozen=True, slots=True)
class Hardware:
    """A device as it leaves the factory."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Certificate and key in PEM."""
        certificate, key = folder / "idevid.pem", folder / "idevid.key"
        certificate.write_bytes(self.certificate.public_bytes(Encoding.PEM))
        key.write_bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return certificate, key


class Maker:
    """A manufacturer's CA, made at `now`."""

    def __init__(self, name: str | x509.Name, now: datetime, *, is_ca: bool = True) -> None:
        self._now = now
        self._key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)]) if isinstance(name, str) else name
        builder = self._builder(subject, subject, self._key).add_extension(x509.BasicConstraints(is_ca, None), True)
        self.ca = builder.sign(self._key, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        return self.ca.public_bytes(Encoding.PEM)

    def hardware(
        self,
        *serials: str,
        common_name: str | None = None,
        number: int | None = None,
        uri: str | None = None,
        is_ca: bool = False,
        began: timedelta = timedelta(0),
        ends: datetime = FOR_EVER,
    ) -> Hardware:
        """A leaf with these serials in its subject; `number` is the certificate's own."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.NameAttribute(NameOID.SERIAL_NUMBER, serial) for serial in serials]
        if common_name is not None:
            names.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name))
        builder = self._builder(x509.Name(names), self.ca.subject, key, number, began, ends)
        builder = builder.add_extension(x509.BasicConstraints(is_ca, None), True)
        if uri is not None:
            names_ = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
            builder = builder.add_extension(names_, False)
        return Hardware(builder.sign(self._key, hashes.SHA256()), key)

    def _builder(
        self,
        subject: x509.Name,
        issuer: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        number: int | None = None,
        began: timedelta = timedelta(0),
        ends: datetime = FOR_EVER,
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(number or secrets.randbits(100) + 1)
            .not_valid_before(self._now - timedelta(days=1) + began)
            .not_valid_after(ends)
        )
