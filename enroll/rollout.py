"""How a job goes: one command brought to many devices, a few first, then in waves (pure).

    preparing ──> running <──> paused       `next_step` says what is to be done; whoever drives jobs does it, each step
       │           │ │ └─────────┤           in one transaction, and asks again.
       │           │ └─> halted  │
       │           └──> finished │
       └──────────> aborted <────┘

A device counts once, as what its command has come to: `done`, `failed`, `missed` (it never took it in time, or it was
withdrawn), `silent` (it began and was not heard of again), `skipped` (it may not connect any more). `failed` and
`silent` are failures. Whoever was away proves nothing, for or against.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, assert_never

from fleet.errors import InvalidInput
from fleet.identity import DeviceId

MINIMUM: Final = 10
"""A rate is one from so many answers on; below, a wave is judged at its end, or once it cannot come good."""
LISTENING: Final = timedelta(minutes=1)
"""For so long devices' answers are awaited after dispatch was away, before anyone counts as silent."""
_LOOK: Final = timedelta(seconds=30)  # how often those that began late are looked at
MAX_WAVES: Final = 20
MAX_TIME: Final = timedelta(days=90)


class JobState(StrEnum):
    """Where a job is; the last three are final."""

    PREPARING = "preparing"  # its list of devices is being written
    RUNNING = "running"
    PAUSED = "paused"
    HALTED = "halted"  # too many failed
    ABORTED = "aborted"
    FINISHED = "finished"

    @property
    def is_final(self) -> bool:
        return self in (JobState.HALTED, JobState.ABORTED, JobState.FINISHED)


@dataclass(frozen=True, slots=True)
class Target:
    """A device that is meant, as it was when the list was made. A successor of the same name has another `epoch`."""

    device: DeviceId
    epoch: int
    is_online: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """How carefully. `waves` in per cent of all devices, rising to 100; `max_failures` in per cent of the answers."""

    canary: int
    waves: tuple[int, ...]
    max_failures: int
    wave_timeout: timedelta
    command_ttl: timedelta

    def __post_init__(self) -> None:
        """Raises: InvalidInput."""
        _check(self.canary >= 0, "a canary wave has 0 devices or more", "--canary 3")
        is_rising = all(one < other for one, other in zip((0, *self.waves), self.waves, strict=False))
        is_whole = is_rising and self.waves[-1:] == (100,) and len(self.waves) <= MAX_WAVES
        _check(is_whole, f"waves rise to 100 per cent, {MAX_WAVES} at most", "--waves 10,50,100")
        _check(0 <= self.max_failures <= 100, "a rate of failures is 0 to 100 per cent", "--max-failures 10")
        for time in (self.wave_timeout, self.command_ttl):
            _check(timedelta(0) < time <= MAX_TIME, f"a wave or a command lasts {MAX_TIME.days} days at most", "7d")

    def ceilings(self, total: int) -> tuple[int, ...]:
        """How many of `total` devices have had their turn when each wave is through; the last is all of them."""
        found: list[int] = []
        for ceiling in (min(self.canary, total), *(-(-total * percent // 100) for percent in self.waves)):
            if ceiling > (found[-1] if found else 0):
                found.append(ceiling)
        return tuple(found)


def _check(is_good: bool, message: str, hint: str) -> None:
    if not is_good:
        raise InvalidInput(message, hint=hint)


@dataclass(frozen=True, slots=True)
class Tally:
    """What the devices of a job have come to; `reached` had their turn, of `total`."""

    total: int
    reached: int = 0
    done: int = 0
    failed: int = 0
    missed: int = 0
    silent: int = 0
    skipped: int = 0

    @property
    def finished(self) -> int:
        return self.done + self.failed + self.missed + self.silent + self.skipped

    @property
    def open(self) -> int:
        """Commands that were given and whose end is awaited."""
        return self.reached - self.finished

    @property
    def failures(self) -> int:
        return self.failed + self.silent

    @property
    def answers(self) -> int:
        """What a rate of failures is of."""
        return self.done + self.failures


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it is now. `args` is a JSON text; `asked` says in words which devices were meant; waves count from 0.

    `wave_ends_at` is None until each device of the wave was given its command.
    """

    number: int
    id: str
    name: str
    args: str
    plan: Plan
    state: JobState
    tally: Tally
    created_at: datetime
    created_by: str
    asked: str
    wave: int = 0
    wave_ends_at: datetime | None = None
    ended_at: datetime | None = None
    reason: str = ""

    @property
    def ceilings(self) -> tuple[int, ...]:
        return self.plan.ceilings(self.tally.total)

    @property
    def is_in_last_wave(self) -> bool:
        return self.wave + 1 >= len(self.ceilings)


@dataclass(frozen=True, slots=True)
class Earshot:
    """The time of day, and since when what devices say has been heard without a gap."""

    now: datetime
    heard_since: datetime


@dataclass(frozen=True, slots=True)
class Give:
    """Give the command to further devices, until `ceiling` have had their turn."""

    ceiling: int


@dataclass(frozen=True, slots=True)
class CountSilent:
    """Count as silent who has begun, and said nothing since `before`."""

    before: datetime


@dataclass(frozen=True, slots=True)
class BeginWave:
    """Go on with that wave."""

    wave: int


@dataclass(frozen=True, slots=True)
class Halt:
    """End it: too many failed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finish:
    """End it: there is nothing left to do."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Take back what no device has begun."""


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing to do before a device answers, an admin decides, or it is `until`."""

    until: datetime | None = None


Step = Give | CountSilent | BeginWave | Halt | Finish | Withdraw | Rest


def next_step(job: Job, moment: Earshot, *, has_silent: bool) -> Step:
    """What is to be done for a job. `has_silent`: someone is silent by `silent_before`; false where that is None."""
    match job.state:
        case JobState.RUNNING:
            return _running(job, moment, has_silent)
        case JobState.HALTED | JobState.ABORTED:
            return Withdraw()
        case JobState.PREPARING | JobState.PAUSED | JobState.FINISHED:
            return Rest()
        case _:
            assert_never(job.state)


def silent_before(job: Job, moment: Earshot) -> datetime | None:
    """Who began, and was not heard of since then, is silent; None while the wave still has time.

    Its end, or later on the length of a wave ago: a device that comes late has as long.
    """
    over = _time_over(job, moment)
    if job.state is not JobState.RUNNING or over is None or moment.now < over:
        return None
    assert job.wave_ends_at is not None
    return max(job.wave_ends_at, moment.now - job.plan.wave_timeout)


def _time_over(job: Job, moment: Earshot) -> datetime | None:
    """When the wave's time is over; no sooner than answers that waited for dispatch could be heard."""
    if job.wave_ends_at is None:
        return None
    return max(job.wave_ends_at, moment.heard_since + min(LISTENING, job.plan.wave_timeout))


def _running(job: Job, moment: Earshot, has_silent: bool) -> Step:
    tally, ceiling = job.tally, job.ceilings[job.wave]
    if _is_beyond(job, ceiling):
        return Halt(_rate(tally))
    if tally.reached < ceiling:
        return Give(ceiling)
    before = silent_before(job, moment)
    if before is not None and has_silent:
        return CountSilent(before)
    if tally.open and before is None:
        return Rest(_time_over(job, moment))
    if tally.open and job.is_in_last_wave:  # who is away still has its command's time
        return Rest(moment.now + min(_LOOK, job.plan.wave_timeout))
    return _over(job)


def _over(job: Job) -> Step:
    """What follows on a wave."""
    tally = job.tally
    if tally.failures * 100 > job.plan.max_failures * tally.answers:
        return Halt(_rate(tally))
    if job.wave == 0 and not tally.done:
        return Halt("no device of the first wave did it")
    return Finish() if job.is_in_last_wave else BeginWave(job.wave + 1)


def _is_beyond(job: Job, ceiling: int) -> bool:
    """Whether too many have failed before the wave is over: of enough answers, or whatever the others will say."""
    tally, limit = job.tally, job.plan.max_failures
    at_most = tally.answers + tally.open + ceiling - tally.reached
    of = tally.answers if tally.answers >= MINIMUM else at_most
    return tally.failures * 100 > limit * of


def _rate(tally: Tally) -> str:
    return f"{tally.failures} of {tally.answers} failed"


def in_order(targets: Sequence[Target], canary: int, chance: random.Random) -> list[Target]:
    """The devices in a random order, so that a wave is like the whole; the canary's are online, where so many are."""
    drawn = chance.sample(targets, len(targets))
    first = [target for target in drawn if target.is_online][:canary]
    taken = {target.device for target in first}
    return first + [target for target in drawn if target.device not in taken]
