"""The identities that a fleet makes for itself: its servers', broker's, dispatch's two, and the first operator's.

Each is a folder `NAME-N` with a key and a certificate, and a symbolic link `NAME` to the one in use, which is swapped
atomically: whoever reads finds the old one or the new one. Whoever reads both files while it is swapped finds that they
do not fit, and reads again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from enroll import audit, keys
from enroll.authority import Authority
from enroll.home import make_private
from enroll.issuer import client_names, server_names, signatory_names
from enroll.registry import Transaction, feed, identity, revocations
from enroll.registry.records import CertificateRecord, CertificateState, PrincipalRecord
from enroll.service.certification import Order, certify, key_digest
from fleet import pki
from fleet.config import FleetConfig
from fleet.identity import DISPATCH, DeviceId, Principal, Role, Server, Signatory, State
from fleet.layout import AdminHome, Credential

OPERATOR = Principal(Role.OPERATOR, DeviceId("admin"))
LOCAL_BROKER = Principal(Role.BROKER, DeviceId("broker"))


@dataclass(frozen=True, slots=True)
class OwnIdentity:
    """One of them. `holder` is a principal, or which server or signatory it is.

    `state` is what its certificates are made as.
    """

    link: Path
    holder: Principal | Server | Signatory
    state: CertificateState = CertificateState.CONFIRMED

    @property
    def name(self) -> str:
        """What to call it in a log."""
        return str(self.holder) if isinstance(self.holder, Principal) else f"server/{self.holder.value}"

    @property
    def is_agent_home(self) -> bool:
        """Whether it is laid out as an agent's home, for `mosquitto_pub` and `enroll tail`."""
        return self.link.name == "current"

    def folder(self, number: int) -> Path:
        """Where the key and certificate of that number are."""
        return self.link.with_name(f"{'gen' if self.is_agent_home else self.link.name}-{number}")


def own_identities(home: AdminHome) -> tuple[OwnIdentity, ...]:
    """All of them, the principals' first certificates before a second of the same principal."""
    return (
        OwnIdentity(home.enroll_server.certificate.parent, Server.ENROLL),
        OwnIdentity(home.broker_server.certificate.parent, Server.BROKER),
        OwnIdentity(home.broker_client.certificate.parent, LOCAL_BROKER),
        OwnIdentity(home.broker_revoked.certificate.parent, LOCAL_BROKER, CertificateState.REVOKED),
        OwnIdentity(home.dispatch.certificate.parent, DISPATCH),
        OwnIdentity(home.operator.current, OPERATOR),
        signing_identity(home),
    )


def signing_identity(home: AdminHome) -> OwnIdentity:
    """What dispatch signs with. A home that was made before there was one has none until the service starts."""
    return OwnIdentity(home.dispatch_signing.certificate.parent, Signatory.DISPATCH)


@dataclass(frozen=True, slots=True)
class Maker:
    """Certifies own identities in one transaction, and writes what it made."""

    transaction: Transaction
    authority: Authority
    config: FleetConfig
    enroll_url: str
    now: datetime
    token_bytes: Callable[[int], bytes]

    def add_principal(self, principal: Principal) -> None:
        """A principal that is new with this fleet."""
        identity.add_principal(self.transaction, PrincipalRecord(principal, State.ACTIVE, 1, (), self.now))

    def make(self, own: OwnIdentity, number: int, parent: CertificateRecord | None = None) -> CertificateRecord:
        """A new key and certificate in the folder of that number, on disk; not in use before `use`."""
        key = keys.new_key()
        order = self._order(own, key.public_key(), number, parent)
        issuer = self.authority.devices if isinstance(own.holder, Principal) else self.authority.servers
        record = certify(self.transaction, issuer, order, now=self.now, token_bytes=self.token_bytes)
        serial = record.serial
        audit.record(
            self.transaction, self.now, "certificate.issued", principal=own.name, serial=serial, key=record.key.hex()
        )
        if own.state is CertificateState.REVOKED:  # from its first moment: never listed in the directory
            revocations.revoke(self.transaction, [serial], None, self.now)
            audit.record(self.transaction, self.now, "certificate.revoked", principal=own.name, serial=serial)
        if isinstance(own.holder, Principal):
            feed.announce(self.transaction, own.holder.id)
        self._write(own, number, keys.encode_key(key), record, issuer.certificate)
        return record

    def _order(
        self, own: OwnIdentity, public_key: pki.PublicKey, generation: int, parent: CertificateRecord | None
    ) -> Order:
        digest, domain = key_digest(public_key), self.authority.domain
        if isinstance(own.holder, Server):
            return Order(pki.SERVER, server_names(domain, own.holder, self.config.hosts), public_key, digest, None)
        if isinstance(own.holder, Signatory):
            return Order(pki.DISPATCH_SIGNING, signatory_names(domain, own.holder), public_key, digest, None)
        names, id_ = client_names(domain, own.holder), own.holder.id
        if parent is None or own.state is CertificateState.REVOKED:
            return Order(pki.CLIENT, names, public_key, digest, id_, state=own.state)
        epoch, pending = parent.epoch, CertificateState.PENDING
        return Order(pki.CLIENT, names, public_key, digest, id_, epoch, generation, parent.serial, pending)

    def _write(
        self, own: OwnIdentity, number: int, key: bytes, record: CertificateRecord, issuer: x509.Certificate
    ) -> None:
        folder = own.folder(number)
        shutil.rmtree(folder, ignore_errors=True)  # left over from an attempt that ended before its link was swapped
        make_private(folder)
        leaf = x509.load_der_x509_certificate(record.der)
        keys.write_private(folder / "key.pem", key)
        keys.write_private(folder / "cert.pem", pem(leaf, issuer))
        if own.is_agent_home and isinstance(own.holder, Principal):
            credential = Credential(
                own.holder.id, own.holder.role, record.serial, record.not_before, record.not_after, self.enroll_url
            )
            keys.write_private(folder / "meta.json", credential.encode())
        sync_directory(folder)


def use(own: OwnIdentity, number: int) -> None:
    """Put the folder of that number into use, atomically and for good; remove those before it."""
    aside = own.link.with_name(f".{own.link.name}.next")
    aside.unlink(missing_ok=True)
    aside.symlink_to(own.folder(number).name)
    aside.replace(own.link)
    sync_directory(own.link.parent)
    for old in range(1, number - 1):  # the last one stays for whoever is reading it
        shutil.rmtree(own.folder(old), ignore_errors=True)


def number_in_use(own: OwnIdentity) -> int:
    """Which folder the link names. Raises: OSError, ValueError (not a link of ours)."""
    return int(own.link.readlink().name.rpartition("-")[2])


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def sync_directory(path: Path) -> None:
    """What was made or renamed in it is there after a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
