"""`enroll init`: a fleet's home, whole or not at all.

Everything is built in a sibling directory, fsynced, and renamed to its name:

    mkdir(.HOME.init-XXXX, 0700), flock ... write and fsync each file ... fsync each directory
    rename(.HOME.init-XXXX, HOME), fsync(parent)
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from enroll import audit, authority, keys
from enroll.authority import Authority, NewAuthority, TokenBytes
from enroll.home import check_private
from enroll.issuer import Issuer, Names, client_names, server_names
from enroll.registry import Registry, Transaction, feed, identity
from enroll.registry.records import CertificateRecord, CertificateState, PrincipalRecord
from enroll.service.certification import Order, certify, key_digest
from fleet import config, pki
from fleet.config import Address
from fleet.errors import FleetError, InvalidInput
from fleet.identity import DISPATCH, DeviceId, Principal, Role, Server, State, TrustDomain
from fleet.layout import AdminHome, CaFiles, Credential, IdentityFiles

OPERATOR = Principal(Role.OPERATOR, DeviceId("admin"))
LOCAL_BROKER = Principal(Role.BROKER, DeviceId("broker"))
_MIN_PASSPHRASE_BYTES = 8
_ENROLL_LISTEN = config.parse_address(config.DEFAULT_ENROLL_LISTEN)
_BROKER_LISTEN = config.parse_address(config.DEFAULT_BROKER_LISTEN)
# RFC 1123, 2.1, and the underscore that container networks put into names
_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")
_CRL_URL = re.compile(r"https?://[!-~]{1,500}")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a new fleet is to be: what `fleet.toml` will say, and the passphrase of the root's key."""

    trust_domain: TrustDomain
    hosts: tuple[str, ...]
    crl_url: str
    passphrase: bytes = field(repr=False)
    enroll_listen: Address = _ENROLL_LISTEN
    broker_listen: Address = _BROKER_LISTEN

    @property
    def enroll_url(self) -> str:
        """Where the service will be reached, as far as is known before it runs."""
        return f"https://{Address(self.hosts[0], self.enroll_listen.port or 8443)}"

    def to_toml(self) -> str:
        """The text of `fleet.toml`."""
        hosts = ", ".join(map(_quoted, self.hosts))
        return (
            f"trust_domain = {_quoted(self.trust_domain)}\n"
            f"hosts = [{hosts}]\n"
            f"crl_url = {_quoted(self.crl_url)}\n\n"
            f"[enroll]\nlisten = {_quoted(str(self.enroll_listen))}\n\n"
            f"[broker]\nlisten = {_quoted(str(self.broker_listen))}\n"
        )


def initialise(home: AdminHome, plan: Plan, *, now: datetime, token_bytes: TokenBytes) -> Authority:
    """A new fleet at `home`: CAs, registry, and the identities of its own servers, broker, dispatch and operator.

    Raises: InvalidInput (the plan), FleetError (there is something at `home` already), Denied (others can enter it).
    """
    _check_plan(plan)
    _check_free(home.path)
    with _built_aside(home.path, token_bytes(4).hex()) as path:
        return _build(AdminHome(path), plan, now, token_bytes)


def _check_plan(plan: Plan) -> None:
    config.load(plan.to_toml())
    for host in plan.hosts:
        if not _is_host(host):
            raise InvalidInput(f"{host[:80]!r} is not a host name or address", hint="as --host gateway.local")
    if not _CRL_URL.fullmatch(plan.crl_url):
        raise InvalidInput(
            f"{plan.crl_url[:80]!r} is not an address", hint="as --crl-url http://gateway.local:8080/crl"
        )
    if len(plan.passphrase) < _MIN_PASSPHRASE_BYTES:
        raise InvalidInput(
            f"the passphrase has under {_MIN_PASSPHRASE_BYTES} bytes", hint="it guards the root of the whole fleet"
        )


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return len(text) <= 253 and _HOST.fullmatch(text) is not None
    return True


def _check_free(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise FleetError(f"{path} is not a directory", hint="name another one: --home DIR")
    if (path / "fleet.toml").exists() or (path / "ca").exists():
        raise FleetError(f"{path} holds a fleet already", hint="enroll serve runs it; --home DIR makes another")
    if any(path.iterdir()):
        raise FleetError(f"{path} is not empty", hint="name an empty or a new directory: --home DIR")
    check_private(path)


@contextmanager
def _built_aside(path: Path, nonce: str) -> Iterator[Path]:
    """A private directory that becomes `path` at the end, or is gone; locked, so that nobody takes it for left over."""
    aside = path.parent / f".{path.name}.init-{nonce}"
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_left_over(path)
            aside.mkdir(mode=0o700)
            stack.callback(shutil.rmtree, aside, ignore_errors=True)
            stack.enter_context(_locked(aside))
        except OSError as error:
            raise FleetError(
                f"{path} cannot be made: {(error.strerror or str(error)).lower()}",
                hint="name another directory: --home DIR",
            ) from error
        try:
            yield aside
            for folder, _, _ in os.walk(aside):
                _sync_directory(Path(folder))
            aside.rename(path)  # onto nothing, or onto an empty directory
            _sync_directory(path.parent)
        except OSError as error:
            raise FleetError(
                f"{path} cannot be written: {(error.strerror or str(error)).lower()}",
                hint="free space, or name another --home",
            ) from error


def _remove_left_over(path: Path) -> None:
    """Remove what an init of the same home left when it was killed: there are keys in it.

    Only a directory of ours, by the very name that init gives, which no init that lives holds the lock of.
    """
    name = re.compile(re.escape(f".{path.name}.init-") + "[0-9a-f]{8}")
    for found in path.parent.iterdir():
        if name.fullmatch(found.name) and _is_ours(found):
            with contextlib.suppress(OSError), _locked(found):
                shutil.rmtree(found, ignore_errors=True)


def _is_ours(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:  # gone by now
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the directory; the system lets go of it however this process ends. Raises: OSError, another holds it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _build(home: AdminHome, plan: Plan, now: datetime, token_bytes: TokenBytes) -> Authority:
    made = authority.create(plan.trust_domain, plan.crl_url, now=now, token_bytes=token_bytes)
    _write_new(home.config, plan.to_toml().encode())
    _write_ca(home.root, made.authority.root, keys.encode_key(made.root_key, plan.passphrase))
    _write_ca(home.devices_ca, made.authority.devices.certificate, keys.encode_key(made.devices_key))
    _write_ca(home.servers_ca, made.authority.servers.certificate, keys.encode_key(made.servers_key))
    _write_new(home.broker_trust, _pem(made.authority.root, made.authority.devices.certificate))
    (home.path / "run").mkdir(mode=0o700)
    with Registry.open(home.registry) as registry, registry.write() as transaction:
        feed.set_feed(transaction, token_bytes(16).hex())
        _audit_cas(transaction, made, now)
        _Identities(transaction, made.authority, now, token_bytes).write_all(home, plan)
    return made.authority


@dataclass(frozen=True, slots=True)
class _Identities:
    """Writes and records the identities that a fleet begins with."""

    transaction: Transaction
    authority: Authority
    now: datetime
    token_bytes: TokenBytes

    def write_all(self, home: AdminHome, plan: Plan) -> None:
        self._server(home.enroll_server, Server.ENROLL, plan.hosts)
        self._server(home.broker_server, Server.BROKER, plan.hosts)
        self._client(home.broker_client, LOCAL_BROKER)
        self._revoked(home.broker_revoked, LOCAL_BROKER)
        self._client(home.dispatch, DISPATCH)
        self._operator(home, plan.enroll_url)

    def _server(self, files: IdentityFiles, server: Server, hosts: Sequence[str]) -> None:
        self._identity(files, self.authority.servers, pki.SERVER, server_names(self.authority.domain, server, hosts))

    def _client(self, files: IdentityFiles, principal: Principal) -> CertificateRecord:
        identity.add_principal(self.transaction, PrincipalRecord(principal, State.ACTIVE, 1, (), self.now))
        names = client_names(self.authority.domain, principal)
        certificate = self._identity(files, self.authority.devices, pki.CLIENT, names, principal)
        feed.announce(self.transaction, principal.id)
        return certificate

    def _revoked(self, files: IdentityFiles, principal: Principal) -> None:
        """A second certificate of a principal, revoked from its first moment: never listed in the directory."""
        names = client_names(self.authority.domain, principal)
        revoked = CertificateState.REVOKED
        certificate = self._identity(files, self.authority.devices, pki.CLIENT, names, principal, revoked)
        audit.record(
            self.transaction, self.now, "certificate.revoked", principal=str(principal), serial=certificate.serial
        )

    def _operator(self, home: AdminHome, enroll_url: str) -> None:
        """The agent's layout: `current` points at generation 1."""
        folder = home.operator.generation(1)
        record = self._client(IdentityFiles(folder / "cert.pem", folder / "key.pem"), OPERATOR)
        credential = Credential(
            OPERATOR.id, OPERATOR.role, record.serial, record.not_before, record.not_after, enroll_url
        )
        _write_new(folder / "meta.json", credential.encode())
        _write_new(home.operator.trust, _pem(self.authority.root))
        home.operator.current.symlink_to(folder.name)

    def _identity(
        self,
        files: IdentityFiles,
        issuer: Issuer,
        profile: pki.Profile,
        names: Names,
        principal: Principal | None = None,
        state: CertificateState = CertificateState.CONFIRMED,
    ) -> CertificateRecord:
        key = keys.new_key()
        holder = None if principal is None else principal.id
        order = Order(profile, names, key.public_key(), key_digest(key.public_key()), holder, state=state)
        record = certify(self.transaction, issuer, order, now=self.now, token_bytes=self.token_bytes)
        audit.record(
            self.transaction,
            self.now,
            "certificate.issued",
            principal=str(principal) if principal else f"server/{names.common_name}",
            serial=record.serial,
            key=record.key.hex(),
        )
        _write_new(files.key, keys.encode_key(key))
        _write_new(files.certificate, _pem(x509.load_der_x509_certificate(record.der), issuer.certificate))
        return record


def _audit_cas(transaction: Transaction, made: NewAuthority, now: datetime) -> None:
    for certificate in (made.authority.root, made.authority.devices.certificate, made.authority.servers.certificate):
        name, serial = certificate.subject.rfc4514_string(), pki.serial_of(certificate)
        audit.record(transaction, now, "ca.created", name=name, serial=serial, pin=pki.pin_of(certificate).hex())


def _write_ca(files: CaFiles, certificate: x509.Certificate, key: bytes) -> None:
    _write_new(files.key, key)
    _write_new(files.certificate, _pem(certificate))


def _write_new(path: Path, data: bytes) -> None:
    """A new file, 0600 in directories of 0700: nothing in the home is for others, and a home is copied whole."""
    for folder in reversed(path.parents):
        if not folder.exists():
            folder.mkdir(mode=0o700)
    keys.write_private(path, data)


def _pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _quoted(text: str) -> str:
    """A TOML basic string. Raises: InvalidInput for what does not belong in a name."""
    if not text.isprintable() or '"' in text or "\\" in text:
        raise InvalidInput(f"{text[:80]!r} has characters that no name has", hint="check the flags")
    return f'"{text}"'
