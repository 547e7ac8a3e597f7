"""What a broker knows of the time beside its system's clock: its own certificates, and what its home remembers."""

from __future__ import annotations

import contextlib
import logging

from broker.trust import begins_at
from fleet import clock
from fleet.clock import SEEN, Floor, FlooredClock
from fleet.errors import InvalidInput
from fleet.layout import AdminHome
from fleet.logs import event

_log = logging.getLogger("broker")


class Timekeeping:
    """One broker's. The service on the same host writes the file: it goes on where the service is away."""

    def __init__(self, home: AdminHome, clock: FlooredClock) -> None:
        self._home = home
        self._clock = clock
        self._was_floored = False

    def begin(self) -> None:
        """Learn what the home knows, and say so if the clock is surely wrong."""
        self._learn()
        self._tell()

    def look(self) -> bool:
        """Whether the clock has become wrong, or right again, since the last look: dates have another judge now."""
        if self._clock.is_floored:
            self._learn()
        return self._tell()

    def _learn(self) -> None:
        with contextlib.suppress(OSError, InvalidInput):  # never known, or damaged: certificates are what is left
            self._clock.raise_to(Floor(clock.decode_seen(self._home.clock.read_bytes()), SEEN))
        for files in (self._home.broker_server, self._home.broker_client):
            if (made := begins_at(files)) is not None:
                self._clock.raise_to(Floor(made, "certificate"))

    def _tell(self) -> bool:
        is_floored = self._clock.is_floored
        if is_floored is self._was_floored:
            return False
        self._was_floored = is_floored
        if is_floored:
            _log.warning(event("clock.wrong", reason=self._clock.words))
        else:
            _log.info("clock.believed")
        return True
