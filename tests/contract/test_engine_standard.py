"""What MQTT 3.1.1 says of connections, sessions and wills, where no other suite shows it (docs/mqtt-3.1.1.md)."""

from __future__ import annotations

import pytest

from broker.engine import Connected, Disconnected
from tests import mqtt
from tests.certificates import Identity
from tests.contract.engines import RunningEngine
from tests.mqtt import Peer, field, number, packet

UP = "devices/pump-07/up/x"
DOWN = "devices/pump-07/down/x"
STATUS = "devices/pump-07/up/status"
ALL_UP = "devices/+/up/#"


def reader_of(broker: RunningEngine, operator: Identity, qos: int = 0) -> Peer:
    """An operator that hears all that devices say."""
    peer = broker.join(operator)
    assert mqtt.suback(qos) == peer.ask(mqtt.subscribe((ALL_UP, qos)))
    return peer


def test_the_fields_of_connect_come_in_their_order(broker: RunningEngine, pump: Identity, operator: Identity) -> None:
    """3.1.3: a user name would be taken for a will, or the other way round."""
    fields = (pump.id, STATUS, "gone", "somebody", "secret")
    frame = packet(0x10, field("MQTT"), b"\4\xc6", number(60), *map(field, fields))
    with reader_of(broker, operator) as reader:
        with broker.join(pump, frame):
            pass
        assert mqtt.publish(STATUS, b"gone") == reader.receive()


@pytest.mark.parametrize("id", ["a", "0123456789", "abcdefghijklmnopqrstuvw"])
def test_a_client_id_of_1_to_23_letters_and_digits_is_let_in(broker: RunningEngine, id: str) -> None:
    """MQTT-3.1.3-5: a device whose name is short, or of digits, could not connect. (It has to be its own name.)"""
    with broker.join(broker.device(id)) as peer:
        peer.sync()


def test_clients_without_a_name_are_given_different_ones(broker: RunningEngine, operator: Identity) -> None:
    """MQTT-3.1.3-6: a person's second window would end the first, or the session that was kept under its name."""
    with broker.join(operator, mqtt.connect(operator.id, clean=False)) as named:
        named.ask(mqtt.subscribe((ALL_UP, 1)))
    broker.wait_event(Disconnected)
    unnamed = mqtt.connect("")
    with broker.join(operator, unnamed) as first, broker.join(operator, unnamed) as second:
        first.sync()
        second.sync()
        names = [event.client.client_id for event in broker.events if isinstance(event, Connected)]
    assert ["admin", "admin:2", "admin:3"] == names
    with broker.peer(operator) as again:
        assert mqtt.ACCEPTED_PRESENT == again.ask(mqtt.connect(operator.id, clean=False))


def test_nothing_after_a_rejected_connect_is_looked_at(
    broker: RunningEngine, pump: Identity, operator: Identity
) -> None:
    """MQTT-3.1.4-5: who was refused would be heard all the same, if it does not wait for the answer."""
    with reader_of(broker, operator) as reader:
        with broker.peer(pump) as peer:
            peer.send(mqtt.connect("valve-1"), mqtt.publish(UP, b"x", retain=True), mqtt.subscribe((DOWN, 0)))
            assert b"\x20\x02\x00\x02" == peer.receive()
            assert peer.is_closed()
        reader.sync()
    stats = broker.call(broker.engine.stats)
    assert (0, 0) == (stats.messages_received, stats.retained)


def test_session_present_is_said_where_a_session_was_kept(broker: RunningEngine, pump: Identity) -> None:
    """3.2.2.2: a client would not subscribe again where it has to, or do so for nothing."""
    kept, clean = mqtt.connect(pump.id, clean=False), mqtt.connect(pump.id)
    refused = mqtt.connect(pump.id, clean=False, level=5)
    new, old = mqtt.ACCEPTED, mqtt.ACCEPTED_PRESENT
    story = [
        *((clean, new), (kept, new), (kept, old), (refused, b"\x20\x02\x00\x01"), (kept, old)),
        *((clean, new), (kept, new)),
    ]
    for frame, answer in story:
        with broker.peer(pump) as peer:
            assert answer == peer.ask(frame)  # where the one before still seems to be there, it is taken over


def test_without_a_will_nothing_is_published(broker: RunningEngine, pump: Identity, operator: Identity) -> None:
    """MQTT-3.1.2-12: a message that nobody left."""
    with reader_of(broker, operator) as reader:
        with broker.join(pump):
            pass
        broker.wait_event(Disconnected)
        reader.sync()


@pytest.mark.parametrize("retain", [False, True])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_will_has_its_qos_and_is_retained_only_where_it_asks(
    broker: RunningEngine, pump: Identity, operator: Identity, qos: int, retain: bool
) -> None:
    """3.1.2.6 and 3.1.2.7: who comes later would be told that a device is gone, or not be told."""
    with reader_of(broker, operator, 2) as reader:
        with broker.join(pump, mqtt.connect(pump.id, will=(STATUS, b"gone", qos, retain))):
            pass
        assert mqtt.publish(STATUS, b"gone", qos, 1) == reader.receive()
    with reader_of(broker, operator, 2) as later:
        if retain:
            assert mqtt.publish(STATUS, b"gone", qos, 1, retain=True) == later.receive()
        later.sync()


def test_a_will_is_published_once(broker: RunningEngine, pump: Identity, operator: Identity) -> None:
    """MQTT-3.1.2-10: the will of one connection would be published at the end of the next one, that has none."""
    with reader_of(broker, operator) as reader:
        with broker.join(pump, mqtt.connect(pump.id, clean=False, will=(STATUS, b"gone", 1, False))):
            pass
        assert mqtt.publish(STATUS, b"gone") == reader.receive()
        with broker.peer(pump) as again:
            assert mqtt.ACCEPTED_PRESENT == again.ask(mqtt.connect(pump.id, clean=False))
        broker.wait_event(Disconnected, lambda event: event is broker.events[-1])
        reader.sync()


def test_an_empty_will_is_published(broker: RunningEngine, pump: Identity, operator: Identity) -> None:
    """3.1.3.3: a will's message may have no bytes; retained it deletes what was there."""
    with broker.join(pump, mqtt.connect(pump.id, will=(STATUS, b"", 1, True))) as peer:
        peer.ask(mqtt.publish(STATUS, b"online", 1, retain=True))
        reader = reader_of(broker, operator)
        assert mqtt.publish(STATUS, b"online", retain=True) == reader.receive()
    with reader:
        assert mqtt.publish(STATUS, b"") == reader.receive()
    assert 0 == broker.call(broker.engine.stats).retained
