"""One moment, as the core is told it: the core reads no clock and draws nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Moment:
    """When an event is handled.

    `monotonic` is in seconds and never goes back: timers count in it. `utc` is what the clock on the wall says, right
    or wrong. `chance` is a fresh uniform draw from [0, 1), for jitter.
    """

    monotonic: float
    utc: datetime
    chance: float
