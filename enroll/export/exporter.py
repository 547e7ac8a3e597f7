"""From the broker to a sink, until told to stop: what the sink has is acknowledged, and nothing else.

One thread, batch by batch: take what arrives together, write it, acknowledge it. Killed anywhere, the broker still has
what was not acknowledged, and brings it again to the same session; a sink that knows a message by its key has it once.
While the sink is busy (a full disk) nothing is acknowledged, and the broker keeps what comes.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from enroll.backoff import Backoff
from enroll.export.readings import Reading, read
from enroll.export.sink import Sink, SinkBusy
from enroll.export.source import Wanted
from enroll.mqtt_client import Connection, Incoming
from fleet.errors import Denied, FleetError, Unreachable
from fleet.logs import event

BATCH: Final = 100
"""As many as the broker sends before the first is acknowledged (`inflight_per_session`): no more come by waiting."""
LINGER_SECONDS: Final = 0.05
"""How long the first of a batch waits for others; each commit costs an fsync."""
_GAP_SECONDS: Final = 0.01  # nothing comes: the broker has sent what it may, or there is no more
_TURN_SECONDS: Final = 0.2
_BUSY_SECONDS: Final = 1.0
_MAX_HELD: Final = 1000
_MAX_COUNTED: Final = 10_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ports:
    """The world as an export may see it: time of day in UTC, seconds that never jump, jitter, a wait that can end."""

    clock: Callable[[], datetime]
    monotonic: Callable[[], float]
    random: random.Random
    is_stopping: Callable[[], bool]
    wait: Callable[[float], object]
    on_ready: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Bounds:
    """When to end by itself: after so many messages are stored, or so many seconds."""

    count: int | None = None
    seconds: float | None = None


@dataclass(slots=True)
class Tally:
    """What became of what arrived. `passed_over` was not asked for; `lost` was QoS 0 that found no room."""

    stored: int = 0
    seen_before: int = 0
    set_aside: int = 0
    left_out: int = 0
    passed_over: int = 0
    lost: int = 0


@dataclass(slots=True)
class Exporter:
    """One export, run once."""

    connect: Callable[[Sequence[str]], Connection]
    wanted: Wanted
    sink: Sink
    bounds: Bounds
    ports: Ports
    tally: Tally = field(default_factory=Tally)
    _deadline: float | None = None
    _trouble: FleetError | None = None  # why the broker is not there, or the sink busy
    _was_online: bool = False
    _held: list[Incoming] = field(default_factory=list)
    _aside: dict[str, int] = field(default_factory=dict)

    def run(self) -> Tally:
        """Export until stopped, or a bound is reached.

        Raises: Denied (the broker refused the first connection), FleetError; what kept it from all work, at a bound.
        """
        self._deadline = None if self.bounds.seconds is None else self.ports.monotonic() + self.bounds.seconds
        backoff = Backoff(self.ports.random)
        while not self._is_over():
            began_online = self.ports.monotonic()
            self._attempt()
            self._wait(backoff.after(self.ports.monotonic() - began_online))
        if self._trouble is not None and not self.ports.is_stopping():
            raise self._trouble
        return self.tally

    def _is_over(self) -> bool:
        return (
            self.ports.is_stopping()
            or (self.bounds.count is not None and self.tally.stored >= self.bounds.count)
            or (self._deadline is not None and self.ports.monotonic() >= self._deadline)
        )

    def _wait(self, seconds: float) -> None:
        if not self._is_over():
            left = seconds if self._deadline is None else min(seconds, self._deadline - self.ports.monotonic())
            self.ports.wait(max(0.0, left))

    def _attempt(self) -> None:
        """One connection, from its beginning to its end."""
        try:
            connection = self.connect(self.wanted.filters())
            with contextlib.closing(connection):
                self._begin(connection)
                self._live(connection)
        except (Unreachable, Denied) as error:
            if isinstance(error, Denied) and not self._was_online:
                raise
            self._trouble = error
            _log.warning(event("export.offline", reason=error.message))

    def _begin(self, connection: Connection) -> None:
        self._trouble = None
        self._held.clear()  # the broker brings again what was not acknowledged
        _log.info(event("export.online", broker=connection.endpoint))
        if not self._was_online:
            self._was_online = True
            self.ports.on_ready()

    def _live(self, connection: Connection) -> None:
        while not self._is_over():
            self._keep(connection, self._collect(connection))
            self._tend()

    def _collect(self, connection: Connection) -> list[Incoming]:
        """What arrives together."""
        arrived, self._held = self._held, []
        arrived = arrived or connection.turn(_TURN_SECONDS)
        until = self.ports.monotonic() + LINGER_SECONDS
        while 0 < len(arrived) < BATCH and self.ports.monotonic() < until:
            try:
                more = connection.turn(_GAP_SECONDS)
            except Unreachable:  # the next turn says so again; what a broker sent before its end is stored
                break
            if not more:
                break
            arrived += more
        return arrived

    def _keep(self, connection: Connection, arrived: list[Incoming]) -> None:
        while arrived and not (self._is_over() and self.bounds.count is not None):
            left = len(arrived) if self.bounds.count is None else self.bounds.count - self.tally.stored
            some, arrived = arrived[:left], arrived[left:]
            if not self._store(connection, self._read(some)):
                return
            for message in some:
                connection.ack(message)

    def _store(self, connection: Connection, readings: list[Reading]) -> bool:
        """Write them, however long that takes; False if told to stop before that. Raises: Unreachable."""
        while readings:
            try:
                written = self.sink.write(readings)
            except SinkBusy as error:
                self._busy(error)
                if not self._pause(connection):
                    return False
            else:
                self.tally.stored += written.stored
                self.tally.seen_before += written.seen_before
                self.tally.left_out += written.left_out
                self._free()
                break
        return True

    def _pause(self, connection: Connection) -> bool:
        """Stay connected for a while without acknowledging; False if it is over."""
        until = self.ports.monotonic() + _BUSY_SECONDS
        while self.ports.monotonic() < until:
            if self._is_over():
                return False
            for message in connection.turn(_TURN_SECONDS):
                if message.qos or len(self._held) < _MAX_HELD:
                    self._held.append(message)
                else:
                    self.tally.lost += 1
        return True

    def _tend(self) -> None:
        try:
            self.sink.tend()
        except SinkBusy as error:
            self._busy(error)

    def _busy(self, error: SinkBusy) -> None:
        if self._trouble is None:  # once, not each time that it is tried
            _log.warning(event("export.busy", reason=error.message))
        self._trouble = error

    def _free(self) -> None:
        if self._trouble is not None:
            _log.info(event("export.resumed"))
        self._trouble = None

    def _read(self, arrived: list[Incoming]) -> list[Reading]:
        now, readings = self.ports.clock(), []
        for message in arrived:
            try:
                reading = read(message.topic, message.payload, now)
            except FleetError as error:
                self._set_aside(message.topic, error)
                continue
            # What is retained was exported when it was said; the broker shows it again at each subscription.
            if message.retain or not self.wanted.takes(reading.device, reading.stream):
                self.tally.passed_over += 1
            else:
                readings.append(reading)
        return readings

    def _set_aside(self, topic: str, error: FleetError) -> None:
        """Count it; log the first, second, fourth, eighth of a device, which may have any number of topics."""
        self.tally.set_aside += 1
        if len(self._aside) >= _MAX_COUNTED:
            self._aside.clear()
        device = [*topic.split("/"), ""][1]
        count = self._aside[device] = self._aside.get(device, 0) + 1
        if count & (count - 1) == 0:
            _log.warning(event("message.set_aside", topic=topic[:120], reason=error.message[:120], count=count))
