"""What an engine counts, and what it shows of it under `$SYS/`."""

from __future__ import annotations

from broker.engine import Disconnected, Reason, Stats
from fleet import sessions
from fleet.identity import Role
from fleet.limits import Limits
from fleet.policy import DEFAULT_RULES, Action, Policy, Rule
from tests import mqtt
from tests.certificates import Identity, TestFleet
from tests.contract.engines import ENGINES, RunningEngine
from tests.mqtt import Peer

DOWN = "devices/pump-07/down/state"
NOTICE = "fleet/notices/x"


def stats(broker: RunningEngine) -> Stats:
    return broker.call(broker.engine.stats)


def test_a_message_is_sent_when_it_is_written_to_a_client(
    broker: RunningEngine, pump: Identity, operator: Identity
) -> None:
    """What waits, or is lost in a queue, would look as if it had arrived."""
    asleep = mqtt.connect(pump.id, clean=False)
    with broker.join(operator) as admin:
        with broker.join(pump, asleep) as peer:
            peer.ask(mqtt.subscribe((DOWN, 1), (NOTICE, 0)))
            peer.send(mqtt.DISCONNECT)
            assert peer.is_closed()
        for number in range(1, 4):
            admin.ask(mqtt.publish(DOWN, b"%d" % number, 1, number))
        admin.ask(mqtt.publish(NOTICE, b"QoS 0 is not kept for who is away", 1))
        assert (0, 3) == (stats(broker).messages_sent, stats(broker).queued)
        for attempt in (1, 2):  # nothing is acknowledged, so it is sent again
            with broker.peer(pump) as peer:
                assert mqtt.ACCEPTED_PRESENT == peer.ask(asleep)
                assert [b"1", b"2", b"3"] == [peer.receive()[-1:] for _ in range(3)]
                peer.sync()
            assert 3 * attempt == stats(broker).messages_sent
        admin.ask(mqtt.publish(NOTICE, b"kept", 1, retain=True))
        sent = stats(broker).messages_sent
        assert mqtt.suback(1) == admin.ask(mqtt.subscribe((NOTICE, 1)))
        assert admin.receive().endswith(b"kept")
        assert sent + 1 == stats(broker).messages_sent


def test_everything_is_given_back(broker: RunningEngine, pump: Identity) -> None:
    """A gauge that only grows is no gauge."""
    with broker.join(pump) as peer:
        peer.ask(mqtt.subscribe((DOWN, 1)))
        peer.ask(mqtt.publish("devices/pump-07/up/status", b"1", 1, retain=True))
        held = stats(broker)
        assert (1, 1, 1, 1) == (held.connections, held.sessions, held.subscriptions, held.retained)
    broker.wait_event(Disconnected)
    broker.revoke(pump)
    left = stats(broker)
    assert (0, 0, 0, 0, 0) == (left.connections, left.sessions, left.subscriptions, left.queued, left.pending)
    assert {Reason.LOST: 1} == left.ended


def test_what_is_shown_is_found_by_who_may_read_it(broker: RunningEngine, pump: Identity, operator: Identity) -> None:
    """Operators would be blind, or devices would see how many others there are."""
    broker.call(lambda: broker.engine.show(lambda: {"$SYS/broker/x": "1"}))
    with broker.join(pump) as device, broker.join(operator) as admin:
        assert mqtt.suback(0x80) == device.ask(mqtt.subscribe(("$SYS/#", 0)))
        assert mqtt.suback(1) == admin.ask(mqtt.subscribe(("$SYS/#", 1)))
        assert mqtt.publish("$SYS/broker/x", b"1", retain=True) == admin.receive()


def test_a_wildcard_at_the_beginning_finds_none_of_it(fleet: TestFleet) -> None:
    """MQTT-4.7.2-1: whoever may read everything of the fleet would read the broker's counters too."""
    everything = Rule("reads-all", Role.OPERATOR, Action.SUBSCRIBE, "#")
    with RunningEngine(ENGINES["amqtt"], fleet, Limits(), Policy((*DEFAULT_RULES, everything))) as broker:
        broker.call(lambda: broker.engine.show(lambda: {"$SYS/broker/x": "1"}))
        with broker.join(broker.admin()) as admin, broker.join(broker.device("sys-reader")) as device:
            assert mqtt.suback(0, 0, 0) == admin.ask(
                mqtt.subscribe(("#", 0), ("+/broker/x", 0), ("$SYS/broker/y", 0))  # the last has them published
            )
            device.ask(mqtt.publish("devices/sys-reader/up/x", b"heard", 1))
            assert admin.receive().endswith(b"heard")


def test_nobody_may_say_what_the_broker_counts(broker: RunningEngine, pump: Identity, operator: Identity) -> None:
    """An attacker would tell the operators that all is well."""
    broker.call(lambda: broker.engine.show(lambda: {"$SYS/broker/x": "1"}))
    for liar in (pump, operator):
        with broker.join(liar) as peer:
            peer.send(mqtt.publish("$SYS/broker/x", b"lie", 0, retain=True))
            peer.sync()
    with broker.join(operator) as admin:
        admin.ask(mqtt.subscribe(("$SYS/#", 0)))
        assert mqtt.publish("$SYS/broker/x", b"1", retain=True) == admin.receive()
        admin.sync()


def test_sessions_are_announced_to_who_may_read_it(broker: RunningEngine, pump: Identity, operator: Identity) -> None:
    """Dispatch would take silent devices for absent ones, or a device would see who else is there."""
    broker.call(lambda: broker.engine.announce("b1"))
    with broker.join(operator) as admin:
        assert mqtt.suback(0) == admin.ask(mqtt.subscribe((sessions.ALL, 0)))
        alive, page = sorted((_announced(admin), _announced(admin)), key=lambda said: isinstance(said, sessions.Page))
        assert isinstance(alive, sessions.Alive)
        assert isinstance(page, sessions.Page)
        assert [operator.id] == [began.client_id for began in page.sessions]
        with broker.join(pump) as device:
            assert mqtt.suback(0x80) == device.ask(mqtt.subscribe((sessions.ALL, 0)))
            (began,) = _changes(admin)
            assert isinstance(began, sessions.Began)
            assert (pump.principal, pump.serial) == (began.principal, began.serial)
            device.send(mqtt.DISCONNECT)
            assert device.is_closed()
        (ended,) = _changes(admin)
        assert isinstance(ended, sessions.Ended)
        assert (began.seq, sessions.Ending.DISCONNECTED) == (ended.began, ended.ending)


def test_a_broker_that_stops_says_so(broker: RunningEngine, operator: Identity) -> None:
    """Whoever stops it would find a crash in the history."""
    broker.call(lambda: broker.engine.announce("b1"))
    with broker.join(operator) as admin:
        admin.ask(mqtt.subscribe((sessions.BROKER, 0)))
        _announced(admin)
        broker.await_(broker.engine.stop())
        last = _announced(admin)
    assert isinstance(last, sessions.Alive)
    assert last.is_stopping


def _announced(admin: Peer) -> sessions.Announcement:
    frame = admin.receive()
    at = next(at for at in range(1, 5) if frame[at] < 0x80) + 1
    end = at + 2 + int.from_bytes(frame[at : at + 2], "big")
    return sessions.decode(frame[at + 2 : end].decode(), frame[end:])


def _changes(admin: Peer) -> tuple[sessions.Began | sessions.Ended, ...]:
    found = _announced(admin)
    assert isinstance(found, sessions.Changes)
    return found.changes
