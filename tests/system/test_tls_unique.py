"""Requests that say for which connection they were made (RFC 7030, 3.5), over real TLS 1.2 and 1.3.

openssl writes them: it encodes a challengePassword as libest does, which hands its value to the same function.
"""

from __future__ import annotations

import base64
import secrets
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from socket import create_connection
from typing import BinaryIO

import pytest

from enroll import service
from enroll.registry import Registry
from enroll.tokens import TokenOrder
from fleet import est
from fleet.identity import DeviceId
from fleet.join import Token
from fleet.layout import AdminHome, IdentityFiles
from tests.deadlines import within
from tests.fleets import new_home
from tests.processes import run
from tests.system.brokers import enrol, start_service, wait_ready

TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
OTHER = base64.b64encode(bytes(12)).decode()
NOT_THIS = b"the request's challengePassword is not the tls-unique of this connection\n"


@dataclass(frozen=True, slots=True)
class Connection:
    """A client's connection, and what is answered on it."""

    socket: ssl.SSLSocket
    answers: BinaryIO

    @property
    def tls_unique(self) -> str:
        """What libest puts into its request."""
        binding = self.socket.get_channel_binding("tls-unique")
        assert binding is not None
        return base64.b64encode(binding).decode()

    def enrol(self, token: Token | None, request: bytes) -> tuple[int, bytes]:
        """The status and the body of the answer; with a certificate instead of a token it is a renewal."""
        body = base64.encodebytes(request)
        head = [
            f"POST {est.SIMPLE_REENROLL if token is None else est.SIMPLE_ENROLL} HTTP/1.1",
            "Host: localhost",
            f"Content-Type: {est.PKCS10}",
            f"Content-Length: {len(body)}",
        ]
        if token is not None:
            head.append("Authorization: Basic " + base64.b64encode(f"estuser:{token}".encode()).decode())
        self.socket.sendall("\r\n".join([*head, "\r\n"]).encode() + body)
        status = int(self.answers.readline().split()[1])
        fields = dict(line.split(b": ", 1) for line in iter(self.answers.readline, b"\r\n"))
        return status, self.answers.read(int(fields[b"Content-Length"]))


@dataclass(frozen=True, slots=True)
class Service:
    """A running service, tokens for it, and connections to it."""

    home: AdminHome
    port: int

    @contextmanager
    def connection(self, version: ssl.TLSVersion, identity: IdentityFiles | None = None) -> Iterator[Connection]:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.load_verify_locations(self.home.root.certificate)
        tls.minimum_version = tls.maximum_version = version
        if identity is not None:
            tls.load_cert_chain(identity.certificate, identity.key)
        with (
            create_connection(("127.0.0.1", self.port), within(10)) as plain,
            tls.wrap_socket(plain, server_hostname="localhost") as secure,
            secure.makefile("rb") as answers,
        ):
            yield Connection(secure, answers)

    def token(self, device: str) -> Token:
        with Registry.open(self.home.registry) as registry:
            order = TokenOrder(DeviceId(device))
            now = datetime.now(UTC)
            return service.invite(registry, order, by="test", now=now, token_bytes=secrets.token_bytes).token


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = new_home(tmp_path_factory.mktemp("tls") / "fleet")
    with start_service(home) as program:
        yield Service(home, wait_ready(program))
        assert "Traceback" not in program.stderr


def made_by_openssl(folder: Path, device: str, challenge: str) -> bytes:
    """The DER of a request with that challengePassword, and the same key each time for a device."""
    key, config, out = folder / f"{device}.key", folder / f"{device}.cnf", folder / f"{device}.csr"
    config.write_text(
        "[req]\nprompt = no\ndistinguished_name = name\nattributes = attributes\n"
        f"[name]\nCN = {device}\n[attributes]\nchallengePassword = {challenge}\n"
    )
    if not key.exists():
        run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key).check()
    run("openssl", "req", "-new", "-key", key, "-config", config, "-outform", "DER", "-out", out).check()
    return out.read_bytes()


def test_a_request_for_this_connection_is_signed(running: Service, tmp_path: Path) -> None:
    """libest, told to prove possession, cannot enrol."""
    token = running.token("proven")
    with running.connection(TLS_1_2) as connection:
        request = made_by_openssl(tmp_path, "proven", connection.tls_unique)
        assert 200 == connection.enrol(token, request)[0]
        assert 200 == connection.enrol(token, request)[0]  # asked again: the same certificate


def test_a_request_for_another_connection_is_refused_and_its_token_stays_good(running: Service, tmp_path: Path) -> None:
    """Whoever relays a device's request gets it signed, or spends its token."""
    token = running.token("relayed")
    with running.connection(TLS_1_2) as of_device, running.connection(TLS_1_2) as of_relay:
        assert of_device.tls_unique != of_relay.tls_unique
        request = made_by_openssl(tmp_path, "relayed", of_device.tls_unique)
        status, reason = of_relay.enrol(token, request)
        assert (400, NOT_THIS) == (status, reason[: len(NOT_THIS)])
        assert 200 == of_device.enrol(token, request)[0]


def test_a_relay_does_not_get_around_it_by_tls_1_3(running: Service, tmp_path: Path) -> None:
    """Whoever relays a request chooses the version in which there is nothing to compare."""
    token = running.token("upgraded")
    with running.connection(TLS_1_2) as of_device, running.connection(TLS_1_3) as of_relay:
        request = made_by_openssl(tmp_path, "upgraded", of_device.tls_unique)
        status, reason = of_relay.enrol(token, request)
        assert (400, True) == (status, b"TLS 1.3 has no tls-unique" in reason)
        assert 200 == of_device.enrol(token, request)[0]


@pytest.mark.parametrize("challenge", [OTHER, "secret", "="])
def test_a_value_that_is_wrong_is_refused(running: Service, tmp_path: Path, challenge: str) -> None:
    """Any value is as good as the right one."""
    with running.connection(TLS_1_2) as connection:
        request = made_by_openssl(tmp_path, "wrong", challenge)
        status, reason = connection.enrol(running.token("wrong"), request)
    assert (400, NOT_THIS) == (status, reason[: len(NOT_THIS)])


def test_the_end_of_the_right_value_is_not_enough(running: Service, tmp_path: Path) -> None:
    """A value is compared in part."""
    with running.connection(TLS_1_2) as connection:
        request = made_by_openssl(tmp_path, "part", connection.tls_unique[:-4])
        assert 400 == connection.enrol(running.token("part"), request)[0]


def test_a_renewal_proves_possession_too(running: Service, tmp_path: Path) -> None:
    """A relayed request gets a new certificate for a device that has one."""
    files = enrol(running.home, "renewing")
    with running.connection(TLS_1_2, files) as connection, running.connection(TLS_1_2, files) as other:
        request = made_by_openssl(tmp_path, "renewing", connection.tls_unique)
        assert 400 == other.enrol(None, request)[0]
        assert 200 == connection.enrol(None, request)[0]
