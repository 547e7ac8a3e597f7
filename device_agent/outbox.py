"""What waits to be published, in memory: bounded, in order, and kept until the broker has it.

Within one class messages stand in the order in which they were accepted:

    in flight | read from disk, to be sent | ... on disk (core.shelf) ... | not on disk yet

A message leaves this memory when the broker has it, or when it is on disk and its turn has not come. The bound here is
met while the disk cannot be written: then the oldest telemetry goes first, then the oldest alarm, and each loss is
counted. What the fleet asked for (status, results) is never dropped here: its number is bounded by its source.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import islice
from typing import Final

MAX_MESSAGES: Final = 1_000
MAX_BYTES: Final = 1 << 20
# MQTT engines commonly take 20 unacknowledged messages of a client (Mosquitto's max_inflight_messages, paho's too).
WINDOW: Final = 20
# What a row of the spool takes beside topic and payload: SQLite's headers, number, time, sum, CRC; rounded up.
ROW_BYTES: Final = 32


class Class(IntEnum):
    """What a message is worth: the lowest is dropped first, the highest published first."""

    TELEMETRY = 0
    RESULT = 1
    ALARM = 2  # every event of the firmware
    STATE = 3  # what the device is; said anew after each connect
    HELLO = 4
    PRESENCE = 5

    @property
    def is_spooled(self) -> bool:
        """Whether it outlives the agent in the spool: the journal keeps results, and the rest is made anew."""
        return self in SPOOLED


SPOOLED: Final = (Class.TELEMETRY, Class.ALARM)
_OVERTAKE: Final = (Class.RESULT, Class.STATE)


@dataclass(frozen=True, slots=True)
class Losses:
    """How many messages were dropped, by class."""

    telemetry: int = 0
    alarms: int = 0

    @property
    def total(self) -> int:
        return self.telemetry + self.alarms

    def plus(self, kind: Class, count: int = 1) -> Losses:
        if kind is Class.TELEMETRY:
            return replace(self, telemetry=self.telemetry + count)
        return replace(self, alarms=self.alarms + count)


NO_LOSSES: Final = Losses()


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message to publish. `accepted` is monotonic; `row` is where it is on disk, 0 if it is not.

    `command_id` is set on a command's final result only.
    """

    handle: int
    kind: Class
    topic: str
    payload: bytes = field(repr=False)
    qos: int = 1
    retain: bool = False
    command_id: str = ""
    accepted: float = 0.0
    row: int = 0

    @property
    def size_bytes(self) -> int:
        return len(self.payload) + len(self.topic)

    @property
    def disk_bytes(self) -> int:
        """What it takes in the spool."""
        return self.size_bytes + ROW_BYTES

    @property
    def is_unspooled(self) -> bool:
        """Whether it would be lost with the power, and should not be."""
        return self.kind.is_spooled and not self.row


@dataclass(frozen=True, slots=True)
class Outbox:
    """`waiting` is not handed to a connection yet, `in_flight` is and has not been confirmed."""

    waiting: tuple[Outgoing, ...] = ()
    in_flight: tuple[Outgoing, ...] = ()
    waiting_bytes: int = 0
    unspooled: int = 0
    dropped: Losses = NO_LOSSES
    max_messages: int = MAX_MESSAGES
    max_bytes: int = MAX_BYTES

    def put(self, message: Outgoing) -> Outbox:
        """With `message` behind those of its class and of higher ones, and the bound kept."""
        base = self._without_overtaken(message) if message.kind in _OVERTAKE else self
        at = len(base.waiting)
        while at > 0 and base.waiting[at - 1].kind < message.kind:
            at -= 1
        return replace(
            base,
            waiting=(*base.waiting[:at], message, *base.waiting[at:]),
            waiting_bytes=base.waiting_bytes + message.size_bytes,
            unspooled=base.unspooled + message.is_unspooled,
        )._bounded()

    def put_read(self, messages: Sequence[Outgoing]) -> Outbox:
        """With what was read from disk, before that of its class which is not on disk yet."""
        waiting = list(self.waiting)
        for message in messages:
            at = next((at for at, each in enumerate(waiting) if not _is_before(each, message)), len(waiting))
            waiting.insert(at, message)
        size = self.waiting_bytes + sum(m.size_bytes for m in messages)
        return replace(self, waiting=tuple(waiting), waiting_bytes=size)

    def take(self, held: Collection[Class] = ()) -> tuple[Outbox, tuple[Outgoing, ...]]:
        """What can be published now, moved to `in_flight`.

        Of the classes `held` older messages are on disk only: what is not on disk yet waits for them.
        """
        room = max(0, WINDOW - len(self.in_flight))
        taken = tuple(islice((m for m in self.waiting if m.row or m.kind not in held), room))
        if not taken:
            return self, ()
        handles = {m.handle for m in taken}
        return (
            replace(
                self,
                waiting=tuple(m for m in self.waiting if m.handle not in handles),
                in_flight=self.in_flight + taken,
                waiting_bytes=self.waiting_bytes - sum(m.size_bytes for m in taken),
            ),
            taken,
        )

    def confirm(self, handle: int) -> tuple[Outbox, Outgoing | None]:
        """Without the message that the broker has now (QoS 1), or that has left (QoS 0)."""
        found = next((m for m in self.in_flight if m.handle == handle), None)
        if found is None:
            return self, None
        rest = tuple(m for m in self.in_flight if m.handle != handle)
        return replace(self, in_flight=rest, unspooled=self.unspooled - found.is_unspooled), found

    def disconnected(self) -> Outbox:
        """With all that was in flight waiting again, in its order; but presence and state are said anew."""
        again = tuple(m for m in self.in_flight if m.kind < Class.STATE)
        rest = tuple(m for m in self.waiting if m.kind < Class.STATE)
        waiting = tuple(sorted(again + rest, key=lambda m: -m.kind))  # stable: the order within a class stays
        return replace(self, waiting=waiting, in_flight=(), waiting_bytes=_size(waiting))._bounded()

    def written(self, rows: Mapping[int, int]) -> Outbox:
        """With row numbers by handle: what is in flight stays, what waits is left to the disk until its turn comes."""
        in_flight = tuple(replace(m, row=rows[m.handle]) if m.handle in rows else m for m in self.in_flight)
        waiting = tuple(m for m in self.waiting if m.handle not in rows)
        unspooled = sum(m.is_unspooled for m in in_flight + waiting)
        return replace(self, waiting=waiting, in_flight=in_flight, waiting_bytes=_size(waiting), unspooled=unspooled)

    def without_rows(self) -> Outbox:
        """With nothing of this on disk any more."""
        waiting, in_flight = (tuple(replace(m, row=0) for m in part) for part in (self.waiting, self.in_flight))
        return replace(
            self, waiting=waiting, in_flight=in_flight, unspooled=sum(m.is_unspooled for m in in_flight + waiting)
        )

    def unspooled_messages(self) -> list[Outgoing]:
        """What is not on disk and belongs there, in each class in the order in which it was accepted."""
        return [m for m in self.in_flight + self.waiting if m.is_unspooled]

    def rows(self, kind: Class) -> list[int]:
        """The rows of that class that are in memory, too."""
        return [m.row for m in self.in_flight + self.waiting if m.kind is kind and m.row]

    def holds_result(self, command_id: str) -> bool:
        """Whether the final result of that command is on its way already."""
        return any(m.command_id == command_id for m in self.waiting + self.in_flight)

    @property
    def results(self) -> int:
        """How many final results are on their way."""
        return sum(bool(m.command_id) for m in self.waiting + self.in_flight)

    def _without_overtaken(self, newer: Outgoing) -> Outbox:
        """Without progress that a newer word on the same command makes old news: firmware may report it for ever."""
        waiting = tuple(m for m in self.waiting if not _is_overtaken(m, newer))
        return (
            self if len(waiting) == len(self.waiting) else replace(self, waiting=waiting, waiting_bytes=_size(waiting))
        )

    def _bounded(self) -> Outbox:
        waiting, size, dropped, unspooled = self.waiting, self.waiting_bytes, self.dropped, self.unspooled
        while len(waiting) > self.max_messages or size > self.max_bytes:
            at = _least_worth(waiting)
            if at is None:
                break
            size, dropped, unspooled = size - waiting[at].size_bytes, dropped.plus(waiting[at].kind), unspooled - 1
            waiting = waiting[:at] + waiting[at + 1 :]
        return replace(self, waiting=waiting, waiting_bytes=size, dropped=dropped, unspooled=unspooled)


def _size(messages: Iterable[Outgoing]) -> int:
    return sum(m.size_bytes for m in messages)


def _is_overtaken(waiting: Outgoing, newer: Outgoing) -> bool:
    return waiting.kind in _OVERTAKE and not waiting.command_id and waiting.topic == newer.topic


def _is_before(waiting: Outgoing, read: Outgoing) -> bool:
    return waiting.kind > read.kind or (waiting.kind is read.kind and bool(waiting.row))


def _least_worth(waiting: tuple[Outgoing, ...]) -> int | None:
    """Where the oldest message of the lowest class stands; None if only such are left that are never dropped."""
    for kind in SPOOLED:
        for at, message in enumerate(waiting):
            if message.kind is kind and not message.row:
                return at
    return None
