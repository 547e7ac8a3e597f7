"""What dispatch does for jobs: counts what has come of their commands, and takes the next step, in its own turn.

There, because there the results are committed, and because only dispatch knows whether devices can be heard at all: a
wave is not judged while it is away. All that a job knows is in the registry, and each step is one transaction, with a
bounded number of commands in it: enrolments go on between them, and whoever is killed goes on from the last.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Final, assert_never

from enroll import audit, commands
from enroll.commands import Giver, Order
from enroll.registry import Registry, RegistryUnavailable, Transaction, identity, job_outcomes, jobs
from enroll.rollout import (
    BeginWave,
    CountSilent,
    Earshot,
    Finish,
    Give,
    Halt,
    Job,
    JobState,
    Rest,
    Step,
    Tally,
    Target,
    Withdraw,
    next_step,
    silent_before,
)
from fleet.errors import FleetError
from fleet.logs import event
from fleet.messages import decode_object

GIVEN_AT_ONCE: Final = 100
COUNTED_AT_ONCE: Final = 200
_FAILED_PAUSE: Final = timedelta(minutes=1)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Agenda:
    """What is to be done now, by job, and when to look again at the latest."""

    is_news: bool
    steps: Sequence[tuple[Job, Step]]
    until: datetime | None


class Jobs:
    """The jobs of a registry. What this object remembers is only whose turn it is, and whose step failed."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._served = 0
        self._failed: dict[int, datetime] = {}  # when to try again, by the number of the job
        self._not_before: datetime | None = None

    def advance(self, moment: Earshot) -> datetime | None:
        """One step of one job, if there is any to take; its commit wakes dispatch for the next one.

        When to look again at the latest, if nothing is heard before. Raises: RegistryUnavailable.
        """
        # A clock that was ahead and is set back must not keep all jobs for so long.
        if self._not_before is not None and timedelta() < self._not_before - moment.now <= _FAILED_PAUSE:
            return self._not_before
        try:
            return self._advance(moment)
        except RegistryUnavailable:
            raise
        except Exception:
            # A mistake of ours must not end what single commands depend on.
            _log.exception("jobs.failed")
            self._not_before = moment.now + _FAILED_PAUSE
            return self._not_before

    def _advance(self, moment: Earshot) -> datetime | None:
        self._failed = {
            job: until for job, until in self._failed.items() if timedelta() < until - moment.now <= _FAILED_PAUSE
        }
        while True:
            with self._registry.read() as transaction:
                agenda = _agenda(transaction, moment)
            if agenda.is_news:
                with self._registry.write() as transaction:  # of its own: it stays, whatever becomes of a step
                    job_outcomes.count(transaction, job_outcomes.news(transaction, COUNTED_AT_ONCE))
            elif self._next(agenda) is None:
                return min(filter(None, (agenda.until, *self._failed.values())), default=None)
            if self._step(moment):
                return None

    def _step(self, moment: Earshot) -> bool:
        """Whose turn it is has one step, if anybody's it is; False if it failed: another has its turn then."""
        turn, told = None, list[str]()
        try:
            with self._registry.write() as transaction:
                if turn := self._next(_agenda(transaction, moment)):
                    self._served = turn[0].number
                    told = _perform(transaction, *turn, moment.now)
        except RegistryUnavailable:
            raise
        except Exception:
            if turn is None:
                raise
            # Nor what is wrong with one job the others.
            _log.exception(event("jobs.failed", job=turn[0].id))
            self._failed[self._served] = moment.now + _FAILED_PAUSE
            return False
        for line in told:  # not before it is true
            _log.info(line)
        return True

    def _next(self, agenda: _Agenda) -> tuple[Job, Step] | None:
        """Whose turn it is, and for what."""
        steps = [each for each in agenda.steps if each[0].number not in self._failed]
        behind = (each for each in steps if each[0].number > self._served)
        return next(behind, steps[0] if steps else None)


def _agenda(transaction: Transaction, moment: Earshot) -> _Agenda:
    steps: list[tuple[Job, Step]] = []
    times: list[datetime] = []
    for job in jobs.active(transaction):
        before = silent_before(job, moment)
        has_silent = before is not None and bool(job_outcomes.silent(transaction, job, before, 1))
        match next_step(job, moment, has_silent=has_silent):
            case Rest(until):
                times += [] if until is None else [until]
            case step:
                steps.append((job, step))
    return _Agenda(bool(job_outcomes.news(transaction, 1)), steps, min(times, default=None))


def _perform(transaction: Transaction, job: Job, step: Step, now: datetime) -> list[str]:
    match step:
        case Give(ceiling):
            return _give(transaction, job, ceiling, now)
        case CountSilent(before):
            job_outcomes.count_silent(transaction, job, job_outcomes.silent(transaction, job, before, COUNTED_AT_ONCE))
            return []
        case BeginWave(wave):
            jobs.move(transaction, replace(job, wave=wave, wave_ends_at=None))
            return [event("job.wave_over", job=job.id, wave=job.wave + 1, **_counts(job.tally))]
        case Halt(reason):
            return _end(transaction, job, JobState.HALTED, reason, now)
        case Finish():
            return _end(transaction, job, JobState.FINISHED, "", now)
        case Withdraw():
            return _withdraw(transaction, job, now)
        case Rest():
            return []
        case _:
            assert_never(step)


def _give(transaction: Transaction, job: Job, ceiling: int, now: datetime) -> list[str]:
    end = min(ceiling, job.tally.reached + GIVEN_AT_ONCE)
    order = Order(job.name, decode_object(job.args.encode()), now + job.plan.command_ttl)
    given = [
        _give_one(transaction, job, position, target, order, now)
        for position, target in jobs.waiting(transaction, job, end)
    ]
    tally = replace(job.tally, reached=end, skipped=job.tally.skipped + given.count(False))
    is_through = end == ceiling
    jobs.move(transaction, replace(job, tally=tally, wave_ends_at=now + job.plan.wave_timeout if is_through else None))
    if not is_through:
        return []
    return [event("job.wave_given", job=job.id, wave=job.wave + 1, of=len(job.ceilings), **_counts(tally))]


def _give_one(transaction: Transaction, job: Job, position: int, target: Target, order: Order, now: datetime) -> bool:
    """Whether the device was given the command; else the reason is noted."""
    giver = Giver(f"job {job.id}", now, partial(_command_id, job.id, position))
    try:
        _check_holder(transaction, target)
        record = commands.give(transaction, target.device, order, giver, job.number)
    except RegistryUnavailable:
        raise
    except FleetError as error:
        jobs.take_turn(transaction, job, position, command=None, skipped=error.message)
        return False
    jobs.take_turn(transaction, job, position, command=record.id, skipped="")
    return True


def _check_holder(transaction: Transaction, target: Target) -> None:
    found = identity.find_principal(transaction, target.device)
    if found is not None and found.epoch != target.epoch:
        raise FleetError(f"{target.device} has been replaced since")


def _command_id(job: str, position: int, size: int) -> bytes:
    """The same for the same turn, so that a registry restored from a backup cannot have a device do it twice."""
    return hashlib.sha256(f"{job}/{position}".encode()).digest()[:size]


def _end(transaction: Transaction, job: Job, state: JobState, reason: str, now: datetime) -> list[str]:
    jobs.move(transaction, replace(job, state=state, reason=reason, ended_at=now))
    fields = {"job": job.id, "reason": reason} if reason else {"job": job.id}
    audit.record(transaction, now, f"job.{state}", **fields, **_counts(job.tally))
    return [event(f"job.{state}", **fields, **_counts(job.tally))]


def _withdraw(transaction: Transaction, job: Job, now: datetime) -> list[str]:
    found = job_outcomes.unbegun(transaction, job, COUNTED_AT_ONCE)
    if not found:
        jobs.rest(transaction, job)
        return []
    job_outcomes.withdraw(transaction, found, f"withdrawn: job {job.id} was {job.state}", now)
    return [event("job.withdrawn", job=job.id, commands=len(found))]


def _counts(tally: Tally) -> dict[str, int]:
    """How many devices have come to what; what none has is left out."""
    names = ("reached", "done", "failed", "missed", "silent", "skipped")
    return {name: count for name in names if (count := getattr(tally, name))}
