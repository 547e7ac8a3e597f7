"""Whom the agent speaks TLS with, and what it makes of a failure. Real handshakes."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from device_agent import https, tls
from device_agent.failures import Cause, Failure, words
from device_agent.https import Answer, Request, RequestFailed
from fleet.identity import Server
from fleet.layout import IdentityFiles
from tests.unit.device_agent.authority import DAY, Authority, Issued, new_authority
from tests.unit.device_agent.clocks import real_clock
from tests.unit.device_agent.servers import http_answer, listening, read_request, server_context, tls_server

OURS = new_authority()
FOREIGN = new_authority("foreign")


class Heard:
    """Answers every request with 200, and keeps what it heard."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []

    def __call__(self, connection: ssl.SSLSocket) -> None:
        request = read_request(connection)
        self.requests += [request] if request else []
        connection.sendall(http_answer("200 OK", b"fine"))


def ask(port: int, host: str = "127.0.0.1", authority: Authority = OURS) -> Answer:
    """A request to what should be the enrollment service."""
    context = tls.context_for(Server.ENROLL, authority.roots_pem, real_clock())
    return https.send(Request(f"https://{host}:{port}", "/secret", headers={"Authorization": "token"}), context)


def refusal(shown: Issued, folder: Path, host: str = "127.0.0.1") -> tuple[Cause, list[bytes]]:
    """Why the agent refuses a server that shows a certificate, and what that server heard."""
    heard = Heard()
    with tls_server(server_context(shown, folder), heard) as server, pytest.raises(RequestFailed) as caught:
        ask(server.port, host)
    return caught.value.failure.cause, heard.requests


def test_the_right_server_is_spoken_with(tmp_path: Path) -> None:
    """Nobody could enrol at all, and every refusal below would prove nothing."""
    heard = Heard()
    with tls_server(server_context(OURS.server("enroll"), tmp_path), heard) as server:
        assert (200, b"fine") == (ask(server.port).status, ask(server.port).body)
    assert all(b"GET /secret" in request for request in heard.requests)


@pytest.mark.parametrize(
    ("shown", "cause"),
    [
        (lambda: FOREIGN.server("enroll"), Cause.NOT_OUR_CA),
        (lambda: OURS.server("broker"), Cause.IMPOSTOR),
        (lambda: OURS.client("enroll", role="server"), Cause.IMPOSTOR),
        (lambda: OURS.client("pump-08"), Cause.IMPOSTOR),
        (lambda: OURS.server("enroll", host="elsewhere.example"), Cause.WRONG_HOST),
        (lambda: OURS.server("enroll", starts=DAY), Cause.NOT_YET_VALID),
        (lambda: OURS.server("enroll", ends=-timedelta(minutes=1)), Cause.PEER_EXPIRED),
    ],
    ids=["another-root", "our-broker", "a-device-named-server", "a-device", "another-host", "too-early", "too-late"],
)
def test_any_other_server_hears_nothing(shown: Callable[[], Issued], cause: Cause, tmp_path: Path) -> None:
    """A token, or a CONNECT, would go to whoever has some certificate: here, one of every wrong kind."""
    assert (cause, []) == refusal(shown(), tmp_path)


def test_a_certificate_with_two_spiffe_ids_is_nobodys(tmp_path: Path) -> None:
    """One server could pass for two (X509-SVID, section 2)."""
    assert (Cause.IMPOSTOR, []) == refusal(OURS.server("enroll", "broker"), tmp_path)


def test_a_refused_client_learns_that_it_was_refused(tmp_path: Path) -> None:
    """TLS 1.3 tells a client after the handshake: a revoked device would report a network fault."""
    context = server_context(OURS.server("enroll"), tmp_path, clients_pem=OURS.roots_pem)
    with tls_server(context, Heard()) as server, pytest.raises(RequestFailed) as caught:
        ask(server.port)
    assert caught.value.failure.cause is Cause.REFUSED


def test_a_server_that_drips_its_handshake_is_left_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then trips no time-out per operation: the agent would hang for ever."""
    monkeypatch.setattr(tls, "HANDSHAKE_SECONDS", 0.3)
    with listening(_until_closed) as server, pytest.raises(RequestFailed) as caught:
        ask(server.port)
    assert caught.value.failure.cause is Cause.TIMED_OUT


def _until_closed(connection: socket.socket) -> None:
    """Take the ClientHello and whatever follows, and say nothing, until the client has had enough."""
    while connection.recv(4096):
        pass


def test_an_answer_that_drips_is_cut_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, after the handshake."""
    monkeypatch.setattr(https, "REQUEST_SECONDS", 0.3)

    def drip(connection: ssl.SSLSocket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nx")
        _until_closed(connection)

    context = server_context(OURS.server("enroll"), tmp_path)
    with tls_server(context, drip) as server, pytest.raises(RequestFailed):
        ask(server.port)


@pytest.mark.parametrize(
    "answer",
    [
        http_answer("200 OK", b"x" * (https.MAX_ANSWER_BYTES + 1)),
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\n\r\nof unknown length",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"",
    ],
    ids=["too-large", "too-many-headers", "too-long-header", "cut-short", "length-unknown", "not-http", "nothing"],
)
def test_an_answer_out_of_bounds_is_a_failure_in_words(answer: bytes, tmp_path: Path) -> None:
    """A server could fill the memory of the device, or end the agent with a traceback."""

    def handle(connection: ssl.SSLSocket) -> None:
        read_request(connection)
        connection.sendall(answer)

    context = server_context(OURS.server("enroll"), tmp_path)
    with tls_server(context, handle) as server, pytest.raises(RequestFailed) as caught:
        ask(server.port)
    assert caught.value.failure.cause in (Cause.BAD_ANSWER, Cause.CLOSED)


def test_plain_http_is_called_by_its_name() -> None:
    """Somebody with the wrong port would be sent to look for a captive portal."""
    refuse = http_answer("400 Bad Request", b"")
    with listening(lambda each: each.sendall(refuse)) as server, pytest.raises(RequestFailed) as caught:
        ask(server.port)
    assert caught.value.failure.cause is Cause.NOT_TLS


def test_nothing_there_and_no_such_name_are_told_apart() -> None:
    """A person would look at the firewall when the name is wrong."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(RequestFailed) as nothing:
        ask(port)
    with pytest.raises(RequestFailed) as no_name:
        ask(port, "no-such-host.invalid")
    assert (Cause.UNREACHABLE, Cause.NO_NAME) == (nothing.value.failure.cause, no_name.value.failure.cause)


def test_a_key_that_does_not_fit_is_our_own_fault(tmp_path: Path) -> None:
    """The server would be blamed for a damaged file; and the context of the next attempt would be poisoned."""
    certificate, _ = OURS.client("pump-07").write(tmp_path / "a")
    _, other_key = OURS.client("pump-07").write(tmp_path / "b")
    with pytest.raises(ssl.SSLError):
        tls.context_for(Server.BROKER, OURS.roots_pem, real_clock(), IdentityFiles(certificate, other_key))


@pytest.mark.parametrize("cause", list(Cause))
def test_every_cause_has_words_and_a_next_step(cause: Cause) -> None:
    """A person would read a code, or a traceback of the formatting."""
    said = words(Failure(cause, "gateway.local:8883", "what was seen {x}"), None)
    assert said.message
    assert said.hint
    assert "{" not in said.message.replace("{x}", "")
