"""What an engine promises while its disk is full, waits or is damaged: nothing that is not on it."""

from __future__ import annotations

import itertools
import stat
from pathlib import Path

import pytest

from broker.engine import (
    Clock,
    Denied,
    Disconnected,
    Engine,
    MessagesLost,
    Reason,
    StoreDamaged,
    StoreFailed,
    StoreRecovered,
)
from broker.engines.amqtt.engine import AmqttEngine, Durable
from tests import mqtt
from tests.certificates import TestFleet
from tests.contract.durable import ALL_UP, DOWN, UP, VALVE_UP, Site, join, publish, subscribed
from tests.contract.stepping import Direct
from tests.contract.test_engine_races import TAKE_OVER, run
from tests.deadlines import within

# What waits for the disk


def test_nothing_is_promised_before_it_is_on_disk_and_answers_keep_their_order(site: Site) -> None:
    """MQTT-4.6.0-2; and a publisher would forget what a crash loses."""
    with site.running() as broker:
        subscribed(broker, site.admin, (ALL_UP, 1))
        with broker.join(site.pump) as peer:
            site.disk.goes_on.clear()
            peer.send(mqtt.publish(UP, b"kept", 1, 1), mqtt.publish("devices/pump-07/up", b"nobody's", 1, 2))
            peer.send(mqtt.publish(UP, b"kept", 1, 3))
            peer.send(mqtt.publish("x", b"not allowed, and so told"))
            broker.wait_event(Denied)
            peer.socket.settimeout(0.2)
            with pytest.raises(AssertionError):
                peer.receive()
            peer.socket.settimeout(within(10))
            site.disk.goes_on.set()
            assert [mqtt.puback(1), mqtt.puback(2), mqtt.puback(3)] == [peer.receive() for _ in range(3)]


def test_a_take_over_waits_for_what_its_predecessor_was_promised(site: Site) -> None:
    """An answer would come for what a crash can still lose, or on a connection that did not ask."""
    with site.running() as broker:
        subscribed(broker, site.admin, (ALL_UP, 2))
        old, new = join(broker, site.pump), broker.peer(site.pump)
        with old, new:
            site.disk.goes_on.clear()
            old.send(mqtt.publish(UP, b"once", 2, 9))
            old.send(mqtt.publish("x", b"not allowed, and so told"))
            broker.wait_event(Denied)
            new.send(mqtt.connect("pump-07", clean=False) + mqtt.publish(UP, b"once", 2, 9, dup=True))
            broker.wait_event(Disconnected, lambda e: e.reason is Reason.TAKEN_OVER)
            assert old.is_closed()
            new.socket.settimeout(0.2)
            with pytest.raises(AssertionError):
                new.receive()
            new.socket.settimeout(within(10))
            site.disk.goes_on.set()
            assert [mqtt.ACCEPTED_PRESENT, mqtt.pubrec(9)] == [new.receive(), new.receive()]
        with join(broker, site.admin, present=True) as reader:
            assert mqtt.publish(UP, b"once", 2, 1) == reader.receive()
            reader.sync()


def test_who_was_let_in_after_a_wait_is_read_whatever_waits_for_the_disk_next(site: Site) -> None:
    """A reader with messages of QoS 2 would never be heard again, and cut for it."""
    with site.running() as broker:
        subscribed(broker, site.admin, (ALL_UP, 2))
        with join(broker, site.admin, present=True) as old, broker.peer(site.admin) as new:
            site.disk.goes_on.clear()
            old.send(mqtt.unsubscribe("devices/+/up/#", id=2), mqtt.subscribe((ALL_UP, 2), id=3))
            old.send(mqtt.publish("x", b"not allowed, and so told"))
            broker.wait_event(Denied)
            new.send(mqtt.connect("admin", clean=False))
            broker.wait_event(Disconnected, lambda e: e.reason is Reason.TAKEN_OVER)
            with broker.join(site.valve) as valve:
                valve.send(mqtt.publish(VALVE_UP, b"waits", 2, 1))
                valve.send(mqtt.publish("x", b"not allowed, and so told"))
                broker.wait_event(Denied, lambda e: e.client.client_id == "valve-1")
            site.disk.goes_on.set()
            assert mqtt.ACCEPTED_PRESENT == new.receive()
            assert mqtt.publish(VALVE_UP, b"waits", 2, 1) == new.receive()
            new.sync()


def test_a_disk_that_is_full_promises_nothing_and_says_so(site: Site) -> None:
    """What was acknowledged would be lost; or the broker would end, and devices with it."""
    with site.running() as broker:
        subscribed(broker, site.admin, (ALL_UP, 1))
        with broker.join(site.pump) as peer:
            site.disk.is_full = True
            peer.send(mqtt.publish(UP, b"kept", 1, 1), mqtt.publish(UP, b"kept", 1, 2))
            assert "No space left on device" == broker.wait_event(StoreFailed).reason
            peer.sync()
            assert 1 == broker.call(broker.engine.stats).store_failing
            site.disk.is_full = False
            assert [mqtt.puback(1), mqtt.puback(2)] == [peer.receive(), peer.receive()]
            broker.wait_event(StoreRecovered)
            assert 0 == broker.call(broker.engine.stats).store_failing
    with site.running() as broker, join(broker, site.admin, present=True) as peer:
        assert [mqtt.publish(UP, b"kept", 1, n) for n in (1, 2)] == [peer.receive(), peer.receive()]


def test_whoever_goes_on_without_an_answer_is_read_no_more(site: Site) -> None:
    """A full disk would end in full memory."""
    with site.running() as broker:
        subscribed(broker, site.admin, (ALL_UP, 1))
        with broker.join(site.pump) as peer:
            site.disk.is_full = True
            peer.send(mqtt.publish(UP, b"first", 1, 1))
            broker.wait_event(StoreFailed)
            peer.send(*(mqtt.publish(UP, bytes(1000), 1, n) for n in range(2, 1500)))
            site.disk.is_full = False
            assert [mqtt.puback(n) for n in range(1, 1500)] == [peer.receive() for _ in range(1, 1500)]


@pytest.mark.parametrize("change", ["revoked", "superseded"])
def test_a_change_may_come_while_a_connect_waits_for_the_disk(fleet: TestFleet, tmp_path: Path, change: str) -> None:
    """Whoever was let in, and not told yet, would be missed by a revocation."""
    numbers = itertools.count()

    def make(clock: Clock) -> Engine:
        return AmqttEngine(clock, Durable(tmp_path / f"{next(numbers)}.db"))

    assert run(make, fleet, Direct(), TAKE_OVER, change) > 20


# A file that is not what was written


def test_the_file_is_for_its_owner_alone(site: Site) -> None:
    """Every command that waits could be read by anybody on the host."""
    with site.running() as broker:
        subscribed(broker, site.pump, (DOWN, 1))
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in site.path.parent.iterdir()}
    assert {"sessions.db": 0o600, "sessions.db-wal": 0o600} == modes


@pytest.mark.parametrize("content", [b"not a database at all" * 500, b"SQLite format 3\0" + bytes(5000)])
def test_a_damaged_file_is_kept_aside_and_said(site: Site, content: bytes) -> None:
    """The broker would not start, or would start and forget why."""
    site.path.write_bytes(content)
    with site.running() as broker:
        assert str(site.path.with_suffix(".damaged")) == broker.wait_event(StoreDamaged).kept_at
        subscribed(broker, site.pump, (DOWN, 1))
    assert content == site.path.with_suffix(".damaged").read_bytes()
    with site.running() as broker:
        assert 1 == broker.session_count()


def test_a_message_whose_text_has_changed_is_not_delivered(site: Site) -> None:
    """A device would carry out what nobody has ordered."""
    with site.running() as broker:
        subscribed(broker, site.pump, (DOWN, 1))
        publish(broker, site.admin, DOWN, b"close the valve", b"open the valve")
    data = site.path.read_bytes()
    assert 1 == data.count(b"close the valve")
    site.path.write_bytes(data.replace(b"close the valve", b"cl0se the valve"))
    with site.running() as broker, join(broker, site.pump, present=True) as peer:
        assert mqtt.publish(DOWN, b"open the valve", 1, 1) == peer.receive()
        lost = broker.wait_event(MessagesLost)
        assert ("pump-07", 1) == (lost.client_id, lost.count)


def test_a_file_that_is_damaged_under_the_broker_is_replaced_by_what_is_in_memory(site: Site) -> None:
    """One bad sector would end the broker at each start, or lose what it knows."""
    with site.running() as broker:
        subscribed(broker, site.pump, (DOWN, 1))
        subscribed(broker, site.admin, (ALL_UP, 1))
        publish(broker, site.admin, DOWN, *(bytes(4000) for _ in range(200)))
    with site.running() as broker:
        publish(broker, site.valve, VALVE_UP, b"in memory")
        with site.path.open("r+b") as file:
            size = file.seek(0, 2)
            file.seek(4096 * 20)
            file.write(bytes(size - 4096 * 20))
        with join(broker, site.pump, present=True):
            broker.wait_event(StoreDamaged)
            assert 200 == broker.wait_event(MessagesLost).count
        publish(broker, site.valve, VALVE_UP, b"after it")
    with site.running() as broker, join(broker, site.admin, present=True) as peer:
        assert [mqtt.publish(VALVE_UP, text, 1, n) for n, text in ((1, b"in memory"), (2, b"after it"))] == [
            peer.receive() for _ in range(2)
        ]
