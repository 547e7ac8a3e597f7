"""Takes what a broker tells of its sessions from what arrives on one connection, and asks again for what is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from enroll.mqtt_client import Connection, Incoming
from enroll.reports import Report
from enroll.roll import Moment, Roll
from enroll.sifting import Aside
from fleet import sessions
from fleet.errors import FleetError

REPORTS_A_TURN: Final = 200
"""So many go into one transaction: whoever enrols must not wait for a whole fleet that comes back."""
_CALLED_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Attendance:
    """Who has a session with the broker of `connection`."""

    connection: Connection
    roll: Roll
    aside: Aside

    def begin(self, monotonic: Callable[[], float]) -> None:
        """Ask for the list, and wait until it is known whether there is one. Raises: Unreachable.

        Before anything that devices said is looked at: what is retained counts for less where the broker tells.
        """
        self.connection.ask_for(sessions.ALL)
        self.connection.wait_for(sessions.BROKER, _CALLED_SECONDS, monotonic)

    @property
    def is_busy(self) -> bool:
        """Whether there is something to record without waiting for more."""
        return self.roll.has_reports

    def hear(self, arrived: Sequence[Incoming], now: Moment) -> list[Incoming]:
        """Take what the broker said; what devices said is left. Raises: Unreachable."""
        said = [message for message in arrived if message.topic.startswith(sessions.ROOT)]
        # Since when the broker runs first: by that is dated what ended before it.
        for message in sorted(said, key=lambda each: each.topic != sessions.BROKER):
            self._take(message, now)
        if self.roll.must_ask(now):
            self.roll.asked(now)
            self.connection.ask_for(sessions.ALL)
        return [message for message in arrived if not message.topic.startswith(sessions.ROOT)]

    def reports(self, now: Moment) -> list[Report]:
        """What there is to record in this turn."""
        return list(self.roll.take(REPORTS_A_TURN, now))

    def _take(self, message: Incoming, now: Moment) -> None:
        try:
            said = sessions.decode(message.topic, message.payload)
            self.roll.hear(said, now, is_retained=message.retain)
        except FleetError as error:
            self.aside.add("broker", message.topic, error)
