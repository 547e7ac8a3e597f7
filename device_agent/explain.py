"""`device-agent explain`: one real connection to the broker, and all of its mutual TLS in words.

It is the agent's own context and the agent's own files, so what is shown is what the agent does. Only the messages are
listened to on the way. Short-lived, so it may load `cryptography` to read certificates.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol

from cryptography import x509

from device_agent import config_client, https, status, tls
from device_agent import explain_text as text
from device_agent.clock import Clock
from device_agent.failures import Cause, Failure, words
from device_agent.handshake import Trace
from device_agent.mqtt import CONNECT_SECONDS, KEEPALIVE_SECONDS, connect_packet
from fleet.address import Address
from fleet.errors import Denied, FleetError, Unreachable
from fleet.identity import Server
from fleet.layout import AgentHome, Credential

_CONNACK: Final = 0x20
_DISCONNECT: Final = b"\xe0\x00"


class Say(Protocol):
    """Takes one line of the story as soon as it is true."""

    def __call__(self, line: str = "", /) -> None: ...


@dataclass(frozen=True, slots=True)
class Explanation:
    """Tells the story of one connection. `clock` is UTC."""

    home: AgentHome
    credential: Credential
    say: Say
    time: Clock
    clock: Callable[[], datetime]
    trace: Trace = field(default_factory=Trace)

    def tell(self) -> None:
        """From the address to CONNACK. Raises: FleetError, once all that was seen is told."""
        self._say(text.title(self.credential, self.clock()))
        broker = self._find_broker()
        with contextlib.ExitStack() as stack:
            plain = stack.enter_context(self._reach(broker))
            connection = stack.enter_context(self._shake_hands(plain, broker))
            self._say(text.hello(self.trace, connection.version() or "", _cipher(connection), broker.host))
            chain = _verified_chain(connection)
            self._say(text.server(self.trace, chain, self.clock(), self.home.trust))
            self._say(text.checks(chain[0], broker.host))
            self._say(text.client(self.trace, self._own_certificates(), self.clock(), self.home.identity.key))
            self._say(text.traffic(_cipher(connection), self.trace.key_group))
            self._speak_mqtt(connection, broker)

    def _say(self, lines: Iterator[str] | list[str]) -> None:
        for line in lines:
            self.say(line)

    def _find_broker(self) -> Address:
        url = self.credential.enroll_url
        try:
            brokers, source = config_client.fetch_brokers(self.home, url, self.time), f"{url}/v1/config says so"
        except https.RequestFailed as error:
            brokers, source = config_client.known_brokers(self.home), "config.json, the last answer of the service"
            if not brokers:
                raise self._failed(error.failure) from error
        if not brokers:
            raise self._failed(Failure(Cause.NO_BROKER, https.peer_of(url)))
        self._say(text.where(brokers, source))
        return brokers[0]

    def _reach(self, broker: Address) -> socket.socket:
        try:
            plain = socket.create_connection((broker.host, broker.port), timeout=CONNECT_SECONDS)
        except OSError as error:
            raise self._failed(tls.failure_of(error, str(broker))) from error
        self.say(text.row("address", f"{_address(plain.getpeername())}, from {_address(plain.getsockname())}"))
        return plain

    def _shake_hands(self, plain: socket.socket, broker: Address) -> tls.FleetSocket:
        try:
            context = tls.context_for(Server.BROKER, self.home.trust.read_text(), self.time, self.home.identity)
        except (OSError, ValueError) as error:
            raise self._failed(Failure(Cause.LOCAL, str(broker), str(error))) from error
        _listen(context, self.trace)
        try:
            connection = context.wrap_socket(plain, server_hostname=broker.host)
        except (OSError, ValueError) as error:
            failure = tls.failure_of(error, str(broker))
            self._say(text.broken(self.trace, failure, self.clock()))
            raise self._failed(failure) from error
        assert isinstance(connection, tls.FleetSocket)
        return connection

    def _own_certificates(self) -> list[x509.Certificate]:
        return x509.load_pem_x509_certificates(self.home.identity.certificate.read_bytes())

    def _speak_mqtt(self, connection: tls.FleetSocket, broker: Address) -> None:
        agent = self._running_agent()
        if agent is not None and agent.get("state") == "online":
            self._say(text.agent_is_connected(self.credential, str(agent["words"])))
        else:
            self._say(text.connect(self.credential, KEEPALIVE_SECONDS))
            self._say(text.connack(*self._exchange_connect(connection, broker)))
            connection.sendall(_DISCONNECT)
        self._say(text.policy(self.credential))

    def _exchange_connect(self, connection: tls.FleetSocket, broker: Address) -> tuple[int, bool]:
        """Return code and session present. Raises: FleetError if the broker refuses."""
        try:
            connection.sendall(connect_packet(str(self.credential.device), KEEPALIVE_SECONDS))
            answer = _read_exactly(connection, 4)
        except OSError as error:
            failure = tls.failure_of(error, str(broker))
            self._say(text.broken(self.trace, failure, self.clock()))
            raise self._failed(failure) from error
        if len(answer) < 4 or answer[0] != _CONNACK:
            failure = Failure(Cause.CLOSED if not answer else Cause.BAD_ANSWER, str(broker), "no CONNACK")
            self._say(text.broken(self.trace, failure, self.clock()))
            raise self._failed(failure)
        if answer[3] != 0:
            self._say(text.connack(answer[3], False))
            raise self._failed(Failure(Cause.REFUSED, str(broker), f"CONNACK: return code {answer[3]}"))
        return answer[3], bool(answer[2] & 1)

    def _running_agent(self) -> dict[str, Any] | None:
        try:
            return status.ask_agent(self.home)
        except (OSError, FleetError):
            return None

    def _failed(self, failure: Failure) -> FleetError:
        if failure.cause is Cause.REFUSED and self.clock() > self.credential.not_after:
            failure = Failure(Cause.OWN_EXPIRED, failure.peer, failure.detail)
        said = words(failure, self.credential.device, self.credential.not_after)
        kind = Denied if failure.cause in (Cause.REFUSED, Cause.CLOSED) else Unreachable
        return kind(said.message, hint=said.hint)


def _read_exactly(connection: ssl.SSLSocket, size: int) -> bytes:
    """`size` bytes, or fewer at the end of the connection."""
    data = b""
    while len(data) < size and (more := connection.recv(size - len(data))):
        data += more
    return data


def _listen(context: ssl.SSLContext, trace: Trace) -> None:
    """Record the handshake. CPython keeps this callback private, and its own test suite relies on it."""

    def heard(_connection: Any, direction: str, _version: Any, content_type: int, _kind: Any, data: bytes) -> None:
        trace.record(direction == "write", int(content_type), bytes(data))

    context._msg_callback = heard  # type: ignore[attr-defined]


def _verified_chain(connection: ssl.SSLSocket) -> list[x509.Certificate]:
    """Leaf first, the trusted root last: public only from Python 3.13 on."""
    chain = connection._sslobj.get_verified_chain()  # type: ignore[attr-defined]
    return [x509.load_pem_x509_certificate(each.public_bytes().encode()) for each in chain]


def _cipher(connection: ssl.SSLSocket) -> str:
    cipher = connection.cipher()
    return cipher[0] if cipher else ""


def _address(name: tuple[Any, ...]) -> str:
    return str(Address(str(name[0]), int(name[1])))
