"""When a certificate is renewed, and when again after a failure (pure).

issued ......... 60 % ~~ due ~~ 75 % .. 80 % .... 85 % ......... end
                 a point of its own     |         alarm
                                        no wish of the service goes past this
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from device_agent.failures import Failure, Words, words
from fleet.identity import DeviceId, Serial
from fleet.layout import Credential

EARLIEST: Final = 0.60
LATEST: Final = 0.75
PACED_UNTIL: Final = 0.80
"""The service may put a renewal off until here, and by MAX_WAIT_SECONDS (DESIGN section 7)."""
MAX_WAIT_SECONDS: Final = 3_600.0
ALARMING: Final = 0.15
_DRAW_BITS: Final = 53
# Shares of the life, so that the shortest has several attempts; in seconds, so that the longest has many.
_FIRST_PAUSE_OF_LIFE, _LONGEST_PAUSE_OF_LIFE = 1 / 120, 1 / 20
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 30.0, 3_600.0
_SPREAD_OF_LIFE, _SPREAD_SECONDS = 1 / 100, 600.0
_SPREAD_WHEN_OVER_SECONDS: Final = 60.0
_WAITING_SECONDS: Final = 10.0


class Code(StrEnum):
    """Why a renewal failed, beside the causes of a failed connection (`failures.Cause`). Programs may rely on them."""

    BUSY = "service-busy"
    SERVICE = "service-error"
    NOT_ALLOWED = "renewal-refused"
    BAD_CERTIFICATE = "bad-certificate"
    NOT_ADMITTED = "not-admitted"
    NO_PROOF = "no-broker"
    BROKER_REFUSES = "broker-refuses"
    DISK = "disk"
    UNDER_WAY = "under-way"
    OVERDUE = "timed-out"
    CRASHED = "crashed"
    TOO_SOON = "too-soon"
    WAITING = "waiting-for-approval"
    DENIED = "approval-denied"
    RECOVERY_REFUSED = "recovery-refused"
    NOT_RECOGNISED = "not-recognised"


@dataclass(frozen=True, slots=True)
class Problem:
    """One failed renewal: a stable code, and what to tell a person. `retry_seconds`: what the service asked for."""

    code: str
    message: str
    hint: str
    retry_seconds: float = 0.0


class NotRenewed(Exception):
    """No successor now; `problem` says why. `spends_key`: the key that was to be certified will never be."""

    def __init__(self, problem: Problem, *, spends_key: bool = False) -> None:
        super().__init__(problem.code)
        self.problem = problem
        self.spends_key = spends_key


def problem_of(failure: Failure, device: DeviceId, not_after: datetime | None = None) -> Problem:
    """A failed connection as a failed renewal."""
    found: Words = words(failure, device, not_after)
    return Problem(failure.cause.value, found.message, found.hint)


@dataclass(frozen=True, slots=True)
class Life:
    """One certificate's."""

    serial: Serial
    not_before: datetime
    not_after: datetime

    @property
    def span(self) -> timedelta:
        return max(self.not_after - self.not_before, timedelta(seconds=1))

    def at(self, share: float) -> datetime:
        """When that share of it is over."""
        return self.not_before + share * self.span

    @property
    def due(self) -> datetime:
        """When to renew: a point from 60 to 75 %, drawn by the serial number.

        A serial is 159 random bits, so a fleet is spread evenly, and a device needs no memory: after a restart, with a
        disk that is full or new, the point is the same.
        """
        drawn = (int(self.serial, 16) % (1 << _DRAW_BITS)) / (1 << _DRAW_BITS)
        return self.at(EARLIEST + drawn * (LATEST - EARLIEST))

    def remaining(self, now: datetime) -> float:
        """The share that is left: above 1 before its beginning, below 0 after its end."""
        return (self.not_after - now) / self.span

    def is_alarming(self, now: datetime) -> bool:
        """Whether so little is left that a person has to look."""
        return self.remaining(now) < ALARMING

    def retry_seconds(self, failures: int, chance: float, asked: float = 0.0) -> float:
        """The wait after so many failures in a row, with full jitter, for `chance` from [0, 1); never the end of it.

        What the service asked for comes first, and is bounded.
        """
        seconds = self.span.total_seconds()
        first = min(_FIRST_PAUSE_SECONDS, seconds * _FIRST_PAUSE_OF_LIFE)
        longest = min(_LONGEST_PAUSE_SECONDS, seconds * _LONGEST_PAUSE_OF_LIFE)
        ceiling = min(longest, first * 2.0 ** min(max(failures, 1), 20))
        return min(max(asked, 0.0), longest) + chance * ceiling

    def paced_seconds(self, now: datetime, asked: float) -> float:
        """How long a wait of `asked` seconds may really be: an hour, and not past 80 % of the life."""
        room = (self.at(PACED_UNTIL) - now).total_seconds()
        return max(0.0, min(asked, MAX_WAIT_SECONDS, room))

    def waiting_seconds(self, chance: float, asked: float) -> float:
        """When to ask again what an admin has decided: as the service wishes, but each time costs a process."""
        return self.retry_seconds(1, chance, max(asked, _WAITING_SECONDS))

    def spread_seconds(self, chance: float, *, is_over: bool = False) -> float:
        """When an agent that starts overdue renews: a site whose power came back must not come all at once.

        Where the certificate `is_over` the device is offline until then, and waits less.
        """
        longest = _SPREAD_WHEN_OVER_SECONDS if is_over else _SPREAD_SECONDS
        return chance * min(longest, self.span.total_seconds() * _SPREAD_OF_LIFE)


def life_of(credential: Credential) -> Life:
    return Life(credential.serial, credential.not_before, credential.not_after)
