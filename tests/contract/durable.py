"""Engines on one file, one after the other, and a disk that takes nothing or waits."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from broker.engine import Clock, Engine
from broker.engines.amqtt.engine import AmqttEngine, Durable
from broker.engines.amqtt.journal import Batch
from broker.engines.amqtt.store import Store
from fleet.directory import Entry
from fleet.identity import Role, State
from fleet.policy import DEFAULT_POLICY, Policy
from tests import mqtt
from tests.certificates import Identity, TestFleet
from tests.contract.engines import RunningEngine, now
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
