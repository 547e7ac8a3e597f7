"""What waits for one client: bounded in messages and in bytes, and shared fairly between those who sent it.

When it is full, QoS 0 gives way to QoS 1 and 2. Among equals whoever has most there loses: a sender that floods hides
nobody else (McKenney, Stochastic Fairness Queueing, 1990: drop from the longest queue).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from broker.engine import Stats
from broker.engines.amqtt.packets import Publish
from fleet.identity import DeviceId

_COST_OF_A_MESSAGE: Final = 1024


@dataclass(slots=True)  # not frozen: one is made for every message that waits, and freezing costs thrice
class Waiting:
    """A message that waits for a connection, or for room in it. `owner` published it; None: the broker itself."""

    publish: Publish
    qos: int
    owner: DeviceId | None

    @property
    def cost(self) -> int:
        """What it takes of a queue that is bounded in bytes and in messages, in one figure."""
        return self.publish.size + _COST_OF_A_MESSAGE


class Backlog:
    """First in, first out. `stats` counts what was dropped."""

    __slots__ = ("_max_bytes", "_max_messages", "_messages", "_qos_0", "_shares", "_size_bytes", "_stats")

    def __init__(self, max_messages: int, max_bytes: int, stats: Stats) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._stats = stats
        self._messages: deque[Waiting] = deque()
        self._shares: dict[DeviceId | None, int] = {}
        self._size_bytes = 0
        self._qos_0 = 0

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def has_qos_0(self) -> bool:
        """Whether a message of QoS 0 waits, which the next one must not overtake."""
        return self._qos_0 > 0

    @property
    def first(self) -> Waiting:
        return self._messages[0]

    def put(self, message: Waiting) -> bool:
        """Keep a message; False where it was dropped."""
        while not self._has_room_for(message):
            if not self._make_room_for(message):
                self._stats.messages_dropped += 1
                return False
        self._messages.append(message)
        self._count(message, 1)
        return True

    def pop(self) -> Waiting:
        """The message that waited longest."""
        message = self._messages.popleft()
        self._count(message, -1)
        return message

    def clear(self) -> None:
        self._messages.clear()
        self._shares.clear()
        self._size_bytes = self._qos_0 = 0

    def _count(self, message: Waiting, sign: int) -> None:
        self._size_bytes += sign * message.publish.size
        if message.qos == 0:
            self._qos_0 += sign
        share = self._shares.get(message.owner, 0) + sign * message.cost
        if share:
            self._shares[message.owner] = share
        else:
            del self._shares[message.owner]

    def _has_room_for(self, message: Waiting) -> bool:
        parts = 1 if message.qos else 2  # QoS 0 may fill only half
        return (
            len(self._messages) < self._max_messages // parts
            and self._size_bytes + message.publish.size <= self._max_bytes // parts
        )

    def _make_room_for(self, message: Waiting) -> bool:
        if message.qos and self._qos_0:
            self._drop(next(at for at, waiting in enumerate(self._messages) if waiting.qos == 0))
            return True
        greediest = max(self._shares, key=self._shares.__getitem__, default=message.owner)
        if self._shares.get(greediest, 0) <= self._shares.get(message.owner, 0) + message.cost:
            return False
        return self._drop_last_of(greediest, keeps_qos_1=message.qos == 0)

    def _drop_last_of(self, owner: DeviceId | None, *, keeps_qos_1: bool) -> bool:
        for back, waiting in enumerate(reversed(self._messages), 1):
            if waiting.owner == owner and not (keeps_qos_1 and waiting.qos):
                self._drop(len(self._messages) - back)
                return True
        return False

    def _drop(self, at: int) -> None:
        self._count(self._messages[at], -1)
        del self._messages[at]
        self._stats.messages_dropped += 1
