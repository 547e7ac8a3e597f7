"""What MQTT 3.1.1 says of messages and subscriptions, where no other suite shows it (docs/mqtt-3.1.1.md)."""

from __future__ import annotations

import pytest

from broker.engine import Denied, Disconnected
from tests import mqtt
from tests.certificates import Identity
from tests.contract.engines import RunningEngine
from tests.contract.test_engine_delivery import send, take
from tests.mqtt import Peer

UP = "devices/pump-07/up/x"
DOWN = "devices/pump-07/down/x"
ALL_UP = "devices/+/up/#"


@pytest.mark.parametrize("qos", [1, 2])
def test_dup_is_the_senders_own(broker: RunningEngine, pump: Identity, operator: Identity, qos: int) -> None:
    """MQTT-3.3.1-3: a subscriber would take what it never had for something that it had."""
    with broker.join(operator) as reader, broker.join(pump) as sender:
        reader.ask(mqtt.subscribe((ALL_UP, 2)))
        sender.send(mqtt.publish(UP, b"again", qos, 5, dup=True))
        assert mqtt.publish(UP, b"again", qos, 1) == reader.receive()


def test_what_is_sent_again_at_qos_2_is_marked(broker: RunningEngine, pump: Identity, operator: Identity) -> None:
    """MQTT-3.3.1-1: before PUBREC the message itself comes again, with DUP and its identifier."""
    with broker.join(pump, mqtt.connect(pump.id, clean=False)) as device, broker.join(operator) as sender:
        device.ask(mqtt.subscribe((DOWN, 2)))
        send(sender, DOWN, b"1", 2)
        assert mqtt.publish(DOWN, b"1", 2, 1) == device.receive()
    broker.wait_event(Disconnected, lambda event: event.client.principal == pump.principal)
    with broker.peer(pump) as device:
        assert mqtt.ACCEPTED_PRESENT == device.ask(mqtt.connect(pump.id, clean=False))
        assert mqtt.publish(DOWN, b"1", 2, 1, dup=True) == device.receive()


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 1), (1, 0), (1, 2), (2, 0)])
def test_the_last_retained_message_is_the_one(
    broker: RunningEngine, pump: Identity, operator: Identity, first: int, second: int
) -> None:
    """3.3.1.3: an old state would be told to who comes, or at another QoS; a newer one of QoS 0 counts too."""
    with broker.join(pump) as sender:
        for qos, payload in ((first, b"old"), (second, b"new")):
            sender.send(mqtt.publish(UP, payload, qos, 1, retain=True))
            if qos == 2:
                assert mqtt.pubrec(1) == sender.receive()
                sender.send(mqtt.pubrel(1))
            if qos:
                sender.receive()
        sender.sync()
    with broker.join(operator) as reader:
        reader.ask(mqtt.subscribe((ALL_UP, 2)))
        assert mqtt.publish(UP, b"new", second, 1, retain=True) == reader.receive()
        reader.sync()


@pytest.mark.parametrize("payload", [b"kept", b""])
def test_who_is_subscribed_already_gets_it_unmarked(
    broker: RunningEngine, pump: Identity, operator: Identity, payload: bytes
) -> None:
    """MQTT-3.3.1-9: news would look like something old. MQTT-3.3.1-10: a deletion is news too."""
    with broker.join(operator) as reader, broker.join(pump) as sender:
        reader.ask(mqtt.subscribe((ALL_UP, 1)))
        sender.ask(mqtt.publish(UP, payload, 1, 1, retain=True))
        assert mqtt.publish(UP, payload, 1, 1) == reader.receive()
    assert bool(payload) == broker.call(broker.engine.stats).retained


def test_what_is_not_retained_leaves_what_is(broker: RunningEngine, pump: Identity, operator: Identity) -> None:
    """MQTT-3.3.1-12: a passing message would replace, or an empty one delete, what was kept."""
    with broker.join(pump) as sender:
        sender.ask(mqtt.publish(UP, b"kept", 1, 1, retain=True))
        sender.ask(mqtt.publish(UP, b"passing", 1, 2))
        sender.ask(mqtt.publish(UP, b"", 1, 3))
    with broker.join(operator) as reader:
        reader.ask(mqtt.subscribe((ALL_UP, 1)))
        assert mqtt.publish(UP, b"kept", 1, 1, retain=True) == reader.receive()
        reader.sync()


ALIKE = {
    "composed and decomposed": ("devices/pump-07/up/\u00e5", "devices/pump-07/up/a\u030a"),
    "capital and small": ("devices/pump-07/up/X", "devices/pump-07/up/x"),
    "with and without a last /": ("devices/pump-07/up/x/", "devices/pump-07/up/x"),
    "with and without a space": ("devices/pump-07/up/x ", "devices/pump-07/up/x"),
    "with and without U+FEFF": ("devices/pump-07/up/\ufeffx", "devices/pump-07/up/x"),
    "one and two empty levels": ("devices/pump-07/up//x", "devices/pump-07/up///x"),
}


@pytest.mark.parametrize("pair", ALIKE.values(), ids=ALIKE.keys())
def test_topics_are_what_they_are(
    broker: RunningEngine, pump: Identity, operator: Identity, pair: tuple[str, str]
) -> None:
    """MQTT-4.7.3-4 and MQTT-1.5.3-3: two topics would be one for the broker, and two for everyone else."""
    wanted, other = pair
    with broker.join(operator) as reader, broker.join(pump) as sender:
        assert mqtt.suback(0) == reader.ask(mqtt.subscribe((wanted, 0)))
        sender.send(mqtt.publish(other, b"no"), mqtt.publish(wanted, b"yes"))
        assert mqtt.publish(wanted, b"yes") == reader.receive()
        reader.sync()


MATCHES = {
    "devices/pump-07/up/#": ["", "/", "/x", "/x/y", "//"],
    "devices/pump-07/up/+": ["/", "/x"],
    "devices/+/up/+/#": ["/", "/x", "/x/y", "//"],
    "devices/pump-07/up/+/+": ["/x/y", "//"],
    "devices/pump-07/up//": ["//"],
}


@pytest.mark.parametrize("topic_filter", MATCHES)
def test_a_wildcard_matches_its_levels(
    broker: RunningEngine, pump: Identity, operator: Identity, topic_filter: str
) -> None:
    """4.7.1: # matches any number of levels and the parent, + exactly one, which may be empty."""
    with broker.join(operator) as reader, broker.join(pump) as sender:
        assert mqtt.suback(0) == reader.ask(mqtt.subscribe((topic_filter, 0)))
        for end in ("", "/", "/x", "/x/y", "//"):
            sender.send(mqtt.publish(f"devices/pump-07/up{end}", end.encode()))
        sender.sync()
        matched = [reader.receive() for _ in MATCHES[topic_filter]]
        reader.sync()
    assert [mqtt.publish(f"devices/pump-07/up{end}", end.encode()) for end in MATCHES[topic_filter]] == matched


def test_acknowledgements_come_in_the_order_of_what_they_acknowledge(broker: RunningEngine, pump: Identity) -> None:
    """4.6: a sender that counts on the order would count wrong."""
    ids = [9, 3, 7, 1, 8, 2]
    with broker.join(pump) as peer:
        peer.send(*(mqtt.publish(UP, b"x", 1 + n % 2, n) for n in ids))
        assert [mqtt.pubrec(n) if n % 2 else mqtt.puback(n) for n in ids] == [peer.receive() for _ in ids]
        peer.send(*(mqtt.pubrel(n) for n in (7, 9, 1, 3)))
        assert [mqtt.pubcomp(n) for n in (7, 9, 1, 3)] == [peer.receive() for _ in range(4)]


def test_pubrel_comes_in_the_order_of_pubrec(broker: RunningEngine, pump: Identity, operator: Identity) -> None:
    """MQTT-4.6.0-4: a receiver that acts at PUBREL would act in another order than messages were sent."""
    with broker.join(operator) as reader, broker.join(pump) as sender:
        reader.ask(mqtt.subscribe((ALL_UP, 2)))
        for n in range(1, 5):
            send(sender, UP, b"%d" % n, 2, n)
        assert [mqtt.publish(UP, b"%d" % n, 2, n) for n in range(1, 5)] == [reader.receive() for _ in range(4)]
        reader.send(*(mqtt.pubrec(n) for n in range(1, 5)))
        assert [mqtt.pubrel(n) for n in range(1, 5)] == [reader.receive() for _ in range(4)]
        reader.send(*(mqtt.pubcomp(n) for n in range(1, 5)))
        reader.sync()


def test_filters_of_one_packet_are_taken_one_after_the_other(
    broker: RunningEngine, pump: Identity, operator: Identity
) -> None:
    """MQTT-3.8.4-4: one SUBACK with a code for each, and the last of two that are the same counts."""
    with broker.join(operator) as reader, broker.join(pump) as sender:
        asked = mqtt.subscribe((ALL_UP, 0), ("devices/+/down/#", 1), (ALL_UP, 2), (UP, 1), id=700)
        assert mqtt.suback(0, 0x80, 2, 1, id=700) == reader.ask(asked)
        send(sender, UP, b"1", 2)
        take(reader, UP, b"1", 2)
        assert mqtt.packet(0xB0, mqtt.number(701)) == reader.ask(mqtt.unsubscribe(ALL_UP, "x/#", UP, id=701))
        send(sender, UP, b"2", 2)
        reader.sync()


def test_only_the_very_filter_is_unsubscribed(broker: RunningEngine, pump: Identity, operator: Identity) -> None:
    """MQTT-3.10.4-1: a filter that covers, or is covered by, the one that is named would go too."""
    with broker.join(operator) as reader, broker.join(pump) as sender:
        reader.ask(mqtt.subscribe((ALL_UP, 0)))
        for other in ("#", "devices/#", "devices/pump-07/up/#", "devices/+/up/+", "devices/+/UP/#", UP):
            assert mqtt.packet(0xB0, mqtt.number(1)) == reader.ask(mqtt.unsubscribe(other))
        send(sender, UP, b"1", 0)
        assert mqtt.publish(UP, b"1") == reader.receive()


def test_what_was_begun_is_completed_after_unsubscribe(
    broker: RunningEngine, pump: Identity, operator: Identity
) -> None:
    """MQTT-3.10.4-3: a message that was being delivered would be lost half-way."""

    def is_present(peer: Peer) -> bool:
        return mqtt.ACCEPTED_PRESENT == peer.ask(mqtt.connect(pump.id, clean=False))

    with broker.join(pump, mqtt.connect(pump.id, clean=False)) as device, broker.join(operator) as sender:
        device.ask(mqtt.subscribe((DOWN, 2)))
        send(sender, DOWN, b"1", 1, 1)
        send(sender, DOWN, b"2", 2, 2)
        assert [mqtt.publish(DOWN, b"%d" % n, n, n) for n in (1, 2)] == [device.receive() for _ in range(2)]
        device.ask(mqtt.unsubscribe(DOWN))
        send(sender, DOWN, b"3", 1, 3)
        assert mqtt.pubrel(2) == device.ask(mqtt.pubrec(2))
    broker.wait_event(Disconnected, lambda event: event.client.principal == pump.principal)
    with broker.peer(pump) as device:
        assert is_present(device)
        assert [mqtt.publish(DOWN, b"1", 1, 1, dup=True), mqtt.pubrel(2)] == [device.receive() for _ in range(2)]
        device.send(mqtt.puback(1), mqtt.pubcomp(2))
        device.sync()


def test_a_qos_0_message_has_no_identifier_and_no_dup(
    broker: RunningEngine, pump: Identity, operator: Identity
) -> None:
    """4.3.1 and MQTT-2.3.1-5: a payload would begin with two bytes that are none of it."""
    with broker.join(operator) as reader, broker.join(pump) as sender:
        reader.ask(mqtt.subscribe((ALL_UP, 0)))
        for qos in range(3):
            send(sender, UP, b"\0\7payload", qos, 7)
            assert b"\x30\x1f\x00\x14" + UP.encode() + b"\0\7payload" == reader.receive()


def test_a_byte_order_mark_at_the_front_is_a_character(broker: RunningEngine, pump: Identity) -> None:
    """MQTT-1.5.3-3: a text without it would be another one, which is allowed; a filter would get around a rule."""
    with broker.peer(pump) as peer:
        assert b"\x20\x02\x00\x02" == peer.ask(mqtt.connect("\ufeffpump-07"))
    with broker.join(pump) as peer:
        assert mqtt.suback(0x80, 0) == peer.ask(mqtt.subscribe(("\ufeff" + DOWN, 0), (DOWN, 0)))
        peer.send(mqtt.publish("\ufeff" + UP, b"x"))
        peer.sync()
    topics = [event.topic for event in broker.events if isinstance(event, Denied)]
    assert ["\ufeff" + DOWN, "\ufeff" + UP] == topics
