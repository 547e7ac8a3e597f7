"""A certificate authority of the tests' own, made with `cryptography` alone: nothing of ours vouches for itself."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Issued:
    """A certificate, its key, and the certificates between it and its root."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    issuers: tuple[x509.Certificate, ...] = ()

    @property
    def pem(self) -> bytes:
        return b"".join(each.public_bytes(Encoding.PEM) for each in (self.certificate, *self.issuers))

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Certificate chain and key as files."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cert.pem").write_bytes(self.pem)
        (folder / "key.pem").write_bytes(self.key_pem)
        (folder / "key.pem").chmod(0o600)
        return folder / "cert.pem", folder / "key.pem"


@dataclass(frozen=True)
class Authority:
    """A root with its two issuing CAs."""

    root: Issued
    servers: Issued
    devices: Issued

    @property
    def roots_pem(self) -> str:
        return self.root.certificate.public_bytes(Encoding.PEM).decode()

    def server(
        self, *roles: str, host: str = "127.0.0.1", starts: timedelta = -DAY / 24, ends: timedelta = 30 * DAY
    ) -> Issued:
        """A server's certificate: `roles` are the last segments of its SPIFFE ids."""
        names: list[x509.GeneralName] = [_host(host)]
        names += [x509.UniformResourceIdentifier(f"spiffe://acme.example/server/{role}") for role in roles]
        return issue(self.servers, host, names=names, usage=SERVER_AUTH, starts=starts, ends=ends)

    def client(self, device: str, key: ec.EllipticCurvePrivateKey | None = None, role: str = "device") -> Issued:
        """A client's certificate of the profile that our service issues."""
        names = [x509.UniformResourceIdentifier(f"spiffe://acme.example/{role}/{device}")]
        return issue(self.devices, device, names=names, usage=CLIENT_AUTH, key=key)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def new_authority(name: str = "acme") -> Authority:
    root = issue(None, f"{name} root", is_ca=True, path_length=1)
    return Authority(
        root,
        issue(root, f"{name} servers", is_ca=True, usage=SERVER_AUTH),
        issue(root, f"{name} devices", is_ca=True, usage=CLIENT_AUTH),
    )


def issue(
    issuer: Issued | None,
    common_name: str,
    *,
    names: Sequence[x509.GeneralName] = (),
    usage: ObjectIdentifier | None = None,
    is_ca: bool = False,
    path_length: int = 0,
    key: ec.EllipticCurvePrivateKey | None = None,
    starts: timedelta = -DAY / 24,
    ends: timedelta = 30 * DAY,
) -> Issued:
    """A certificate of `issuer`, or one that signs itself; `starts` and `ends` count from now."""
    key, now = key or ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    by = issuer.certificate.subject if issuer else subject
    signer = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder(by, subject, key.public_key(), x509.random_serial_number(), now + starts, now + ends)
        .add_extension(x509.BasicConstraints(is_ca, path_length if is_ca else None), critical=True)
        .add_extension(_key_usage(is_ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if not is_ca:
        point = x509.DistributionPoint(
            [x509.UniformResourceIdentifier("http://crl.acme.example/0.crl")], None, None, None
        )
        builder = builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)
    below_root = (
        () if issuer is None or issuer.certificate.issuer == issuer.certificate.subject else (issuer.certificate,)
    )
    return Issued(builder.sign(signer, hashes.SHA256()), key, below_root)


def _key_usage(is_ca: bool) -> x509.KeyUsage:
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
