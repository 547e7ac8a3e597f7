"""What brokers are commonly tested with (the Eclipse Paho suite's scenarios for 3.1.1, and more), on our topics."""

from __future__ import annotations

import pytest

from broker.engine import Disconnected, Reason
from tests.certificates import Identity
from tests.contract.engines import RunningEngine
from tests.interop.conftest import Join
from tests.interop.peers import Client, Connack, Message, Will

UP = "devices/pump-07/up"
DOWN = "devices/pump-07/down"
ALL_UP, ALL_DOWN = "devices/+/up/#", "devices/pump-07/down/#"
END = f"{UP}/end"


def nothing_more(reader: Client, sender: Client, *, level: str = UP) -> None:
    """Nothing is on its way to `reader`: a message that is sent now comes next."""
    sender.publish(f"{level}/end", "end")
    assert Message(f"{level}/end", "end") == reader.receive()


def test_basic(device: Client, operator: Client) -> None:
    """Connect, subscribe, publish at each QoS in both directions, disconnect, and again."""
    for _ in range(2):
        assert Connack(0) == device.connect()
        assert Connack(0) == operator.connect()
        assert [2] == operator.subscribe((ALL_UP, 2))
        assert [2] == device.subscribe((ALL_DOWN, 2))
        for qos in range(3):
            device.publish(f"{UP}/telemetry/speed", f"{qos}", qos)
            assert Message(f"{UP}/telemetry/speed", f"{qos}", qos) == operator.receive()
            operator.publish(f"{DOWN}/commands/stop/{qos}", f"{qos}", qos)
            assert Message(f"{DOWN}/commands/stop/{qos}", f"{qos}", qos) == device.receive()
        nothing_more(operator, device)
        device.disconnect()
        operator.disconnect()


def test_the_lower_qos_counts(device: Client, operator: Client) -> None:
    """A message is promised what both sides asked for, not more and not less."""
    device.connect()
    operator.connect()
    for granted in range(3):
        assert [granted] == operator.subscribe((ALL_UP, granted))
        for qos in range(3):
            device.publish(f"{UP}/x", f"{granted}{qos}", qos)
            assert Message(f"{UP}/x", f"{granted}{qos}", min(qos, granted)) == operator.receive()


def test_retained_messages(device: Client, operator: Client, service: Client) -> None:
    """The last retained message of each topic waits for a new subscriber, marked; an empty one deletes it."""
    device.connect()
    service.connect()
    service.subscribe((ALL_UP, 2))
    for qos in range(3):
        device.publish(f"{UP}/kept/{qos}", "old", qos, retain=True)
        device.publish(f"{UP}/kept/{qos}", "new", qos, retain=True)
        for payload in ("old", "new"):  # who is there already gets them as any other message
            assert Message(f"{UP}/kept/{qos}", payload, qos) == service.receive()
    operator.connect()
    operator.subscribe((ALL_UP, 2))
    kept = {Message(f"{UP}/kept/{qos}", "new", qos, retain=True) for qos in range(3)}
    assert kept == {operator.receive() for _ in range(3)}
    operator.disconnect()
    device.publish(f"{UP}/kept/0", "not retained")
    for qos in (1, 2):
        device.publish(f"{UP}/kept/{qos}", "", qos, retain=True)
    operator.connect()
    operator.subscribe((ALL_UP, 2))
    assert Message(f"{UP}/kept/0", "new", 0, retain=True) == operator.receive()
    nothing_more(operator, device)


def test_offline_message_queueing(engine: RunningEngine, device: Client, operator: Client) -> None:
    """A session that is kept receives what came meanwhile, in order, and is told that it was kept."""
    assert Connack(0) == device.connect(clean=False)
    device.subscribe((ALL_DOWN, 2))
    device.disconnect()
    engine.wait_event(Disconnected)
    operator.connect()
    for qos in (0, 1, 2):
        for number in range(3):
            operator.publish(f"{DOWN}/x", f"{qos} {number}", qos)
    assert Connack(0, session_present=True) == device.connect(clean=False)
    expected = [Message(f"{DOWN}/x", f"{qos} {number}", qos) for qos in (1, 2) for number in range(3)]
    assert expected == [device.receive() for _ in expected]  # QoS 0 is not owed to the absent
    nothing_more(device, operator, level=DOWN)


def test_a_clean_session_ends_the_one_before(engine: RunningEngine, device: Client, operator: Client) -> None:
    """What is said to be forgotten is: subscriptions, what waits, that there was a session."""
    device.connect(clean=False)
    device.subscribe((ALL_DOWN, 1))
    device.disconnect()
    engine.wait_event(Disconnected)
    operator.connect()
    operator.publish(f"{DOWN}/x", "waits", 1)
    assert Connack(0) == device.connect(clean=True)
    device.disconnect()
    assert Connack(0) == device.connect(clean=False)
    operator.publish(f"{DOWN}/x", "for nobody", 1)
    device.subscribe((ALL_DOWN, 1))
    nothing_more(device, operator, level=DOWN)


@pytest.mark.parametrize("retain", [False, True])
def test_will_message(device: Client, operator: Client, service: Client, *, retain: bool) -> None:
    """A lost connection publishes the will once, and retained if it is to be; an orderly end publishes nothing."""
    will = Will(f"{UP}/status", "lost", 1, retain)
    operator.connect()
    operator.subscribe((ALL_UP, 2))
    device.connect(will=will)
    device.disconnect()
    device.connect(will=will)
    device.drop()
    assert Message(will.topic, will.payload, 1) == operator.receive()
    device.connect()
    nothing_more(operator, device)
    service.connect()
    service.subscribe((ALL_UP, 0))
    if retain:
        assert Message(will.topic, will.payload, 0, retain=True) == service.receive()
    nothing_more(service, device)


def test_overlapping_subscriptions(device: Client, operator: Client) -> None:
    """A message that several filters of a client match comes once, at the highest QoS of these."""
    device.connect()
    operator.connect()
    assert [0, 2, 1] == operator.subscribe((ALL_UP, 0), ("devices/pump-07/up/x", 2), ("devices/pump-07/#", 1))
    device.publish(f"{UP}/x", "once", 2)
    assert Message(f"{UP}/x", "once", 2) == operator.receive()
    device.publish(f"{UP}/y", "twice", 2)
    assert Message(f"{UP}/y", "twice", 1) == operator.receive()
    nothing_more(operator, device)


def test_redelivery_on_reconnect(engine: RunningEngine, device: Client, operator: Client) -> None:
    """What a lost connection did not acknowledge comes again, marked and in its first order, before anything new."""
    operator.connect()
    device.connect(clean=False, holds_acks=True)
    device.subscribe((ALL_DOWN, 2))
    for number in range(3):
        operator.publish(f"{DOWN}/x", f"{number}", 1)
    assert Message(f"{DOWN}/x", "0", 1) == device.receive()
    device.drop()
    engine.wait_event(Disconnected)
    operator.publish(f"{DOWN}/x", "new", 1)
    assert Connack(0, session_present=True) == device.connect(clean=False)
    again = [Message(f"{DOWN}/x", f"{number}", 1, dup=True) for number in range(3)]
    assert [*again, Message(f"{DOWN}/x", "new", 1)] == [device.receive() for _ in range(4)]
    nothing_more(device, operator, level=DOWN)


def test_a_qos_2_exchange_is_ended_on_reconnect(engine: RunningEngine, device: Client, operator: Client) -> None:
    """What both libraries answer with PUBREC themselves never comes again: PUBREL does, and what waited goes on."""
    operator.connect()
    device.connect(clean=False, holds_acks=True)
    device.subscribe((ALL_DOWN, 2))
    operator.publish(f"{DOWN}/x", "once", 2)
    assert Message(f"{DOWN}/x", "once", 2) == device.receive()
    device.drop()
    engine.wait_event(Disconnected)
    operator.publish(f"{DOWN}/x", "new", 2)
    assert Connack(0, session_present=True) == device.connect(clean=False)
    assert Message(f"{DOWN}/x", "new", 2) == device.receive()
    nothing_more(device, operator, level=DOWN)


def test_zero_length_client_id(
    new_client: Join, pair: tuple[str, str], admin: Identity, device: Client, operator: Client
) -> None:
    """A client that gives itself no name gets in, and does not end another one of the same person."""
    second = new_client(pair[0], admin)
    assert Connack(0) == device.connect(client_id="")
    for one in (operator, second):
        assert Connack(0) == one.connect(client_id="")
        one.subscribe((ALL_UP, 0))
    device.publish(f"{UP}/x", "from nobody")
    for one in (operator, second):
        assert Message(f"{UP}/x", "from nobody") == one.receive()


def test_dollar_topics(device: Client, operator: Client, service: Client) -> None:
    """A wildcard that comes first does not match a topic that begins with $; one that names it does."""
    device.connect()
    operator.connect()
    assert [0, 0, 0] == operator.subscribe(("#", 0), ("+/x", 0), ("+/pump-07/up/#", 0))
    operator.publish("$test/x", "unseen")
    nothing_more(operator, device)
    assert [0] == operator.subscribe(("$test/#", 0))
    operator.publish("$test/x", "seen")
    assert Message("$test/x", "seen") == operator.receive()


def test_unsubscribe(device: Client, operator: Client) -> None:
    """Only what is still subscribed comes; what never was is acknowledged all the same."""
    device.connect()
    operator.connect()
    operator.subscribe((f"{UP}/a", 1), (f"{UP}/b", 1), (END, 0))
    operator.unsubscribe(f"{UP}/a", "devices/+/up/never")
    for name in ("a", "b", "a"):
        device.publish(f"{UP}/{name}", name, 1)
    assert Message(f"{UP}/b", "b", 1) == operator.receive()
    nothing_more(operator, device)


def test_subscribe_failure(device: Client, operator: Client) -> None:
    """A filter that is not allowed is answered with 0x80, between those that are."""
    device.connect()
    operator.connect()
    foreign = "devices/valve-1/down/#"
    assert [1, 0x80, 0] == device.subscribe((ALL_DOWN, 1), (foreign, 1), ("fleet/notices/#", 0))
    assert [0x80] == device.subscribe((ALL_UP, 1))
    operator.publish("devices/valve-1/down/x", "not yours", 1)
    nothing_more(device, operator, level=DOWN)


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_messages_keep_their_order(device: Client, operator: Client, qos: int) -> None:
    """Of each topic and QoS, what was sent first comes first."""
    device.connect()
    operator.connect()
    operator.subscribe((ALL_UP, 2))
    expected = [Message(f"{UP}/{number % 3}", f"{number}", qos) for number in range(60)]
    for message in expected:
        device.publish(message.topic, message.payload, qos)
    assert expected == [operator.receive() for _ in expected]


def test_what_a_topic_and_a_payload_may_hold(device: Client, operator: Client) -> None:
    """Any text that is no control character, spaces and empty levels too; a payload as large as telemetry may be."""
    device.connect()
    operator.connect()
    operator.subscribe((ALL_UP, 2))
    for topic in (f"{UP}/température/水", f"{UP}/ a b ", f"{UP}//", f"{UP}/\ufeffx"):
        device.publish(topic, "Größe 🙂", 1)
        assert Message(topic, "Größe 🙂", 1) == operator.receive()
    large = "x" * 131_072
    device.publish(f"{UP}/large", large, 2)
    assert Message(f"{UP}/large", large, 2) == operator.receive()


def test_a_second_connection_takes_over(
    engine: RunningEngine, new_client: Join, pair: tuple[str, str], pump: Identity, device: Client, operator: Client
) -> None:
    """A device that comes back before its loss was noticed has its session, and the old connection ends."""
    operator.connect()
    device.connect(clean=False)
    device.subscribe((ALL_DOWN, 1))
    again = new_client(pair[1], pump)
    assert Connack(0, session_present=True) == again.connect(clean=False)
    assert Reason.TAKEN_OVER is engine.wait_event(Disconnected).reason
    operator.publish(f"{DOWN}/x", "for the new one", 1)
    assert Message(f"{DOWN}/x", "for the new one", 1) == again.receive()
