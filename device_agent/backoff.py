"""How long to wait before the next attempt: full jitter, so that a fleet does not come back all at once."""

from __future__ import annotations

from typing import Final

BASE_SECONDS: Final = 1.0
CAP_SECONDS: Final = 120.0
# A connection that lives shorter than this has not shown that it works: two devices that fight over one identity get a
# CONNACK every time, and a back-off that this resets would let them fight for ever at full speed.
STABLE_SECONDS: Final = 60.0


# What the fleet may ask for: a word of `down/control` must not keep a device away for good (DESIGN section 7).
MAX_SPREAD_SECONDS: Final = 3_600.0


def ceiling_seconds(failures: int) -> float:
    """The longest wait after so many failures in a row: it doubles from BASE_SECONDS up to CAP_SECONDS."""
    return min(CAP_SECONDS, BASE_SECONDS * 2.0 ** min(max(failures, 1) - 1, 16))


def delay_seconds(failures: int, chance: float, spread_seconds: float = 0.0) -> float:
    """The wait after so many failures in a row, for a uniform draw `chance` from [0, 1).

    "Full jitter" of Marc Brooker, Exponential Backoff And Jitter (AWS Architecture Blog, 2015). A fleet of which many
    are lost at once is spread over `spread_seconds`, if that is longer, at the first attempt.
    """
    spread = min(max(spread_seconds, 0.0), MAX_SPREAD_SECONDS) if failures <= 1 else 0.0
    return chance * max(ceiling_seconds(failures), spread)
