"""Holes 6 to 8 of amqtt as it ships (DESIGN section 6): time, size, and what is taken for a packet."""

from __future__ import annotations

import contextlib
import ssl

import pytest

from fleet.limits import Limits
from tests import mqtt
from tests.contract.attacks import Target, asks, attack, enter, hears, hello, is_alive, stays_open
from tests.mqtt import field, number, packet

UP = "devices/pump-07/up/x"
DOWN = "devices/pump-07/down/x"
SHORT = Limits(handshake_seconds=0.5, connect_seconds=0.5, packet_seconds=0.5)
FEW = Limits(inflight_per_session=10, queued_messages_per_session=10, subscriptions_per_session=10)


@attack()
def test_hole_06_a_silent_client_stays_online(target: Target) -> bool:
    """Keepalive is not enforced: who lost power is never said to be gone (MQTT-3.1.2-24)."""
    device = target.device("pump-07")
    with enter(target, device, keep_alive=1) as attacker:
        return stays_open(attacker, 2.5)


@attack(SHORT)
@pytest.mark.parametrize("begun", [b"", hello("pump-07")[:-1]], ids=["nothing", "all but a byte"])
def test_hole_06_connect_may_take_for_ever(target: Target, begun: bytes) -> bool:
    """A certificate is enough to hold any number of connections without ever being let in."""
    with target.peer(target.device("pump-07")) as attacker:
        attacker.send(begun)
        return stays_open(attacker, 1.5)


@attack(SHORT)
def test_hole_06_half_a_packet_holds_a_connection(target: Target) -> bool:
    """Once a packet has begun there is no deadline, not even that of the keepalive."""
    with enter(target, target.device("pump-07"), keep_alive=1) as attacker:
        attacker.send(mqtt.publish(UP, bytes(100))[:-1])
        return stays_open(attacker, 2.5)


@attack()
def test_hole_06_garbage_instead_of_connect_is_never_closed(target: Target) -> bool:
    """What does not begin with CONNECT is logged, and its connection forgotten, open (MQTT-3.1.0-1)."""
    with target.peer(target.device("pump-07")) as attacker:
        attacker.send(mqtt.PINGREQ + bytes(20))
        return stays_open(attacker, 1)


@attack()
def test_hole_06_garbage_after_connect_is_never_closed(target: Target) -> bool:
    """A length of five bytes is discarded, and whatever follows is the next packet (MQTT-4.8.0-1)."""
    with enter(target, target.device("pump-07")) as attacker:
        attacker.send(b"\x30\xff\xff\xff\xff\x01")
        return stays_open(attacker, 1)


@attack()
def test_hole_07_a_packet_may_have_any_size(target: Target) -> bool:
    """4 MB are buffered, and more would be (200 MB went through)."""
    with enter(target, target.device("pump-07")) as attacker, contextlib.suppress(OSError):
        return asks(attacker, mqtt.publish(UP, bytes(4_000_000), 1)) == mqtt.puback(1)
    return False


@attack(FEW)
def test_hole_07_unfinished_messages_are_kept_without_bound(target: Target) -> bool:
    """Each QoS 2 message without its PUBREL is remembered, up to 65,535 of any size."""
    count = 100
    with enter(target, target.device("pump-07")) as attacker:
        attacker.send(*(mqtt.publish(UP, b"x", 2, n) for n in range(1, count + 1)))
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            return {attacker.receive() for _ in range(count)} == {mqtt.pubrec(n) for n in range(1, count + 1)}
    return False


@attack(FEW)
def test_hole_07_messages_in_flight_are_not_bounded(target: Target) -> bool:
    """A client that acknowledges nothing is sent everything; the broker holds it all."""
    count = 100
    with enter(target, target.device("pump-07")) as attacker, enter(target, target.admin()) as sender:
        attacker.ask(mqtt.subscribe((DOWN, 1)))
        sender.send(*(mqtt.publish(DOWN, b"message %03d" % n, 1, n) for n in range(1, count + 1)))
        return hears(target, attacker, b"message %03d" % count)


@attack(FEW)
def test_hole_07_the_queue_of_who_is_absent_is_not_bounded(target: Target) -> bool:
    """A device that never comes back fills the memory."""
    count, device = 100, target.device("pump-07")
    with enter(target, device, clean=False) as attacker:
        attacker.ask(mqtt.subscribe((DOWN, 1)))
        attacker.send(mqtt.DISCONNECT)
        assert attacker.is_closed()
    with enter(target, target.admin()) as sender:
        for n in range(1, count + 1):
            assert mqtt.puback(n) == sender.ask(mqtt.publish(DOWN, b"message %03d" % n, 1, n))
        with enter(target, device, clean=False) as attacker:
            return hears(target, attacker, b"message %03d" % count)


@attack(FEW)
def test_hole_07_subscriptions_are_not_bounded(target: Target) -> bool:
    """Every message is compared with each of them."""
    with enter(target, target.device("pump-07")) as attacker:
        answer = attacker.ask(mqtt.subscribe(*((f"devices/pump-07/down/{n}", 0) for n in range(100))))
        return 0x80 not in answer[5:]


@attack(Limits(max_connections=1))
def test_hole_07_a_connection_over_the_limit_hangs(target: Target) -> bool:
    """It is accepted, and then nothing ever happens on it."""
    with enter(target, target.device("valve-1")):
        try:
            with target.peer(target.device("pump-07")) as attacker:
                attacker.send(hello("pump-07"))
                return stays_open(attacker, 1)
        except (ConnectionError, ssl.SSLError):
            return False


@attack(Limits(bytes_per_second=100_000_000))
def test_hole_07_a_subscriber_that_stops_reading_fills_the_memory(target: Target) -> bool:
    """All 24 MB that it did not read were kept for it."""
    count, payload = 400, bytes(60_000)
    with enter(target, target.device("pump-07")) as sender, enter(target, target.admin()) as attacker:
        attacker.ask(mqtt.subscribe((UP, 0)))
        for _ in range(count):
            sender.send(mqtt.publish(UP, payload))
        sender.sync()
        attacker.send(mqtt.PINGREQ)
        received = 0
        with contextlib.suppress(ConnectionError, ssl.SSLError, AssertionError):
            while received < count:
                received += len(payload) < len(frame := attacker.receive())
                if frame == mqtt.PINGRESP and not target.is_as_shipped:
                    break
        return received == count


@attack()
def test_hole_08_a_packet_is_smuggled_in_another(target: Target) -> bool:
    """A wildcard in PUBLISH is refused before its payload is read, so that the payload is the next packet."""
    with enter(target, target.admin()) as reader, enter(target, target.device("pump-07")) as attacker:
        reader.ask(mqtt.subscribe(("devices/+/up/#", 0)))
        attacker.send(mqtt.publish("devices/#", mqtt.publish(UP, b"smuggled")))
        return hears(target, reader, b"smuggled")


TOLERATED = {
    "not UTF-8": mqtt.publish(UP.encode() + b"\xff"),
    "NUL in a topic": mqtt.publish(UP + "\0", b"x"),
    "QoS 3": packet(0x36, field(UP), number(1), b"x"),
    "SUBSCRIBE without filters": packet(0x82, number(1)),
    "packet id 0": mqtt.publish(UP, b"x", 1, 0),
    "SUBSCRIBE with wrong flags": packet(0x80, number(1), field(DOWN), b"\0"),
    "SUBSCRIBE with QoS 3": mqtt.subscribe((DOWN, 3)),
    "PINGREQ with flags": packet(0xC1),
    "CONNACK from a client": packet(0x20, b"\0\0"),
}


@attack()
@pytest.mark.parametrize("frame", TOLERATED.values(), ids=TOLERATED.keys())
def test_hole_08_a_violation_does_not_end_the_connection(target: Target, frame: bytes) -> bool:
    """What one reader takes for a packet and another does not is where smuggling begins (MQTT-4.8.0-1)."""
    with enter(target, target.device("pump-07")) as attacker:
        attacker.send(frame)
        return is_alive(attacker)


@attack()
def test_hole_08_a_topic_with_nul_is_delivered(target: Target) -> bool:
    """Whoever reads topics in C sees another topic (MQTT-1.5.3-2)."""
    with enter(target, target.admin()) as reader, enter(target, target.device("pump-07")) as attacker:
        reader.ask(mqtt.subscribe(("devices/+/up/#", 0)))
        attacker.send(mqtt.publish(UP + "\0", b"poison"))
        return hears(target, reader, b"poison")
