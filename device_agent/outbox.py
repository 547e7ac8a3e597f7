"""What waits to be published: bounded, in order, and kept until the broker has it.

The bound is in messages and bytes; when it is reached the oldest telemetry goes first, then the oldest event, and each
loss is counted. What the fleet asked for (status, results) is never dropped here: its number is bounded by its source.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final

MAX_MESSAGES: Final = 1_000
MAX_BYTES: Final = 1 << 20
# MQTT engines commonly take 20 unacknowledged messages of a client (Mosquitto's max_inflight_messages, paho's too).
WINDOW: Final = 20


class Class(IntEnum):
    """What a message is worth: the lowest is dropped first, the highest published first."""

    TELEMETRY = 0
    EVENT = 1
    RESULT = 2
    HELLO = 3
    PRESENCE = 4


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message to publish. `command_id` is set on a command's final result only."""

    handle: int
    kind: Class
    topic: str
    payload: bytes = field(repr=False)
    qos: int = 1
    retain: bool = False
    command_id: str = ""

    @property
    def size_bytes(self) -> int:
        return len(self.payload) + len(self.topic)


@dataclass(frozen=True, slots=True)
class Outbox:
    """`waiting` is not handed to a connection yet, `in_flight` is and has not been confirmed."""

    waiting: tuple[Outgoing, ...] = ()
    in_flight: tuple[Outgoing, ...] = ()
    waiting_bytes: int = 0
    dropped: int = 0
    max_messages: int = MAX_MESSAGES
    max_bytes: int = MAX_BYTES

    def put(self, message: Outgoing) -> Outbox:
        """With `message` behind those of its class and of higher ones, and the bound kept."""
        at = len(self.waiting)
        while at > 0 and self.waiting[at - 1].kind < message.kind:
            at -= 1
        waiting = (*self.waiting[:at], message, *self.waiting[at:])
        return replace(self, waiting=waiting, waiting_bytes=self.waiting_bytes + message.size_bytes)._bounded()

    def take(self) -> tuple[Outbox, tuple[Outgoing, ...]]:
        """What can be published now, moved to `in_flight`."""
        room = max(0, WINDOW - len(self.in_flight))
        taken = self.waiting[:room]
        if not taken:
            return self, ()
        return (
            replace(
                self,
                waiting=self.waiting[room:],
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
        return replace(self, in_flight=tuple(m for m in self.in_flight if m.handle != handle)), found

    def disconnected(self) -> Outbox:
        """With all that was in flight waiting again, in its order: presence apart, which the next connection renews."""
        again = tuple(m for m in self.in_flight if m.kind < Class.HELLO)
        rest = tuple(m for m in self.waiting if m.kind < Class.HELLO)
        waiting = tuple(sorted(again + rest, key=lambda m: -m.kind))  # stable: the order within a class stays
        return replace(self, waiting=waiting, in_flight=(), waiting_bytes=sum(m.size_bytes for m in waiting))._bounded()

    def holds_result(self, command_id: str) -> bool:
        """Whether the final result of that command is on its way already."""
        return any(m.command_id == command_id for m in self.waiting + self.in_flight)

    def _bounded(self) -> Outbox:
        waiting, size, dropped = self.waiting, self.waiting_bytes, self.dropped
        while len(waiting) > self.max_messages or size > self.max_bytes:
            at = _least_worth(waiting)
            if at is None:
                break
            size, dropped = size - waiting[at].size_bytes, dropped + 1
            waiting = waiting[:at] + waiting[at + 1 :]
        return replace(self, waiting=waiting, waiting_bytes=size, dropped=dropped)


def _least_worth(waiting: tuple[Outgoing, ...]) -> int | None:
    """Where the oldest message of the lowest class stands; None if only such are left that are never dropped."""
    for kind in (Class.TELEMETRY, Class.EVENT):
        for at, message in enumerate(waiting):
            if message.kind is kind:
                return at
    return None
