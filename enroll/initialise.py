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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509

from enroll import audit, authority, keys
from enroll.authority import Authority, NewAuthority, TokenBytes
from enroll.home import check_private, make_private
from enroll.own_identities import LOCAL_BROKER, OPERATOR, Maker, own_identities, pem, sync_directory, use
from enroll.registry import Registry, Transaction, feed
from fleet import config, pki
from fleet.config import Address, CrlListen
from fleet.errors import FleetError, InvalidInput
from fleet.identity import DISPATCH, TrustDomain
from fleet.layout import AdminHome, CaFiles

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
    crl_listen: CrlListen = config.DEFAULT_CRL

    @property
    def enroll_url(self) -> str:
        """Where the service will be reached, as far as is known before it runs."""
        return f"https://{Address(self.hosts[0], self.enroll_listen.port or 8443)}"

    def to_toml(self) -> str:
        """The text of `fleet.toml`."""
        hosts = ", ".join(map(_quoted, self.hosts))
        crl_listen = "" if self.crl_listen.is_default else f"crl_listen = {_quoted(str(self.crl_listen))}\n"
        return (
            f"trust_domain = {_quoted(self.trust_domain)}\n"
            f"hosts = [{hosts}]\n"
            f"crl_url = {_quoted(self.crl_url)}\n\n"
            f"[enroll]\nlisten = {_quoted(str(self.enroll_listen))}\n{crl_listen}\n"
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
                sync_directory(Path(folder))
            aside.rename(path)  # onto nothing, or onto an empty directory
            sync_directory(path.parent)
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
    _write_new(home.broker_trust, pem(made.authority.root, made.authority.devices.certificate))
    (home.path / "run").mkdir(mode=0o700)
    with Registry.open(home.registry) as registry, registry.write() as transaction:
        feed.set_feed(transaction, token_bytes(16).hex())
        _audit_cas(transaction, made, now)
        maker = Maker(transaction, made.authority, config.load(plan.to_toml()), plan.enroll_url, now, token_bytes)
        _make_identities(maker, home)
    return made.authority


def _make_identities(maker: Maker, home: AdminHome) -> None:
    """The identities that a fleet begins with."""
    for principal in (LOCAL_BROKER, DISPATCH, OPERATOR):
        maker.add_principal(principal)
    for own in own_identities(home):
        maker.make(own, 1)
        use(own, 1)
    keys.write_private(home.operator.trust, pem(maker.authority.root))


def _audit_cas(transaction: Transaction, made: NewAuthority, now: datetime) -> None:
    for certificate in (made.authority.root, made.authority.devices.certificate, made.authority.servers.certificate):
        name, serial = certificate.subject.rfc4514_string(), pki.serial_of(certificate)
        audit.record(transaction, now, "ca.created", name=name, serial=serial, pin=pki.pin_of(certificate).hex())


def _write_ca(files: CaFiles, certificate: x509.Certificate, key: bytes) -> None:
    _write_new(files.key, key)
    _write_new(files.certificate, pem(certificate))


def _write_new(path: Path, data: bytes) -> None:
    """A new file, 0600 in directories of 0700: nothing in the home is for others, and a home is copied whole."""
    make_private(path.parent)
    keys.write_private(path, data)


def _quoted(text: str) -> str:
    """A TOML basic string. Raises: InvalidInput for what does not belong in a name."""
    if not text.isprintable() or '"' in text or "\\" in text:
        raise InvalidInput(f"{text[:80]!r} has characters that no name has", hint="check the flags")
    return f'"{text}"'
