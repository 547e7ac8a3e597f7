"""Programs whose clock is wrong, or jumps: libfaketime under a real process, its monotonic clock left alone.

Debian's `faketime` has the library; the command itself is not used: it sets what these settings would undo.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

EPOCH: Final = "@1970-01-01 00:01:00"
FAR_AHEAD: Final = "@2040-06-01 12:00:00"
RIGHT: Final = "+0"


def shifted(span: timedelta) -> str:
    """A clock that is so far ahead of the time, or behind it."""
    return f"{span.total_seconds():+.0f}"


def stopped_at(moment: datetime) -> str:
    """A clock that begins at that time."""
    return f"@{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def at(clock: str) -> dict[str, str]:
    """What to add to a program's environment, so that this is its clock."""
    return _PRELOADED | {"FAKETIME": clock}


@dataclass(frozen=True, slots=True)
class MovedClock:
    """A clock that a test sets while a program runs by it."""

    file: Path

    def set(self, clock: str) -> None:
        """What it says from now on."""
        partial = self.file.with_suffix(".partial")
        partial.write_text(f"{clock}\n")
        partial.replace(self.file)

    @property
    def environment(self) -> Mapping[str, str]:
        return _PRELOADED | {"FAKETIME_TIMESTAMP_FILE": str(self.file), "FAKETIME_NO_CACHE": "1"}


def _library() -> str:
    """Where Debian has it, which depends on the machine. Raises: StopIteration if it is not installed."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    return str(next(iter(found)))


_PRELOADED: Final = {
    "LD_PRELOAD": _library(),
    "TZ": "UTC",
    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    "NO_FAKE_STAT": "1",
}
