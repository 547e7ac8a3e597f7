"""The loads: as fast as messages are read, or one message at a time at a given rate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from benchmarks.brokers.frames import Frames, Reader
from benchmarks.brokers.wire import Swarm, Wire

PAYLOAD: Final = b'{"temperature": 21.5, "unit": "C"}'
_BATCH: Final = 10  # messages that a publisher writes at once under saturation
_WINDOW: Final = 200  # messages of QoS 1 that a publisher may have unacknowledged
# So far publishers together are ahead of the slowest subscriber: what a queue does not hold is dropped.
_AHEAD: Final = 500
_STALLED_SECONDS: Final = 20.0


@dataclass(slots=True)
class Result:
    """What a load cost. `messages` counts what was delivered; `window` is when, in CLOCK_MONOTONIC's seconds."""

    messages: int
    lost: int
    broker_cpu_seconds: float
    load_cpu_seconds: float
    window: tuple[float, float]
    latencies_ms: list[float] = field(default_factory=list)

    @property
    def wall_seconds(self) -> float:
        """How long it took."""
        began, ended = self.window
        return ended - began

    @property
    def micros(self) -> float:
        """CPU of the broker for a delivered message, in microseconds."""
        return self.broker_cpu_seconds / self.messages * 1e6


class Meter:
    """CPU of the broker and of this process from one moment on."""

    def __init__(self, swarm: Swarm) -> None:
        self._broker = swarm.broker
        self._began = (self._broker.cpu_seconds(), time.process_time(), time.perf_counter())

    def result(self, messages: int, lost: int, latencies_ms: Sequence[float] = ()) -> Result:
        """What was used until now."""
        broker, here, clock = self._began
        broker_used, here_used = self._broker.cpu_seconds() - broker, time.process_time() - here
        return Result(messages, lost, broker_used, here_used, (clock, time.perf_counter()), list(latencies_ms))


class Source(Protocol):
    """Where the next messages come from."""

    def batch(self, number: int) -> bytes:
        """The frames of the batch of that number."""


class Repeated:
    """The same messages to one topic again and again, their packet ids in a cycle."""

    def __init__(self, frames: Frames) -> None:
        last = _WINDOW * 2 if frames.qos else _BATCH
        each = [frames.frame(packet_id, PAYLOAD) for packet_id in range(1, last + 1)]
        self._batches = [b"".join(each[at : at + _BATCH]) for at in range(0, last, _BATCH)]

    def batch(self, number: int) -> bytes:
        return self._batches[number % len(self._batches)]


class Commands:
    """Messages to one device after the other, each to a topic of its own, as commands are."""

    def __init__(self, devices: Sequence[str], qos: int) -> None:
        self._heads = [Frames(f"{prefix_of(device)}{0:08}", qos, len(PAYLOAD)).head[:-8] for device in devices]
        self._qos = qos

    def batch(self, number: int) -> bytes:
        return b"".join([self._frame(at) for at in range(number * _BATCH, (number + 1) * _BATCH)])

    def _frame(self, at: int) -> bytes:
        packet_id = (at % 60_000 + 1).to_bytes(2, "big") if self._qos else b""
        return self._heads[at % len(self._heads)] + b"%08d" % (at % 100_000_000) + packet_id + PAYLOAD


def prefix_of(device: str) -> str:
    """A command's topic, without its id."""
    return f"devices/{device}/down/commands/reboot/"


@dataclass(slots=True)
class Saturated:
    """Publishers write batches as long as they are not too far ahead. `copies`: subscribers of each message."""

    swarm: Swarm
    sources: Sequence[tuple[Wire, Source]]
    subscribers: Sequence[Wire]
    reader: Reader
    copies: int = 1
    ahead: int = _AHEAD
    _sent: int = 0
    _acknowledged: dict[Wire, int] = field(default_factory=dict)
    _batches: dict[Wire, int] = field(default_factory=dict)

    def run(self, messages: int) -> Result:
        """Publish that many, and wait until they have arrived."""
        for subscriber in self.subscribers:
            subscriber.received = 0
        meter, expected, moved_at = Meter(self.swarm), messages * self.copies, time.perf_counter()
        self._sent, turn, received = 0, self._turns(), 0
        while received < expected:
            while self._sent < messages and self._sent - self._slowest(received) <= self.ahead and next(turn):
                pass
            before = received
            for wire, data in self.swarm.poll(0.05):
                received += self._arrived(wire, data)
            now = time.perf_counter()
            moved_at = now if received > before else moved_at
            if now - moved_at > _STALLED_SECONDS:
                break
        return meter.result(received, expected - received)

    def _slowest(self, received: int) -> int:
        return min([wire.received for wire in self.subscribers]) if self.copies > 1 else received

    def _turns(self) -> Iterator[bool]:
        """Each time, one batch of the next publisher that may send; False if none of them may."""
        idle = 0
        while True:
            for wire, source in self.sources:
                if not self._may_send(wire):
                    idle += 1
                    if idle >= len(self.sources):
                        idle = 0
                        yield False
                    continue
                idle = 0
                number = self._batches.get(wire, 0)
                self._batches[wire] = number + 1
                wire.send(source.batch(number))
                self._sent += _BATCH
                yield True

    def _may_send(self, wire: Wire) -> bool:
        if wire.is_backed_up:
            return False
        is_counted = self.reader.qos == 0
        return is_counted or self._batches.get(wire, 0) * _BATCH - self._acknowledged.get(wire, 0) < _WINDOW

    def _arrived(self, wire: Wire, data: bytes) -> int:
        if wire.wants is None:
            self._acknowledged[wire] = self._acknowledged.get(wire, 0) + puback_count(wire, data)
            return 0
        return self.reader.count(wire, data)[0]


def puback_count(wire: Wire, data: bytes) -> int:
    """How many PUBACKs ended in `data`."""
    data = wire.rest + data
    count = len(data) // 4
    wire.rest = data[count * 4 :]
    assert data[: count * 4 : 4] == b"\x40" * count, data
    return count


@dataclass(slots=True)
class Paced:
    """One message at a time, `rate` a second, each connection in turn."""

    swarm: Swarm
    sources: Sequence[tuple[Wire, Frames]]
    reader: Reader
    rate: float
    latencies: list[int] = field(default_factory=list)
    received: int = 0
    beside: Callable[[], None] | None = None  # called between messages

    def run(self, messages: int) -> Result:
        """Publish that many, and wait until they have arrived."""
        meter, began, rate = Meter(self.swarm), time.perf_counter(), self.rate
        self.received, self.latencies, sent, moved_at = 0, [], 0, began
        while self.received < messages:
            now = time.perf_counter()
            due = min(messages, int((now - began) * rate) + 1)
            while sent < due:
                self._send(sent)
                sent += 1
            if self.beside is not None:
                self.beside()
            next_at = began + sent / rate if sent < messages else now + 0.05
            before = self.received
            for wire, data in self.swarm.poll(max(0.0, next_at - time.perf_counter())):
                self.arrived(wire, data)
            moved_at = now if self.received > before else moved_at
            if now - moved_at > _STALLED_SECONDS:
                break
        return meter.result(self.received, messages - self.received, [nanos / 1e6 for nanos in self.latencies])

    def _send(self, number: int) -> None:
        wire, frames = self.sources[number % len(self.sources)]
        packet_id = number // len(self.sources) % 60_000 + 1
        wire.send(frames.frame(packet_id, time.perf_counter_ns().to_bytes(8, "big") + PAYLOAD[8:]))

    def arrived(self, wire: Wire, data: bytes) -> None:
        """Count messages and how long each took; what else comes is an answer."""
        if wire.wants is None:
            wire.rest = b""
            return
        now = time.perf_counter_ns()
        count, whole = self.reader.count(wire, data)
        self.received += count
        self.latencies.extend([now - stamp for stamp in self.reader.stamps(count, whole)])
