"""What an export's tests need: a fleet, a service that has joined, and devices that publish as fast as they may."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fleet.identity import DeviceId
from fleet.layout import AgentHome
from fleet.messages import Envelope
from tests import mqtt
from tests.deadlines import within
from tests.mqtt import Peer
from tests.processes import Program, run
from tests.system.agents import LiveFleet
from tests.system.brokers import enrol, peer

_WINDOW = 20


def joined_service(fleet: LiveFleet, name: str = "export", home: Path | None = None) -> AgentHome:
    """A service that has joined as a person would let it, by default where `enroll export` looks for it."""
    created = fleet.enroll("token", "create", "--role", "service", "--device", name, "-o", "json")
    agent = AgentHome(home or fleet.home.path / "export")
    run("device-agent", "join", json.loads(created.stdout)["code"], "--id", name, "--home", agent.path).check()
    return agent


@dataclass
class Device:
    """A device on a raw connection. `acknowledged` are the seq of what the broker has taken."""

    id: DeviceId
    peer: Peer
    boot: str = "boot-1"
    acknowledged: list[int] = field(default_factory=list)
    _seq: int = 0
    _packet: int = 0

    def envelope(self, seq: int) -> dict[str, Any]:
        return Envelope(self.id, datetime.now(UTC), self.boot, seq).fields()

    def publish(self, count: int, stream: str = "load") -> None:
        """So many readings of QoS 1, some under way at once; returns once the broker has acknowledged all."""
        under_way: dict[int, int] = {}
        while count or under_way:
            while count and len(under_way) < _WINDOW:
                self._seq += 1
                under_way[self._send(stream, {"n": self._seq})] = self._seq
                count -= 1
            frame = self.peer.receive()
            assert b"\x40\x02" == frame[:2], frame
            self.acknowledged.append(under_way.pop(int.from_bytes(frame[2:], "big")))

    def _send(self, stream: str, data: object) -> int:
        payload = json.dumps(self.envelope(self._seq) | {"data": data}).encode()
        self._packet = self._packet % 65_535 + 1
        self.peer.send(mqtt.publish(f"devices/{self.id}/up/telemetry/{stream}", payload, 1, self._packet))
        return self._packet

    def say(self, stream: str, payload: bytes) -> None:
        """Any bytes, until the broker has them."""
        self._packet = self._packet % 65_535 + 1
        frame = mqtt.publish(f"devices/{self.id}/up/telemetry/{stream}", payload, 1, self._packet)
        assert mqtt.puback(self._packet) == self.peer.ask(frame)

    def say_again(self, seq: int, stream: str = "load") -> None:
        """What was said with that seq, once more."""
        self.say(stream, json.dumps(self.envelope(seq) | {"data": {"n": seq}}).encode())


@contextmanager
def connected(fleet: LiveFleet, name: str) -> Iterator[Device]:
    """A new device, connected."""
    device = DeviceId(name)
    with peer(fleet.home, enrol(fleet.home, device), fleet.broker_address[1]) as connection:
        assert mqtt.ACCEPTED == connection.ask(mqtt.connect(device))
        yield Device(device, connection)


def export(fleet: LiveFleet, *args: object) -> Program:
    """`enroll export` as the service in the fleet's home."""
    return Program("enroll", "export", *args, "--home", fleet.home.path)


def ready(program: Program) -> Program:
    program.wait_for_line(r"^export: ready ")
    return program


def until(is_so: Callable[[], bool], what: Callable[[], object]) -> None:
    """Look again and again. Raises: AssertionError at the deadline."""
    deadline = time.monotonic() + within(20)
    pause = threading.Event()
    while not is_so():
        assert time.monotonic() < deadline, what()
        pause.wait(0.02)


def rows(path: Path, columns: str = "device, boot, seq, stream", order: str = "n") -> list[tuple[Any, ...]]:
    """What is in the table, as anybody reads it while the export runs."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return database.execute(f"SELECT {columns} FROM telemetry ORDER BY {order}").fetchall()


def lift_rates(fleet_home: Path) -> None:
    """Let devices send as fast as they can."""
    with (fleet_home / "fleet.toml").open("a") as config:
        config.write("\n[broker.limits]\nmessages_per_second = 1_000_000\nbytes_per_second = 1_000_000_000\n")
