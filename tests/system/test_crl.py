"""CRLs as others use them: fetched over http, given to OpenSSL and to Mosquitto, while the real service runs."""

from __future__ import annotations

import secrets
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.message import Message
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from enroll import authority, service
from enroll.crl import LIFE
from enroll.crl_publisher import CrlPublisher
from enroll.registry import Registry
from enroll.registry.records import Reason
from fleet.config import DEFAULT_CRL, parse_crl_listen
from fleet.identity import DeviceId, Serial
from fleet.layout import AdminHome, IdentityFiles
from fleet.pki import serial_of
from tests import mqtt
from tests.crls import lines_of, verify
from tests.deadlines import within
from tests.fleets import CRL_URL, DOMAIN, new_home
from tests.processes import Program, command_line, run
from tests.system.brokers import enrol, peer, start_broker, start_service, wait_ready


@dataclass(frozen=True, slots=True)
class Publication:
    """A fleet whose service runs, and where its lists are."""

    home: AdminHome
    program: Program
    url: str

    def fetch(self, name: str, **headers: str) -> tuple[int, bytes, Message]:
        """Status, body and headers."""
        request = urllib.request.Request(f"{self.url}/{name}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=within(10)) as response:
                return response.status, response.read(), response.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), error.headers

    def crl(self, name: str) -> x509.CertificateRevocationList:
        status, body, _ = self.fetch(name)
        assert 200 == status
        return x509.load_der_x509_crl(body)

    def wait_for(self, name: str, is_so: Callable[[dict[Serial, Reason | None]], bool]) -> float:
        """Until the list is so; the seconds that took."""
        began = time.monotonic()
        while not is_so(lines_of(self.crl(name))):
            assert time.monotonic() - began < within(10)
        return time.monotonic() - began

    def wait_for_file(self, serial: Serial) -> None:
        """Until the list that other engines on this host read has the serial: it is written after the served one."""
        began = time.monotonic()
        while serial not in lines_of(x509.load_pem_x509_crl(self.home.crl("devices").with_suffix(".pem").read_bytes())):
            assert time.monotonic() - began < within(10)

    def revoke(self, device: str) -> None:
        with Registry.open(self.home.registry) as registry:
            service.revoke(registry, DeviceId(device), by="test", now=datetime.now(UTC))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Publication]:
    home = new_home(tmp_path_factory.mktemp("crl") / "fleet")
    with start_service(home) as program:
        wait_ready(program)
        yield Publication(home, program, url_of(program))


def url_of(program: Program) -> str:
    return program.wait_for_line(r"crl\.ready url=(\S+)", stream="stderr")[1]


def leaf_of(files: IdentityFiles) -> x509.Certificate:
    return x509.load_pem_x509_certificate(files.certificate.read_bytes())


def verified(publication: Publication, files: IdentityFiles, folder: Path) -> tuple[int, str]:
    """What `openssl verify` says, with the list that the certificate names."""
    leaf = leaf_of(files)
    (point,) = leaf.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert point.full_name is not None
    name = point.full_name[0].value.removeprefix(f"{CRL_URL}/")
    issuer = authority.read_certificate(publication.home.devices_ca.certificate)
    pem = publication.crl(name).public_bytes(Encoding.PEM)
    done = verify(folder, publication.home.root.certificate, issuer, leaf.public_bytes(Encoding.PEM), pem)
    return done.returncode, done.stdout + done.stderr


def test_openssl_tells_the_revoked_from_the_good(running: Publication, tmp_path: Path) -> None:
    """`openssl verify -crl_check` refuses everybody, or lets the revoked pass."""
    good, bad = enrol(running.home, "pump-01"), enrol(running.home, "pump-02")
    assert 0 == verified(running, bad, tmp_path)[0]
    running.revoke("pump-02")
    running.wait_for("1.crl", lambda lines: serial_of(leaf_of(bad)) in lines)
    assert 0 == verified(running, good, tmp_path)[0]
    status, said = verified(running, bad, tmp_path)
    assert (True, True) == (status != 0, "certificate revoked" in said)


def test_a_suspended_device_is_on_hold_and_comes_off(running: Publication) -> None:
    """A device that was resumed stays out of everything that looks at lists."""
    serial = serial_of(leaf_of(enrol(running.home, "pump-03")))
    with Registry.open(running.home.registry) as registry:
        service.suspend(registry, DeviceId("pump-03"), by="test", now=datetime.now(UTC))
        running.wait_for("devices.crl", lambda lines: lines.get(serial) is Reason.CERTIFICATE_HOLD)
        service.resume(registry, DeviceId("pump-03"), by="test", now=datetime.now(UTC))
        running.wait_for("devices.crl", lambda lines: serial not in lines)


def test_a_cache_asks_whether_it_changed(running: Publication) -> None:
    """Every look costs the whole list, or a cache goes on with one that is old."""
    files = enrol(running.home, "pump-04")
    status, _, headers = running.fetch("1.crl")
    tag, last = headers["ETag"], headers["Last-Modified"]
    assert (200, "application/pkix-crl", "public, max-age=60") == (
        status,
        headers["Content-Type"],
        headers["Cache-Control"],
    )
    assert 304 == running.fetch("1.crl", **{"If-None-Match": f'"other", W/{tag}'})[0]
    assert 304 == running.fetch("1.crl", **{"If-Modified-Since": last})[0]
    running.revoke("pump-04")
    running.wait_for("1.crl", lambda lines: serial_of(leaf_of(files)) in lines)
    assert 200 == running.fetch("1.crl", **{"If-None-Match": tag, "If-Modified-Since": last})[0]


def test_what_there_is_and_what_not(running: Publication) -> None:
    """A stranger reads another file of the home, or a verifier waits for what never comes."""
    statuses = {
        name: running.fetch(name)[0]
        for name in ("0.crl", "servers.crl", "servers.pem", "7.crl", "root.crl", "%2e%2e/fleet.toml", "../ca/root.pem")
    }
    assert [200, 200, 200, 404, 404, 404, 404] == list(statuses.values())
    der, pem = running.fetch("servers.crl")[1], running.fetch("servers.pem")[1]
    assert x509.load_der_x509_crl(der) == x509.load_pem_x509_crl(pem)


def test_the_roots_list_is_served_once_it_is_made(running: Publication) -> None:
    """`-crl_check_all` has no list for the issuing CAs."""
    passphrase = running.home.path / "passphrase"
    passphrase.write_text("correct horse battery staple")
    run("enroll", "ca", "crl", "root", "--passphrase-file", passphrase, "--home", running.home.path).check()
    enrol(running.home, "pump-05")  # the next commit, or within a minute
    until = time.monotonic() + within(10)
    while running.fetch("root.crl")[0] == 404:
        assert time.monotonic() < until
    assert authority.read_certificate(running.home.root.certificate).subject == running.crl("root.crl").issuer


def test_mosquitto_keeps_the_revoked_out(running: Publication, tmp_path: Path, free_port: int) -> None:
    """Another engine on the same host, with our plain list, refuses everybody or nobody."""
    good, bad = enrol(running.home, "pump-06"), enrol(running.home, "pump-07")
    running.revoke("pump-07")
    running.wait_for_file(serial_of(leaf_of(bad)))
    shown = running.home.broker_server
    (tmp_path / "mosquitto.conf").write_text(
        f"listener {free_port} 127.0.0.1\nuser root\n"
        f"cafile {running.home.broker_trust}\ncertfile {shown.certificate}\nkeyfile {shown.key}\n"
        f"crlfile {running.home.crl('devices').with_suffix('.pem')}\n"
        "require_certificate true\nuse_identity_as_username true\n"
    )
    with Program("mosquitto", "-c", tmp_path / "mosquitto.conf", "-v") as broker:
        broker.wait_for_line(r"mosquitto version \S+ running", stream="stderr")
        with peer(running.home, good, free_port) as client:
            assert mqtt.ACCEPTED == client.ask(mqtt.connect("pump-06"))
        with suppress(OSError), peer(running.home, bad, free_port) as client:
            assert mqtt.ACCEPTED != client.ask(mqtt.connect("pump-07"))
        broker.wait_for_line(r"certificate verify failed|sslv3 alert certificate revoked", stream="stderr")
        running.revoke("pump-06")
        running.wait_for_file(serial_of(leaf_of(good)))
        seen = broker.line_count("stderr")
        broker.send_signal(signal.SIGHUP)
        broker.wait_for_line("Reloading config", stream="stderr", after=seen)
        with suppress(OSError), peer(running.home, good, free_port) as client:
            assert mqtt.ACCEPTED != client.ask(mqtt.connect("pump-06"))


@pytest.fixture
def free_port() -> int:
    """A port for a program that does not take 0 and say which it got."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def test_a_list_that_ended_while_nothing_ran_is_new_at_the_start(tmp_path: Path) -> None:
    """A gateway that was off for a month comes back with lists that lock everybody out."""
    home = new_home(tmp_path / "fleet")
    cas = authority.load(home, DOMAIN, CRL_URL)
    with Registry.open(home.registry) as registry:
        CrlPublisher(home, registry, cas, time.monotonic).refresh(datetime.now(UTC) - timedelta(days=30))
    with start_service(home) as program:
        wait_ready(program)
        for name in ("0", "1", "devices", "servers"):
            found = Publication(home, program, url_of(program)).crl(f"{name}.crl")
            assert found.next_update_utc is not None
            assert LIFE - timedelta(minutes=10) < found.next_update_utc - datetime.now(UTC) <= LIFE


def test_a_certificate_that_is_revoked_loses_its_connection(tmp_path: Path) -> None:
    """`cert revoke` lasts until the next reconnect only, or the device can never come back."""
    home = new_home(tmp_path / "fleet")
    with start_service(home) as program, start_broker(home) as broker:
        wait_ready(program)
        port, files = wait_ready(broker), enrol(home, "pump-09")
        with peer(home, files, port) as device:
            assert mqtt.ACCEPTED == device.ask(mqtt.connect("pump-09"))
            serial = serial_of(leaf_of(files))
            run("enroll", "cert", "revoke", serial, "--reason", "keyCompromise", "--yes", "--home", home.path).check()
            assert device.is_closed()
        with peer(home, files, port) as device:
            assert mqtt.ACCEPTED != device.ask(mqtt.connect("pump-09"))


def test_where_the_default_port_is_taken_the_service_runs_without(tmp_path: Path) -> None:
    """Something else listens on 8080, and no device can enrol."""
    home = new_home(tmp_path / "fleet", crl_listen=DEFAULT_CRL)
    serve = command_line("enroll", "serve", "--home", home.path, "--listen", "0.0.0.0:0")
    with Program("unshare", "-rn", sys.executable, "-c", _DEFAULT_PORT_TAKEN, *serve) as program:
        wait_ready(program)
        said = program.wait_for_line(r"crl\.not_served .*", stream="stderr")[0]
        assert "0.0.0.0:8080" in said


# In a network of its own: services of other tests may have that port of this one, for a while.
_DEFAULT_PORT_TAKEN = """
import os, socket, sys
taken = socket.create_server(("0.0.0.0", 8080))
taken.set_inheritable(True)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "off", "nonsense"])
def test_an_address_that_was_asked_for_is_had_or_said_so(tmp_path: Path, listen: str) -> None:
    """An admin believes that lists are served."""
    home = new_home(tmp_path / "fleet", crl_listen=parse_crl_listen("off"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        asked = f"127.0.0.1:{taken.getsockname()[1]}" if listen == "127.0.0.1:1" else listen
        serve = ("enroll", "--home", str(home.path), "serve", "--listen", "127.0.0.1:0", "--crl-listen", asked)
        with Program(*serve) as program:
            if listen == "off":
                wait_ready(program)
                program.wait_for_line(r'crl\.not_served reason="enroll.crl_listen is off"', stream="stderr")
                return
            assert program.wait() in (1, 2)
            assert "error: " in program.stderr
            assert "--crl-listen" in program.stderr or "HOST:PORT" in program.stderr


def test_random_names_are_no_lists(running: Publication) -> None:
    """What is asked for is looked up on the disk."""
    for _ in range(20):
        assert 404 == running.fetch(f"{secrets.token_hex(8)}.crl")[0]
