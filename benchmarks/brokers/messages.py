"""Scenarios of messages: saturated, paced, under churn, commands to one of many."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from benchmarks.brokers.contenders import COMPILED, LOAD_CPU, OURS, SHIPPED, SUSPENDED, Contender, Fleet, pinned
from benchmarks.brokers.frames import Frames, Reader, subscribe, unsubscribe
from benchmarks.brokers.load import PAYLOAD, Commands, Paced, Repeated, Result, Saturated, Source, prefix_of
from benchmarks.brokers.outcomes import Bar, Outcome
from benchmarks.brokers.wire import Swarm, Wire

UNIT: Final = "us CPU a message"
TELEMETRY: Final = "devices/+/up/telemetry/#"  # nothing of status: the broker itself says who is suspended
# So few on their way that none is behind another to the same device, however many devices there are.
_COMMANDS_AHEAD: Final = 50
_SHIPPED_IS_SLOWER: Final = 20
_SUBSCRIPTION_EVERY_SECONDS: Final = 0.010
_DIRECTORY_EVERY_MILLISECONDS: Final = 100


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured: messages of a saturated run, seconds of a paced one."""

    messages: int
    seconds: float

    def messages_for(self, broker: str) -> int:
        """amqtt as shipped takes twenty times as long for one."""
        return self.messages // (_SHIPPED_IS_SLOWER if broker == SHIPPED else 1)


def _outcome(scenario: str, broker: Contender, result: Result, bar: Bar | None, **more: float) -> Outcome:
    figures = {
        "messages": float(result.messages),
        "lost": float(result.lost),
        "load generator, us a message": result.load_cpu_seconds / result.messages * 1e6,
        "messages a second": result.messages / result.wall_seconds,
        "broker busy": result.broker_cpu_seconds / result.wall_seconds,
    }
    if result.latencies_ms:
        percentiles = statistics.quantiles(result.latencies_ms, n=100)
        figures |= {"p50 ms": percentiles[49], "p99 ms": percentiles[98]}
    return Outcome(scenario, broker.name, UNIT, result.micros, bar, figures | more, window=result.window)


def telemetry(device: str) -> str:
    """The topic that a device publishes its measurements to."""
    return f"devices/{device}/up/telemetry/climate"


@dataclass(frozen=True, slots=True)
class Saturated50:
    """Fifty devices to one subscriber, as fast as it reads."""

    qos: int

    def run(self, fleet: Fleet, broker: Contender, size: Size) -> Outcome:
        devices = list(fleet.devices)[:50]
        frames = [Frames(telemetry(device), self.qos, len(PAYLOAD)) for device in devices]
        with Swarm(fleet, broker) as swarm:
            reader, *writers = swarm.open(
                [(broker.operator, (TELEMETRY, self.qos)), *((device, None) for device in devices)]
            )
            sources: list[tuple[Wire, Source]] = [
                (wire, Repeated(of_it)) for wire, of_it in zip(writers, frames, strict=True)
            ]
            load = Saturated(swarm, sources, [reader], Reader(frames[0]))
            result = _warm(load.run, size.messages_for(broker.name))
        return _outcome(f"saturated 50 -> 1, QoS {self.qos}", broker, result, Bar(0.5))


@dataclass(frozen=True, slots=True)
class FanOut:
    """One operator to two hundred devices: a notice to all."""

    def run(self, fleet: Fleet, broker: Contender, size: Size) -> Outcome:
        devices = list(fleet.devices)[:200]
        frames = Frames("fleet/notices/bench", 0, len(PAYLOAD))
        with Swarm(fleet, broker) as swarm:
            writer, *readers = swarm.open(
                [(broker.operator, None), *((device, ("fleet/notices/#", 0)) for device in devices)]
            )
            load = Saturated(swarm, [(writer, Repeated(frames))], readers, Reader(frames), copies=len(readers))
            result = _warm(load.run, max(100, size.messages_for(broker.name) // len(readers) // 10 * 10))
        return _outcome("saturated 1 -> 200, QoS 0", broker, result, Bar(0.5))


@dataclass(frozen=True, slots=True)
class OneOf:
    """One operator to one of many devices: commands, each with a topic of its own."""

    devices: int
    qos: int
    bar: Bar | None

    def run(self, fleet: Fleet, broker: Contender, size: Size) -> Outcome:
        devices = list(fleet.devices)[: self.devices]
        frames = Frames(prefix_of(devices[0]) + "0" * 8, self.qos, len(PAYLOAD))
        with Swarm(fleet, broker) as swarm:
            wanted = [(device, (f"devices/{device}/down/#", self.qos)) for device in devices]
            writer, *readers = swarm.open([(broker.operator, None), *wanted])
            load = Saturated(swarm, [(writer, Commands(devices, self.qos))], readers, Reader(frames))
            load.ahead = _COMMANDS_AHEAD if self.qos else load.ahead
            result = _warm(load.run, size.messages_for(broker.name))
        kind = "saturated" if self.qos == 0 else "commands"
        return _outcome(f"{kind} 1 -> one of {self.devices:,}, QoS {self.qos}", broker, result, self.bar)


@dataclass(frozen=True, slots=True)
class Steady:
    """Devices in turn, one message at a time, to one subscriber; or while subscriptions and directory change."""

    rate: int
    devices: int
    qos: int
    has_churn: bool = False
    is_kept: bool = False  # the subscriber's session is not clean: a durable broker has each message on disk first

    def run(self, fleet: Fleet, broker: Contender, size: Size) -> Outcome | None:
        if broker.name == SHIPPED and self.rate > 2000:
            return None  # more than one CPU's worth
        *devices, changing = list(fleet.devices)[: self.devices + 1]
        frames = [Frames(telemetry(device), self.qos, len(PAYLOAD)) for device in devices]
        with Swarm(fleet, broker) as swarm:
            if self.is_kept:
                swarm.close(swarm.open([(broker.operator, None)]))  # clean: nothing is left of a run before
                swarm.kept = broker.operator
            reader, subscriber, *writers = swarm.open(
                [
                    (broker.operator, (TELEMETRY, self.qos)),
                    (changing, None),
                    *((device, None) for device in devices),
                ]
            )
            load = Paced(swarm, list(zip(writers, frames, strict=True)), Reader(frames[0]), self.rate)
            if self.has_churn:
                load.beside = subscription_churn(subscriber)
            with directory_churn(fleet) if self.has_churn and broker.name in (OURS, COMPILED) else _nothing():
                result = _warm(load.run, int(self.rate * size.seconds))
            assert reader.received
        name = f"paced {self.rate:,}/s over {self.devices}, QoS {self.qos}{', churn' * self.has_churn}"
        if self.is_kept:
            return _outcome(f"{name}, to a session that is kept", broker, result, None)
        return _outcome(name, broker, result, Bar(1.3))


def _warm(run: Callable[[int], Result], messages: int) -> Result:
    run(max(100, messages // 100 * 10))
    return run(messages)


def subscription_churn(subscriber: Wire) -> Callable[[], None]:
    """To be called often: every ten milliseconds that connection subscribes, or unsubscribes."""
    requests = [subscribe(f"devices/{subscriber.id}/down/x", 1), unsubscribe(f"devices/{subscriber.id}/down/x")]
    due, number = time.perf_counter(), 0

    def go_on() -> None:
        nonlocal due, number
        if time.perf_counter() >= due:
            due += _SUBSCRIPTION_EVERY_SECONDS
            subscriber.send(requests[number % 2])
            number += 1

    return go_on


@contextmanager
def directory_churn(fleet: Fleet) -> Iterator[None]:
    """While this lasts, a device that is not connected is suspended and resumed, a change every 100 ms."""
    command = [sys.executable, "-m", "benchmarks.brokers.churn", str(fleet.home.path), SUSPENDED]
    with pinned(LOAD_CPU):
        process = subprocess.Popen(
            [*command, str(_DIRECTORY_EVERY_MILLISECONDS)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
            assert process.poll() is None, "the directory's changes ended"
        finally:
            process.kill()


@contextmanager
def _nothing() -> Iterator[None]:
    yield
