"""A revocation cuts live sessions at once, leaves no will and no state behind, and says that the device is offline."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import pytest

from broker.engine import Disconnected, Reason
from fleet.directory import Entry
from fleet.identity import Principal, Role, State
from tests import mqtt
from tests.certificates import Identity
from tests.contract.engines import RunningEngine

STATUS = "devices/pump-07/up/status"
NOT_AUTHORIZED = b"\x20\x02\x00\x05"


def status(frame: bytes) -> tuple[bool, dict[str, object]]:
    """Whether a status message at QoS 0 came retained, and what it says."""
    topic_at = 2 if frame[1] < 0x80 else 3
    assert STATUS == frame[topic_at + 2 : topic_at + 2 + len(STATUS)].decode()
    fields = json.loads(frame[topic_at + 2 + len(STATUS) :])
    assert isinstance(fields, dict)
    return bool(frame[0] & 1), fields


@pytest.mark.parametrize("state", [State.REVOKED, State.SUSPENDED, State.REMOVED])
def test_whoever_is_no_longer_active_is_cut_and_cannot_return(
    broker: RunningEngine, pump: Identity, valve: Identity, state: State
) -> None:
    """A stolen device would go on until it reconnects."""
    with broker.join(pump) as peer, broker.join(valve) as other:
        broker.set_state(pump, state)
        assert peer.is_closed()
        other.sync()
    assert state.value == broker.wait_event(Disconnected).reason.value
    with broker.peer(pump) as peer:
        assert NOT_AUTHORIZED == peer.ask(mqtt.connect(pump.id))


def test_the_broker_says_that_it_is_offline_and_no_will_is_fired(
    broker: RunningEngine, pump: Identity, operator: Identity
) -> None:
    """A revoked device would have the last word, or seem online for ever."""
    will = (STATUS, b"the will", 1, True)
    with broker.join(operator) as reader, broker.join(pump, mqtt.connect(pump.id, will=will)) as peer:
        peer.send(mqtt.publish(STATUS, b"online", retain=True))
        peer.sync()
        reader.ask(mqtt.subscribe(("devices/+/up/#", 0)))
        assert mqtt.publish(STATUS, b"online", retain=True) == reader.receive()
        broker.revoke(pump)
        is_retained, said = status(reader.receive())
        assert (False, "pump-07", "broker", 0, "offline", "revoked") == (
            is_retained,
            *(said[name] for name in ("id", "boot", "seq", "status", "reason")),
        )
        reader.sync()
        reader.ask(mqtt.unsubscribe("devices/+/up/#"))
        reader.ask(mqtt.subscribe((STATUS, 0), id=2))
        assert (True, said) == status(reader.receive())


def test_nothing_of_its_session_is_left(broker: RunningEngine, pump: Identity, operator: Identity) -> None:
    """What waited for a revoked device would reach whoever is enrolled under its id next."""
    with broker.join(pump, mqtt.connect(pump.id, clean=False)) as peer:
        peer.ask(mqtt.subscribe(("devices/pump-07/down/#", 1)))
    broker.wait_event(Disconnected)
    with broker.join(operator) as sender:
        sender.ask(mqtt.publish("devices/pump-07/down/secret", b"1", 1))
        broker.revoke(pump)
        stats = broker.call(broker.engine.stats)
        assert (1, 0) == (stats.sessions, stats.subscriptions)
        successor = broker.fleet.client(pump.id)
        broker.apply(broker.entry(successor, epoch=2))
        with broker.join(successor, mqtt.connect(pump.id, clean=False)) as heir:  # asserts: no session present
            heir.sync()


def test_a_session_of_an_older_enrolment_is_not_given_to_the_newer(broker: RunningEngine, pump: Identity) -> None:
    """Subscriptions and messages of a predecessor would pass to whoever holds the id now."""
    with broker.join(pump, mqtt.connect(pump.id, clean=False)) as peer:
        peer.ask(mqtt.subscribe(("devices/pump-07/down/#", 1)))
    broker.wait_event(Disconnected)
    successor = broker.fleet.client(pump.id)
    broker.apply(broker.entry(successor, epoch=2))
    with broker.join(successor, mqtt.connect(pump.id, clean=False)) as heir:
        heir.sync()


def test_a_renewal_ends_the_old_certificates_connection_and_keeps_the_session(
    broker: RunningEngine, pump: Identity
) -> None:
    """A copied old key would stay connected beside the owner; or each renewal would cost the queue."""
    renewed = broker.fleet.client(pump.id)
    known = broker.entry(pump)
    with broker.join(pump, mqtt.connect(pump.id, clean=False)) as peer:
        peer.ask(mqtt.subscribe(("devices/pump-07/down/#", 1)))
        both = Entry(known.seq, known.principal, known.state, 1, frozenset({pump.serial, renewed.serial}))
        broker.apply(both)
        peer.sync()
        broker.admit(renewed)
        assert peer.is_closed()
    assert Reason.SUPERSEDED is broker.wait_event(Disconnected).reason
    with broker.peer(renewed) as peer:
        assert mqtt.ACCEPTED_PRESENT == peer.ask(mqtt.connect(pump.id, clean=False))


def test_another_role_ends_what_the_old_one_allowed(broker: RunningEngine) -> None:
    """Whoever was an operator would go on as one, live or with what its session kept."""
    identity = broker.admit(broker.fleet.client("admin", Role.OPERATOR))
    with broker.join(identity, mqtt.connect("admin", clean=False)) as live:
        assert mqtt.suback(0) == live.ask(mqtt.subscribe(("devices/+/up/#", 0)))
        entry = broker.entry(identity)
        broker.apply(replace(entry, principal=Principal(Role.DEVICE, identity.id)))
        assert live.is_closed()
    with broker.peer(identity) as back, broker.join(broker.device("pump-07")) as device:
        assert back.ask(mqtt.connect("admin", clean=False)) in (mqtt.ACCEPTED, mqtt.ACCEPTED_PRESENT)
        device.send(mqtt.publish("devices/pump-07/up/x", b"not for a device"))
        device.sync()
        back.sync()
        assert mqtt.suback(0x80) == back.ask(mqtt.subscribe(("devices/+/up/#", 0)))


def test_what_a_revoked_device_retained_does_not_speak_for_it(
    broker: RunningEngine, pump: Identity, operator: Identity
) -> None:
    """Its last words would be read as the present; its successor under the id would be handed what was meant for it."""
    with broker.join(operator) as sender, broker.join(pump) as peer:
        peer.ask(mqtt.publish(STATUS, b"online", 1, retain=True))
        peer.ask(mqtt.publish("devices/pump-07/up/state", b"valve open", 1, 2, retain=True))
        sender.ask(mqtt.publish("devices/pump-07/down/state", b"open the valve", 1, retain=True))
        broker.revoke(pump)
        assert peer.is_closed()
    successor = broker.fleet.client(pump.id)
    broker.apply(broker.entry(successor, epoch=2))
    with broker.join(operator) as reader, broker.join(successor) as heir:
        reader.ask(mqtt.subscribe(("devices/pump-07/up/#", 0)))
        assert "revoked" == status(reader.receive())[1]["reason"]
        reader.sync()
        heir.ask(mqtt.subscribe(("devices/pump-07/down/#", 1)))
        heir.sync()


def test_an_older_entry_does_not_bring_anyone_back(broker: RunningEngine, pump: Identity) -> None:
    """A late line of the feed, or a slow look-up, would undo a revocation."""
    old = broker.entry(pump)
    broker.revoke(pump)
    broker.apply(old)
    with broker.peer(pump) as peer:
        assert NOT_AUTHORIZED == peer.ask(mqtt.connect(pump.id))


def test_disconnecting_is_confirmed_and_can_be_repeated(broker: RunningEngine, pump: Identity, valve: Identity) -> None:
    """An admin would not know whether it worked."""
    with broker.join(pump) as first, broker.join(valve) as second:
        assert 1 == broker.await_(broker.engine.disconnect(pump.principal, Reason.ADMIN))
        assert first.is_closed()
        assert 1 == broker.await_(broker.engine.disconnect(valve.serial, Reason.ADMIN))
        assert second.is_closed()
        assert 0 == broker.await_(broker.engine.disconnect(pump.principal, Reason.ADMIN))
    assert () == broker.clients()


def test_what_a_revoked_device_still_sends_is_not_routed(
    broker: RunningEngine, pump: Identity, operator: Identity
) -> None:
    """The cut would be late by whatever is on its way."""
    with broker.join(operator) as reader, broker.join(pump) as peer:
        reader.ask(mqtt.subscribe(("devices/+/up/x", 0)))
        broker.revoke(pump)
        with contextlib.suppress(OSError):
            peer.send(mqtt.publish("devices/pump-07/up/x", b"late"))
        reader.sync()
        assert peer.is_closed()
