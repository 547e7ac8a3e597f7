"""What the connections of one listener share: who there is room for, and when what is written goes out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from broker.engine import Reason
from broker.engines.amqtt.hub import Hub
from broker.engines.amqtt.parser import TopicNames
from broker.engines.amqtt.rates import Inquiries
from broker.engines.amqtt.session import FleetSession
from broker.trust import Trust

_SAMPLED_READS: Final = 16
_BUSY_READS: Final = 4  # in one turn of the loop: from here on it pays to encrypt for all of them together


class Guest(Protocol):
    """A connection, as the door knows it."""

    def flush(self) -> None:
        """Encrypt and write what was sent."""

    def give_way(self) -> None:
        """End at once, for somebody else's sake."""

    def end(self, reason: Reason, detail: str = "") -> None:
        """Close, after what was sent."""


class Holder(Protocol):
    """A connection that holds answers back until a commit has ended."""

    def committed(self, commit: int) -> None:
        """Write what waited for this commit, or for one before it."""

    def answer_pings(self) -> None:
        """Without what was to be answered before them."""


class Door:
    """Counts connections in and out, and has each written to once for all that one turn of the loop brought."""

    def __init__(self, hub: Hub, trust: Trust, loop: asyncio.AbstractEventLoop) -> None:
        self.hub = hub
        self.trust = trust
        self.loop = loop
        limits = hub.limits
        self.inquiries = Inquiries(limits.connects_per_minute)
        self.topic_names = TopicNames(limits.max_topic_bytes, limits.max_topic_levels)
        self.open: set[Guest] = set()
        self.holding: dict[Holder, None] = {}  # in the order in which they began to wait for a commit
        self.load: Callable[[FleetSession], Awaitable[None]] | None = None
        self._pending: dict[Guest, None] = {}  # not let in yet, in the order in which they came
        self._to_flush: list[Guest] = []
        self._is_scheduled = False  # whether the loop will call `_end_turn`
        self.is_reading = False  # what is sent meanwhile goes out with `end_read`, or with the turn
        self._is_busy = False
        self._reads = 0  # since the last sample, or in this turn

    def enter(self, connection: Guest) -> bool:
        """Whether there is room for one more; where those who were not let in yet take it, the oldest gives way."""
        limits = self.hub.limits
        if len(self._pending) >= limits.max_pending_connections or (
            self._pending and len(self.open) >= limits.max_connections
        ):
            next(iter(self._pending)).give_way()
        elif len(self.open) >= limits.max_connections:
            return False
        self.open.add(connection)
        self._pending[connection] = None
        return True

    @property
    def pending(self) -> int:
        """How many connections were not let in yet."""
        return len(self._pending)

    def settled(self, connection: Guest) -> None:
        """A connection was let in, or ends."""
        self._pending.pop(connection, None)

    def committed(self, commit: int) -> None:
        """All that was promised up to this commit is on disk."""
        for connection in tuple(self.holding):
            connection.committed(commit)

    def stalled(self) -> None:
        """No commit ends for a while: pings are answered all the same."""
        for connection in tuple(self.holding):
            connection.answer_pings()

    # When what is written goes out: at the end of the read that led to it while reads are few, which saves a call and
    # another turn of the loop for each; together at the end of the turn when they are many, which saves records.

    def flush_soon(self, connection: Guest) -> None:
        """Once for all that is written in this read, or in this turn of the loop."""
        self._to_flush.append(connection)
        if self._is_busy or not self.is_reading:
            self._schedule()

    def end_read(self) -> None:
        """All that came on one connection was looked at."""
        self.is_reading = False
        self._reads += 1
        if self._is_busy:
            return
        if self._reads >= _SAMPLED_READS and not self._is_scheduled:
            self._reads = 1
            self._schedule()
        if self._to_flush:
            connections, self._to_flush = self._to_flush, []
            for connection in connections:
                connection.flush()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self.loop.call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._is_scheduled = False
        self._is_busy, self._reads = self._reads >= _BUSY_READS, 0
        self._flush()

    def _flush(self) -> None:
        connections, self._to_flush = self._to_flush, []
        for connection in connections:
            connection.flush()
