"""What was accepted arrives, at the lower QoS of both sides, in order, and again where it was not acknowledged."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from broker.engine import Connected, Disconnected, Reason
from fleet.identity import Role
from fleet.limits import Limits
from tests import mqtt
from tests.certificates import Identity, TestFleet
from tests.contract.engines import RunningEngine
from tests.mqtt import Peer

TOPIC = "devices/pump-07/up/x"
DOWN = "devices/pump-07/down/x"


def send(peer: Peer, topic: str, payload: bytes, qos: int, id: int = 1) -> None:
    """A whole exchange at that QoS."""
    peer.send(mqtt.publish(topic, payload, qos, id))
    if qos == 1:
        assert mqtt.puback(id) == peer.receive()
    elif qos == 2:
        assert mqtt.pubrec(id) == peer.receive()
        assert mqtt.pubcomp(id) == peer.ask(mqtt.pubrel(id))


def take(peer: Peer, topic: str, payload: bytes, qos: int, id: int = 1) -> None:
    """The other half, as the receiver."""
    assert mqtt.publish(topic, payload, qos, id) == peer.receive()
    if qos == 1:
        peer.send(mqtt.puback(id))
    elif qos == 2:
        assert mqtt.pubrel(id) == peer.ask(mqtt.pubrec(id))
        peer.send(mqtt.pubcomp(id))


@pytest.mark.parametrize("published", [0, 1, 2])
@pytest.mark.parametrize("subscribed", [0, 1, 2])
def test_the_lower_qos_counts(
    broker: RunningEngine, pump: Identity, operator: Identity, published: int, subscribed: int
) -> None:
    """3.8.4: a message would be promised more, or less, than both sides asked for (hole 9)."""
    with broker.join(operator) as reader, broker.join(pump) as sender:
        assert mqtt.suback(subscribed) == reader.ask(mqtt.subscribe(("devices/+/up/#", subscribed)))
        send(sender, TOPIC, b"hello", published)
        take(reader, TOPIC, b"hello", min(published, subscribed))
        reader.sync()


def test_messages_keep_their_order(broker: RunningEngine, pump: Identity, operator: Identity) -> None:
    """4.6: a reader would see the past after the present."""
    count = 500
    with broker.join(operator) as reader, broker.join(pump) as sender:
        reader.ask(mqtt.subscribe(("devices/+/up/#", 1)))
        sender.send(*(mqtt.publish(TOPIC, str(n).encode(), 1, n) for n in range(1, count + 1)))
        seen = []
        for _ in range(count):
            frame = reader.receive()
            id_at = 4 + len(TOPIC)
            seen.append(int(frame[id_at + 2 :]))
            reader.send(mqtt.puback(int.from_bytes(frame[id_at : id_at + 2])))
        assert list(range(1, count + 1)) == seen
        assert [mqtt.puback(n) for n in range(1, count + 1)] == [sender.receive() for _ in range(count)]


def test_overlapping_filters_deliver_once(broker: RunningEngine, pump: Identity, operator: Identity) -> None:
    """MQTT-3.3.5-1: at the highest QoS of those that match."""
    with broker.join(operator) as reader, broker.join(pump) as sender:
        reader.ask(mqtt.subscribe(("devices/+/up/#", 1), ("devices/pump-07/up/x", 2), ("devices/+/up/+", 0)))
        send(sender, TOPIC, b"1", 2)
        take(reader, TOPIC, b"1", 2)
        reader.sync()


def test_subscribing_again_replaces(broker: RunningEngine, pump: Identity, operator: Identity) -> None:
    """MQTT-3.8.4-3: the QoS changes, and retained messages are sent again."""
    with broker.join(pump) as sender, broker.join(operator) as reader:
        sender.ask(mqtt.publish(TOPIC, b"kept", 1, retain=True))
        for qos, packet_id in ((0, 1), (1, 2)):
            again = mqtt.subscribe(("devices/+/up/#", qos), id=packet_id)
            assert mqtt.suback(qos, id=packet_id) == reader.ask(again)
            assert mqtt.publish(TOPIC, b"kept", qos, 1, retain=True) == reader.receive()
        assert 1 == broker.call(broker.engine.stats).subscriptions


def test_unsubscribing_ends_it(broker: RunningEngine, pump: Identity, operator: Identity) -> None:
    """MQTT-3.10.4-2: nothing more is delivered; an unknown filter is acknowledged all the same."""
    with broker.join(operator) as reader, broker.join(pump) as sender:
        reader.ask(mqtt.subscribe(("devices/+/up/#", 1)))
        assert mqtt.packet(0xB0, mqtt.number(5)) == reader.ask(mqtt.unsubscribe("devices/+/up/#", "nowhere", id=5))
        send(sender, TOPIC, b"1", 1)
        reader.sync()
        assert 0 == broker.call(broker.engine.stats).subscriptions


@pytest.mark.parametrize("qos", [1, 2])
def test_a_persistent_session_keeps_what_came_meanwhile(
    broker: RunningEngine, pump: Identity, operator: Identity, qos: int
) -> None:
    """3.1.2.4: a device that sleeps would miss its commands. What waited is not marked retained (hole 9)."""
    with broker.join(pump, mqtt.connect(pump.id, clean=False)) as device:
        device.ask(mqtt.subscribe(("devices/pump-07/down/#", qos)))
        device.send(mqtt.DISCONNECT)
    broker.wait_event(Disconnected)
    with broker.join(operator) as sender:
        for n in range(1, 4):
            send(sender, DOWN, b"%d" % n, qos, n)
        send(sender, DOWN, b"not kept", 0)
        sender.sync()
    with broker.peer(pump) as device:
        assert mqtt.ACCEPTED_PRESENT == device.ask(mqtt.connect(pump.id, clean=False))
        assert [mqtt.publish(DOWN, b"%d" % n, qos, n) for n in range(1, 4)] == [device.receive() for _ in range(3)]


def test_what_was_not_acknowledged_comes_again_first_and_marked(
    broker: RunningEngine, pump: Identity, operator: Identity
) -> None:
    """MQTT-4.4.0-1: same packet id, DUP set, in the first order, before anything newer."""
    with broker.join(operator) as sender:
        with broker.join(pump, mqtt.connect(pump.id, clean=False)) as device:
            device.ask(mqtt.subscribe(("devices/pump-07/down/#", 1)))
            send(sender, DOWN, b"1", 1)
            send(sender, DOWN, b"2", 1)
            assert [mqtt.publish(DOWN, b"%d" % n, 1, n) for n in (1, 2)] == [device.receive() for _ in range(2)]
        broker.wait_event(Disconnected)
        send(sender, DOWN, b"3", 1)
    with broker.peer(pump) as device:
        assert mqtt.ACCEPTED_PRESENT == device.ask(mqtt.connect(pump.id, clean=False))
        assert mqtt.publish(DOWN, b"1", 1, 1, dup=True) == device.receive()
        assert mqtt.publish(DOWN, b"2", 1, 2, dup=True) == device.receive()
        assert mqtt.publish(DOWN, b"3", 1, 3) == device.receive()


def test_a_qos_2_exchange_goes_on_where_it_was(broker: RunningEngine, pump: Identity, operator: Identity) -> None:
    """4.3.3: after PUBREC only PUBREL is sent again, never the message."""
    with broker.join(pump, mqtt.connect(pump.id, clean=False)) as device:
        device.ask(mqtt.subscribe(("devices/pump-07/down/#", 2)))
        with broker.join(operator) as sender:
            send(sender, DOWN, b"1", 2)
        device.receive()
        assert mqtt.pubrel(1) == device.ask(mqtt.pubrec(1))
    broker.wait_event(Disconnected, lambda event: event.client.principal == pump.principal)
    with broker.peer(pump) as device:
        assert mqtt.ACCEPTED_PRESENT == device.ask(mqtt.connect(pump.id, clean=False))
        assert mqtt.pubrel(1) == device.receive()
        device.send(mqtt.pubcomp(1))
        device.sync()


def test_a_qos_2_message_sent_again_is_delivered_once(
    broker: RunningEngine, pump: Identity, operator: Identity
) -> None:
    """MQTT-4.3.3-2: exactly once, over a reconnect too."""
    with broker.join(operator) as reader:
        reader.ask(mqtt.subscribe(("devices/+/up/#", 0)))
        with broker.join(pump, mqtt.connect(pump.id, clean=False)) as sender:
            assert mqtt.pubrec(5) == sender.ask(mqtt.publish(TOPIC, b"once", 2, 5))
            assert mqtt.pubrec(5) == sender.ask(mqtt.publish(TOPIC, b"once", 2, 5, dup=True))
        broker.wait_event(Disconnected)
        with broker.peer(pump) as sender:
            assert mqtt.ACCEPTED_PRESENT == sender.ask(mqtt.connect(pump.id, clean=False))
            assert mqtt.pubrec(5) == sender.ask(mqtt.publish(TOPIC, b"once", 2, 5, dup=True))
            assert mqtt.pubcomp(5) == sender.ask(mqtt.pubrel(5))
            assert mqtt.pubrec(5) == sender.ask(mqtt.publish(TOPIC, b"twice", 2, 5))
        assert mqtt.publish(TOPIC, b"once") == reader.receive()
        assert mqtt.publish(TOPIC, b"twice") == reader.receive()


def test_a_clean_session_begins_with_nothing(broker: RunningEngine, pump: Identity, operator: Identity) -> None:
    """MQTT-3.1.2-6: what was kept is gone for good."""
    with broker.join(pump, mqtt.connect(pump.id, clean=False)) as device:
        device.ask(mqtt.subscribe(("devices/pump-07/down/#", 1)))
    broker.wait_event(Disconnected)
    with broker.join(operator) as sender:
        send(sender, DOWN, b"1", 1)
    with broker.join(pump, mqtt.connect(pump.id, clean=True)) as device:
        device.sync()
    broker.wait_event(Disconnected, lambda event: event is broker.events[-1])
    with broker.join(pump, mqtt.connect(pump.id, clean=False)):  # asserts that no session is present
        pass


def test_a_reconnect_takes_over_a_live_connection(broker: RunningEngine, pump: Identity, operator: Identity) -> None:
    """MQTT-3.1.4-2: the old connection is closed; the new one hears everything (hole 11)."""
    with broker.join(pump, mqtt.connect(pump.id, clean=False)) as old:
        old.ask(mqtt.subscribe(("devices/pump-07/down/#", 1)))
        with broker.peer(pump) as new:
            assert mqtt.ACCEPTED_PRESENT == new.ask(mqtt.connect(pump.id, clean=False))
            assert old.is_closed()
            with broker.join(operator) as sender:
                send(sender, DOWN, b"1", 1)
            assert mqtt.publish(DOWN, b"1", 1, 1) == new.receive()
    assert Reason.TAKEN_OVER is broker.wait_event(Disconnected).reason
    assert 2 == sum(isinstance(event, Connected) and event.client.client_id == pump.id for event in broker.events)


def test_a_take_over_publishes_the_old_will_before_the_new_client_speaks(
    broker: RunningEngine, pump: Identity, operator: Identity
) -> None:
    """The offline of the old connection would overwrite the online of the new."""
    status = "devices/pump-07/up/status"
    frame = mqtt.connect(pump.id, will=(status, b"offline", 1, True))
    with broker.join(operator) as reader:
        reader.ask(mqtt.subscribe(("devices/+/up/#", 0)))
        with broker.join(pump, frame), broker.join(pump, frame) as new:
            new.send(mqtt.publish(status, b"online", retain=True))
            assert mqtt.publish(status, b"offline") == reader.receive()
            assert mqtt.publish(status, b"online") == reader.receive()
            reader.ask(mqtt.unsubscribe("devices/+/up/#", id=2))
            reader.ask(mqtt.subscribe(("devices/+/up/#", 0), id=3))
            assert mqtt.publish(status, b"online", retain=True) == reader.receive()


def test_messages_in_flight_are_bounded_and_none_is_lost(
    limited: Callable[[Limits], RunningEngine], fleet: TestFleet
) -> None:
    """A client that does not acknowledge would be sent everything at once; or lose what had to wait."""
    broker = limited(Limits(inflight_per_session=3))
    pump = broker.device("pump-07")
    with broker.join(pump) as peer:
        peer.ask(mqtt.subscribe(("devices/pump-07/down/#", 1)))
        dispatch = broker.admit(fleet.client("dispatch", Role.SERVICE))
        with broker.join(dispatch) as sender:
            for n in range(1, 11):
                send(sender, DOWN, b"%d" % n, 1, n)
        first = [peer.receive() for _ in range(3)]
        peer.sync()
        payloads = [frame[-1:] for frame in first]
        while len(payloads) < 10:
            peer.send(mqtt.puback(len(payloads) - 2))
            payloads.append(peer.receive()[-2:].lstrip(b"\0\1\2\3\4\5\6\7\x08\x09\x0a"))
        assert [b"%d" % n for n in range(1, 11)] == payloads


def test_a_queue_is_bounded_and_drops_are_counted(limited: Callable[[Limits], RunningEngine], fleet: TestFleet) -> None:
    """A device that never comes back would fill the memory; what was dropped would not be known."""
    broker = limited(Limits(queued_messages_per_session=5))
    pump = broker.device("pump-07")
    with broker.join(pump, mqtt.connect(pump.id, clean=False)) as peer:
        peer.ask(mqtt.subscribe(("devices/pump-07/down/#", 1)))
    broker.wait_event(Disconnected)
    dispatch = broker.admit(fleet.client("dispatch", Role.SERVICE))
    with broker.join(dispatch) as sender:
        for n in range(1, 9):
            send(sender, DOWN, b"%d" % n, 1, n)
    with broker.peer(pump) as peer:
        peer.send(mqtt.connect(pump.id, clean=False))
        assert mqtt.ACCEPTED_PRESENT == peer.receive()
        assert [mqtt.publish(DOWN, b"%d" % n, 1, n) for n in range(1, 6)] == [peer.receive() for _ in range(5)]
        peer.sync()
    broker.wait_event(Disconnected, lambda event: event is broker.events[-1])
    assert 3 == broker.call(broker.engine.stats).messages_dropped


def test_a_subscriber_that_stops_reading_slows_nobody(
    limited: Callable[[Limits], RunningEngine], fleet: TestFleet
) -> None:
    """It would fill the broker's memory, or hold up the others (hole 7)."""
    broker = limited(Limits(bytes_per_second=10**9, multiple_for_services=1))
    pump, operator = broker.device("pump-07"), broker.admit(fleet.client("admin", Role.OPERATOR))
    payload = bytes(60_000)
    with broker.join(operator, mqtt.connect("admin:deaf")) as deaf, broker.join(operator) as reader:
        for peer in (deaf, reader):
            peer.ask(mqtt.subscribe(("devices/+/up/#", 0)))
        with broker.join(pump) as sender:
            for _ in range(500):  # 30 MB, far more than sockets hold
                sender.send(mqtt.publish(TOPIC, payload))
                assert len(payload) < len(reader.receive())
            sender.sync()
        reader.sync()
        assert 0 < broker.call(broker.engine.stats).messages_dropped
