"""What the fleet asks of agents themselves by commands: to renew the certificate now, to spread their return.

As any command each is signed, has a deadline, is kept while its device is away, begins once, and is answered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from fleet.errors import InvalidInput
from fleet.messages import JsonObject
from fleet.uploads import RESERVED

RENEW: Final = f"{RESERVED}renew"
PACE: Final = f"{RESERVED}pace"
NAMES: Final = (RENEW, PACE)
LONGEST: Final = timedelta(hours=1)
"""What agents take for anything longer (DESIGN section 7)."""


@dataclass(frozen=True, slots=True)
class RenewOrder:
    """Renew the certificate, at a random point within so many seconds."""

    within_seconds: float = 0.0

    def encode(self) -> JsonObject:
        """As the arguments of RENEW."""
        return {"within_seconds": self.within_seconds}


@dataclass(frozen=True, slots=True)
class PaceOrder:
    """After its next losses of the connection, come back at a random point within so many seconds."""

    reconnect_seconds: float

    def encode(self) -> JsonObject:
        """As the arguments of PACE."""
        return {"reconnect_seconds": self.reconnect_seconds}


Upkeep = RenewOrder | PaceOrder


def decode_upkeep(name: str, args: JsonObject) -> Upkeep:
    """What a command of one of NAMES asks for; nothing past LONGEST. Raises: InvalidInput."""
    if name == RENEW:
        return RenewOrder(_seconds(args, "within_seconds", 0.0))
    return PaceOrder(_seconds(args, "reconnect_seconds", None))


def _seconds(args: JsonObject, name: str, default: float | None) -> float:
    """Other arguments are an error: one that was misspelt must not be taken for none."""
    if others := sorted(args.keys() - {name}):
        raise InvalidInput(f"there is no argument {others[0][:40]!r}")
    value = args.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise InvalidInput(f"{name} is not a number from 0")
    return min(float(value), LONGEST.total_seconds())
