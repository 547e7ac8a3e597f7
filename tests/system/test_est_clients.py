"""Requests of EST clients that are not ours, byte for byte as they were recorded (tests/vectors/record_est.py)."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from socket import create_connection
from typing import BinaryIO

import pytest
from cryptography import x509

from enroll import authority, service
from enroll.registry import Registry
from enroll.tokens import TokenOrder
from fleet import est
from fleet.identity import DeviceId
from fleet.layout import AdminHome, IdentityFiles
from tests.certificates import pem
from tests.deadlines import within
from tests.fleets import csr, new_home
from tests.processes import run
from tests.system.brokers import enrol, start_service, wait_ready
from tests.vectors.record_est import CASES, HERE

REFUSED = {"curl-no-credentials": 401, "curl-form-type": 415, "curl-der": 400}


class Service:
    """A running service, and what it answers to bytes."""

    def __init__(self, home: AdminHome, port: int) -> None:
        self.home = home
        self._address = ("127.0.0.1", port)

    def ask(self, request: bytes, identity: IdentityFiles | None = None) -> tuple[int, bytes]:
        """The status and the body of the answer."""
        with self.connection(identity) as connection:
            return connection.ask(request)

    @contextmanager
    def connection(self, identity: IdentityFiles | None = None) -> Iterator[Connection]:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.load_verify_locations(self.home.root.certificate)
        if identity is not None:
            tls.load_cert_chain(identity.certificate, identity.key)
        with (
            create_connection(self._address, within(10)) as plain,
            tls.wrap_socket(plain, server_hostname="localhost") as secure,
            secure.makefile("rb") as answers,
        ):
            yield Connection(secure, answers)


@dataclass(frozen=True)
class Connection:
    """One connection to the service."""

    socket: ssl.SSLSocket
    answers: BinaryIO

    def ask(self, request: bytes) -> tuple[int, bytes]:
        head, blank, body = request.partition(b"\r\n\r\n")
        if b"100-continue" in head:
            self.socket.sendall(head + blank)
            assert b"HTTP/1.1 100 Continue\r\n\r\n" == self.answers.readline() + self.answers.readline()
            self.socket.sendall(body)
        else:
            self.socket.sendall(request)
        status = int(self.answers.readline().split()[1])
        fields = dict(line.split(b": ", 1) for line in iter(self.answers.readline, b"\r\n"))
        return status, self.answers.read(int(fields[b"Content-Length"]))


def fixed_token(home: AdminHome) -> None:
    """The token that was recorded is good for every name."""
    with Registry.open(home.registry) as registry:
        order = TokenOrder(pattern="*", uses=100)
        service.invite(registry, order, by="test", now=datetime.now(UTC), token_bytes=lambda count: bytes(range(count)))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    path: Path = tmp_path_factory.mktemp("est")
    home = new_home(path / "fleet")
    fixed_token(home)
    with start_service(home) as program:
        yield Service(home, wait_ready(program))
        assert "Traceback" not in program.stderr


def subject_of(body: bytes) -> str:
    (certificate,) = est.decode_certificates(body)
    return certificate.subject.rfc4514_string()


def test_every_case_was_recorded() -> None:
    """A case is listed and never tried."""
    assert {f"{name}.http" for name in CASES} == {path.name for path in HERE.iterdir()}


@pytest.mark.parametrize("name", CASES)
def test_a_recorded_request_is_answered(running: Service, name: str) -> None:
    """A client that follows the RFCs, or nearly, cannot enrol; or one that is wrong is not told."""
    status, body = running.ask((HERE / f"{name}.http").read_bytes())
    assert REFUSED.get(name, 200) == status, body
    if status == 200:
        assert f"CN={name.replace('.', '-')}" == subject_of(body)


@pytest.mark.parametrize("operation", ["cacerts", "csrattrs"])
@pytest.mark.parametrize("label", ["", "/factory-1"])
@pytest.mark.parametrize(
    "head", ["GET {} HTTP/1.0\r\n\r\n", "GET https://localhost{} HTTP/1.1\r\nHost: localhost\r\n\r\n"]
)
def test_what_needs_no_credentials_is_given_to_old_and_labelled_clients(
    running: Service, operation: str, label: str, head: str
) -> None:
    """A client that speaks HTTP/1.0, sends the whole URL or is set to a label of another server gets nothing."""
    assert 200 == running.ask(head.format(f"{est.BASE}{label}/{operation}").encode())[0]


def test_another_asn1_library_reads_the_attributes(running: Service, tmp_path: Path) -> None:
    """What we ask of a request is read by the library that wrote it, and by no client (RFC 9908, 3.2)."""
    status, body = running.ask(f"GET {est.CSRATTRS} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert 200 == status
    encoded, der = tmp_path / "csrattrs", tmp_path / "csrattrs.der"
    encoded.write_bytes(body)
    run("openssl", "base64", "-d", "-in", encoded, "-out", der).check()
    parsed = run("openssl", "asn1parse", "-inform", "DER", "-in", der).check().stdout
    told = re.findall(r"d=(\d) .*?(?:cons|prim): (.+?) *$", parsed, re.MULTILINE)
    assert [
        ("0", "SEQUENCE"),
        ("1", "SEQUENCE"),
        ("2", "OBJECT            :id-ecPublicKey"),
        ("2", "SET"),
        ("3", "OBJECT            :prime256v1"),
        ("1", "OBJECT            :ecdsa-with-SHA256"),
    ] == told


@pytest.mark.parametrize(
    "path", [f"{est.BASE}/a/b/cacerts", f"{est.BASE}//cacerts", f"{est.BASE}/x/healthz", "/x/cacerts"]
)
def test_a_path_with_more_than_a_label_leads_nowhere(running: Service, path: str) -> None:
    """Something is served under names that nobody looked at."""
    assert 404 == running.ask(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())[0]


def test_a_client_that_shows_its_leaf_alone_renews(running: Service) -> None:
    """libest does not send the issuing certificate, and could never renew."""
    files = enrol(running.home, "pump-07")
    leaf, issuing = x509.load_pem_x509_certificates(files.certificate.read_bytes())
    devices = authority.read_certificate(running.home.devices_ca.certificate)
    assert devices == issuing
    files.certificate.write_bytes(pem(leaf))
    body = est.encode_body(csr(DeviceId("pump-07")))
    head = (
        f"POST {est.SIMPLE_REENROLL} HTTP/1.1\r\nUser-Agent: Cisco EST client 1.0\r\nConnection: close\r\n"
        f"Host: localhost:8443\r\nAccept: */*\r\nContent-Type: {est.PKCS10}\r\nContent-Transfer-Encoding: base64\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    status, answer = running.ask(head.encode() + body, files)
    assert (200, "CN=pump-07") == (status, subject_of(answer))


def test_a_client_that_is_asked_for_credentials_goes_on_on_its_connection(running: Service) -> None:
    """Clients that send no credentials unless asked (RFC 7617), or write names in lower case, cannot enrol."""
    head, _, body = (HERE / "curl-wrapped.http").read_bytes().partition(b"\r\n\r\n")
    lower = re.sub(rb"(?m)^[A-Za-z-]+:", lambda name: name[0].lower(), head)
    with running.connection() as connection:
        assert 401 == connection.ask((HERE / "curl-no-credentials.http").read_bytes())[0]
        assert 200 == connection.ask(lower + b"\r\n\r\n" + body)[0]


def test_a_head_is_not_answered(running: Service) -> None:
    """HEAD is served after all, and docs/divergences.md says that it is not."""
    with running.connection() as connection:
        connection.socket.sendall(f"HEAD {est.CACERTS} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert b"405" == connection.answers.readline().split()[1]
