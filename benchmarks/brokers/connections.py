"""Scenarios of connections: what one costs to accept and to keep, and two thousand at once."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field

from benchmarks.brokers.contenders import MAX_CLIENTS, Contender, Fleet, start
from benchmarks.brokers.frames import Frames, Reader, Refused
from benchmarks.brokers.load import PAYLOAD
from benchmarks.brokers.messages import TELEMETRY, Size, telemetry
from benchmarks.brokers.outcomes import Bar, Outcome
from benchmarks.brokers.wire import Others, Swarm, Wire
from fleet.identity import DeviceId


def _wanted(devices: list[DeviceId]) -> list[tuple[DeviceId, tuple[str, int] | None]]:
    return [(device, (f"devices/{device}/down/#", 1)) for device in devices]


@dataclass(frozen=True, slots=True)
class Accept:
    """Connections a CPU second: handshake, CONNECT and SUBSCRIBE, eight at a time."""

    connections: int

    def run(self, fleet: Fleet, broker: Contender, _size: Size) -> Outcome:
        wanted = _wanted(list(fleet.devices)[: self.connections])
        with Swarm(fleet, broker) as swarm:
            swarm.open(wanted[:20], at_once=8)
        with Swarm(fleet, broker) as swarm:
            before, here = broker.cpu_seconds(), time.process_time()
            swarm.open(wanted, at_once=8)
            used, load = broker.cpu_seconds() - before, time.process_time() - here
        figures = {"ms CPU each": used / len(wanted) * 1000, "load generator, ms each": load / len(wanted) * 1000}
        name = "connections a CPU second"
        return Outcome(name, broker.name, "a CPU second", len(wanted) / used, Bar(0.6, is_floor=True), figures)


@dataclass(frozen=True, slots=True)
class Memory:
    """What an idle connection with one subscription keeps, in a process that was just started."""

    connections: int

    def run(self, fleet: Fleet, broker: Contender, _size: Size) -> Outcome:
        count = min(self.connections, MAX_CLIENTS.get(broker.name, self.connections))
        wanted = _wanted(list(fleet.devices)[:count])
        with start(broker.name, fleet) as fresh, Swarm(fleet, fresh) as swarm:
            swarm.open(wanted[:20], at_once=8)
            before = fresh.resident_bytes()
            swarm.open(wanted[20:], at_once=8)
            each = (fresh.resident_bytes() - before) / (count - 20)
        figures = {"connections": float(count), "MB before": before / 1e6}
        return Outcome("memory of an idle connection", broker.name, "KB", each / 1000, Bar(value=60), figures)


@dataclass(slots=True)
class _Heartbeat(Others):
    """A device that goes on to publish while others come: how long each message takes."""

    writer: Wire
    frames: Frames
    due: float = field(default_factory=time.perf_counter)
    latencies_ms: list[float] = field(default_factory=list)

    def arrived(self, wire: Wire, data: bytes) -> None:
        if wire.wants is None:
            return
        reader, now = Reader(self.frames), time.perf_counter_ns()
        self.latencies_ms += [(now - stamp) / 1e6 for stamp in reader.stamps(*reader.count(wire, data))]

    def go_on(self) -> None:
        if time.perf_counter() >= self.due:
            self.due = time.perf_counter() + 0.05
            self.writer.send(self.frames.frame(1, time.perf_counter_ns().to_bytes(8, "big") + PAYLOAD[8:]))


@dataclass(frozen=True, slots=True)
class Storm:
    """All of a fleet at once, as after a power cut at the gateway, beside one device that stayed."""

    connections: int

    def run(self, fleet: Fleet, broker: Contender, _size: Size) -> Outcome:
        count = min(self.connections, MAX_CLIENTS.get(broker.name, self.connections + 1) - 1)
        stayed, *devices = list(fleet.devices)[: count + 1]
        frames = Frames(telemetry(stayed), 0, len(PAYLOAD))
        with Swarm(fleet, broker) as swarm:
            _, writer = swarm.open([(broker.operator, (TELEMETRY, 0)), (stayed, None)])
            swarm.is_tolerant = True
            heartbeat, before = _Heartbeat(writer, frames), broker.cpu_seconds()
            began = time.perf_counter()
            try:
                wires = swarm.open(_wanted(devices), at_once=count, others=heartbeat)
            except (Refused, TimeoutError) as error:
                raise RuntimeError(f"{broker.name} did not outlive a storm: {error}") from error
            seconds, used = time.perf_counter() - began, broker.cpu_seconds() - before
        ready = sorted(wire.ready_after for wire in wires if wire.ready_after)
        figures = {
            "connections": float(count),
            "all back after s": seconds,
            "p50 back after s": statistics.median(ready),
            "ms CPU each": used / count * 1000,
            "who stayed, p50 ms": statistics.median(heartbeat.latencies_ms or [0.0]),
            "who stayed, worst ms": max(heartbeat.latencies_ms, default=0.0),
        }
        missing = float(count - len(ready))
        return Outcome(
            f"storm of {self.connections:,}: not back", broker.name, "devices", missing, Bar(value=0), figures
        )
