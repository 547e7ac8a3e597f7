"""The clock of this machine as the agent takes it, and one that a test moves."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from device_agent.timekeeping import Timekeeper, timekeeper


def real_clock() -> Timekeeper:
    """This machine's."""
    return timekeeper(lambda: datetime.now(UTC), time.monotonic)


def still_clock(monotonic: Callable[[], float]) -> Timekeeper:
    """One whose seconds a test counts."""
    return timekeeper(lambda: datetime.now(UTC), monotonic)
