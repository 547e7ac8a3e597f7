"""Whatever is malformed by the standard ends its connection, does nothing, and nobody else notices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from broker.engine import Disconnected, Reason, Refused
from tests import malformed, mqtt
from tests.certificates import Identity
from tests.contract.engines import RunningEngine
from tests.malformed import Malformed
from tests.mqtt import Peer

UP = "devices/pump-07/up/x"


@contextmanager
def nobody_notices(broker: RunningEngine, operator: Identity, valve: Identity) -> Iterator[None]:
    """Others hear nothing, and go on; nothing is kept."""
    with broker.join(operator) as reader, broker.join(valve) as other:
        reader.ask(mqtt.subscribe(("devices/pump-07/up/#", 1)))
        before = broker.call(broker.engine.stats)
        received, retained = before.messages_received, before.retained
        yield
        reader.sync()
        other.sync()
        after = broker.call(broker.engine.stats)
        assert (received, retained) == (after.messages_received, after.retained)
        assert (2, 2, 1) == (after.connections, after.sessions, after.subscriptions)


def is_ended_by(peer: Peer, frame: bytes) -> bool:
    """Whether `frame` ends the connection, unanswered, and with it what comes in the same segment."""
    peer.send(frame, mqtt.publish(UP, b"smuggled", 1), mqtt.subscribe((UP, 0)), mqtt.PINGREQ)
    return peer.is_closed()


@pytest.mark.parametrize("case", malformed.PACKETS + malformed.NOT_TWICE, ids=str)
def test_a_malformed_packet_ends_the_connection(
    broker: RunningEngine, pump: Identity, operator: Identity, valve: Identity, case: Malformed
) -> None:
    """MQTT-4.8.0-1; what is read leniently is where smuggling begins (hole 8)."""
    with nobody_notices(broker, operator, valve), broker.join(pump) as peer:
        assert is_ended_by(peer, case.frame)
        event = broker.wait_event(Disconnected)
        assert (pump.principal, Reason.PROTOCOL) == (event.client.principal, event.reason)
        assert event.detail.endswith(f"[{case.statement}]")


@pytest.mark.parametrize("case", malformed.CONNECTS + malformed.NOT_FIRST, ids=str)
def test_a_malformed_connect_is_not_answered(
    broker: RunningEngine, pump: Identity, operator: Identity, valve: Identity, case: Malformed
) -> None:
    """3.1.4: closed without a CONNACK, and without a session (hole 2)."""
    with nobody_notices(broker, operator, valve), broker.peer(pump) as peer:
        assert is_ended_by(peer, case.frame)
        event = broker.wait_event(Refused)
        assert (pump.id, Reason.PROTOCOL) == (event.name, event.reason)
        assert event.detail.endswith(f"[{case.statement}]")


@pytest.mark.parametrize("stop", range(1, 27))
def test_a_malformed_packet_is_refused_however_it_is_cut(broker: RunningEngine, pump: Identity, stop: int) -> None:
    """The bytes would be read otherwise in two segments than in one."""
    frame = b"\x30\x19\x00\x17devices/pump-07/up/x\xed\xa0\x80"
    with broker.join(pump) as peer:
        peer.send(frame[:stop])
        peer.send(frame[stop:])
        assert peer.is_closed()
    assert Reason.PROTOCOL is broker.wait_event(Disconnected).reason


def test_a_malformed_packet_does_not_undo_what_came_before_it(
    broker: RunningEngine, pump: Identity, operator: Identity
) -> None:
    """4.8: what was acknowledged in the same segment would be lost."""
    with broker.join(operator) as reader, broker.join(pump) as peer:
        reader.ask(mqtt.subscribe(("devices/pump-07/up/#", 0)))
        peer.send(mqtt.publish(UP, b"good", 1, 7), mqtt.publish(UP, b"bad", 1, 0))
        assert mqtt.puback(7) == peer.receive()
        assert peer.is_closed()
        assert mqtt.publish(UP, b"good") == reader.receive()
        reader.sync()


def test_a_malformed_packet_fires_the_will(broker: RunningEngine, pump: Identity, operator: Identity) -> None:
    """MQTT-3.1.2-8: a connection that the server closes for an error is one that ended without DISCONNECT."""
    will = (UP, b"gone", 0, False)
    with broker.join(operator) as reader, broker.join(pump, mqtt.connect(pump.id, will=will)) as peer:
        reader.ask(mqtt.subscribe(("devices/pump-07/up/#", 0)))
        peer.send(b"\xf0\x00")
        assert peer.is_closed()
        assert mqtt.publish(UP, b"gone") == reader.receive()
