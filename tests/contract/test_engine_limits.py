"""What one client may take: whoever takes more is slowed, then cut, and nobody else notices."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import pytest

from broker.engine import Disconnected, Reason, Refused, Slowed
from fleet.identity import Role
from fleet.limits import Limits
from tests import mqtt
from tests.contract.engines import RunningEngine
from tests.mqtt import Peer

Limited = Callable[[Limits], RunningEngine]
STATUS = "devices/pump-07/up/status"


def reader(broker: RunningEngine) -> Peer:
    """A service that reads what all devices say."""
    peer = broker.join(broker.admit(broker.fleet.client("sink", Role.SERVICE)))
    peer.ask(mqtt.subscribe(("devices/+/up/#", 1)))
    return peer


def test_whoever_sends_too_much_is_read_more_slowly_and_loses_nothing(limited: Limited) -> None:
    """A device with a long backlog would be thrown out, or take the broker from all others."""
    broker = limited(Limits(messages_per_second=200, burst_seconds=0.1))
    with reader(broker) as sink, broker.join(broker.device("pump-07")) as pump:
        began = time.monotonic()
        for number in range(1, 101):
            pump.send(mqtt.publish(STATUS, b"%d" % number, 1, number))
            assert mqtt.puback(number) == pump.receive()
            assert b"%d" % number == sink.receive()[-len(str(number)) :]
            sink.send(mqtt.puback(number))
        assert 0.3 < time.monotonic() - began  # 80 of them at 200 a second
        assert "pump-07" == broker.wait_event(Slowed).client.client_id


def test_bytes_count_as_messages_do(limited: Limited) -> None:
    """A few huge messages would take what many small ones may not."""
    broker = limited(Limits(bytes_per_second=100_000, burst_seconds=0.1))
    with broker.join(broker.device("pump-07")) as pump:
        pump.send(*(mqtt.publish(STATUS, bytes(10_000)) for _ in range(4)))
        pump.sync()
    broker.wait_event(Slowed)


def test_a_reconnect_does_not_renew_what_may_be_sent(limited: Limited) -> None:
    """Whoever is slowed would only have to connect again."""
    broker = limited(Limits(messages_per_second=10, burst_seconds=0.2))
    pump = broker.device("pump-07")
    with broker.join(pump) as first:
        first.send(*(mqtt.publish(STATUS, b"1") for _ in range(8)))
        broker.wait_event(Slowed)
        began = time.monotonic()
        with broker.join(pump) as second:
            second.sync()
            second.sync()
        assert 0.3 < time.monotonic() - began


def test_who_is_slowed_is_not_taken_for_dead(limited: Limited) -> None:
    """MQTT-3.1.2-24: what it sent in time lies unread on our side of the wire."""
    broker = limited(Limits(messages_per_second=2, burst_seconds=0.5))
    pump = broker.device("pump-07")
    with broker.join(pump, mqtt.connect(pump.id, keep_alive=1)) as peer:
        peer.send(*(mqtt.publish(STATUS, b"1") for _ in range(6)))  # pays for 2.5 s, over 1.5 times its keep-alive
        peer.sync()


def test_whoever_never_stops_sending_too_much_is_cut(limited: Limited) -> None:
    """A flood would go on for ever."""
    broker = limited(Limits(messages_per_second=100, burst_seconds=0.01, slowed_seconds=0.3))
    with broker.join(broker.device("pump-07")) as pump:
        flood = (mqtt.publish(STATUS, b"x", 1) for _ in range(100_000))
        with pytest.raises((ConnectionError, OSError)):
            deque(map(pump.ask, flood), maxlen=0)
    assert Reason.TOO_FAST is broker.wait_event(Disconnected).reason


def test_a_flood_hides_nobody_from_a_slow_reader(limited: Limited) -> None:
    """One certified device would make the acknowledged results of all others vanish."""
    broker = limited(Limits(inflight_per_session=1, queued_messages_per_session=20, multiple_for_services=1))
    with reader(broker) as sink:
        with broker.join(broker.device("flooder")) as flooder:
            for number in range(1, 101):
                flooder.send(mqtt.publish("devices/flooder/up/status", b"flood", 1, number))
                assert mqtt.puback(number) == flooder.receive()
        for device in ("pump-1", "pump-2", "pump-3"):
            with broker.join(broker.device(device)) as pump:
                assert mqtt.puback(1) == pump.ask(mqtt.publish(f"devices/{device}/up/results/c1", b"done", 1))
        received = []
        for _ in range(21):
            frame = sink.receive()
            received.append(frame)
            sink.send(mqtt.puback(int.from_bytes(frame[4 + frame[3] : 6 + frame[3]], "big")))
        assert 3 == sum(frame.endswith(b"done") for frame in received)


def test_retained_messages_need_no_room_in_the_queue(limited: Limited) -> None:
    """The status of most devices would be missing, without a sign, or one device's would hide the others'."""
    broker = limited(Limits(inflight_per_session=2, queued_messages_per_session=5, queued_bytes_per_session=1000))
    topics = [f"devices/pump-07/up/status/{number}" for number in range(60)]
    with broker.join(broker.device("pump-07")) as pump:
        for topic in topics:
            assert mqtt.puback(1) == pump.ask(mqtt.publish(topic, bytes(500), 1, retain=True))
    operator = broker.admit(broker.fleet.client("admin", Role.OPERATOR))
    with broker.join(operator) as peer:
        peer.ask(mqtt.subscribe(("devices/+/up/#", 1)))
        found = []
        for _ in topics:
            frame = peer.receive()
            (topic,) = (topic for topic in topics if mqtt.field(topic) in frame)
            found.append(topic)
            peer.send(mqtt.puback(int.from_bytes(frame[5 + len(topic) : 7 + len(topic)], "big")))
        assert sorted(topics) == sorted(found)
        peer.sync()


def test_what_is_retained_is_sent_as_it_is_by_then(limited: Limited) -> None:
    """A slow reader would be given, after the news, what it replaced."""
    broker = limited(Limits(inflight_per_session=1))
    pump, operator = broker.device("pump-07"), broker.admit(broker.fleet.client("admin", Role.OPERATOR))
    with broker.join(pump) as sender, broker.join(operator) as peer:
        for name in ("a", "b"):
            sender.ask(mqtt.publish(f"{STATUS}/{name}", b"old", 1, retain=True))
        peer.ask(mqtt.subscribe(("devices/+/up/#", 1)))
        first = peer.receive()
        other = f"{STATUS}/b" if mqtt.field(f"{STATUS}/a") in first else f"{STATUS}/a"
        sender.ask(mqtt.publish(other, b"new", 1, retain=True))
        peer.send(mqtt.puback(1))
        assert mqtt.publish(other, b"new", 1, 2) == peer.receive()
        peer.send(mqtt.puback(2))
        assert mqtt.publish(other, b"new", 1, 3, retain=True) == peer.receive()


def test_a_principal_retains_a_bounded_number_and_is_told(limited: Limited) -> None:
    """One device would fill the broker's memory for ever; or believe that what is not kept is kept."""
    broker = limited(Limits(retained_per_principal=2))
    with broker.join(broker.device("pump-07")) as peer:
        for name in ("a", "b", "a"):
            assert mqtt.puback(1) == peer.ask(mqtt.publish(f"devices/pump-07/up/{name}", b"1", 1, retain=True))
        peer.send(mqtt.publish("devices/pump-07/up/c", b"1", 0, retain=True))
        peer.sync()
        peer.send(mqtt.publish("devices/pump-07/up/c", b"1", 1, retain=True))
        assert peer.is_closed()
    assert Reason.TOO_MANY_RETAINED is broker.wait_event(Disconnected).reason
    assert 2 == broker.call(broker.engine.stats).retained


def test_a_successor_inherits_no_retained_message(broker: RunningEngine) -> None:
    """What the broken device said last would be the new one's, and its share would be used up."""
    old, new = broker.fleet.client("pump-07"), broker.fleet.client("pump-07")
    sink = broker.admit(broker.fleet.client("sink", Role.SERVICE))
    broker.apply(broker.entry(old))
    with broker.join(old) as peer:
        peer.ask(mqtt.publish("devices/pump-07/up/state", b"of the old one", 1, retain=True))
        broker.apply(broker.entry(new, epoch=2))
        assert peer.is_closed()
    with broker.join(new), broker.join(sink) as reading:
        reading.ask(mqtt.subscribe(("devices/+/up/state", 1)))
        reading.sync()


def test_subscriptions_are_bounded_for_all_together(limited: Limited) -> None:
    """Many devices would fill the routing table where one cannot."""
    broker = limited(Limits(max_subscriptions=2))
    with broker.join(broker.device("pump-07")) as pump, broker.join(broker.device("valve-1")) as valve:
        filters = [(f"devices/pump-07/down/{name}", 0) for name in "ab"]
        assert mqtt.suback(0, 0) == pump.ask(mqtt.subscribe(*filters))
        assert mqtt.suback(0x80) == valve.ask(mqtt.subscribe(("devices/valve-1/down/#", 0)))
        pump.ask(mqtt.unsubscribe(filters[0][0]))
        assert mqtt.suback(0) == valve.ask(mqtt.subscribe(("devices/valve-1/down/#", 0)))


def test_whoever_connects_too_often_waits_then_is_refused(limited: Limited) -> None:
    """Two clones that throw each other out, or a loop, would keep the broker busy with handshakes."""
    broker = limited(Limits(connects_per_minute=60, connect_seconds=2.5))
    pump = broker.device("pump-07")
    began = time.monotonic()
    for _ in range(62):  # however slow this machine is, the last of them has had to wait
        broker.join(pump).socket.close()
    assert 1.9 < time.monotonic() - began
    waiting = []
    while not any(isinstance(event, Refused) for event in broker.events):
        waiting.append(broker.peer(pump))
        waiting[-1].send(mqtt.connect(pump.id))
    assert Reason.TOO_MANY_CONNECTS is broker.wait_event(Refused).reason
    with broker.join(broker.device("valve-1")):
        pass
    for peer in waiting:
        peer.socket.close()


def test_a_revoked_device_does_not_make_the_broker_ask_without_end(
    limited: Callable[[Limits], RunningEngine],
) -> None:
    """It would flood the enrollment service through the broker, and take the look-ups of who is new."""
    broker = limited(Limits(connects_per_minute=3))
    pump = broker.device("pump-07")
    broker.revoke(pump)
    for _ in range(6):
        with broker.peer(pump) as peer:
            assert b"\x20\x02\x00\x05" == peer.ask(mqtt.connect(pump.id))
    assert [pump.serial] * 3 == broker.service.asked
    successor = broker.fleet.client(pump.id)
    broker.service.entries[successor.serial] = broker.entry(successor, epoch=2)
    with broker.join(successor) as heir:
        heir.sync()


def test_who_was_not_let_in_gives_way_to_who_comes(limited: Limited) -> None:
    """A stranger who opens connections and says nothing would keep the whole fleet out."""
    broker = limited(Limits(max_pending_connections=3))
    pump, valve = broker.device("pump-07"), broker.device("valve-1")
    with broker.join(pump) as settled:
        silent = [broker.peer(valve) for _ in range(10)]
        with broker.join(broker.device("pump-08")):
            settled.sync()
        assert silent[0].is_closed()
        for peer in silent:
            peer.socket.close()


def test_those_who_are_in_do_not_give_way(limited: Limited) -> None:
    """A stranger would throw devices out."""
    broker = limited(Limits(max_connections=2))
    with broker.join(broker.device("pump-1")) as first, broker.join(broker.device("pump-2")) as second:
        with pytest.raises((ConnectionError, OSError)):
            broker.join(broker.device("pump-3"))
        first.sync()
        second.sync()
    assert Reason.TOO_MANY_CONNECTIONS is broker.wait_event(Refused).reason


def test_whoever_tries_what_it_may_not_again_and_again_is_cut(limited: Limited) -> None:
    """A device would probe all names there are on one connection."""
    broker = limited(Limits(denials_per_connection=10))
    with broker.join(broker.device("pump-07")) as pump:
        pump.send(*(mqtt.publish(f"devices/pump-{n}/up/status", b"x") for n in range(20)))
        assert pump.is_closed()
    assert Reason.TOO_MANY_DENIALS is broker.wait_event(Disconnected).reason
    assert 10 == broker.call(broker.engine.stats).denied


def test_whoever_is_cut_within_a_subscribe_leaves_no_subscription(limited: Callable[[Limits], RunningEngine]) -> None:
    """Filters of a client that is gone would be kept for ever, until there is no room for anybody's."""
    broker = limited(Limits(denials_per_connection=3))
    with broker.join(broker.device("pump-07")) as peer:
        own = [(f"devices/pump-07/down/{n}", 1) for n in range(5)]
        peer.send(mqtt.subscribe(*own[:2], *[("#", 0)] * 3, *own[2:]))
        assert peer.is_closed()
    assert Reason.TOO_MANY_DENIALS is broker.wait_event(Disconnected).reason
    stats = broker.call(broker.engine.stats)
    assert (0, 0) == (stats.sessions, stats.subscriptions)


def test_what_comes_with_connect_is_no_way_around_the_rates(limited: Limited) -> None:
    """A device would send all it wants by connecting again each time."""
    broker = limited(Limits(messages_per_second=20, burst_seconds=1))
    pump = broker.device("pump-07")
    pipelined = mqtt.connect("pump-07") + mqtt.publish(STATUS, b"x") * 3000
    with reader(broker) as sink:
        for _ in range(10):
            with broker.peer(pump) as peer:
                peer.send(pipelined)
                assert mqtt.ACCEPTED == peer.receive()
        with broker.join(broker.device("valve-1")) as valve:
            valve.ask(mqtt.publish("devices/valve-1/up/status", b"last", 1))
        count = 0
        while not sink.receive().endswith(b"last"):
            count += 1
    assert count < 1500  # what fits into one look at what came, and no more


def test_many_tls_records_with_little_in_them_count(limited: Limited) -> None:
    """A device would keep the broker busy with decrypting nothing."""
    broker = limited(Limits(messages_per_second=100, burst_seconds=1))
    with broker.join(broker.device("pump-07")) as pump:
        for byte in mqtt.publish(STATUS, bytes(3000)):
            pump.socket.sendall(bytes((byte,)))
        assert "pump-07" == broker.wait_event(Slowed).client.client_id


def test_strangers_may_not_send_much_before_connect(limited: Limited) -> None:
    """A revoked certificate would be enough to keep the broker busy."""
    broker = limited(Limits())
    with broker.peer(broker.fleet.client("unknown")) as peer:
        frame = mqtt.connect("unknown", will=("devices/unknown/up/status", bytes(12_000), 0, False))
        with pytest.raises((ConnectionError, OSError)):
            deque(map(peer.socket.sendall, (bytes((byte,)) for byte in frame)), maxlen=0)
    assert "too much before CONNECT" == broker.wait_event(Refused).detail


def test_a_subscribe_of_very_many_filters_is_many_requests(limited: Limited) -> None:
    """One packet would take the broker for a second."""
    broker = limited(Limits(messages_per_second=100, burst_seconds=1))
    with broker.join(broker.device("pump-07")) as pump:
        filters = [("devices/pump-07/down/#", 0)] * 1000
        assert mqtt.suback(*[0] * 100, *[0x80] * 900) == pump.ask(mqtt.subscribe(*filters))
        broker.wait_event(Slowed)
