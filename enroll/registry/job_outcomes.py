"""What a job's commands have come to, and what it has counted of that: within a caller's transaction.

A command knows its job, and as what the job has counted it. Whatever ends a command (a result, its deadline, the end of
its device) makes the two differ, which an index knows: nobody has to tell the job, and no report is counted twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from sqlalchemy import Connection, Integer, bindparam, select, text
from sqlalchemy import update as updating

from enroll.registry.jobs import job_targets, jobs
from enroll.registry.records import UNDELIVERED, CommandState
from enroll.registry.schema import UNCOUNTED, commands
from enroll.registry.statement import Row, Statement
from enroll.rollout import Job, Target
from fleet.identity import DeviceId

_SILENCE: Final = "silent"
_BEGUN: Final = (CommandState.ACCEPTED, CommandState.RUNNING)
_TALLIED: Final = {
    CommandState.DONE.value: "done",
    CommandState.FAILED.value: "failed",
    CommandState.EXPIRED.value: "missed",
    _SILENCE: "silent",
}
_COUNTED: Final = ("done", "failed", "missed", "silent")
_STANDINGS = Statement(
    select(
        job_targets.c.position,
        job_targets.c.device,
        job_targets.c.epoch,
        job_targets.c.skipped,
        job_targets.c.command,
        commands.c.state,
        commands.c.counted,
        commands.c.error,
        commands.c.changed_at,
    )
    .select_from(job_targets)
    .outerjoin(commands, commands.c.id == job_targets.c.command)
    .where(job_targets.c.job == bindparam("of"), job_targets.c.position >= bindparam("first"))
    .order_by(job_targets.c.position)
    .limit(bindparam("limit", type_=Integer))
)
_NEWS = Statement(
    select(commands.c.number, commands.c.job, commands.c.state, commands.c.counted)
    .where(text(UNCOUNTED), commands.c.counted >= text("''"))  # a bound, or SQLite does not seek in that index
    .limit(bindparam("limit", type_=Integer))
)
_COUNT = Statement(updating(commands).where(commands.c.number == bindparam("of")).values(counted=bindparam("counted")))
_RECOUNT = Statement(
    updating(jobs)
    .where(jobs.c.number == bindparam("of"))
    .values({name: jobs.c[name] + bindparam(f"{name}_more", type_=Integer) for name in _COUNTED})
)
_OF_JOB = (commands.c.job == bindparam("of"), commands.c.state == bindparam("state"))
_SILENT = Statement(
    select(commands.c.number)
    .where(*_OF_JOB, commands.c.counted == "", commands.c.changed_at <= bindparam("before"))
    .limit(bindparam("limit", type_=Integer))
)
_UNBEGUN = Statement(select(commands.c.number).where(*_OF_JOB).limit(bindparam("limit", type_=Integer)))
_UNBEGUN_DUE = Statement(
    select(commands.c.number)
    .where(commands.c.is_due == text("1"), commands.c.job == bindparam("of"))
    .limit(bindparam("limit", type_=Integer))
)
_WITHDRAW = Statement(
    updating(commands)
    .where(commands.c.number == bindparam("of"))
    .values(
        state=CommandState.EXPIRED.value, changed_at=bindparam("at"), error=bindparam("error"), is_due=bindparam("due")
    )
)


class Standing(StrEnum):
    """What has become of one device of a job."""

    WAITING = "waiting"  # its turn has not come
    SKIPPED = "skipped"
    QUEUED = "queued"
    SENT = "sent"
    ACCEPTED = "accepted"
    RUNNING = "running"
    SILENT = "silent"
    DONE = "done"
    FAILED = "failed"
    MISSED = "missed"

    @property
    def may_still_change(self) -> bool:
        """Whether its command may still be begun, or is under way."""
        return self in (Standing.QUEUED, Standing.SENT, Standing.ACCEPTED, Standing.RUNNING)


@dataclass(frozen=True, slots=True)
class Place:
    """One device of a job, and what has become of it."""

    position: int
    target: Target
    standing: Standing
    command: str | None
    error: str
    changed_at: datetime | None


@dataclass(frozen=True, slots=True)
class News:
    """A command whose end its job has not counted; `was` is as what it had, if it had."""

    command: int
    job: int
    state: str
    was: str


def places(transaction: Connection, job: Job, first: int, limit: int) -> list[Place]:
    """Up to `limit` devices of a job from the position `first` on, and what has become of them."""
    return [_place(row) for row in _STANDINGS.all(transaction, of=job.number, first=first, limit=limit)]


def news(transaction: Connection, limit: int) -> list[News]:
    """Up to `limit` commands whose end their jobs have not counted."""
    return [News(*row) for row in _NEWS.all(transaction, limit=limit)]


def count(transaction: Connection, found: Iterable[News]) -> None:
    """Have the jobs count what is news, each once: what was missed or silent before may be done after all."""
    changes: dict[int, Counter[str]] = {}
    for each in found:
        _COUNT.run(transaction, of=each.command, counted=each.state)
        change = changes.setdefault(each.job, Counter())
        change[_TALLIED[each.state]] += 1
        if each.was:
            change[_TALLIED[each.was]] -= 1
    for number, change in changes.items():
        _recount(transaction, number, change)


def _recount(transaction: Connection, number: int, change: Mapping[str, int]) -> None:
    _RECOUNT.run(transaction, of=number, **{f"{name}_more": change.get(name, 0) for name in _COUNTED})


def silent(transaction: Connection, job: Job, before: datetime, limit: int) -> list[int]:
    """Up to `limit` of its commands that were begun, and not heard of since then; their numbers."""
    found: list[int] = []
    for state in _BEGUN:
        rows = _SILENT.all(transaction, of=job.number, state=state.value, before=before, limit=limit - len(found))
        found += [number for (number,) in rows]
    return found


def count_silent(transaction: Connection, job: Job, found: Collection[int]) -> None:
    """Have the job count these commands of its own as silent."""
    for number in found:
        _COUNT.run(transaction, of=number, counted=_SILENCE)
    _recount(transaction, job.number, {"silent": len(found)})


def unbegun(transaction: Connection, job: Job, limit: int) -> list[int]:
    """Up to `limit` of its commands that no device has begun, those first which are about to go out; their numbers."""
    found = [number for (number,) in _UNBEGUN_DUE.all(transaction, of=job.number, limit=limit)]
    for state in UNDELIVERED:
        rows = _UNBEGUN.all(transaction, of=job.number, state=state.value, limit=limit)
        found += [number for (number,) in rows]
    return list(dict.fromkeys(found))[:limit]


def withdraw(transaction: Connection, found: Iterable[int], reason: str, now: datetime) -> None:
    """Give up these commands, which no device has begun."""
    for number in found:
        _WITHDRAW.run(transaction, of=number, at=now, error=reason, due=False)


def _place(row: Row) -> Place:
    position, device, epoch, skipped, command, state, counted, error, changed_at = row
    target = Target(DeviceId(device), epoch)
    if state is None:
        standing = Standing.SKIPPED if skipped else Standing.WAITING
        return Place(position, target, standing, None, skipped, None)
    is_silent = counted == _SILENCE and CommandState(state) in _BEGUN
    standing = Standing.SILENT if is_silent else Standing(_TALLIED.get(str(state), str(state)))
    return Place(position, target, standing, command, error, changed_at)
