"""What the core knows of the spool: how much of each class is on disk, and what its bounds are.

Rows of a class count up by one:

    gone | in memory too ... `loaded` | on disk alone ... `last`
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from device_agent.core.effects import SpoolOrder
from device_agent.outbox import NO_LOSSES, Class, Losses

NEVER: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is kept, and for how long: telemetry gives way first, and a flood of alarms does not push it all out.

    A week of one message a second takes 604,800 rows: docs/agent.md has the arithmetic, a test does it on real bytes.
    """

    max_bytes: int = 256 << 20
    max_alarm_bytes: int = 64 << 20
    max_telemetry_seconds: int = 30 * 86_400
    max_alarm_seconds: int = 90 * 86_400

    def max_seconds(self, kind: Class) -> int:
        return self.max_telemetry_seconds if kind is Class.TELEMETRY else self.max_alarm_seconds

    def bytes_of(self, kind: Class) -> int:
        return self.max_bytes if kind is Class.TELEMETRY else self.max_alarm_bytes


DEFAULT_BOUNDS: Final = Bounds()


@dataclass(frozen=True, slots=True)
class Shelf:
    """One class on disk. `upto_bytes` counts all that was ever written, `size_bytes` what is there.

    After a crash `size_bytes` may count a few rows too many, until all were read.
    """

    last: int = 0
    loaded: int = 0
    upto_bytes: int = 0
    size_bytes: int = 0

    @property
    def unloaded(self) -> int:
        """How many messages are on disk alone."""
        return self.last - self.loaded


EMPTY: Final = Shelf()


@dataclass(frozen=True, slots=True)
class Spool:
    """`order` is under way. Times are monotonic: `look_at` when a message may have waited too long, `dirty_at` when
    what is known of confirmations and losses must be written, `retry_at` when a disk that failed is written to again,
    `read_at` when it is read again; `paid_until` is ahead of the clock while too much was written lately.

    `dropped`: since the agent started; `losses`: of these, what the fleet was not told of; `recorded`: what of them is
    on disk.
    """

    telemetry: Shelf = EMPTY
    alarms: Shelf = EMPTY
    bounds: Bounds = DEFAULT_BOUNDS
    is_open: bool = False
    order: SpoolOrder | None = None
    second_at_open: int = 0
    opened_at: float = 0.0
    look_at: float = 0.0
    dirty_at: float = NEVER
    confirmed: int = 0
    retry_at: float = NEVER
    read_at: float = 0.0
    paid_until: float = -NEVER
    expire_at: float = 0.0
    report_at: float = 0.0
    log_at: float = 0.0
    error: str = ""
    problem: str = ""
    dropped: Losses = NO_LOSSES
    logged: Losses = NO_LOSSES
    losses: Losses = NO_LOSSES
    recorded: Losses = NO_LOSSES

    def shelf(self, kind: Class) -> Shelf:
        return self.telemetry if kind is Class.TELEMETRY else self.alarms

    def with_shelf(self, kind: Class, shelf: Shelf) -> Spool:
        return replace(self, telemetry=shelf) if kind is Class.TELEMETRY else replace(self, alarms=shelf)

    @property
    def unloaded(self) -> int:
        return self.telemetry.unloaded + self.alarms.unloaded

    @property
    def size_bytes(self) -> int:
        return self.telemetry.size_bytes + self.alarms.size_bytes

    @property
    def held(self) -> tuple[Class, ...]:
        """The classes of which older messages are on disk alone."""
        return tuple(kind for kind in (Class.TELEMETRY, Class.ALARM) if self.shelf(kind).unloaded)

    def second(self, now: float) -> int:
        """The spool's clock, which stands still while the agent does not run."""
        return self.second_at_open + int(now - self.opened_at)

    def lose(self, kind: Class, count: int) -> Spool:
        """With so many more messages dropped."""
        return replace(self, dropped=self.dropped.plus(kind, count), losses=self.losses.plus(kind, count))
