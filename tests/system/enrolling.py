"""A running enrollment service, and clients that send it what they like over connections that stay open."""

from __future__ import annotations

import base64
import secrets
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from socket import create_connection
from typing import Any, BinaryIO

from enroll import service
from enroll.registry import Registry
from enroll.tokens import TokenOrder
from fleet import est
from fleet.identity import DeviceId
from fleet.join import Token
from fleet.layout import AdminHome, IdentityFiles
from tests.deadlines import within
from tests.fleets import new_home
from tests.processes import Program
from tests.system.brokers import start_service, wait_ready


@dataclass(frozen=True, slots=True)
class Connection:
    """A client's connection, and what is answered on it."""

    socket: ssl.SSLSocket
    answers: BinaryIO

    def ask(self, request: str, body: bytes = b"") -> tuple[int, bytes]:
        """The status and the body of the answer to a head (without its last line) and a body."""
        self.socket.sendall(f"{request}\r\nHost: localhost\r\n\r\n".encode() + body)
        status = int(self.answers.readline().split()[1])
        fields = dict(line.split(b": ", 1) for line in iter(self.answers.readline, b"\r\n"))
        return status, self.answers.read(int(fields[b"Content-Length"]))

    @property
    def tls_unique(self) -> str:
        """What libest puts into its request."""
        binding = self.socket.get_channel_binding("tls-unique")
        assert binding is not None
        return base64.b64encode(binding).decode()

    def enrol(self, token: Token | None, request: bytes) -> tuple[int, bytes]:
        """The status and the body of the answer; with a certificate instead of a token it is a renewal."""
        body = base64.encodebytes(request)
        path = est.SIMPLE_REENROLL if token is None else est.SIMPLE_ENROLL
        fields = [f"POST {path} HTTP/1.1", f"Content-Type: {est.PKCS10}", f"Content-Length: {len(body)}"]
        if token is not None:
            fields.append(basic(token))
        return self.ask("\r\n".join(fields), body)


def basic(token: Token | str) -> str:
    """The header that carries a token."""
    return "Authorization: Basic " + base64.b64encode(f"estuser:{token}".encode()).decode()


@dataclass(frozen=True, slots=True)
class Service:
    """A running service, tokens for it, and connections to it."""

    home: AdminHome
    program: Program
    port: int
    tokens: list[Token] = field(default_factory=list)

    @contextmanager
    def connection(
        self, identity: IdentityFiles | None = None, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    ) -> Iterator[Connection]:
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

    def token(self, device: str | None, **order: Any) -> Token:
        ordered, now = TokenOrder(None if device is None else DeviceId(device), **order), datetime.now(UTC)
        with Registry.open(self.home.registry) as registry:
            invitation = service.invite(registry, ordered, by="test", now=now, token_bytes=secrets.token_bytes)
        self.tokens.append(invitation.token)
        return invitation.token

    def check_log(self) -> None:
        """Whoever reads the log can enrol, or there was a mistake of ours."""
        log = self.program.stderr
        assert "Traceback" not in log
        for token in self.tokens:
            encoded = base64.b64encode(token.secret).decode().rstrip("=")
            for written in (str(token), token.secret.hex(), encoded, basic(token).split()[-1]):
                assert written not in log


@contextmanager
def running_service(folder: Path) -> Iterator[Service]:
    """`enroll serve` for a new fleet; whatever is sent to it, its log has neither tracebacks nor tokens."""
    home = new_home(folder / "fleet")
    with start_service(home) as program:
        running = Service(home, program, wait_ready(program))
        yield running
        running.check_log()
