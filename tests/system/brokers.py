"""A fleet whose broker is under test: processes, and devices enrolled without the wire."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from enroll import authority, service
from enroll.registry import Registry
from fleet.identity import DeviceId
from fleet.layout import AdminHome, AgentHome, IdentityFiles
from tests.certificates import pem
from tests.fleets import CRL_URL, DOMAIN, Office, certificate_in, csr, new_key
from tests.mqtt import Peer
from tests.processes import Finished, Program, run


def enrol(home: AdminHome, device: str) -> IdentityFiles:
    """Enrol a device in the home's registry, as the service would; its files are in the home."""
    cas, key = authority.load(home, DOMAIN, CRL_URL), new_key()
    with Registry.open(home.registry) as registry:
        office = Office(home, registry, cas, datetime.now(UTC))
        leaf = certificate_in(office.enrol(office.invite(device), csr(device, key)))
    folder = home.path / "test-devices" / device
    folder.mkdir(parents=True)
    files = IdentityFiles(folder / "cert.pem", folder / "key.pem")
    files.certificate.write_bytes(pem(leaf, cas.devices.certificate))
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


def revoke(home: AdminHome, device: str) -> None:
    """Revoke a device as the command line does."""
    with Registry.open(home.registry) as registry:
        service.revoke(registry, DeviceId(device), by="test", now=datetime.now(UTC))


def start_service(home: AdminHome) -> Program:
    return Program("enroll", "serve", "--home", home.path, "--listen", "127.0.0.1:0")


def start_broker(home: AdminHome, *args: object) -> Program:
    return Program("broker", "serve", "--home", home.path, "--listen", "127.0.0.1:0", *args)


def wait_ready(program: Program) -> int:
    """The port in the ready line."""
    url = program.wait_for_line(r": ready (\S+)$").group(1)
    port = urlsplit(url).port
    assert port
    return port


def connected_once(home: AdminHome) -> None:
    """Let a broker take its first snapshot, and stop both."""
    with start_service(home) as enroll, start_broker(home) as broker:
        wait_ready(enroll)
        wait_ready(broker)


def peer(home: AdminHome, files: IdentityFiles, port: int) -> Peer:
    """A TLS connection to the broker."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(home.root.certificate)
    context.load_cert_chain(files.certificate, files.key)
    return Peer(("127.0.0.1", port), context)


def mosquitto(
    program: str, home: AdminHome, files: IdentityFiles, port: int, client_id: str, *args: object
) -> Finished:
    """Run mosquitto_pub or mosquitto_sub with a fleet's files, as README says."""
    trust = ("--cafile", home.root.certificate, "--cert", files.certificate, "--key", files.key)
    return run(program, *trust, "-h", "127.0.0.1", "-p", port, "-i", client_id, *args)


def operator(home: AdminHome) -> IdentityFiles:
    """The first operator's files."""
    return AgentHome(home.operator.path).identity
