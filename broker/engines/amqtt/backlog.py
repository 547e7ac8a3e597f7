"""What waits for one client: bounded in messages and in bytes, and shared fairly between those who sent it.

When it is full, QoS 0 gives way to QoS 1 and 2. Among equals whoever has most there loses: a sender that floods hides
nobody else (McKenney, Stochastic Fairness Queueing, 1990: drop from the longest queue).
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Final, NamedTuple

from broker.engine import Stats
from broker.engines.amqtt.packets import Publish
from fleet.identity import DeviceId

_COST_OF_A_MESSAGE: Final = 1024


class Waiting(NamedTuple):
    """A message that waits for a connection, or for room in it. `owner` published it; None: the broker itself."""

    publish: Publish
    qos: int
    owner: DeviceId | None

    @property
    def cost(self) -> int:
        """What it takes of a queue that is bounded in bytes and in messages, in one figure."""
        return len(self.publish.frame) + _COST_OF_A_MESSAGE


class Backlog:
    """First in, first out. `stats` counts what was dropped."""

    __slots__ = ("_max_bytes", "_max_messages", "_messages", "_qos_0", "_shares", "_size_bytes", "_stats")

    def __init__(self, max_messages: int, max_bytes: int, stats: Stats) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._stats = stats
        self._messages: deque[Waiting] = deque()
        self._shares: Counter[DeviceId | None] | None = None  # known from when it is full until it is nearly empty
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
        self._size_bytes += len(message.publish.frame)
        if not message.qos:
            self._qos_0 += 1
        if self._shares is not None:
            self._shares[message.owner] += message.cost
        return True

    def pop(self) -> Waiting:
        """The message that waited longest."""
        message = self._messages.popleft()
        self._left(message)
        return message

    def clear(self) -> None:
        self._messages.clear()
        self._shares = None
        self._size_bytes = self._qos_0 = 0

    def _left(self, message: Waiting) -> None:
        self._size_bytes -= len(message.publish.frame)
        if not message.qos:
            self._qos_0 -= 1
        if self._shares is not None:
            self._shares[message.owner] -= message.cost
            if len(self._messages) < self._max_messages // 4 and self._size_bytes < self._max_bytes // 4:
                self._shares = None

    def _has_room_for(self, message: Waiting) -> bool:
        max_messages, max_bytes = self._max_messages, self._max_bytes
        if not message.qos:  # may fill only half
            max_messages, max_bytes = max_messages // 2, max_bytes // 2
        return len(self._messages) < max_messages and self._size_bytes + len(message.publish.frame) <= max_bytes

    def _make_room_for(self, message: Waiting) -> bool:
        if message.qos and self._qos_0:
            self._drop(next(at for at, waiting in enumerate(self._messages) if waiting.qos == 0))
            return True
        shares = self._shares
        if shares is None:
            shares = self._shares = Counter()
            for waiting in self._messages:
                shares[waiting.owner] += waiting.cost
        greediest = max(shares, key=shares.__getitem__, default=message.owner)
        if shares[greediest] <= shares[message.owner] + message.cost:
            return False
        return self._drop_last_of(greediest, keeps_qos_1=message.qos == 0)

    def _drop_last_of(self, owner: DeviceId | None, *, keeps_qos_1: bool) -> bool:
        for back, waiting in enumerate(reversed(self._messages), 1):
            if waiting.owner == owner and not (keeps_qos_1 and waiting.qos):
                self._drop(len(self._messages) - back)
                return True
        return False

    def _drop(self, at: int) -> None:
        message = self._messages[at]
        del self._messages[at]
        self._left(message)
        self._stats.messages_dropped += 1
