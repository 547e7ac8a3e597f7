"""What outlives a broker, and what does not: an engine that is stopped, or loses its disk, and the next on its file."""

from __future__ import annotations

import itertools
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from broker.engine import (
    Clock,
    Denied,
    Disconnected,
    Engine,
    MessagesLost,
    Reason,
    SessionsExpired,
    StoreDamaged,
    StoreFailed,
    StoreRecovered,
)
from broker.engines.amqtt.engine import AmqttEngine, Durable
from broker.engines.amqtt.journal import Batch
from broker.engines.amqtt.store import Store
from fleet.directory import Entry
from fleet.identity import Role, State
from fleet.policy import DEFAULT_POLICY, Action, Policy, Rule
from tests import mqtt
from tests.certificates import Identity, TestFleet
from tests.contract.engines import RunningEngine, now
from tests.contract.stepping import Direct
from tests.contract.test_engine_races import TAKE_OVER, run
from tests.deadlines import within
from tests.mqtt import Peer

UP = "devices/pump-07/up/x"
VALVE_UP = "devices/valve-1/up/x"
DOWN = "devices/pump-07/down/x"
ALL_UP = "devices/+/up/#"


class Disk(Store):
    """A store whose disk takes nothing while `is_full`, and nothing until `goes_on` is set."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.is_full = False
        self.goes_on = threading.Event()
        self.goes_on.set()

    def write(self, batch: Batch) -> None:
        assert self.goes_on.wait(within(20))
        if self.is_full:
            raise OSError(28, "No space left on device")
        super().write(batch)


@dataclass(slots=True)
class Site:
    """A file, the principals that the directory lists, and the engines that come one after the other."""

    fleet: TestFleet
    path: Path
    pump: Identity
    admin: Identity
    valve: Identity
    entries: list[Entry] = field(default_factory=list)
    disk: Disk = field(init=False)

    def __post_init__(self) -> None:
        self.disk = Disk(self.path)
        for seq, who in enumerate((self.pump, self.admin, self.valve), 1):
            self.entries.append(Entry(seq, who.principal, State.ACTIVE, 1, frozenset({who.serial})))

    @contextmanager
    def running(self, policy: Policy = DEFAULT_POLICY, clock: Clock = now) -> Iterator[RunningEngine]:
        """An engine on the file."""

        def make(_: Clock) -> Engine:
            return AmqttEngine(clock, Durable(self.path, open_store=self._open))

        broker = RunningEngine(make, self.fleet, policy=policy)
        for entry in self.entries:
            broker.directory.apply_found(entry)
        broker.skip_to(1000)
        with broker:
            try:
                yield broker
            finally:
                self.disk.goes_on.set()

    def _open(self, path: Path) -> Store:
        self.disk = Disk(path)
        return self.disk

    def change_pump(self, **changes: object) -> None:
        """The directory says something else of the device from the next start on."""
        self.entries[0] = replace(self.entries[0], seq=self.entries[0].seq + 10, **changes)  # type: ignore[arg-type]

    def rows(self) -> dict[str, int]:
        """How many rows each table has, between two engines."""
        with closing(sqlite3.connect(self.path)) as database:
            names = [name for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
            counts = {name: database.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0] for name in names}
        return {name: count for name, count in counts.items() if count}


@pytest.fixture
def site(fleet: TestFleet, tmp_path: Path) -> Site:
    return Site(
        fleet,
        tmp_path / "sessions.db",
        fleet.client("pump-07"),
        fleet.client("admin", Role.OPERATOR),
        fleet.client("valve-1"),
    )


def join(broker: RunningEngine, who: Identity, *, present: bool = False, will: bytes = b"") -> Peer:
    """A connection with a persistent session."""
    last = (UP, will, 1, True) if will else None
    peer = broker.peer(who)
    expected = mqtt.ACCEPTED_PRESENT if present else mqtt.ACCEPTED
    assert expected == peer.ask(mqtt.connect(who.id, clean=False, will=last))
    return peer


def subscribed(broker: RunningEngine, who: Identity, *filters: tuple[str, int]) -> None:
    """A persistent session with these subscriptions, and nobody there."""
    with join(broker, who) as peer:
        assert mqtt.suback(*(qos for _, qos in filters)) == peer.ask(mqtt.subscribe(*filters))


def publish(broker: RunningEngine, who: Identity, topic: str, *payloads: bytes, qos: int = 1) -> None:
    """Messages that are acknowledged."""
    name = f"{who.id}:publishes" if who.principal.role is Role.OPERATOR else who.id
    with broker.join(who, mqtt.connect(name)) as peer:
        for number, payload in enumerate(payloads, 1):
            answer = peer.ask(mqtt.publish(topic, payload, qos, number))
            assert answer == (mqtt.puback(number) if qos == 1 else mqtt.pubrec(number))
            if qos == 2:
                assert mqtt.pubcomp(number) == peer.ask(mqtt.pubrel(number))


def crash(site: Site) -> None:
    """From here on nothing reaches the disk: the next engine finds what a power cut would have left."""
    site.disk.is_full = True


def test_what_waits_outlives_a_restart_in_its_order(site: Site) -> None:
    """What was acknowledged would be lost with the broker."""
    with site.running() as broker:
        subscribed(broker, site.admin, (ALL_UP, 2))
        publish(broker, site.pump, UP, b"1", b"2", bytes(5000))
        publish(broker, site.pump, UP, b"3", b"4", qos=2)
    with site.running() as broker:
        assert (5, 1) == (broker.call(broker.engine.stats).queued, broker.session_count())
        with join(broker, site.admin, present=True) as peer:
            frames = [peer.receive() for _ in range(5)]
            sent = [(UP, b"1", 1), (UP, b"2", 1), (UP, bytes(5000), 1), (UP, b"3", 2), (UP, b"4", 2)]
            assert frames == [mqtt.publish(*each, id=number) for number, each in enumerate(sent, 1)]


def test_what_came_after_a_restart_is_behind_what_was_there(site: Site) -> None:
    """A newer command would overtake an older one."""
    with site.running() as broker:
        subscribed(broker, site.pump, (DOWN, 1))
        publish(broker, site.admin, DOWN, b"1", b"2")
    with site.running() as broker:
        publish(broker, site.admin, DOWN, b"3")
        with join(broker, site.pump, present=True) as peer:
            assert [mqtt.publish(DOWN, b"%d" % n, 1, n) for n in (1, 2, 3)] == [peer.receive() for _ in range(3)]


def test_a_message_that_several_wait_for_is_kept_once(site: Site) -> None:
    """A notice to ten thousand devices would fill the disk."""
    notice = "fleet/notices/x"
    with site.running() as broker:
        for who in (site.pump, site.admin):
            subscribed(broker, who, (notice, 1))
        publish(broker, site.admin, notice, bytes(2000))
    assert {"session": 2, "filter": 2, "queue": 2, "body": 1} == site.rows()
    with site.running() as broker:
        for who in (site.pump, site.admin):
            with join(broker, who, present=True) as peer:
                assert mqtt.publish(notice, bytes(2000), 1, 1) == peer.receive()
                peer.send(mqtt.puback(1))
                peer.sync()
    with site.running():
        pass
    assert {"session": 2, "filter": 2} == site.rows()


def test_a_retained_message_outlives_a_restart(site: Site) -> None:
    """Nobody would know who is online after the broker was updated."""
    with site.running() as broker, broker.join(site.pump) as peer:
        assert mqtt.puback(1) == peer.ask(mqtt.publish(UP, b"kept", 1, retain=True))
        assert mqtt.puback(2) == peer.ask(mqtt.publish(UP + "/2", b"gone", 1, 2, retain=True))
        assert mqtt.puback(3) == peer.ask(mqtt.publish(UP + "/2", b"", 1, 3, retain=True))
        crash(site)
    with site.running() as broker, broker.join(site.admin) as peer:
        peer.send(mqtt.subscribe((ALL_UP, 1)))
        assert mqtt.suback(1) == peer.receive()
        assert mqtt.publish(UP, b"kept", 1, 1, retain=True) == peer.receive()
        peer.sync()


def test_what_is_on_its_way_goes_out_again_under_its_id(site: Site) -> None:
    """MQTT-4.4.0-1: a client would take a message of QoS 2 for another, and have it twice."""
    with site.running() as broker, join(broker, site.admin) as peer:
        assert mqtt.suback(2) == peer.ask(mqtt.subscribe((ALL_UP, 2)))
        publish(broker, site.pump, UP, b"1", b"2", qos=2)
        first, second = peer.receive(), peer.receive()
        assert mqtt.pubrel(1) == peer.ask(mqtt.pubrec(1))
        crash(site)
    assert [mqtt.publish(UP, b"1", 2, 1), mqtt.publish(UP, b"2", 2, 2)] == [first, second]
    with site.running() as broker, join(broker, site.admin, present=True) as peer:
        assert mqtt.pubrel(1) == peer.receive()
        assert mqtt.publish(UP, b"2", 2, 2, dup=True) == peer.receive()
        peer.send(mqtt.pubcomp(1))
        publish(broker, site.pump, UP, b"3", qos=2)
        assert mqtt.publish(UP, b"3", 2, 3) == peer.receive()


def test_a_message_of_qos_2_that_comes_again_after_a_crash_is_known(site: Site) -> None:
    """4.3.3: a command would be carried out twice."""
    with site.running() as broker:
        subscribed(broker, site.pump, (DOWN, 2))
        with join(broker, site.admin) as peer:
            assert mqtt.pubrec(7) == peer.ask(mqtt.publish(DOWN, b"once", 2, 7))
            crash(site)
    with site.running() as broker:
        with join(broker, site.admin, present=True) as peer:
            assert mqtt.pubrec(7) == peer.ask(mqtt.publish(DOWN, b"once", 2, 7, dup=True))
            assert mqtt.pubcomp(7) == peer.ask(mqtt.pubrel(7))
            assert mqtt.pubrec(7) == peer.ask(mqtt.publish(DOWN, b"another", 2, 7))
        with join(broker, site.pump, present=True) as peer:
            assert [mqtt.publish(DOWN, b"once", 2, 1), mqtt.publish(DOWN, b"another", 2, 2)] == [
                peer.receive() for _ in range(2)
            ]


def test_an_unsubscribe_outlives_a_restart(site: Site) -> None:
    """MQTT-3.10.4-2: it would be sent again what it does not want."""
    with site.running() as broker, join(broker, site.pump) as peer:
        assert mqtt.suback(1, 1) == peer.ask(mqtt.subscribe((DOWN, 1), (DOWN + "/2", 1)))
        assert mqtt.packet(0xB0, mqtt.number(2)) == peer.ask(mqtt.unsubscribe(DOWN, id=2))
        crash(site)
    with site.running() as broker:
        publish(broker, site.admin, DOWN, b"unwanted")
        publish(broker, site.admin, DOWN + "/2", b"wanted")
        with join(broker, site.pump, present=True) as peer:
            assert mqtt.publish(DOWN + "/2", b"wanted", 1, 1) == peer.receive()


def test_a_clean_session_forgets_what_was_kept(site: Site) -> None:
    """MQTT-3.1.2-6: what it did away with would come back with the next start."""
    with site.running() as broker:
        subscribed(broker, site.pump, (DOWN, 1))
        publish(broker, site.admin, DOWN, b"1")
    with site.running() as broker:
        broker.join(site.pump).socket.close()
        broker.wait_event(Disconnected)
        crash(site)
    assert {} == site.rows()


# Decided again


def test_a_subscription_that_the_rules_no_longer_allow_is_gone(site: Site) -> None:
    """A rule that was taken back would hold for whoever used it while it was there."""
    rules = (*DEFAULT_POLICY.rules, Rule("spy", Role.DEVICE, Action.SUBSCRIBE, "devices/other/up/#", site.pump.id))
    with site.running(Policy(rules)) as broker:
        subscribed(broker, site.pump, (DOWN, 1), ("devices/other/up/#", 1))
    with site.running() as broker:
        assert 1 == broker.call(broker.engine.stats).subscriptions
    assert {"session": 1, "filter": 1} == site.rows()


CHANGES: dict[str, Callable[[Site], None]] = {
    "revoked": lambda site: site.change_pump(state=State.REVOKED),
    "suspended": lambda site: site.change_pump(state=State.SUSPENDED),
    "removed": lambda site: site.entries.remove(site.entries[0]),
    "enrolled anew": lambda site: site.change_pump(epoch=2),
    "without a certificate": lambda site: site.change_pump(serials=frozenset()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_waits_for_whoever_the_directory_no_longer_admits(site: Site, change: str) -> None:
    """Whoever is enrolled under a name that was used before would be sent what its predecessor was."""
    with site.running() as broker:
        subscribed(broker, site.pump, (DOWN, 2))
        publish(broker, site.admin, DOWN, b"secret")
    CHANGES[change](site)
    with site.running() as broker:
        assert (0, 0) == (broker.session_count(), broker.call(broker.engine.stats).queued)
        crash(site)
    with site.running():
        pass
    assert {} == site.rows()


@pytest.mark.parametrize("change", ["revoked", "removed", "enrolled anew"])
def test_nothing_retained_is_left_of_an_enrolment_that_ended_meanwhile(site: Site, change: str) -> None:
    """A successor would find its predecessor's orders, or speak with its words."""
    with site.running() as broker, broker.join(site.pump) as pump, broker.join(site.admin) as admin:
        assert mqtt.puback(1) == pump.ask(mqtt.publish(UP, b"said", 1, retain=True))
        assert mqtt.puback(1) == admin.ask(mqtt.publish(DOWN, b"told", 1, retain=True))
        assert mqtt.puback(2) == admin.ask(mqtt.publish("fleet/notices/x", b"to all", 1, 2, retain=True))
    CHANGES[change](site)
    with site.running() as broker:
        assert 1 == broker.call(broker.engine.stats).retained
    assert {"retained": 1} == site.rows()


def test_a_revocation_purges_what_is_on_disk(site: Site) -> None:
    """What waits for a device would be read from the disk after it was revoked."""
    with site.running() as broker:
        subscribed(broker, site.pump, (DOWN, 1))
        publish(broker, site.admin, DOWN, b"secret")
        broker.revoke(site.pump)
    assert {"retained": 1} == site.rows()  # that it is offline


def test_a_session_whose_client_stays_away_expires(site: Site) -> None:
    """Devices that were thrown away would fill the disk."""
    with site.running() as broker:
        subscribed(broker, site.pump, (DOWN, 1))
        subscribed(broker, site.admin, (ALL_UP, 1))
        publish(broker, site.admin, DOWN, b"never read")
        broker.wait_event(Disconnected, lambda e: e.client.client_id == "admin")

    def at(days: float) -> Callable[[], datetime]:
        return lambda: now() + timedelta(days=days)

    with site.running(clock=at(13)) as broker, broker.join(site.admin, mqtt.connect("admin:other")):
        assert 3 == broker.session_count()
    with site.running(clock=at(15)) as broker:
        assert 2 == broker.wait_event(SessionsExpired).count
        assert 0 == broker.session_count()
    assert {} == site.rows()


# Wills


def test_a_will_is_published_after_a_crash(site: Site) -> None:
    """A device that never comes back would seem online for ever."""
    with site.running() as broker:
        subscribed(broker, site.admin, (ALL_UP, 1))
        with join(broker, site.pump, will=b"offline") as peer:
            peer.ask(mqtt.subscribe((DOWN, 1)))
            publish(broker, site.admin, DOWN, b"for a commit that has the will, too")
            crash(site)
    with site.running() as broker, join(broker, site.admin, present=True) as peer:
        assert mqtt.publish(UP, b"offline", 1, 1) == peer.receive()


def test_a_will_that_was_withdrawn_is_not_published_after_a_restart(site: Site) -> None:
    """MQTT-3.1.2-10: a device that left in order would be told to have failed."""
    with site.running() as broker:
        subscribed(broker, site.admin, (ALL_UP, 1))
        with join(broker, site.pump, will=b"offline") as peer:
            peer.send(mqtt.DISCONNECT)
            assert peer.is_closed()
        publish(broker, site.admin, "fleet/notices/x", b"")
    assert {"session": 2, "filter": 1} == site.rows()


def test_the_will_of_a_connection_that_the_broker_ended_with_is_published_at_the_next_start(site: Site) -> None:
    """3.1.2.5: who was connected when the broker was stopped, and does not come back, would seem online."""
    with site.running() as broker:
        subscribed(broker, site.admin, (ALL_UP, 1))
        peer = join(broker, site.pump, will=b"offline")
    peer.socket.close()
    with site.running() as broker, join(broker, site.admin, present=True) as reader:
        assert mqtt.publish(UP, b"offline", 1, 1) == reader.receive()


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
