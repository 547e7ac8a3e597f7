"""Who may say and hear what: the rules of fleet.policy, at every way a message can take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from broker.engine import Clock, Denied, Disconnected, Engine, Reason, Refused
from fleet.identity import Principal, Role
from fleet.limits import Limits
from fleet.policy import DEFAULT_POLICY, Action, Grants, Policy
from tests import mqtt
from tests.certificates import Identity, TestFleet
from tests.contract.engines import RunningEngine

NOT_AUTHORIZED = b"\x20\x02\x00\x05"

FOREIGN_TOPICS = [
    "devices/valve-1/up/x",
    "devices/valve-1/down/x",
    "devices/pump-07/down/x",
    "devices/pump-07",
    "devices/pump-07/up2/x",
    "devices/pump-07x/up/x",
    "devices/pump-0/up/x",
    "devices//up/x",
    "devices/PUMP-07/up/x",
    "Devices/pump-07/up/x",
    "devices/pump-07 /up/x",
    "devices/pump-07\u200b/up/x",
    "devices/\uff50ump-07/up/x",
    "devices/pump-07//up/x",
    "devices/valve-1/../pump-07/up/x",
    "devices/pump-07/up2",
    "/devices/pump-07/up/x",
    "fleet/notices/x",
    "$SYS/broker/x",
    "$share/g/devices/pump-07/up/x",
    "x",
]
FOREIGN_FILTERS = [
    "#",
    "+",
    "+/#",
    "devices/#",
    "devices/+/down/#",
    "devices/+/up/#",
    "devices/valve-1/#",
    "devices/valve-1/down/#",
    "devices/valve-1/down/commands/+/+",
    "devices/pump-07/#",
    "devices/pump-07/+/#",
    "devices/pump-07/up/#",
    "devices/pump-07x/down/#",
    "devices//down/#",
    "devices/PUMP-07/down/#",
    "devices/pump-07//down/#",
    "devices/\uff50ump-07/down/#",
    "/#",
    "+/+/+/#",
    "devices/+/#",
    "devices/+",
    "+/pump-07/down/#",
    "fleet/#",
    "$SYS/#",
    "$SYS/broker/clients",
    "$share/g/devices/pump-07/down/#",
    "$share/g/devices/valve-1/up/#",
    "$share/g/#",
    "$share//devices/pump-07/down/#",
    "$share",
    "$queue/devices/pump-07/down/#",
    "$exclusive/devices/pump-07/down/#",
]


@pytest.mark.parametrize("topic", FOREIGN_TOPICS)
def test_a_denied_message_of_qos_0_is_dropped(
    broker: RunningEngine, pump: Identity, operator: Identity, topic: str
) -> None:
    """A device would speak as another."""
    with broker.join(operator) as reader, broker.join(pump) as peer:
        reader.ask(mqtt.subscribe(("devices/+/up/#", 0), ("fleet/notices/#", 0)))
        peer.send(mqtt.publish(topic, b"forged"))
        peer.sync()
        reader.sync()
    denied = broker.wait_event(Denied)
    assert (Action.PUBLISH, topic) == (denied.action, denied.topic)


@pytest.mark.parametrize("qos", [1, 2])
def test_a_denied_message_of_qos_1_or_2_ends_the_connection(
    broker: RunningEngine, pump: Identity, operator: Identity, qos: int
) -> None:
    """An acknowledgement would be believed (hole 9)."""
    with broker.join(operator) as reader:
        reader.ask(mqtt.subscribe(("devices/+/up/#", 2)))
        with broker.join(pump) as peer:
            peer.send(mqtt.publish("devices/valve-1/up/x", b"forged", qos))
            assert peer.is_closed()
        reader.sync()
    gone = broker.wait_event(Disconnected, lambda event: event.client.principal == pump.principal)
    assert (Reason.PUBLISH_DENIED, "devices/valve-1/up/x") == (gone.reason, gone.detail)


@pytest.mark.parametrize("topic_filter", FOREIGN_FILTERS)
def test_a_denied_filter_fails_alone(broker: RunningEngine, pump: Identity, topic_filter: str) -> None:
    """A device would read another's, or the whole fleet; and one refusal would cost it its other subscriptions."""
    with broker.join(pump) as peer:
        answer = peer.ask(mqtt.subscribe((topic_filter, 1), ("devices/pump-07/down/#", 1)))
        assert mqtt.suback(0x80, 1) == answer
    assert topic_filter == broker.wait_event(Denied).topic


def test_a_device_reads_its_own_and_the_notices(broker: RunningEngine, pump: Identity, operator: Identity) -> None:
    """It would not hear what is meant for it."""
    with broker.join(pump) as peer, broker.join(operator) as sender:
        wanted = [("devices/pump-07/down/commands/+/+", 1), ("devices/pump-07/down/#", 1), ("fleet/notices/#", 1)]
        assert mqtt.suback(1, 1, 1) == peer.ask(mqtt.subscribe(*wanted))
        sender.send(mqtt.publish("devices/pump-07/down/state", b"{}"))
        sender.send(mqtt.publish("fleet/notices/storm", b"!"))
        assert mqtt.publish("devices/pump-07/down/state", b"{}") == peer.receive()
        assert mqtt.publish("fleet/notices/storm", b"!") == peer.receive()


def test_a_service_publishes_nothing(broker: RunningEngine) -> None:
    """A back-end program would command devices without a rule that says so."""
    service = broker.admit(broker.fleet.client("historian", Role.SERVICE))
    with broker.join(service) as peer:
        peer.send(mqtt.publish("devices/pump-07/down/state", b"{}", 1))
        assert peer.is_closed()


def test_dispatch_commands_devices(broker: RunningEngine, pump: Identity) -> None:
    """The fleet's own client would be shut out."""
    dispatch = broker.admit(broker.fleet.client("dispatch", Role.SERVICE))
    with broker.join(pump) as device, broker.join(dispatch) as peer:
        device.ask(mqtt.subscribe(("devices/pump-07/down/#", 1)))
        assert mqtt.puback(9) == peer.ask(mqtt.publish("devices/pump-07/down/commands/echo/1", b"{}", 1, 9))
        assert mqtt.publish("devices/pump-07/down/commands/echo/1", b"{}", 1, 1) == device.receive()


def test_the_brokers_own_identity_may_connect_and_nothing_else(broker: RunningEngine) -> None:
    """The canary's identity, lying in a file beside the broker, would be a key to everything."""
    canary = broker.admit(broker.fleet.client("broker", Role.BROKER))
    with broker.join(canary) as peer:
        assert mqtt.suback(0x80, 0x80) == peer.ask(mqtt.subscribe(("#", 0), ("fleet/notices/#", 0)))
        peer.send(mqtt.publish("fleet/notices/x", b"", 1))
        assert peer.is_closed()


@pytest.mark.parametrize("topic", [*FOREIGN_TOPICS, "$SYS/x"])
@pytest.mark.parametrize("retain", [False, True])
def test_a_will_elsewhere_is_refused_at_connect(
    broker: RunningEngine, pump: Identity, topic: str, retain: bool
) -> None:
    """A device would speak as another by dying (hole 3)."""
    with broker.peer(pump) as peer:
        assert NOT_AUTHORIZED == peer.ask(mqtt.connect(pump.id, will=(topic, b"forged", 1, retain)))
        assert peer.is_closed()
    assert Reason.WILL_DENIED is broker.wait_event(Refused).reason


def test_a_will_is_published_when_the_connection_is_lost(
    broker: RunningEngine, pump: Identity, operator: Identity
) -> None:
    """3.1.2.5: nobody would learn that a device is gone."""
    with broker.join(operator) as reader:
        reader.ask(mqtt.subscribe(("devices/+/up/#", 1)))
        with broker.join(pump, mqtt.connect(pump.id, will=("devices/pump-07/up/status", b"gone", 1, True))):
            pass
        assert mqtt.publish("devices/pump-07/up/status", b"gone", 1, 1) == reader.receive()


def test_a_disconnect_takes_the_will_along(broker: RunningEngine, pump: Identity, operator: Identity) -> None:
    """MQTT-3.1.2-10: a device that left in order would be reported lost."""
    with broker.join(operator) as reader:
        reader.ask(mqtt.subscribe(("devices/+/up/#", 1)))
        with broker.join(pump, mqtt.connect(pump.id, will=("devices/pump-07/up/status", b"gone", 1, True))) as peer:
            peer.send(mqtt.DISCONNECT)
            assert peer.is_closed()
        reader.sync()


def test_a_retained_message_waits_for_who_may_read_it(
    broker: RunningEngine, pump: Identity, valve: Identity, operator: Identity
) -> None:
    """Retained messages would reach whoever connects (hole 4)."""
    with broker.join(pump) as peer:
        peer.ask(mqtt.publish("devices/pump-07/up/status", b"on", 1, retain=True))
    with broker.join(valve) as stranger:
        stranger.ask(mqtt.subscribe(("#", 1), ("devices/+/up/#", 1), ("devices/valve-1/down/#", 1)))
        stranger.sync()
    with broker.join(operator) as reader:
        assert mqtt.suback(1) == reader.ask(mqtt.subscribe(("devices/+/up/status", 1)))
        assert mqtt.publish("devices/pump-07/up/status", b"on", 1, 1, retain=True) == reader.receive()


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("payload", [b"off", b""], ids=["replaced", "deleted"])
def test_retaining_elsewhere_is_denied(
    broker: RunningEngine, pump: Identity, valve: Identity, operator: Identity, qos: int, payload: bytes
) -> None:
    """A device would leave a message in another's name for whoever comes, or delete what another left."""
    with broker.join(valve) as other, broker.join(pump) as peer:
        other.ask(mqtt.publish("devices/valve-1/up/status", b"on", 1, retain=True))
        peer.send(mqtt.publish("devices/valve-1/up/status", payload, qos, retain=True))
        if qos:
            assert peer.is_closed()
        else:
            peer.sync()
    with broker.join(operator) as reader:
        reader.ask(mqtt.subscribe(("devices/+/up/#", 0)))
        assert mqtt.publish("devices/valve-1/up/status", b"on", retain=True) == reader.receive()
        reader.sync()


def test_an_empty_retained_message_deletes(broker: RunningEngine, pump: Identity, operator: Identity) -> None:
    """MQTT-3.3.1-10: what was withdrawn would come back."""
    with broker.join(pump) as peer:
        peer.ask(mqtt.publish("devices/pump-07/up/status", b"on", 1, retain=True))
        peer.ask(mqtt.publish("devices/pump-07/up/status", b"", 1, retain=True))
    with broker.join(operator) as reader:
        reader.ask(mqtt.subscribe(("devices/+/up/#", 1)))
        reader.sync()


def test_subscriptions_are_bounded(limited: Callable[[Limits], RunningEngine], fleet: TestFleet) -> None:
    """One device would fill the routing table."""
    broker = limited(Limits(subscriptions_per_session=2))
    with broker.join(broker.device("pump-07")) as peer:
        filters = [(f"devices/pump-07/down/{name}", 0) for name in "abc"]
        assert mqtt.suback(0, 0, 0x80) == peer.ask(mqtt.subscribe(*filters))
        assert mqtt.suback(1, id=2) == peer.ask(mqtt.subscribe((filters[0][0], 1), id=2))


@dataclass(frozen=True, slots=True)
class ChangingPolicy(Policy):
    """Rules that are replaced while the engine runs: the last of `versions` holds."""

    versions: list[Policy] = field(default_factory=list)

    def grants(self, principal: Principal) -> Grants:
        return self.versions[-1].grants(principal)


def test_a_kept_subscription_is_decided_again_when_its_owner_is_back(
    make_engine: Callable[[Clock], Engine], fleet: TestFleet
) -> None:
    """What the rules no longer allow would go on for all who had subscribed to it before."""
    policy = ChangingPolicy((), [DEFAULT_POLICY])
    without_notices = Policy(tuple(rule for rule in DEFAULT_POLICY.rules if rule.name != "device-reads-notices"))
    with RunningEngine(make_engine, fleet, policy=policy) as broker:
        pump = broker.device("pump-07")
        with broker.join(pump, mqtt.connect(pump.id, clean=False)) as device:
            device.ask(mqtt.subscribe(("fleet/notices/#", 0), ("devices/pump-07/down/#", 0)))
        broker.wait_event(Disconnected)
        policy.versions.append(without_notices)
        with broker.peer(pump) as device, broker.join(broker.admin()) as sender:
            assert mqtt.ACCEPTED_PRESENT == device.ask(mqtt.connect(pump.id, clean=False))
            sender.send(mqtt.publish("fleet/notices/storm", b"!"), mqtt.publish("devices/pump-07/down/state", b"{}"))
            assert mqtt.publish("devices/pump-07/down/state", b"{}") == device.receive()
            device.sync()


def test_an_entry_of_a_certificate_does_not_lend_its_role(broker: RunningEngine) -> None:
    """The role in a certificate's SAN would count, though the directory says another."""
    claimed = broker.fleet.client("pump-07", Role.OPERATOR, life=timedelta(hours=2))
    listed = broker.fleet.client("pump-07", Role.DEVICE)
    entry = broker.entry(listed)
    broker.apply(type(entry)(entry.seq, listed.principal, entry.state, 1, frozenset({claimed.serial})))
    with broker.join(claimed) as peer:
        assert mqtt.suback(0x80) == peer.ask(mqtt.subscribe(("devices/+/up/#", 1)))
