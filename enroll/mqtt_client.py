"""One MQTT connection to the fleet's broker over mutual TLS, driven by one thread: `turn()` does all the work.

Traps of paho-mqtt 2.2, and how this avoids them:
- its reconnect has no jitter and resets at every CONNACK: a connection lives once, whoever uses it decides the next;
- an exception in a callback kills its thread unseen: there is no thread of its own, callbacks only append to lists;
- publish() while offline queues although it returns an error: a fresh client for each connection, and no publish
  before CONNACK;
- select() fails past descriptor 1023, and the enrollment service has many: poll() here;
- a second tls_set_context() raises and a failed load_cert_chain poisons a context: each connection makes its own.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Self, cast
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from enroll import dates
from fleet.clock import NO_CHECK_TIME, FlooredClock
from fleet.errors import Denied, FleetError, InvalidInput, Unreachable
from fleet.identity import Server, is_server
from fleet.layout import IdentityFiles

CONNECT_SECONDS: Final = 10.0
KEEPALIVE_SECONDS: Final = 30
_DISCONNECT: Final = b"\xe0\x00"
_RECORD_BYTES: Final = 16_384  # RFC 8446, 5.1: what one read can give
# One turn: enough that a hundred messages are committed together, and little enough that it takes milliseconds.
_TURN_MESSAGES: Final = 1000
_TURN_BYTES: Final = 524_288


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to connect to, and the name that the broker's certificate must have."""

    host: str
    port: int
    server_name: str

    def __str__(self) -> str:
        at = f"[{self.host}]" if ":" in self.host else self.host
        return f"{at}:{self.port}" + ("" if self.host == self.server_name else f" as {self.server_name}")


def endpoints(url: str) -> tuple[Endpoint, ...]:
    """The ways to the broker that `mqtts://HOST:PORT` in its run file means, in the order to try them.

    The run file lies on the broker's own host, where its advertised name need not resolve. So loopback comes first; the
    certificate must have the advertised name on every way. Raises: InvalidInput.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not url.startswith("mqtts://") or not host or not port:
        raise InvalidInput(f"{url[:120]!r} is not the address of a broker", hint="start it again: broker serve")
    return tuple(Endpoint(each, port, host) for each in dict.fromkeys(("127.0.0.1", "::1", host)))


class _BrokerSocket(ssl.SSLSocket):
    """Lets no byte pass before the peer has proved to be the fleet's broker: any server of the fleet has its root.

    paho reads a packet in three pieces and writes each acknowledgement alone. Here a piece comes out of a record that
    was read whole, and what is written leaves with `flush`: a thousand messages cost a few system calls.
    """

    _record: bytes = b""
    _at: int = 0
    _unsent: bytearray | None = None
    is_drained: bool = False
    """Whether the last read found nothing."""

    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        if (clock := getattr(self.context, "clock", None)) is not None:
            dates.check(self, clock)
        if not is_server(self.getpeercert(), Server.BROKER):
            raise ssl.SSLCertVerificationError("the certificate is not a broker's")

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        if self._at == len(self._record):
            self.is_drained = True
            self._record, self._at = super().recv(_RECORD_BYTES, flags), 0
            self.is_drained = False
        piece = self._record[self._at : self._at + buflen]
        self._at += len(piece)
        return piece

    def send(self, data: Any, flags: int = 0) -> int:
        if self._unsent is None:
            self._unsent = bytearray()
        self._unsent += data
        return len(data)

    @property
    def wants_flush(self) -> bool:
        return bool(self._unsent)

    def flush(self) -> None:
        """Send what was written, as far as it can be sent now. Raises: OSError."""
        while self._unsent:
            try:
                sent = super().send(self._unsent)
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return
            del self._unsent[:sent]


class _BrokerContext(ssl.SSLContext):
    """Verifies the chain, the name, and the role of the broker."""

    sslsocket_class = _BrokerSocket
    server_name = ""
    clock: FlooredClock | None = None
    """Who judges dates, where OpenSSL cannot."""

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        return super().wrap_socket(*args, **(options | {"server_hostname": self.server_name}))


def _context(login: Login, server_name: str) -> ssl.SSLContext:
    context = _BrokerContext(ssl.PROTOCOL_TLS_CLIENT)
    context.server_name = server_name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(login.trust)
    context.load_cert_chain(login.identity.certificate, login.identity.key)
    if login.clock is not None and login.clock.is_floored:
        context.verify_flags |= NO_CHECK_TIME
        context.clock = login.clock
    return context


@dataclass(frozen=True, slots=True)
class Incoming:
    """One message as it came; with QoS 1 it is `ack`nowledged by whoever handled it."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    packet_id: int


@dataclass(frozen=True, slots=True)
class Login:
    """As whom to connect, and what to trust; by which `clock`, if not the system's."""

    trust: str
    identity: IdentityFiles
    client_id: str
    is_persistent: bool = False
    clock: FlooredClock | None = None


class Connection:
    """A connection that is there from `connect` to `close`; not thread-safe."""

    def __init__(self, login: Login, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._arrived: deque[Incoming] = deque()
        self._arrived_bytes = 0
        self._published: list[int] = []
        self._answer: str | None = None
        self._refusal: str | None = None
        self._ended: str | None = None
        self._is_subscribed = False
        self._asked: set[int | None] = set()  # packet ids of subscriptions that may be refused
        self._client = self._made(login)
        self._poll = select.poll()

    def _made(self, login: Login) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            login.client_id,
            clean_session=not login.is_persistent,
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = CONNECT_SECONDS
        client.max_inflight_messages_set(0)  # all of them: what is out is bounded by who publishes
        client.tls_set_context(_context(login, self._endpoint.server_name))
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_disconnect = self._on_disconnect
        return client

    @classmethod
    def open(cls, login: Login, ways: Iterable[Endpoint], monotonic: Callable[[], float]) -> Self:
        """A connection by the first way that leads to the broker.

        Raises: Unreachable, Denied (the broker refuses us), FleetError (our own files).
        """
        failures: list[str] = []
        for endpoint in ways:
            try:
                connection = cls(login, endpoint)
            except (OSError, ValueError) as error:
                raise FleetError(f"the identity of {login.client_id} cannot be used: {error}") from error
            try:
                connection._connect(monotonic)
            except Unreachable as error:
                connection.close()
                failures.append(error.message)
            except BaseException:
                connection.close()
                raise
            else:
                return connection
        raise Unreachable("; ".join(failures), hint="does the broker run? broker serve")

    def _connect(self, monotonic: Callable[[], float]) -> None:
        try:
            self._client.connect(self._endpoint.host, self._endpoint.port, KEEPALIVE_SECONDS)
        except (OSError, ValueError) as error:
            raise Unreachable(f"{self._endpoint}: {_reason(error)}") from error
        sock = self._socket
        if sock is None:
            raise Unreachable(f"{self._endpoint}: closed at once")
        # Or a command waits up to 40 ms behind an acknowledgement.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._poll.register(sock.fileno(), select.POLLIN)
        deadline = monotonic() + CONNECT_SECONDS
        while self._answer is None and monotonic() < deadline:
            self._turn(0.1)
        if self._answer is None:
            raise Unreachable(f"{self._endpoint}: no CONNACK within {CONNECT_SECONDS:.0f} s")

    @property
    def _socket(self) -> _BrokerSocket | None:
        return cast("_BrokerSocket | None", self._client.socket())

    @property
    def endpoint(self) -> Endpoint:
        return self._endpoint

    def subscribe(self, topic_filters: Iterable[str], monotonic: Callable[[], float]) -> None:
        """Subscribe with QoS 1 and wait for the answer. Raises: Denied, Unreachable."""
        self._client.subscribe([(each, 1) for each in topic_filters])
        deadline = monotonic() + CONNECT_SECONDS
        while not self._is_subscribed:
            if monotonic() > deadline:
                raise Unreachable(f"{self._endpoint}: no SUBACK within {CONNECT_SECONDS:.0f} s")
            self._turn(0.1)

    def ask_for(self, topic_filter: str) -> None:
        """Subscribe without waiting for the answer, which may be no. Raises: Unreachable."""
        result, packet_id = self._client.subscribe(topic_filter, 1)
        if result != paho.MQTT_ERR_SUCCESS:
            raise self._over()
        self._asked.add(packet_id)

    def wait_for(self, topic: str, seconds: float, monotonic: Callable[[], float]) -> bool:
        """Whether a message of that topic arrives by then; `turn` gives it. Raises: Unreachable."""
        deadline = monotonic() + seconds
        while not any(message.topic == topic for message in self._arrived):
            if monotonic() > deadline:
                return False
            self._turn(0.1)
        return True

    def turn(self, seconds: float) -> list[Incoming]:
        """Wait up to `seconds` for the network, serve it, and give what has arrived. Raises: Unreachable at the end."""
        if not self._arrived:
            self._turn(seconds)
        return list(self._taken())

    def _taken(self) -> Iterator[Incoming]:
        while self._arrived:
            yield self._arrived.popleft()

    def publish(self, topic: str, payload: bytes) -> int:
        """Send with QoS 1; the packet id that `published` gives once the broker has taken it. Raises: Unreachable."""
        info = self._client.publish(topic, payload, qos=1)
        if info.rc != paho.MQTT_ERR_SUCCESS:
            raise Unreachable(f"{self._endpoint}: {paho.error_string(info.rc).lower().rstrip('.')}")
        return info.mid

    def published(self) -> list[int]:
        """The packet ids that the broker has acknowledged since the last call."""
        taken, self._published = self._published, []
        return taken

    def ack(self, message: Incoming) -> None:
        """The broker need not send it again."""
        if message.qos:
            self._client.ack(message.packet_id, message.qos)

    def close(self) -> None:
        """Say DISCONNECT if anyone listens, and end."""
        sock = self._socket
        if sock is None:
            return
        # By hand: paho closes before what it wrote could leave.
        with contextlib.suppress(OSError):
            sock.send(_DISCONNECT)
            sock.flush()
        sock.close()

    def _turn(self, seconds: float) -> None:
        sock = self._flushed()
        self._poll.modify(sock.fileno(), select.POLLIN | (select.POLLOUT if sock.wants_flush else 0))
        happened = self._poll.poll(seconds * 1000 if sock.is_drained else 0)
        if not sock.is_drained or (happened and happened[0][1] & ~select.POLLOUT):
            self._read(sock)
        self._client.loop_misc()
        if self._refusal is not None:
            raise Denied(f"{self._endpoint} refuses: {self._refusal}", hint="enroll device show says its state")

    def _flushed(self) -> _BrokerSocket:
        """The socket, once what was written has left. Raises: Unreachable at the end of the connection."""
        sock = self._socket
        if sock is None or self._ended is not None:
            raise self._over()
        try:
            sock.flush()
        except OSError as error:
            self._ended = _reason(error)
            raise self._over() from error
        return sock

    def _read(self, sock: _BrokerSocket) -> None:
        """Read until there is nothing left, which poll() would not say of what TLS has decrypted, or a turn is full."""
        full = self._arrived_bytes + _TURN_BYTES
        for _ in range(_TURN_MESSAGES):
            if self._client.loop_read() != paho.MQTT_ERR_SUCCESS or sock.is_drained or self._arrived_bytes >= full:
                return

    def _over(self) -> FleetError:
        return Unreachable(f"{self._endpoint}: {self._ended or 'the connection has ended'}")

    def _on_connect(
        self, client: paho.Client, data: Any, flags: paho.ConnectFlags, reason: ReasonCode, properties: Any
    ) -> None:
        self._answer = str(reason).lower()
        if reason.is_failure:
            self._refusal = self._answer

    def _on_subscribe(
        self, client: paho.Client, data: Any, mid: int, reasons: list[ReasonCode], properties: Properties
    ) -> None:
        if mid in self._asked:
            self._asked.discard(mid)
            return
        self._is_subscribed = True
        if any(reason.is_failure for reason in reasons):
            self._refusal = "a subscription"

    def _on_message(self, client: paho.Client, data: Any, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""  # no topic of ours: set aside by whoever reads it
        self._arrived_bytes += len(message.payload)
        self._arrived.append(Incoming(topic, bytes(message.payload), message.qos, message.retain, message.mid))

    def _on_publish(self, client: paho.Client, data: Any, mid: int, reason: ReasonCode, properties: Properties) -> None:
        self._published.append(mid)

    def _on_disconnect(
        self, client: paho.Client, data: Any, flags: paho.DisconnectFlags, reason: ReasonCode, properties: Any
    ) -> None:
        self._ended = f"the connection has ended ({str(reason).lower()})"


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"not our broker: {getattr(error, 'verify_message', '') or error.args[-1]}".lower()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).lower()
