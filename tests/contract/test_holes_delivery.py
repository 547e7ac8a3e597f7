"""Holes 9 to 12 of amqtt as it ships (DESIGN section 6): what is promised and not kept, and what it costs.

Not written here, because nothing can be seen of it on the wire that the loss at disconnect does not show already: an
unacknowledged QoS 1 message is also given up after 5 s on a live connection.
"""

from __future__ import annotations

import contextlib
import ssl

import pytest

from fleet.limits import Limits
from tests import mqtt
from tests.contract.attacks import Target, asks, attack, enter, hears, is_alive
from tests.deadlines import within
from tests.mqtt import Peer

UP = "devices/pump-07/up/x"
DOWN = "devices/pump-07/down/x"


def first_publish(target: Target, peer: Peer) -> bytes:
    """The next PUBLISH; nothing if none comes."""
    peer.socket.settimeout(within(2))
    with contextlib.suppress(ConnectionError, ssl.SSLError, AssertionError):
        while (frame := peer.receive())[0] >> 4 != 3:
            pass
        return frame
    return b""


@attack()
def test_hole_09_the_qos_is_the_subscribers_alone(target: Target) -> bool:
    """A message of QoS 0 is delivered, and has to be acknowledged, as QoS 1 (3.8.4: the lower of both)."""
    with enter(target, target.admin()) as reader, enter(target, target.device("pump-07")) as sender:
        reader.ask(mqtt.subscribe((UP, 1)))
        sender.send(mqtt.publish(UP, b"x"))
        return first_publish(target, reader) != mqtt.publish(UP, b"x")


@attack()
def test_hole_09_subscribing_again_changes_nothing(target: Target) -> bool:
    """SUBACK grants the new QoS, and messages come with the old one (MQTT-3.8.4-3)."""
    with enter(target, target.admin()) as reader, enter(target, target.device("pump-07")) as sender:
        reader.ask(mqtt.subscribe((UP, 0)))
        assert mqtt.suback(1, id=2) == reader.ask(mqtt.subscribe((UP, 1), id=2))
        assert mqtt.puback(1) == sender.ask(mqtt.publish(UP, b"x", 1))
        return first_publish(target, reader) != mqtt.publish(UP, b"x", 1)


@attack()
def test_hole_09_what_was_not_acknowledged_is_lost_at_disconnect(target: Target) -> bool:
    """A device that loses its connection before PUBACK never gets the command again (MQTT-4.4.0-1)."""
    device = target.device("pump-07")
    with enter(target, target.admin()) as sender:
        with enter(target, device, clean=False) as before:
            before.ask(mqtt.subscribe((DOWN, 1)))
            assert mqtt.puback(1) == sender.ask(mqtt.publish(DOWN, b"command", 1))
            assert hears(target, before, b"command")
        with enter(target, device, clean=False) as after:
            return not hears(target, after, b"command")


@attack()
def test_hole_09_what_waited_is_said_to_be_retained(target: Target) -> bool:
    """A command that was queued looks like a state that was kept (MQTT-3.3.1-9)."""
    device = target.device("pump-07")
    with enter(target, device, clean=False) as peer:
        peer.ask(mqtt.subscribe((DOWN, 1)))
        peer.send(mqtt.DISCONNECT)
        assert peer.is_closed()
    with enter(target, target.admin()) as sender:
        sender.ask(mqtt.subscribe(("devices/+/down/#", 0)))
        sender.send(mqtt.publish(DOWN, b"command", 1))
        hears(target, sender, b"command")  # and by then amqtt has queued it for the device, who comes earlier
        with enter(target, device, clean=False) as peer:
            return bool(first_publish(target, peer)[0] & 0x01)


@attack()
def test_hole_09_a_message_that_is_denied_is_acknowledged(target: Target) -> bool:
    """The sender believes that it was delivered (3.3.5 allows this, or closing)."""
    with enter(target, target.device("pump-07")) as sender:
        return asks(sender, mqtt.publish("devices/valve-1/up/x", b"x", 1)) == mqtt.puback(1)


@attack(Limits(subscriptions_per_session=10))
def test_hole_09_one_who_subscribes_in_a_loop_makes_others_messages_vanish(target: Target) -> bool:
    """The table of filters changes while a message walks it: who comes later in it gets nothing, and nobody is told."""
    count, rounds = 300, 400
    with (
        enter(target, target.admin()) as sender,
        enter(target, target.device("pump-07")) as reader,
        enter(target, target.device("valve-1")) as attacker,
    ):
        sender.ask(mqtt.subscribe(("devices/+/down/#", 0)))  # someone has to come first in the table
        reader.ask(mqtt.subscribe((DOWN, 0)))
        filters = [f"devices/valve-1/down/{n}" for n in range(rounds)]
        attacker.send(*(mqtt.subscribe((f, 0)) + mqtt.unsubscribe(f) for f in filters))
        sender.send(*(mqtt.publish(DOWN, b"x", 1, n) for n in range(1, count + 1)))
        acknowledged = {mqtt.puback(n) for n in range(1, count + 1)}
        while acknowledged:
            acknowledged.discard(sender.receive())
        return not all(first_publish(target, reader) for _ in range(count))


@attack()
def test_hole_09_what_was_acknowledged_is_lost_when_its_sender_leaves(target: Target) -> bool:
    """PUBACK comes before anything is routed, and what was not routed yet dies with the sender's connection."""
    count = 300
    with enter(target, target.device("pump-07")) as reader:
        reader.ask(mqtt.subscribe((DOWN, 0)))
        with enter(target, target.admin()) as sender:
            sender.send(*(mqtt.publish(DOWN, b"x", 1, n) for n in range(1, count + 1)))
            assert {mqtt.puback(n) for n in range(1, count + 1)} == {sender.receive() for _ in range(count)}
        return not all(first_publish(target, reader) for _ in range(count))


@attack()
def test_hole_10_a_dollar_topic_leaves_a_zombie(target: Target) -> bool:
    """After a PUBLISH to `$...` PINGREQ is answered, and nothing else ever again."""
    with enter(target, target.device("pump-07")) as peer:
        peer.send(mqtt.publish("$SYS/x", b"x"))
        peer.socket.settimeout(within(1))
        with contextlib.suppress(AssertionError):
            return is_alive(peer) and peer.ask(mqtt.subscribe((DOWN, 0))) != mqtt.suback(0)
        return True


@attack()
def test_hole_10_a_shared_subscription_is_granted_and_never_served(target: Target) -> bool:
    """SUBACK says yes to `$share/...`, and no message comes."""
    with enter(target, target.admin()) as reader, enter(target, target.device("pump-07")) as sender:
        answer = reader.ask(mqtt.subscribe(("$share/g/devices/+/up/#", 0)))
        sender.send(mqtt.publish(UP, b"x"))
        sender.sync()
        return answer == mqtt.suback(0) and not hears(target, reader, b"x")


@attack()
def test_hole_11_after_a_reconnect_over_a_live_connection_nothing_comes(target: Target) -> bool:
    """The owner is back, is told that its session is present, and is deaf."""
    device = target.device("pump-07")
    with enter(target, device, clean=False) as old:
        old.ask(mqtt.subscribe((DOWN, 1)))
        with enter(target, device, clean=False) as new, enter(target, target.admin()) as sender:
            assert mqtt.puback(1) == sender.ask(mqtt.publish(DOWN, b"command", 1))
            return not hears(target, new, b"command")


MANY = Limits(subscriptions_per_session=10_000, messages_per_second=100_000, retained_per_principal=10_000)


def cost(target: Target, peer: Peer, *frames: bytes, answers: int) -> float:
    """The seconds that the broker computes until so many answers came."""
    before = target.cpu_seconds()
    peer.send(*frames)
    for _ in range(answers):
        peer.receive()
    return target.cpu_seconds() - before


@attack(MANY)
@pytest.mark.parametrize("what", ["publish", "subscribe"])
def test_hole_12_all_filters_are_walked_each_time(target: Target, what: str) -> bool:
    """What a message or a subscription costs grows with all that others have subscribed to."""
    with enter(target, target.device("pump-07")) as peer, enter(target, target.device("valve-1")) as attacker:
        others = [(f"devices/valve-1/down/{n}/+", 0) for n in range(2000)]
        peer.ask(mqtt.subscribe(("devices/pump-07/down/#", 0)))
        costs = []
        for filters in ([], others):
            if filters:
                attacker.ask(mqtt.subscribe(*filters))
            costs.append(
                cost(target, peer, *(mqtt.publish(UP, b"x", 1, n) for n in range(1, 51)), answers=50)
                if what == "publish"
                else cost(target, peer, *(mqtt.subscribe((DOWN, 0), id=n) for n in range(1, 51)), answers=50)
            )
        return costs[1] > 4 * costs[0]


@attack(MANY)
def test_hole_12_all_retained_messages_are_walked_for_all_filters_at_each_connect(target: Target) -> bool:
    """What a CONNECT costs grows with the product of what others have subscribed to and retained."""
    device = target.device("meter-3")
    with enter(target, target.device("valve-1")) as attacker:
        costs = []
        for count in (0, 200):
            if count:
                attacker.ask(mqtt.subscribe(*((f"devices/valve-1/down/{n}/+", 0) for n in range(count))))
                for n in range(1, count + 1):
                    attacker.ask(mqtt.publish(f"devices/valve-1/up/{n}", b"x", 1, n, retain=True))
            before = target.cpu_seconds()
            for _ in range(5):
                with enter(target, device) as peer:
                    assert is_alive(peer)
            costs.append(target.cpu_seconds() - before)
        return costs[1] > 4 * costs[0]
