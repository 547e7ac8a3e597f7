"""Which time it is, as far as a device can know (pure).

A device without a battery wakes up in 1970, one with a bad one in 2040. The system's clock is believed until it is
contradicted: it is below the floor, or a server of ours was refused for its dates alone and then told the time.

    basis     the system's clock ...                                        the time is ...
    system    is believed                                                   the system's
    floor     is below the floor: surely wrong                              the floor's, counted on
    server    was contradicted by the Date of the enrollment service        that Date, counted on
    issued    is below the floor, and a broker's chain is younger           the beginning of that chain, counted on
    steady    was right, and jumped to where our servers are not valid      what it was, counted on, until a handshake

Everything but `system` ends when somebody sets the clock: it is believed again unless it is below the floor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, Protocol

from fleet.clock import BUILD_FLOOR, FLOORS, HINT, SEEN, Floor, Ticking, Validity, highest, in_words
from fleet.layout import Credential

# Two clocks that differ by less agree; one that moved by less was not set.
TOLERANCE: Final = timedelta(minutes=5)
# A floor is worth what its age is: a verified service is asked soon after the start, at a random point, and then daily.
FIRST_LOOK_SECONDS: Final = 3_600.0
LOOK_SECONDS: Final = 86_400.0
# A service that is away is not waited for at each attempt to reach a broker.
IMPROVE_SECONDS: Final = 300.0
# How often it is worth a write on an SD card that the time has passed.
REMEMBER_AFTER: Final = timedelta(hours=12)


@dataclass(frozen=True, slots=True)
class Moment:
    """When an event is handled.

    `monotonic` is in seconds and never goes back: timers count in it. `utc` is the best that is known of the time of
    day, and `reading` how it is known. `chance` is a fresh uniform draw from [0, 1), for jitter.
    """

    monotonic: float
    utc: datetime
    chance: float
    reading: Reading | None = None

    @property
    def is_confirmed(self) -> bool:
        """Whether a server's certificate was good by this clock: before, nothing costly hangs on it."""
        return self.reading is None or self.reading.is_confirmed


class Basis(StrEnum):
    """What a time is known from."""

    SYSTEM = "system"
    FLOOR = "floor"
    SERVER = "server"
    ISSUED = "issued"
    STEADY = "steady"


@dataclass(frozen=True, slots=True)
class Reading:
    """The time, and what the system's clock says. `floor` is why, where the floor is what is known."""

    utc: datetime
    system: datetime
    basis: Basis
    floor: str
    is_confirmed: bool

    @property
    def is_lower_bound(self) -> bool:
        """Whether no more is known: what has ended by then has ended, and what has not may have, too."""
        return self.basis in (Basis.FLOOR, Basis.ISSUED)

    @property
    def checks_dates_itself(self) -> bool:
        """Whether OpenSSL, which knows the system's clock alone, cannot judge a certificate's dates."""
        return self.basis in (Basis.FLOOR, Basis.SERVER, Basis.ISSUED)

    @property
    def words(self) -> str:
        """For a person; nothing while the clock is believed."""
        if self.basis is Basis.SYSTEM:
            return ""
        source = {
            Basis.FLOOR: f"floor: {FLOORS.get(self.floor, self.floor)}",
            Basis.SERVER: "told by the enrollment service",
            Basis.ISSUED: "when the broker's certificate was made",
            Basis.STEADY: "the clock jumped; counted on from before",
        }
        return in_words(self.system, self.utc, source[self.basis])

    def fields(self) -> dict[str, str]:
        """For programs: `code` is `ok` or `clock-wrong`."""
        is_wrong = self.basis is not Basis.SYSTEM
        return {
            "code": "clock-wrong" if is_wrong else "ok",
            "basis": self.basis.value,
            "system": f"{self.system:%Y-%m-%dT%H:%M:%SZ}",
            "used": f"{self.utc:%Y-%m-%dT%H:%M:%SZ}",
            "words": self.words,
            "hint": HINT if is_wrong else "",
        }


class Told(StrEnum):
    """What came of asking the enrollment service for the time."""

    TIME = "time"
    NONSENSE = "nonsense"
    NOTHING = "nothing"


class Clock(Protocol):
    """The time as one process knows it; any thread may ask."""

    def monotonic(self) -> float:
        """Seconds that never jump."""

    def reading(self) -> Reading:
        """The time."""

    def verified(self, validity: Validity) -> None:
        """A server of ours was verified now, by the time that `reading` gives."""

    def ask(self, roots_pem: str) -> Told:
        """Ask the enrollment service, after a handshake that failed on time alone. Slow."""

    def improve(self, roots_pem: str) -> Told | None:
        """Ask as `ask` does if only a lower bound is known, and the service was not asked a moment ago; else None."""

    def infer(self, validity: Validity) -> bool:
        """Whether a broker's chain tells how late it is at least, where only the floor is known."""

    def heard(self, date: datetime) -> None:
        """A verified service said that it is `date`."""


@dataclass(frozen=True, slots=True)
class _Anchor:
    """When a server was verified last: by which time, and how far the system's clock was from it."""

    ticking: Ticking
    basis: Basis
    error: timedelta
    validity: Validity


@dataclass(frozen=True, slots=True)
class Timeline:
    """All that is known of the time."""

    floor: Floor
    ticking: Ticking
    anchor: _Anchor | None = None

    def floor_at(self, monotonic: float) -> datetime:
        """The floor rises by itself: a second later is a second later, whatever else is wrong."""
        return self.ticking.at(monotonic)

    def reading(self, system: datetime, monotonic: float) -> Reading:
        """The time, by the system's clock and seconds that never jump."""
        floor, anchor = self.floor_at(monotonic), self.anchor
        if anchor is None or self._was_set(anchor, system, monotonic):
            if system < floor:
                return self._read(floor, system, Basis.FLOOR)
            if anchor is None or anchor.basis is not Basis.SYSTEM or anchor.validity.covers(system):
                return self._read(system, system, Basis.SYSTEM)
            return self._read(max(floor, anchor.ticking.at(monotonic)), system, Basis.STEADY)
        if anchor.basis is Basis.SYSTEM:
            return self._read(max(system, floor), system, Basis.SYSTEM)
        return self._read(max(floor, anchor.ticking.at(monotonic)), system, anchor.basis)

    def _read(self, utc: datetime, system: datetime, basis: Basis) -> Reading:
        return Reading(utc, system, basis, self.floor.why, self.anchor is not None)

    @staticmethod
    def _was_set(anchor: _Anchor, system: datetime, monotonic: float) -> bool:
        """Whether the system's clock has not simply gone on since."""
        return abs(system - anchor.ticking.at(monotonic) - anchor.error) > TOLERANCE

    def verified(self, validity: Validity, system: datetime, monotonic: float) -> Timeline:
        """A server was verified by the time that `reading` gives.

        While the clock is only suspected to have jumped OpenSSL went by it, so now it is believed.
        """
        found = self.reading(system, monotonic)
        is_by_system = found.basis in (Basis.SYSTEM, Basis.STEADY)
        utc, basis = (system, Basis.SYSTEM) if is_by_system else (found.utc, found.basis)
        return self._anchored(max(utc, self.floor_at(monotonic)), basis, validity, system, monotonic)

    def told(self, date: datetime, validity: Validity, system: datetime, monotonic: float) -> Timeline | None:
        """The service that showed a chain of that validity says it is `date`; None if that cannot be.

        Below the floor it knows no better than we do, so the floor it is.
        """
        utc = max(date, self.floor_at(monotonic))
        if not validity.covers(utc):
            return None
        basis = Basis.SYSTEM if abs(system - utc) <= TOLERANCE else Basis.SERVER
        return self._anchored(utc, basis, validity, system, monotonic)

    def inferred(self, validity: Validity, system: datetime, monotonic: float) -> Timeline | None:
        """Our CA has dated a chain, so it is that late at least; None unless nothing but the floor is known."""
        found = self.reading(system, monotonic)
        utc = max(found.utc, validity.not_before)
        if not found.is_lower_bound or not validity.covers(utc):
            return None
        return self._anchored(utc, Basis.ISSUED, validity, system, monotonic)

    def heard(self, date: datetime, system: datetime, monotonic: float) -> Timeline:
        """A verified service and a clock that is believed both say that it is so late: that raises the floor.

        Where only a lower bound is known, what the service says is better, for as long as this process runs.
        """
        found, seen = self.reading(system, monotonic), min(date, system)
        if self.anchor is not None and found.is_lower_bound:
            return self.told(date, self.anchor.validity, system, monotonic) or self
        if found.basis is not Basis.SYSTEM or self.anchor is None or seen <= self.floor_at(monotonic):
            return self
        return replace(self, floor=Floor(seen, SEEN), ticking=Ticking(seen, monotonic))

    def reconciled(self, system: datetime, monotonic: float) -> Timeline:
        """Once the system's clock was set to what the service had told, it is as good as confirmed by it."""
        anchor = self.anchor
        if anchor is None or anchor.basis is not Basis.SERVER:
            return self
        if abs(system - anchor.ticking.at(monotonic)) > TOLERANCE:
            return self
        return self._anchored(system, Basis.SYSTEM, anchor.validity, system, monotonic)

    def _anchored(
        self, utc: datetime, basis: Basis, validity: Validity, system: datetime, monotonic: float
    ) -> Timeline:
        return replace(self, anchor=_Anchor(Ticking(utc, monotonic), basis, system - utc, validity))


def timeline(monotonic: float, credential: Credential | None, seen: datetime | None) -> Timeline:
    """What is known when a process begins: when the program, and the own certificate, were made, and the file."""
    floors = [BUILD_FLOOR]
    if credential is not None:
        floors.append(Floor(credential.not_before, "certificate"))
    if seen is not None:
        floors.append(Floor(seen, SEEN))
    floor = highest(*floors)
    return Timeline(floor, Ticking(floor.time, monotonic))
