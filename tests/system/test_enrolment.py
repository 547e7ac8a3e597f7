"""`enroll serve` as a process, and clients that have none of our code: curl and openssl."""

from __future__ import annotations

import base64
import json
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fleet import est
from fleet.identity import Server, is_server
from fleet.layout import AdminHome, IdentityFiles, decode_run_file
from tests.deadlines import within
from tests.fleets import csr, new_home
from tests.processes import Finished, Program, run


@dataclass(frozen=True, slots=True)
class Service:
    """A running service and its home."""

    home: AdminHome
    program: Program
    url: str

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    def enroll(self, *args: object) -> Finished:
        return run("enroll", *args, "--home", self.home.path)

    def token(self, device: str, *options: object) -> str:
        """A token from the command line."""
        created = self.enroll("token", "create", "--device", device, *options, "-o", "json").check()
        return str(json.loads(created.stdout)["token"])

    def curl(self, path: str, *options: object) -> Finished:
        """curl that trusts the fleet's root alone; the status is the last line."""
        common = ("--silent", "--show-error", "--cacert", self.home.root.certificate, "--write-out", "\\n%{http_code}")
        return run("curl", *common, *options, f"{self.url}{path}")

    def enrol(self, token: str, request: Path, *options: object) -> Finished:
        return self.curl(
            est.SIMPLE_ENROLL,
            *("--user", f"anyone:{token}", "--header", f"Content-Type: {est.PKCS10}"),
            *("--data-binary", f"@{request}", *options),
        )


def status(finished: Finished) -> int:
    """The HTTP status of a curl that came through."""
    return int(finished.check().stdout.rpartition("\n")[2])


def serve(home: AdminHome) -> Program:
    return Program("enroll", "serve", "--home", home.path, "--listen", "127.0.0.1:0")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for the tests that leave it running."""
    home = new_home(tmp_path_factory.mktemp("service") / "fleet")
    with serve(home) as program:
        yield Service(home, program, program.wait_for_line(r"enroll: ready (https://127\.0\.0\.1:\d+)$").group(1))
    assert 0 == program.returncode


def openssl_request(folder: Path, device: str, form: str = "DER") -> IdentityFiles:
    """A key and a request for it as the README's recipe makes them; the certificate is to come."""
    key, request = folder / f"{device}.key.pem", folder / f"{device}.csr"
    command = ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    subprocess.run(
        [*command, "-keyout", key, "-subj", f"/CN={device}", "-outform", form, "-out", request],
        check=True,
        capture_output=True,
    )
    if form == "DER":
        request.write_bytes(base64.encodebytes(request.read_bytes()))
    return IdentityFiles(request, key)


def unpacked(answer: Finished, folder: Path) -> Path:
    """The certificates of an EST answer in PEM, by openssl alone."""
    body = answer.check().stdout.rpartition("\n")[0]
    pkcs7 = folder / "answer.p7"
    pkcs7.write_bytes(base64.b64decode(body))
    command = ["openssl", "pkcs7", "-inform", "DER", "-in", str(pkcs7), "-print_certs"]
    command += ["-out", str(folder / "answer.pem")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "answer.pem"


@pytest.mark.parametrize("form", ["DER", "PEM"])
def test_curl_and_openssl_enrol_and_renew(service: Service, tmp_path: Path, form: str) -> None:
    """Only our own agent can enrol."""
    device = f"curl-{form.lower()}"
    first = openssl_request(tmp_path, device, form)
    certificate = unpacked(service.enrol(service.token(device), first.certificate), tmp_path)
    subject = subprocess.run(
        ["openssl", "x509", "-in", certificate, "-noout", "-subject"], check=True, capture_output=True, text=True
    )
    assert f"subject=CN = {device}\n" == subject.stdout
    mine = ("--cert", certificate, "--key", first.key)
    assert {"v": 1, "brokers": [], "groups": []}.items() <= json.loads(
        service.curl(est.CONFIG, *mine).stdout.rpartition("\n")[0]
    ).items()
    renewal = tmp_path / "renewal"
    renewal.mkdir()
    second = openssl_request(renewal, device, form)
    answer = service.curl(
        est.SIMPLE_REENROLL,
        *(*mine, "--header", f"Content-Type: {est.PKCS10}", "--data-binary", f"@{second.certificate}"),
    )
    renewed = unpacked(answer, renewal)
    assert 200 == status(service.curl(est.CONFIG, "--cert", renewed, "--key", second.key))


def test_curl_gets_the_ca_certificates(service: Service, tmp_path: Path) -> None:
    """A client cannot learn the chain."""
    certificates = unpacked(service.curl(est.CACERTS), tmp_path).read_text()
    assert 3 == certificates.count("BEGIN CERTIFICATE")


def test_a_refusal_tells_the_next_step(service: Service, tmp_path: Path) -> None:
    """Whoever sets up a device sees a bare number."""
    answer = service.enrol("fleettok_wrong", openssl_request(tmp_path, "pump-01").certificate)
    assert "this is not an enrolment token\nhint: ask for a new one: enroll token create\n\n401" == answer.stdout


def test_an_expect_header_is_answered(service: Service, tmp_path: Path) -> None:
    """curl waits a second with every larger request, and other clients for ever."""
    request = openssl_request(tmp_path, "expecting")
    patient = ("--header", "Expect: 100-continue", "--expect100-timeout", 600, "--max-time", within(20))
    assert 200 == status(service.enrol(service.token("expecting"), request.certificate, *patient))


def test_two_clients_race_for_one_token(service: Service, tmp_path: Path) -> None:
    """One token lets two keys in."""
    token = service.token("raced")
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
    requests = [openssl_request(folder, "raced").certificate for folder in folders]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda request: service.enrol(token, request), requests))
    assert [200, 401] == sorted(map(status, answers))


def context(service: Service) -> ssl.SSLContext:
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.load_verify_locations(service.home.root.certificate)
    return trusting


def connected(service: Service, tls: ssl.SSLContext) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", service.port), within(10))
    return tls.wrap_socket(plain, server_hostname="localhost")


def test_the_listener_shows_itself_as_the_enrollment_service(service: Service) -> None:
    """An agent refuses the genuine service, or takes a broker for it."""
    with connected(service, context(service)) as tls:
        assert is_server(tls.getpeercert(), Server.ENROLL)
        assert not is_server(tls.getpeercert(), Server.BROKER)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_never_resumed(service: Service, version: ssl.TLSVersion) -> None:
    """A ticket outlives a revocation."""
    tls = context(service)
    tls.minimum_version = tls.maximum_version = version
    with connected(service, tls) as first:
        first.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        while first.recv(4096):
            pass
        session = first.session
    assert session is None or not session.has_ticket


@pytest.mark.parametrize(("version", "is_taken"), [("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)])
def test_older_tls_is_refused(service: Service, version: str, is_taken: bool) -> None:
    """A downgrade brings back the attacks on TLS 1.1, or mbedTLS 2.28, which stops at 1.2, is locked out."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{service.port}", version, "-cipher", "ALL:@SECLEVEL=0"]
    tried = subprocess.run(command, input=b"", capture_output=True, timeout=within(20))
    assert is_taken == (b"BEGIN CERTIFICATE" in tried.stdout)
    assert is_taken == (0 == tried.returncode)


def test_a_large_body_is_refused_before_it_was_sent(service: Service) -> None:
    """A stranger makes the service read what it will not take."""
    with connected(service, context(service)) as tls:
        head = f"POST {est.SIMPLE_ENROLL} HTTP/1.1\r\nHost: x\r\nContent-Length: {10**9}\r\n\r\n"
        tls.sendall(head.encode())
        assert tls.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_chunked_body_is_refused_once_it_is_too_large(service: Service) -> None:
    """A body without a length is read for ever."""
    with connected(service, context(service)) as tls:
        head = f"POST {est.SIMPLE_ENROLL} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        tls.sendall(head.encode() + b"8000\r\n" + bytes(0x8000) + b"\r\n")
        assert tls.recv(4096).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x00\x00", b"GET / HTTP/1.1\r\n\r\n", bytes(range(256))])
def test_garbage_instead_of_tls_ends_the_connection_and_nothing_else(service: Service, garbage: bytes) -> None:
    """A port scanner ends the service."""
    with socket.create_connection(("127.0.0.1", service.port), within(10)) as plain:
        plain.sendall(garbage)
        plain.shutdown(socket.SHUT_WR)
        while plain.recv(4096):
            pass
    assert 200 == status(service.curl(est.HEALTH))
    assert "Traceback" not in service.program.stderr


def test_a_certificate_of_another_fleet_is_refused(service: Service, tmp_path: Path) -> None:
    """Another fleet's operator is one here."""
    stranger = new_home(tmp_path / "another").operator.identity
    answer = service.curl(est.CONFIG, "--cert", stranger.certificate, "--key", stranger.key)
    assert 0 != answer.returncode


def test_a_servers_certificate_is_no_client(service: Service) -> None:
    """A stolen server certificate reads the directory."""
    pair = service.home.broker_server
    assert 0 != service.curl(est.CONFIG, "--cert", pair.certificate, "--key", pair.key).returncode


def test_a_leaf_without_its_issuer_is_enough(service: Service, tmp_path: Path) -> None:
    """libest, which sends its leaf alone, cannot renew."""
    operator = service.home.operator.identity
    leaf = tmp_path / "leaf.pem"
    leaf.write_text(
        operator.certificate.read_text().partition("-----END CERTIFICATE-----\n")[0] + "-----END CERTIFICATE-----\n"
    )
    assert 200 == status(service.curl(est.CONFIG, "--cert", leaf, "--key", operator.key))


def test_a_taken_port_is_said_so(service: Service) -> None:
    """The admin sees a traceback."""
    second = run("enroll", "serve", "--home", service.home.path, "--listen", f"127.0.0.1:{service.port}")
    assert (1, "") == (second.returncode, second.stdout)
    error, hint = second.stderr.splitlines()[-2:]
    assert f"error: cannot listen on 127.0.0.1:{service.port}: address already in use" == error
    assert hint.startswith("hint: ")


def test_an_open_home_is_not_served(tmp_path: Path) -> None:
    """Keys that others can read go on signing."""
    home = new_home(tmp_path / "fleet")
    home.path.chmod(0o755)
    refused = run("enroll", "serve", "--home", home.path, "--listen", "127.0.0.1:0")
    assert 4 == refused.returncode
    assert f"hint: run: chmod 700 {home.path}" in refused.stderr
    home.path.chmod(0o700)
    home.devices_ca.key.chmod(0o644)
    refused = run("enroll", "serve", "--home", home.path, "--listen", "127.0.0.1:0")
    assert 4 == refused.returncode
    assert f"hint: run: chmod 600 {home.devices_ca.key}" in refused.stderr


def test_a_lost_reply_is_made_good_after_kill_9(tmp_path: Path) -> None:
    """A crash between commit and answer costs a device its token."""
    home = new_home(tmp_path / "fleet")
    request = openssl_request(tmp_path, "pump-01").certificate
    with serve(home) as program:
        service = Service(home, program, program.wait_for_line(r"enroll: ready (\S+)").group(1))
        token = service.token("pump-01")
        first = service.enrol(token, request)
        assert 200 == status(first)
        program.kill()
    with serve(home) as program:
        service = Service(home, program, program.wait_for_line(r"enroll: ready (\S+)").group(1))
        assert first.stdout == service.enrol(token, request).stdout


def test_sigterm_answers_what_was_asked_and_ends_cleanly(tmp_path: Path) -> None:
    """A restart for an update breaks an enrolment, or hangs on an open feed."""
    home = new_home(tmp_path / "fleet")
    with serve(home) as program:
        service = Service(home, program, program.wait_for_line(r"enroll: ready (\S+)").group(1))
        token = service.token("pump-01")
        assert service.url == decode_run_file(home.run_file(Server.ENROLL).read_bytes()).url.replace(
            "localhost", "127.0.0.1"
        )
        feeding = context(service)
        feeding.load_cert_chain(home.broker_client.certificate, home.broker_client.key)
        body = est.encode_body(csr("pump-01"))
        credentials = base64.b64encode(f"x:{token}".encode()).decode()
        head = (
            f"POST {est.SIMPLE_ENROLL} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {credentials}\r\n"
            f"Content-Type: {est.PKCS10}\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with connected(service, feeding) as feed, connected(service, context(service)) as asking:
            feed.sendall(b"GET /v1/directory HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"snapshot" in feed.recv(65536) + feed.recv(65536)
            asking.sendall(head.encode())
            assert asking.recv(4096).startswith(b"HTTP/1.1 100 ")
            program.send_signal(signal.SIGTERM)
            while feed.recv(4096):
                pass
            asking.sendall(body)
            answer = b""
            while chunk := asking.recv(4096):
                answer += chunk
            assert answer.startswith(b"HTTP/1.1 200 ")
    assert 0 == program.returncode
    assert "Traceback" not in program.stderr


def test_the_feed_carries_a_revocation_from_the_command_line(service: Service) -> None:
    """A revoked device stays connected until the service is restarted."""
    token = service.token("doomed")
    tls = context(service)
    pair = service.home.broker_client
    tls.load_cert_chain(pair.certificate, pair.key)
    with connected(service, tls) as feed, closing(feed.makefile("rb")) as lines:
        feed.sendall(b"GET /v1/directory HTTP/1.1\r\nHost: x\r\n\r\n")
        with ThreadPoolExecutor(1) as pool:
            seen = pool.submit(lambda: next(line for line in lines if b'"doomed"' in line and b'"revoked"' in line))
            with connected(service, context(service)) as asking:
                body = est.encode_body(csr("doomed"))
                credentials = base64.b64encode(f"x:{token}".encode()).decode()
                asking.sendall(
                    f"POST {est.SIMPLE_ENROLL} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {credentials}\r\n"
                    f"Content-Type: {est.PKCS10}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                    + body
                )
                assert asking.recv(4096).startswith(b"HTTP/1.1 200 ")
            service.enroll("device", "revoke", "doomed", "--yes").check()
            assert b'"serials":[]' in seen.result(within(10))


def test_nothing_was_logged_that_is_secret(service: Service, tmp_path: Path) -> None:
    """Whoever reads the log can enrol."""
    token = service.token("quiet")
    request = openssl_request(tmp_path, "quiet").certificate
    assert 200 == status(service.enrol(token, request))
    service.program.wait_for_line(r"certificate\.issued device=quiet serial=[0-9a-f]+", stream="stderr")
    assert token not in service.program.stderr
    assert base64.b64encode(f"anyone:{token}".encode()).decode() not in service.program.stderr
