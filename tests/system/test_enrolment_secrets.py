"""What crosses the wire in an enrolment, and what the service stores: no private key, no token at rest."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from fleet.join import JoinCode, parse_join_code
from fleet.layout import AdminHome, AgentHome
from tests.deadlines import within
from tests.fleets import new_home
from tests.processes import run
from tests.system.test_enrolment import Service, serve


@dataclass
class Wire:
    """Stands between agent and service with the service's own certificate, and keeps all that it passes on."""

    home: AdminHome
    behind: int
    passed: bytearray = field(default_factory=bytearray)
    connections: int = 0

    @contextmanager
    def tapped(self) -> Iterator[int]:
        """The port to connect to."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        pair = self.home.enroll_server
        context.load_cert_chain(pair.certificate, pair.key)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            accepting = threading.Thread(target=self._accept, args=(listener, context))
            accepting.start()
            try:
                yield listener.getsockname()[1]
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                accepting.join(within(10))

    def _accept(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            with plain:
                self._pass_on(plain, context)

    def _pass_on(self, plain: socket.socket, context: ssl.SSLContext) -> None:
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting.load_verify_locations(self.home.root.certificate)
        try:
            with (
                context.wrap_socket(plain, server_side=True) as near,
                socket.create_connection(("127.0.0.1", self.behind), within(10)) as line,
                trusting.wrap_socket(line, server_hostname="localhost") as far,
            ):
                near.settimeout(within(10))
                back = threading.Thread(target=self._copy, args=(far, near))
                back.start()
                self._copy(near, far)
                back.join(within(10))
        except OSError:
            return  # the agent looked at the certificate and went

    def _copy(self, source: ssl.SSLSocket, target: ssl.SSLSocket) -> None:
        try:
            while data := source.recv(16_384):
                self.passed += data
                target.sendall(data)
            target.unwrap()
        except (OSError, ValueError):
            return


def forms(data: bytes) -> list[bytes]:
    """How bytes may be written down."""
    return [
        data,
        data.hex().encode(),
        data.hex().upper().encode(),
        *(base64.b64encode(bytes(shift) + data)[4:-4] for shift in range(3)),
        base64.b32encode(data).rstrip(b"=").lower(),
    ]


def key_forms(home: AgentHome) -> list[bytes]:
    """Every form of the device's private key: its number, DER, and the lines of its PEM."""
    pem = home.identity.key.read_bytes()
    key = load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    lines = [line for line in pem.splitlines() if line and not line.startswith(b"-----")]
    private = base64.b64decode(b"".join(lines))
    number = key.private_numbers().private_value.to_bytes(32)
    assert number in private
    sec1 = key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    return [*forms(number), private, sec1]


def stored(home: AdminHome) -> bytes:
    """All that the service has on disk."""
    return b"\n".join(path.read_bytes() for path in sorted(home.path.rglob("*")) if path.is_file())


def passwords(passed: bytes) -> list[str]:
    """The passwords of every HTTP Basic header that crossed."""
    headers = [line for line in passed.splitlines() if line.lower().startswith(b"authorization: basic ")]
    return [base64.b64decode(line.split(b" ")[2]).decode().partition(":")[2] for line in headers]


def test_no_key_crosses_the_wire_and_neither_key_nor_token_is_stored(tmp_path: Path) -> None:
    """Whoever listens behind the TLS, or copies the service's disk, can be the device."""
    home, agent = new_home(tmp_path / "fleet"), AgentHome(tmp_path / "agent")
    with serve(home) as program:
        service = Service(home, program, program.wait_for_line(r"enroll: ready (\S+)").group(1))
        created = service.enroll("token", "create", "--device", "pump-07", "-o", "json").check()
        code = parse_join_code(json.loads(created.stdout)["code"])
        wire = Wire(home, urlsplit(service.url).port or 0)
        with wire.tapped() as port:
            through = JoinCode(f"https://localhost:{port}", code.root_pin, code.token)
            run("device-agent", "join", through, "--id", "pump-07", "--home", agent.path).check()
        at_rest = stored(home) + program.stderr.encode() + program.stdout.encode()
    at_rest += stored(home)
    assert b"simpleenroll" in wire.passed
    assert [str(code.token)] == passwords(bytes(wire.passed)), "the recorder saw no enrolment"
    for form in key_forms(agent):
        assert form not in wire.passed, "a private key crossed the wire"
        assert form not in at_rest, "a private key is stored by the service"
    for form in (*forms(code.token.secret), str(code.token).encode()):
        assert form not in at_rest, "a token's secret is stored"
    assert code.token.digest in at_rest
