"""How long to wait before the next attempt: full jitter, so that a fleet does not come back all at once."""

from __future__ import annotations

from typing import Final

BASE_SECONDS: Final = 1.0
CAP_SECONDS: Final = 120.0
# A connection that lives shorter than this has not shown that it works: two devices that fight over one identity get a
# CONNACK every time, and a back-off that this resets would let them fight for ever at full speed.
STABLE_SECONDS: Final = 60.0


def ceiling_seconds(failures: int) -> float:
    """The longest wait after so many failures in a row: it doubles from BASE_SECONDS up to CAP_SECONDS."""
    return min(CAP_SECONDS, BASE_SECONDS * 2.0 ** min(max(failures, 1) - 1, 16))


def delay_seconds(failures: int, chance: float) -> float:
    """The wait after so many failures in a row, for a uniform draw `chance` from [0, 1).

    "Full jitter" of Marc Brooker, Exponential Backoff And Jitter (AWS Architecture Blog, 2015).
    """
    return chance * ceiling_seconds(failures)
