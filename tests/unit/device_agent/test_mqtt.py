"""The traps of paho-mqtt (DESIGN section 8), each against the real one: a connection of ours falls into none."""

from __future__ import annotations

import queue
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

from device_agent.core.effects import Connect, Publish, Subscribe
from device_agent.core.events import Arrived, Connected, Disconnected, Event, Sent, Subscribed
from device_agent.failures import Cause
from device_agent.mqtt import Connection
from device_agent.outbox import Class, Outgoing
from fleet.config import Address
from fleet.identity import DeviceId
from fleet.layout import AgentHome
from tests.deadlines import within
from tests.mqtt import ACCEPTED, packet, puback, publish, suback
from tests.unit.device_agent.authority import new_authority
from tests.unit.device_agent.clocks import real_clock
from tests.unit.device_agent.servers import Listener, server_context, tls_server

OURS = new_authority()
PUMP = DeviceId("pump-07")
WILL = Outgoing(-1, Class.PRESENCE, "devices/pump-07/up/status", b"offline", retain=True)
CONNECT, PUBLISH, SUBSCRIBE = 1, 3, 8

_E = TypeVar("_E")


def message(handle: int, payload: bytes = b"{}") -> Outgoing:
    return Outgoing(handle, Class.TELEMETRY, "devices/pump-07/up/telemetry/load", payload)


def frames(connection: ssl.SSLSocket, buffer: bytearray) -> bytes:
    """The next frame, whole; nothing at the end of the connection."""
    while True:
        length = 0
        for at in range(1, min(5, len(buffer))):
            length |= (buffer[at] & 0x7F) << 7 * (at - 1)
            if buffer[at] < 0x80:
                end = at + 1 + length
                if len(buffer) >= end:
                    frame = bytes(buffer[:end])
                    del buffer[:end]
                    return frame
                break
        if not (data := connection.recv(65_536)):
            return b""
        buffer += data


def mid_of(frame: bytes) -> int:
    """The packet id of a PUBLISH with QoS 1 and a length of one or two bytes, or of a SUBSCRIBE."""
    at = 2 if frame[1] < 0x80 else 3
    if frame[0] >> 4 == SUBSCRIBE:
        return int.from_bytes(frame[at : at + 2])
    topic = int.from_bytes(frame[at : at + 2])
    return int.from_bytes(frame[at + 2 + topic : at + 4 + topic])


@dataclass
class Broker:
    """Answers as it is told: every frame goes to `answer`, whose bytes go back; None closes."""

    answer: Callable[[bytes], bytes | None]
    heard: list[bytes] = field(default_factory=list)

    def __call__(self, connection: ssl.SSLSocket) -> None:
        buffer = bytearray()
        while frame := frames(connection, buffer):
            self.heard.append(frame)
            answer = self.answer(frame)
            if answer is None:
                return
            connection.sendall(answer)


def polite(frame: bytes) -> bytes:
    """What every broker answers."""
    match frame[0] >> 4:
        case 1:
            return ACCEPTED
        case 3:
            return puback(mid_of(frame))
        case 8:
            return suback(1, id=mid_of(frame))
    return b""


@dataclass
class Device:
    """One home, and what its connections have said."""

    home: AgentHome
    events: queue.Queue[Event] = field(default_factory=queue.Queue)

    def connect(self, server: Listener, epoch: int = 1, post: Callable[[Event], None] | None = None) -> Connection:
        order = Connect(epoch, Address("127.0.0.1", server.port), WILL)
        connection = Connection(self.home, PUMP, order, post or self.events.put, real_clock())
        connection.start()
        return connection

    def next(self, kind: type[_E]) -> _E:
        """The next event, which is of that kind."""
        event = self.events.get(timeout=within(20))
        assert isinstance(event, kind), event
        return event


@pytest.fixture(name="device")
def _device(tmp_path: Path) -> Device:
    home = AgentHome(tmp_path / "home")
    OURS.client("pump-07").write(home.generation(1))
    home.current.symlink_to("gen-1")
    home.trust.write_text(OURS.roots_pem)
    return Device(home)


@pytest.fixture(name="context")
def _context(tmp_path: Path) -> ssl.SSLContext:
    return server_context(OURS.server("broker"), tmp_path / "server", OURS.roots_pem)


def end(connection: Connection) -> None:
    connection.disconnect()
    connection.join(within(5))
    assert not connection.is_alive


def test_a_message_goes_out_and_comes_in(device: Device, context: ssl.SSLContext) -> None:
    """Nothing below would prove anything."""

    def answer(frame: bytes) -> bytes:
        return polite(frame) + (publish("devices/pump-07/down/x", b"hi") if frame[0] >> 4 == SUBSCRIBE else b"")

    with tls_server(context, Broker(answer)) as server:
        connection = device.connect(server)
        assert Connected(1, False) == device.next(Connected)
        connection.perform(Subscribe(1, ("devices/pump-07/down/#",)))
        assert Subscribed(1) == device.next(Subscribed)
        assert b"hi" == device.next(Arrived).payload
        connection.perform(Publish(1, message(41)))
        assert Sent(1, 41) == device.next(Sent)
        end(connection)
        device.next(Disconnected)


def test_a_connection_that_ends_is_not_made_again_by_paho(device: Device, context: ssl.SSLContext) -> None:
    """paho connects again after a second, without jitter, for ever: two clones fight, a fleet comes back at once."""
    with tls_server(context, Broker(lambda frame: None if frame[0] >> 4 == SUBSCRIBE else polite(frame))) as server:
        connection = device.connect(server)
        device.next(Connected)
        connection.perform(Subscribe(1, ("devices/pump-07/down/#",)))
        assert Cause.LOST is device.next(Disconnected).failure.cause
        connection.join(within(5))
        assert not connection.is_alive
        assert 1 == server.accepted
        assert device.events.empty(), "the end was told twice"


def test_an_exception_in_a_callback_ends_the_connection_and_says_so(device: Device, context: ssl.SSLContext) -> None:
    """paho's thread would be dead and is_connected() true: a device that looks online and does nothing."""

    def post(event: Event) -> None:
        device.events.put(event)
        if isinstance(event, Connected):
            raise RuntimeError("a callback that fails")

    with tls_server(context, Broker(polite)) as server:
        connection = device.connect(server, post=post)
        device.next(Connected)
        assert "a callback that fails" in device.next(Disconnected).failure.detail
        connection.join(within(5))
        assert not connection.is_alive


def test_a_puback_that_says_no_is_not_taken_for_delivery(device: Device, context: ssl.SSLContext) -> None:
    """paho counts it as published: the message would be gone on both sides."""

    def answer(frame: bytes) -> bytes:
        if frame[0] >> 4 != PUBLISH:
            return polite(frame)
        return packet(0x40, mid_of(frame).to_bytes(2), b"\x97\x00")  # MQTT 5: quota exceeded

    with tls_server(context, Broker(answer)) as server:
        connection = device.connect(server)
        device.next(Connected)
        connection.perform(Publish(1, message(1)))
        device.next(Disconnected)
        connection.join(within(5))


def test_a_subscription_that_is_refused_ends_the_connection(device: Device, context: ssl.SSLContext) -> None:
    """The device looks connected, and no command ever reaches it."""
    broker = Broker(lambda frame: suback(0x80, id=mid_of(frame)) if frame[0] >> 4 == SUBSCRIBE else polite(frame))
    with tls_server(context, broker) as server:
        connection = device.connect(server)
        device.next(Connected)
        connection.perform(Subscribe(1, ("devices/pump-07/down/#",)))
        assert Cause.REFUSED is device.next(Disconnected).failure.cause
        connection.join(within(5))


def test_what_is_ordered_after_the_end_is_never_sent(device: Device, context: ssl.SSLContext) -> None:
    """paho queues it although it returns an error, and the next connection sends it: twice, for core sends it too."""
    broker = Broker(lambda frame: None if frame[0] >> 4 == SUBSCRIBE else polite(frame))
    with tls_server(context, broker) as server:
        first = device.connect(server)
        device.next(Connected)
        first.perform(Subscribe(1, ("devices/pump-07/down/#",)))
        device.next(Disconnected)
        first.perform(Publish(1, message(1, b"late")))
        second = device.connect(server, epoch=2)
        device.next(Connected)
        second.perform(Publish(2, message(2, b"new")))
        assert Sent(2, 2) == device.next(Sent)
        end(second)
    assert not any(b"late" in frame for frame in broker.heard)


def test_a_key_that_does_not_load_spoils_no_later_attempt(device: Device, context: ssl.SSLContext) -> None:
    """A failed load_cert_chain poisons paho's context, and a second tls_set_context() raises: restart or stay away."""
    whole = device.home.identity.key.read_bytes()
    device.home.identity.key.write_bytes(whole[: len(whole) // 2])
    with tls_server(context, Broker(polite)) as server:
        broken = device.connect(server)
        assert Cause.LOCAL is device.next(Disconnected).failure.cause
        broken.join(within(5))
        device.home.identity.key.write_bytes(whole)
        connection = device.connect(server, epoch=2)
        assert Connected(2, False) == device.next(Connected)
        end(connection)


def test_orders_from_many_threads_reach_the_broker_whole(device: Device, context: ssl.SSLContext) -> None:
    """paho writes to its TLS object from whichever thread calls: frames would be torn, or OpenSSL would crash."""
    broker = Broker(polite)
    with tls_server(context, broker) as server:
        connection = device.connect(server)
        device.next(Connected)

        def order(first: int) -> None:
            for handle in range(first, first + 100):
                connection.perform(Publish(1, message(handle, b"%d " % handle + b"x" * 300)))

        threads = [threading.Thread(target=order, args=(first,)) for first in range(0, 400, 100)]
        for thread in threads:
            thread.start()
        sent = sorted(device.next(Sent).handle for _ in range(400))
        for thread in threads:
            thread.join()
        assert list(range(400)) == sent
        end(connection)
    bodies = [frame for frame in broker.heard if frame[0] >> 4 == PUBLISH]
    assert 400 == len({frame[-310:] for frame in bodies})
