"""One MQTT connection, from TCP to its end, on a thread of its own that alone touches paho's client.

Traps of paho-mqtt 2.2, each reproduced, and how this avoids them:
- its reconnect has no jitter and forgets its delay at every CONNACK: a connection lives once, `core` decides the next;
- an exception in a callback kills its thread while is_connected() stays true: the loop is ours, and however the thread
  ends its last word is `Disconnected`;
- publish() while offline queues and returns an error, and a new session resends what it feels like: a fresh client for
  each connection, and `core` keeps what is unacknowledged;
- calls from other threads write to the same TLS object at the same time: what others want goes through a queue;
- a failed load_cert_chain poisons a context: each attempt makes its own.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from device_agent import tls
from device_agent.clock import Clock
from device_agent.core.effects import Acknowledge, Connect, Publish, Subscribe
from device_agent.core.events import Arrived, Connected, Disconnected, Event, Sent, Subscribed
from device_agent.failures import Cause, Failure
from device_agent.lean_paho import client as paho
from fleet.identity import DeviceId, Server
from fleet.layout import AgentHome
from fleet.logs import event

KEEPALIVE_SECONDS: Final = 60
CONNECT_SECONDS: Final = 15.0
# How often an idle connection looks at its keep-alive, and shows that it lives.
TURN_SECONDS: Final = 5.0

_Order = Publish | Subscribe | Acknowledge | None
_log = logging.getLogger("device_agent.mqtt")


class _Client(paho.Client):
    """paho's client without proxies, that connects by a lean name."""

    def _create_socket_connection(self) -> socket.socket:
        return socket.create_connection((tls.lean_name(self._host), self._port), self._connect_timeout)


class Connection:
    """The connection of one epoch. Every method may be called from another thread and returns at once."""

    def __init__(
        self,
        home: AgentHome,
        device: DeviceId,
        order: Connect,
        post: Callable[[Event], None],
        clock: Clock,
    ) -> None:
        self.epoch = order.epoch
        self._home = home
        self._device = device
        self._connect = order
        self._post = post
        self._clock = clock
        self._orders: deque[_Order] = deque()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._failure: Failure | None = None
        self._has_answered = False
        self._handles: dict[int, int] = {}
        self.last_turn = clock.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"mqtt-{order.epoch}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def perform(self, order: Publish | Subscribe | Acknowledge) -> None:
        """Send it; ignored once the connection is over."""
        self._orders.append(order)
        self._wake()

    def disconnect(self) -> None:
        """Send DISCONNECT behind what was ordered before, and end."""
        self._orders.append(None)
        self._wake()

    def join(self, seconds: float) -> None:
        """Wait for the end."""
        self._thread.join(seconds)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it will wake anyway; closed: nobody is there
            self._wake_out.send(b"\0")

    def _run(self) -> None:
        peer = str(self._connect.broker)
        failure = Failure(Cause.BAD_ANSWER, peer, "the connection's thread ended")
        try:
            failure = self._live(peer)
        except Exception as error:
            _log.debug("connection.raised", exc_info=True)
            failure = tls.failure_of(error, peer)
        finally:
            self._wake_in.close()
            self._wake_out.close()
            self._post(Disconnected(self.epoch, failure))

    def _live(self, peer: str) -> Failure:
        """Connect, and serve until the end; why it ended."""
        try:
            roots = self._home.trust.read_text()
            context = tls.context_for(Server.BROKER, roots, self._clock, self._home.identity)
        except (OSError, ValueError) as error:
            return Failure(Cause.LOCAL, peer, str(error))
        client = context.in_time(lambda: self._connected(context))
        connection = client.socket()
        assert isinstance(connection, tls.FleetSocket)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while self._turn(client, connection):
                self.last_turn = self._clock.monotonic()
        finally:
            connection.close()
        return self._failure or self._why_lost(connection, peer)

    def _connected(self, context: ssl.SSLContext) -> paho.Client:
        client, broker = self._client(context), self._connect.broker
        client.connect(broker.host, broker.port, self._connect.keepalive_seconds)
        return client

    def _client(self, context: ssl.SSLContext) -> paho.Client:
        client = _Client(
            CallbackAPIVersion.VERSION2,
            self._device,
            clean_session=False,
            protocol=paho.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = CONNECT_SECONDS
        client.tls_set_context(context)
        will = self._connect.will
        client.will_set(will.topic, will.payload, will.qos, will.retain)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        # With this paho never writes from within publish() or a callback: only this loop writes.
        client.on_socket_register_write = _ignore
        return client

    def _turn(self, client: paho.Client, connection: tls.FleetSocket) -> bool:
        """Wait for something to do, and do it; False at the end."""
        is_ending = self._obey(client)
        seconds = 0.0 if connection.pending() else min(TURN_SECONDS, self._connect.keepalive_seconds / 2)
        ready = self._wait(connection, select.POLLOUT if client.want_write() else 0, seconds)
        if (ready & ~select.POLLOUT or connection.pending()) and client.loop_read():
            return False
        if (ready & select.POLLOUT or is_ending) and client.loop_write():
            return False
        return not client.loop_misc() and self._failure is None and client.socket() is not None

    def _wait(self, connection: tls.FleetSocket, wanted: int, seconds: float) -> int:
        """What the connection is ready for, once it or an order has come; nothing if neither has."""
        poll = select.poll()
        poll.register(connection, select.POLLIN | wanted)
        poll.register(self._wake_in, select.POLLIN)
        ready = dict(poll.poll(seconds * 1000))
        if self._wake_in.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                self._wake_in.recv(4096)
        return ready.get(connection.fileno(), 0)

    def _obey(self, client: paho.Client) -> bool:
        """Do what was ordered; whether DISCONNECT was."""
        while self._orders:
            match self._orders.popleft():
                case Publish(_, message):
                    # The id is drawn before anything is written, so Sent cannot overtake this line.
                    info = client.publish(message.topic, message.payload, message.qos, message.retain)
                    self._handles[info.mid] = message.handle
                    if info.rc:  # its packet id is still taken: a new connection begins with new ids
                        self._failure = Failure(Cause.LOST, str(self._connect.broker), paho.error_string(info.rc))
                case Subscribe(_, topic_filters):
                    client.subscribe([(each, 1) for each in topic_filters])
                case Acknowledge(_, mid, qos):
                    client.ack(mid, qos)
                case None:
                    client.disconnect()
                    return True
        return False

    def _on_connect(
        self, client: paho.Client, data: Any, flags: paho.ConnectFlags, reason: ReasonCode, properties: Any
    ) -> None:
        self._has_answered = True
        if reason.is_failure:
            self._failure = Failure(Cause.REFUSED, str(self._connect.broker), f"CONNACK: {reason}".lower())
            return
        connection = client.socket()
        agreed = tls.describe_session(connection) if isinstance(connection, tls.FleetSocket) else {}
        _log.info(event("connection.made", broker=self._connect.broker, **agreed))
        self._post(Connected(self.epoch, flags.session_present))

    def _on_subscribe(
        self, client: paho.Client, data: Any, mid: int, reasons: list[ReasonCode], properties: Properties
    ) -> None:
        refused = [str(reason) for reason in reasons if reason.is_failure]
        if refused:
            detail = f"SUBACK: {', '.join(refused)}".lower()
            self._failure = Failure(Cause.REFUSED, str(self._connect.broker), detail)
        else:
            self._post(Subscribed(self.epoch))

    def _on_message(self, client: paho.Client, data: Any, message: paho.MQTTMessage) -> None:
        self._post(Arrived(self.epoch, message.mid, message.topic, bytes(message.payload), message.qos))

    def _on_publish(self, client: paho.Client, data: Any, mid: int, reason: ReasonCode, properties: Any) -> None:
        handle = self._handles.pop(mid, None)
        if handle is not None:
            self._post(Sent(self.epoch, handle))

    def _why_lost(self, connection: tls.FleetSocket, peer: str) -> Failure:
        """Before CONNACK a closed connection is a refusal in all but words."""
        if connection.last_error is not None:
            found = tls.failure_of(connection.last_error, peer)
            is_answered_loss = self._has_answered and found.cause is Cause.CLOSED
            return Failure(Cause.LOST, peer, found.detail) if is_answered_loss else found
        if self._has_answered:
            return Failure(Cause.LOST, peer, "closed by the broker, or silent for too long")
        return Failure(Cause.CLOSED, peer, "no CONNACK")


def _ignore(client: paho.Client, data: Any, connection: Any) -> None:
    """Nothing to do: the loop asks want_write() itself."""


def connect_packet(client_id: str, keepalive_seconds: int) -> bytes:
    """CONNECT of MQTT 3.1.1 with no will, and the session kept (section 3.1)."""
    name = client_id.encode()
    body = b"\x00\x04MQTT\x04\x00" + keepalive_seconds.to_bytes(2) + len(name).to_bytes(2) + name
    assert len(body) < 128  # the length fits one byte: an id has at most 64 characters
    return bytes([0x10, len(body)]) + body
