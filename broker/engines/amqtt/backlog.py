"""What waits for one client: bounded in messages and in bytes, and shared fairly between those who sent it.

Senders take turns, so what one says is not behind all that another has piled up. When there is no room, QoS 0 gives way
to QoS 1 and 2; among equals whoever has most there loses: a sender that floods hides nobody else (McKenney, Stochastic
Fairness Queueing, 1990: one queue a sender, drop from the longest). Order is kept where the standard asks for it, among
the messages of one sender and QoS (4.6). Nothing here takes longer when there is more of it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Final

from broker.engine import Stats
from broker.engines.amqtt.packets import Publish
from fleet.identity import DeviceId

_COST_OF_A_MESSAGE: Final = 1024  # bytes and messages in one figure: whoever has most of both has most

Sender = DeviceId | None
"""Who published a message; None: the broker itself."""
Waiting = tuple[Publish, int, int]
"""A message that waits for a connection, or for room in it, the QoS to send it at, and its row in the store; or 0."""


class _Line:
    """What waits of one sender."""

    __slots__ = ("cost", "messages")

    def __init__(self) -> None:
        self.messages: deque[Waiting] = deque()
        self.cost = 0


class _Lines:
    """A queue a sender, taking turns."""

    __slots__ = ("_by_class", "_lines", "count", "size_bytes")

    def __init__(self) -> None:
        self._lines: OrderedDict[Sender, _Line] = OrderedDict()
        self._by_class: dict[int, dict[Sender, None]] = {}  # by how many bits their cost has
        self.count = 0
        self.size_bytes = 0

    def put(self, sender: Sender, message: Waiting) -> None:
        line = self._lines.get(sender)
        if line is None:
            line = self._lines[sender] = _Line()
        line.messages.append(message)
        size = len(message[0].frame)
        self.count += 1
        self.size_bytes += size
        before = line.cost
        line.cost = after = before + size + _COST_OF_A_MESSAGE
        if before ^ after > before & after:  # their highest bits differ
            self._reclass(sender, before, after)

    def pop(self) -> Waiting:
        """The first message of the sender whose turn it is."""
        sender = next(iter(self._lines))
        line = self._lines[sender]
        message = line.messages.popleft()
        self._left(sender, line, message)
        if line.messages:
            self._lines.move_to_end(sender)
        return message

    def greediest(self) -> tuple[Sender, int]:
        """One of those who have most, to within a factor of two, and what it has."""
        if not self._lines:
            return None, 0
        sender = next(iter(self._by_class[max(self._by_class)]))
        return sender, self._lines[sender].cost

    def cost_of(self, sender: Sender) -> int:
        line = self._lines.get(sender)
        return line.cost if line is not None else 0

    def drop_last_of(self, sender: Sender) -> Waiting:
        line = self._lines[sender]
        message = line.messages.pop()
        self._left(sender, line, message)
        return message

    def __iter__(self) -> Iterator[tuple[Sender, Waiting]]:
        for sender, line in self._lines.items():
            for message in line.messages:
                yield sender, message

    def clear(self) -> None:
        self._lines.clear()
        self._by_class.clear()
        self.count = self.size_bytes = 0

    def _left(self, sender: Sender, line: _Line, message: Waiting) -> None:
        size = len(message[0].frame)
        self.count -= 1
        self.size_bytes -= size
        before = line.cost
        line.cost = after = before - size - _COST_OF_A_MESSAGE
        if before ^ after > before & after:
            self._reclass(sender, before, after)
        if not line.messages:
            del self._lines[sender]

    def _reclass(self, sender: Sender, cost_before: int, cost: int) -> None:
        before, after, by_class = cost_before.bit_length(), cost.bit_length(), self._by_class
        if before:
            del by_class[before][sender]
            if not by_class[before]:
                del by_class[before]
        if after:
            by_class.setdefault(after, {})[sender] = None


class Backlog:
    """`stats` counts what was dropped, and `on_drop` is told its row.

    `has_qos_0` and `has_others`: whether messages of QoS 0, or of 1 and 2, wait.
    """

    __slots__ = ("_max_bytes", "_max_messages", "_others", "_qos_0", "_stats", "has_others", "has_qos_0", "on_drop")

    def __init__(self, max_messages: int, max_bytes: int, stats: Stats) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._stats = stats
        self._qos_0 = _Lines()
        self._others = _Lines()
        self.has_qos_0 = self.has_others = False  # plain fields: asked for every message to every subscriber
        self.on_drop: Callable[[int], None] | None = None

    def __len__(self) -> int:
        return self._qos_0.count + self._others.count

    @property
    def size_bytes(self) -> int:
        return self._qos_0.size_bytes + self._others.size_bytes

    def put(self, publish: Publish, qos: int, sender: Sender, row: int = 0) -> None:
        """Keep a message, or drop it or others where there is no room."""
        lines = self._others if qos else self._qos_0
        size = len(publish.frame)
        while not self._has_room(qos, size):
            if not self._make_room(lines, sender, size):
                self._dropped(row)
                return
        lines.put(sender, (publish, qos, row))
        if qos:
            self.has_others = True
        else:
            self.has_qos_0 = True

    def pop_qos_0(self) -> Waiting:
        """The next message of QoS 0."""
        message = self._qos_0.pop()
        self.has_qos_0 = self._qos_0.count > 0
        return message

    def pop_other(self) -> Waiting:
        """The next message of QoS 1 or 2."""
        message = self._others.pop()
        self.has_others = self._others.count > 0
        return message

    def clear(self) -> None:
        self._qos_0.clear()
        self._others.clear()
        self._changed()

    def _changed(self) -> None:
        self.has_qos_0, self.has_others = self._qos_0.count > 0, self._others.count > 0

    def _has_room(self, qos: int, size: int) -> bool:
        of_0, others = self._qos_0, self._others
        if of_0.count + others.count >= self._max_messages:
            return False
        if of_0.size_bytes + others.size_bytes + size > self._max_bytes:
            return False
        return qos > 0 or (of_0.count < self._max_messages // 2 and of_0.size_bytes + size <= self._max_bytes // 2)

    def _make_room(self, lines: _Lines, sender: Sender, size: int) -> bool:
        others = self._qos_0 if lines is self._others and self._qos_0.count else lines
        greediest, cost = others.greediest()
        if others is lines and cost <= lines.cost_of(sender) + size + _COST_OF_A_MESSAGE:
            return False  # nobody has more than this one would
        dropped = others.drop_last_of(greediest)
        self._changed()
        self._dropped(dropped[2])
        return True

    def _dropped(self, row: int) -> None:
        self._stats.messages_dropped += 1
        if row and self.on_drop is not None:
            self.on_drop(row)

    def others(self) -> Iterator[tuple[Sender, Waiting]]:
        """The messages of QoS 1 and 2, those of one sender in their order."""
        return iter(self._others)

    def would_fill(self, count: int, size_bytes: int) -> bool:
        """Whether there would be no room if so much waited beside what does."""
        return len(self) + count >= self._max_messages or self.size_bytes + size_bytes >= self._max_bytes
