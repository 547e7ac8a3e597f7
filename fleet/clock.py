"""What is known of the time where the clock may be wrong: a floor under it, and what certificates say.

A Pi has no clock that survives a power cut, and a gateway is often a Pi. Nobody here sets a clock: a program that knows
better than its system counts on from what it knows, by seconds that never jump.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from fleet import messages
from fleet.errors import InvalidInput
from fleet.messages import format_time, parse_time

BUILT: Final = datetime(2026, 11, 1, tzinfo=UTC)
"""No clock that is right says less: this program was made then. Every release moves it."""
NO_CHECK_TIME: Final = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME: all but the dates of a chain is verified. Python has no name for it."""
SEEN: Final = "seen"
SLACK: Final = timedelta(days=2)
FLOORS: Final = {
    "build": "when this program was made",
    "certificate": "when its own certificate was made",
    SEEN: "when the time was known last",
}
"""Why a floor is one, for a person."""
HINT: Final = "set the clock: timedatectl set-ntp true, or install chrony; without a battery: fake-hwclock"

_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_ASN1_TIME = re.compile(r"([A-Z][a-z]{2}) ([ 0-9][0-9]) ([0-9]{2}):([0-9]{2}):([0-9]{2}) ([0-9]{4}) GMT", re.ASCII)
_HTTP_DATE = re.compile(
    r"[A-Z][a-z]{2}, ([0-9]{2}) ([A-Z][a-z]{2}) ([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT", re.ASCII
)
_SECOND: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Floor:
    """A time that has passed already, whatever a clock says; `why` names what proves it."""

    time: datetime
    why: str


BUILD_FLOOR: Final = Floor(BUILT, "build")


def highest(*floors: Floor) -> Floor:
    """The latest of them."""
    return max(floors, key=lambda floor: floor.time)


@dataclass(frozen=True, slots=True)
class Ticking:
    """A time that goes on by itself from the second `monotonic`, which never jumps."""

    time: datetime
    monotonic: float

    def at(self, monotonic: float) -> datetime:
        """Which time that second is; the end of the calendar at the latest."""
        try:
            return self.time + timedelta(seconds=monotonic - self.monotonic)
        except OverflowError:
            return datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Validity:
    """When every certificate of a chain is valid: none of it is before `not_before`, or after `not_after`."""

    not_before: datetime
    not_after: datetime

    def has_begun(self, now: datetime) -> bool:
        return self.not_before <= now

    def has_ended(self, now: datetime) -> bool:
        """`not_after` covers the whole of its second (RFC 5280, 4.1.2.5)."""
        return now - _SECOND >= self.not_after

    def covers(self, now: datetime) -> bool:
        return self.has_begun(now) and not self.has_ended(now)


def validity_of(certificates: Iterable[Mapping[str, Any]]) -> Validity:
    """Of a whole chain, each certificate as Python's ssl decodes it. Raises: InvalidInput for no certificate."""
    dates = [(parse_asn1_time(each.get("notBefore")), parse_asn1_time(each.get("notAfter"))) for each in certificates]
    if not dates:
        raise InvalidInput("there is no chain whose dates could be looked at")
    return Validity(max(begin for begin, _ in dates), min(end for _, end in dates))


def parse_asn1_time(text: object) -> datetime:
    """`Nov  1 09:34:43 2026 GMT`, as OpenSSL prints a date of a certificate. Raises: InvalidInput."""
    found = _ASN1_TIME.fullmatch(text if isinstance(text, str) else "")
    if found is None:
        raise InvalidInput(f"{str(text)[:40]!r} is not the date of a certificate")
    month, day, hour, minute, second, year = found.groups()
    return _date(year, month, day, hour, minute, second)


def parse_http_date(text: str) -> datetime:
    """`Sat, 21 Nov 2026 08:00:00 GMT` (RFC 9110, 5.6.7), and no older form of it. Raises: InvalidInput."""
    found = _HTTP_DATE.fullmatch(text)
    if found is None:
        raise InvalidInput(f"{text[:40]!r} is not the date of an answer")
    day, month, year, hour, minute, second = found.groups()
    return _date(year, month, day, hour, minute, second)


def format_http_date(moment: datetime) -> str:
    """The inverse of `parse_http_date`, whatever the locale."""
    utc = moment.astimezone(UTC)
    weekday = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")[utc.weekday()]
    return f"{weekday}, {utc:%d} {_MONTHS[utc.month - 1]} {utc.year:04} {utc:%H:%M:%S} GMT"


def _date(year: str, month: str, day: str, hour: str, minute: str, second: str) -> datetime:
    try:
        number = _MONTHS.index(month) + 1
        return datetime(int(year), number, int(day), int(hour), int(minute), int(second), tzinfo=UTC)
    except ValueError as error:
        raise InvalidInput(f"there is no {day} {month} {year} {hour}:{minute}:{second}") from error


class FlooredClock:
    """The time of a service that issues or judges certificates: never below what has passed for sure.

    What was seen by an earlier clock may have been a little late, and a clock that was corrected is right: it may fall
    behind `seen` by SLACK. Behind that, or before the program or an own certificate was made, it is not believed.
    """

    def __init__(self, system: Callable[[], datetime], monotonic: Callable[[], float]) -> None:
        self._system, self._monotonic = system, monotonic
        self._least = self._best = Ticking(BUILD_FLOOR.time, monotonic())
        self._why = BUILD_FLOOR.why

    def ahead(self) -> timedelta:
        """How far the clock is ahead of the best floor: what has passed while nobody looked, or a leap of the clock."""
        return self._system() - self._best.at(self._monotonic())

    def raise_to(self, floor: Floor) -> None:
        """It is that late at least."""
        monotonic = self._monotonic()
        if floor.time > self._best.at(monotonic):
            self._best, self._why = Ticking(floor.time, monotonic), floor.why
        least = floor.time - SLACK if floor.why == SEEN else floor.time
        if least > self._least.at(monotonic):
            self._least = Ticking(least, monotonic)

    @property
    def is_floored(self) -> bool:
        """Whether the system's clock is surely wrong: then only what has ended by the floor is known to have ended."""
        return self._system() < self._least.at(self._monotonic())

    def now(self) -> datetime:
        """The time in UTC."""
        system, monotonic = self._system(), self._monotonic()
        return system if system >= self._least.at(monotonic) else self._best.at(monotonic)

    def refusal(self, chain: Iterable[Mapping[str, Any]]) -> str:
        """Why a verified chain, whose dates OpenSSL left alone, is not good now; nothing if it is.

        Above a floor anything may have begun: our CA has dated it, and its own clock is no worse.
        """
        try:
            validity = validity_of(chain)
        except InvalidInput as error:
            return error.message
        now = self.now()
        if validity.has_ended(now):
            return "certificate has expired"
        return "" if self.is_floored or validity.has_begun(now) else "certificate is not yet valid"

    @property
    def words(self) -> str:
        """For a person; nothing while the clock is believed."""
        if not self.is_floored:
            return ""
        return in_words(self._system(), self.now(), f"floor: {FLOORS.get(self._why, self._why)}")

    def fields(self) -> dict[str, str]:
        """For programs: `code` is `ok` or `clock-wrong`."""
        words = self.words
        return {"code": "clock-wrong" if words else "ok", "words": words, "hint": HINT if words else ""}


def encode_seen(seen: datetime) -> bytes:
    """The file that remembers the last time that was known for sure."""
    return json.dumps({"v": 1, "seen": format_time(seen)}).encode() + b"\n"


def decode_seen(data: bytes) -> datetime:
    """The inverse of `encode_seen`. Raises: InvalidInput."""
    return parse_time(messages.decode_object(data).get("seen"))


def in_words(system: datetime, used: datetime, source: str) -> str:
    """What to tell of a clock that is not believed."""
    return f"the clock is at {system:%Y-%m-%d %H:%M} UTC, using {used:%Y-%m-%d %H:%M} UTC ({source})"
