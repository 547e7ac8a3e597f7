"""A fleet for benchmarks of the broker: a home with many devices, and both programs as processes of their own."""

from __future__ import annotations

import secrets
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from enroll import authority, keys
from enroll.initialise import Plan, initialise
from enroll.issuer import client_names
from enroll.registry import Registry, feed, identity
from enroll.registry.records import PrincipalRecord
from enroll.service.certification import Order, certify, key_digest
from fleet import pki
from fleet.config import parse_address
from fleet.identity import DeviceId, Principal, Role, State, TrustDomain
from fleet.layout import AdminHome, IdentityFiles

DOMAIN = TrustDomain("bench.example")
_CRL_URL = "http://localhost:8080/crl"


@dataclass(frozen=True, slots=True)
class Server:
    """A program that accepts connections."""

    process: psutil.Process
    port: int

    @property
    def cpu_seconds(self) -> float:
        """What the kernel accounted to it so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


def new_home(path: Path) -> AdminHome:
    """A fleet of its own, without devices."""
    home = AdminHome(path)
    anywhere = parse_address("127.0.0.1:0")
    plan = Plan(DOMAIN, ("localhost", "127.0.0.1"), _CRL_URL, b"only for this run", anywhere, anywhere)
    initialise(home, plan, now=datetime.now(UTC), token_bytes=secrets.token_bytes)
    return home


def lift_rates(home: AdminHome) -> None:
    """Let clients send as fast as they can: the peers that it is measured against have no such limits."""
    with home.config.open("a", encoding="utf-8") as config:
        config.write("\n[broker.limits]\nmessages_per_second = 1_000_000\nbytes_per_second = 1_000_000_000\n")


def forget_all(home: AdminHome) -> None:
    """Have the broker keep sessions in memory only."""
    text = home.config.read_text(encoding="utf-8")
    assert "\n[broker]\n" in text
    home.config.write_text(text.replace("\n[broker]\n", "\n[broker]\ndurable = false\n"), encoding="utf-8")


def add_clients(home: AdminHome, ids: Sequence[str], role: Role = Role.DEVICE) -> dict[DeviceId, IdentityFiles]:
    """Enrol principals without the wire: registered, announced, their files in the home."""
    now, found = datetime.now(UTC), {}
    issuer = authority.load(home, DOMAIN, _CRL_URL).devices
    with Registry.open(home.registry) as registry, registry.write() as transaction:
        for device in map(DeviceId, ids):
            principal, key = Principal(role, device), keys.new_key()
            identity.add_principal(transaction, PrincipalRecord(principal, State.ACTIVE, 1, (), now))
            public = key.public_key()
            order = Order(pki.CLIENT, client_names(DOMAIN, principal), public, key_digest(public), device)
            record = certify(transaction, issuer, order, now=now, token_bytes=secrets.token_bytes)
            feed.announce(transaction, device)
            found[device] = _write(home.path / "bench" / device, record.der, issuer.certificate, keys.encode_key(key))
    return found


def _write(folder: Path, der: bytes, issuer: x509.Certificate, key: bytes) -> IdentityFiles:
    folder.mkdir(parents=True)
    files = IdentityFiles(folder / "cert.pem", folder / "key.pem")
    leaf = x509.load_der_x509_certificate(der)
    files.certificate.write_bytes(leaf.public_bytes(Encoding.PEM) + issuer.public_bytes(Encoding.PEM))
    files.key.write_bytes(key)
    return files


def client_context(home: AdminHome, files: IdentityFiles) -> ssl.SSLContext:
    """What a device uses."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(home.root.certificate)
    context.load_cert_chain(files.certificate, files.key)
    return context


@contextmanager
def running(
    program: str, home: AdminHome, port: int = 0, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """`enroll serve` or `broker serve` on that port or a free one, ready."""
    script = Path(sys.executable).with_name(program)
    command = [str(script), "--home", str(home.path), "serve", "--listen", f"127.0.0.1:{port}"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        ready = process.stdout.readline().split()
        try:
            if ready[:2] != [f"{program}:", "ready"]:
                raise RuntimeError(f"{program} serve did not come up")
            yield Server(psutil.Process(process.pid), urlsplit(ready[2]).port or 0)
        finally:
            process.terminate()
