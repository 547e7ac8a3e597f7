"""How long a client of the fleet waits before it connects again (pure)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

_FIRST_SECONDS: Final = 0.5
_LONGEST_SECONDS: Final = 30.0


@dataclass(slots=True)
class Backoff:
    """Full jitter, so that a fleet's clients do not beat in time."""

    draw: random.Random
    _failures: int = 0

    def after(self, held: float) -> float:
        """Seconds to wait after a connection that held for `held` seconds; one that held long was a good one."""
        self._failures = 0 if held > _LONGEST_SECONDS else self._failures + 1
        return self.draw.uniform(0, min(_LONGEST_SECONDS, _FIRST_SECONDS * 2.0 ** min(self._failures, 10)))
