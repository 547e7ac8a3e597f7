"""The clock of a running service: its floor, what is written down of it, and who judges dates by it.

A gateway without a battery begins in 1970, and goes on from the last time that it knew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from enroll import authority, dates, files
from enroll.home import read_seen
from fleet.clock import SEEN, Floor, FlooredClock, Validity, encode_seen
from fleet.errors import FleetError
from fleet.layout import AdminHome
from fleet.logs import event

LOOK_SECONDS: Final = 2.0
_LOOKS_BETWEEN: Final = 150
# A leap ahead may be one of a clock that is mended in a moment: what is written down stays.
_LEAP: Final = timedelta(days=7)
_BELIEVED_AFTER: Final = 12
_log = logging.getLogger(__name__)


class Timekeeping:
    """One home's, in one process."""

    def __init__(self, home: AdminHome, clock: FlooredClock) -> None:
        self._home = home
        self.clock = clock
        self._was_floored = False
        self._leaps = 0

    def begin(self) -> None:
        """Learn what the home knows of the time, and say so if the clock is surely wrong."""
        if (seen := read_seen(self._home)) is not None:
            self.clock.raise_to(Floor(seen, SEEN))
        if (validity := self._own_validity()) is not None:
            self.clock.raise_to(Floor(validity.not_before, "certificate"))
        self._tell()

    def settle(self, context: ssl.SSLContext) -> None:
        """Have `context` judge dates by what is known of the time now."""
        dates.settle(context, self.clock)

    async def keep(self, context: Callable[[], ssl.SSLContext]) -> None:
        """Notice that the clock was set, and write down what time it is; for ever, as a task."""
        while True:
            await self.remember()
            for _ in range(_LOOKS_BETWEEN):
                await asyncio.sleep(LOOK_SECONDS)
                if self.clock.is_floored is not self._was_floored:
                    self._tell()
                    self.settle(context())

    async def remember(self) -> None:
        """Only a time at which our own certificate is valid: a clock in 2040 must not become the floor for ever."""
        now, validity = self.clock.now(), self._own_validity()
        self._leaps = self._leaps + 1 if self.clock.ahead() > _LEAP else 0
        if validity is None or not validity.covers(now) or 0 < self._leaps < _BELIEVED_AFTER:
            return
        self.clock.raise_to(Floor(now, SEEN))
        with contextlib.suppress(OSError):  # a full disk is said elsewhere; an older floor is what it costs
            await asyncio.to_thread(write_seen, self._home.clock, now)

    def _own_validity(self) -> Validity | None:
        try:
            certificate = authority.read_certificate(self._home.enroll_server.certificate)
        except (FleetError, OSError, ValueError):  # who needs it says what is wrong with it
            return None
        return Validity(certificate.not_valid_before_utc, certificate.not_valid_after_utc)

    def _tell(self) -> None:
        if self.clock.is_floored:
            _log.warning(event("clock.wrong", reason=self.clock.words))
        elif self._was_floored:
            _log.info("clock.believed")
        self._was_floored = self.clock.is_floored


def write_seen(path: Path, seen: datetime) -> None:
    """Remember it, whole or not at all. Raises: OSError."""
    files.replace(path, encode_seen(seen))
