"""When each of many that want to renew at once is to come: evenly, as fast as a small gateway keeps up with (pure)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from fleet.identity import Serial

RENEWALS_PER_SECOND: Final = 20.0
"""A renewal takes a gateway of the size of a Pi some 20 ms; half of its time is left for everything else."""
MAX_WAIT_SECONDS: Final = 3_600.0
"""Agents wait no longer, whatever they are told (DESIGN section 7)."""
_FORGET_AFTER: Final = 10_000


@dataclass(slots=True)
class Pacer:
    """Gives each who asks a place in time, and the same one to who asks again before it has come."""

    per_second: float = RENEWALS_PER_SECOND
    _next: float = 0.0
    _places: dict[Serial, float] = field(default_factory=dict)

    def wait_seconds(self, serial: Serial, now: float) -> float:
        """How long whoever holds `serial` is to wait; `now` is monotonic. 0 unless many came before."""
        place = self._places.get(serial)
        if place is None or place < now:
            place = self._take_place(serial, now)
        return min(place - now, MAX_WAIT_SECONDS)

    def _take_place(self, serial: Serial, now: float) -> float:
        if len(self._places) >= _FORGET_AFTER:
            self._places = {other: at for other, at in self._places.items() if at >= now}
        # a queue longer than anybody waits would only grow
        place = max(now, min(self._next, now + MAX_WAIT_SECONDS))
        self._places[serial] = place
        self._next = place + 1 / self.per_second
        return place
