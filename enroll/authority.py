"""The fleet's certificate authority: an encrypted root, and the two issuing CAs that run unattended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from enroll import issuer as issuing
from enroll import keys
from enroll.issuer import Issuer
from fleet import pki
from fleet.errors import FleetError, NotFound
from fleet.identity import TrustDomain
from fleet.layout import AdminHome, CaFiles

TokenBytes = Callable[[int], bytes]
"""So many bytes of entropy: `secrets.token_bytes` outside tests."""

DEVICES: Final = "devices"
SERVERS: Final = "servers"


@dataclass(frozen=True, slots=True)
class Authority:
    """The CAs as `enroll serve` has them: the root's certificate without its key."""

    domain: TrustDomain
    root: x509.Certificate
    devices: Issuer
    servers: Issuer

    @property
    def root_pin(self) -> bytes:
        """What a join code carries."""
        return pki.pin_of(self.root)

    @property
    def certificates(self) -> tuple[x509.Certificate, ...]:
        """What EST's cacerts answers: the issuing CAs, then the root (RFC 7030, 4.1.3)."""
        return (self.devices.certificate, self.servers.certificate, self.root)


@dataclass(frozen=True, slots=True)
class NewAuthority:
    """An authority with the keys that its files are written from."""

    authority: Authority
    root_key: pki.PrivateKey
    devices_key: pki.PrivateKey
    servers_key: pki.PrivateKey


def create(domain: TrustDomain, crl_url: str, *, now: datetime, token_bytes: TokenBytes) -> NewAuthority:
    """A root and its two issuing CAs, each with a key of its own; nothing is written."""
    root_key, devices_key, servers_key = keys.new_key(), keys.new_key(), keys.new_key()
    root_signer = keys.KeySigner(root_key)
    root = issuing.issue_root(root_signer, _common_name(domain, "root"), serial=_serial(token_bytes), now=now)

    def issuing_ca(name: str, profile: pki.Profile, key: pki.PrivateKey) -> Issuer:
        signer = keys.KeySigner(key)
        certificate = issuing.issue_ca(
            profile,
            root,
            root_signer,
            signer.public_key,
            _common_name(domain, name),
            serial=_serial(token_bytes),
            now=now,
        )
        return Issuer(name, certificate, signer, crl_url)

    devices = issuing_ca(DEVICES, pki.DEVICES_CA, devices_key)
    servers = issuing_ca(SERVERS, pki.SERVERS_CA, servers_key)
    return NewAuthority(Authority(domain, root, devices, servers), root_key, devices_key, servers_key)


@dataclass(frozen=True, slots=True)
class Root:
    """The root with its key, for the moment that an admin lends its passphrase."""

    certificate: x509.Certificate
    signer: keys.Signer

    def sign_crl(self, builder: x509.CertificateRevocationListBuilder) -> x509.CertificateRevocationList:
        """The list in `builder`, signed."""
        return self.signer.sign_crl(builder)


def load_root(home: AdminHome, passphrase: bytes) -> Root:
    """The root of an initialised home. Raises: NotFound, Denied (the passphrase is wrong), FleetError."""
    certificate = read_certificate(home.root.certificate)
    signer = keys.KeySigner(keys.read_key(home.root.key, passphrase))
    if signer.public_key != certificate.public_key():
        raise FleetError(f"{home.root.key} is not the root's key", hint="restore both from one backup")
    return Root(certificate, signer)


def load(home: AdminHome, domain: TrustDomain, crl_url: str) -> Authority:
    """The authority of an initialised home; needs no passphrase. Raises: NotFound, Denied, FleetError."""
    return Authority(
        domain,
        read_certificate(home.root.certificate),
        _load_issuer(DEVICES, home.devices_ca, crl_url),
        _load_issuer(SERVERS, home.servers_ca, crl_url),
    )


def _load_issuer(name: str, files: CaFiles, crl_url: str) -> Issuer:
    certificate = read_certificate(files.certificate)
    signer = keys.KeySigner(keys.read_key(files.key))
    if signer.public_key != certificate.public_key():
        raise FleetError(f"{files.key} is not the key of {files.certificate}", hint="restore both from one backup")
    return Issuer(name, certificate, signer, crl_url)


def read_certificate(path: Path) -> x509.Certificate:
    """The first certificate of a PEM file. Raises: NotFound, FleetError."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFound(f"{path} is missing", hint="enroll init makes a fleet; --home says where it is") from error
    except ValueError as error:
        raise FleetError(f"{path} is not a certificate in PEM", hint="restore it from a backup") from error


def _common_name(domain: TrustDomain, name: str) -> str:
    return f"{domain[: issuing.MAX_COMMON_NAME_CHARS - len(name) - 1]} {name}"


def _serial(token_bytes: TokenBytes) -> int:
    return issuing.serial_number(token_bytes(20))
