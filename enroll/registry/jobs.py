"""Jobs, whom they are for, and what their commands have come to: reads and writes within a caller's transaction.

A command knows its job, and as what the job has counted it. Whatever ends a command (a result, its deadline, the end of
its device) makes the two differ, which an index knows: nobody has to tell the job, and no report is counted twice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    bindparam,
    select,
    text,
)
from sqlalchemy import update as updating

from enroll.registry.records import CommandState
from enroll.registry.schema import UNCOUNTED, Instant, commands, metadata
from enroll.registry.statement import Row, Statement, insert_into
from enroll.rollout import Job, JobState, Plan, Tally, Target
from fleet.identity import DeviceId

_TALLY: Final = ("total", "reached", "done", "failed", "missed", "silent", "skipped")

jobs: Final = Table(
    "jobs",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String(16), nullable=False, unique=True),
    Column("name", String(64), nullable=False),
    Column("args", Text, nullable=False),  # a JSON object
    Column("asked", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("is_active", Boolean, nullable=False),
    Column("waves", Text, nullable=False),  # a JSON list of per cents
    Column("wave_ends_at", Instant, nullable=True),
    *(Column(name, Integer, nullable=False) for name in ("canary", "max_failures", "wave_seconds", "command_seconds")),
    Column("wave", Integer, nullable=False),
    *(Column(name, Integer, nullable=False) for name in _TALLY),
    Column("created_at", Instant, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("ended_at", Instant, nullable=True),
    Column("reason", Text, nullable=False),
    Index(None, "is_active", sqlite_where=text("is_active = 1")),
    sqlite_autoincrement=True,
)
"""Jobs with what their devices have come to. `is_active`: dispatch has something to do for it, now or later."""

job_targets: Final = Table(
    "job_targets",
    metadata,
    Column("job", ForeignKey("jobs.number"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("device", ForeignKey("principals.id"), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("command", String(64), nullable=True),
    Column("skipped", Text, nullable=False),
    UniqueConstraint("job", "device"),
    sqlite_with_rowid=False,
)
"""Whom a job is for, in the order of their turns. Each has a command or a reason for none once it had its turn."""

_JOB = select(
    *(jobs.c[name] for name in ("number", "id", "name", "args", "state", "canary", "waves", "max_failures")),
    *(jobs.c[name] for name in ("wave_seconds", "command_seconds", *_TALLY)),
    *(jobs.c[name] for name in ("created_at", "created_by", "asked", "wave", "wave_ends_at", "ended_at", "reason")),
)
_ADD = insert_into(jobs, *(column.name for column in jobs.columns if column.name != "number"))
_BY_ID = Statement(_JOB.where(jobs.c.id == bindparam("of")))
_ACTIVE = Statement(_JOB.where(jobs.c.is_active == text("1")).order_by(jobs.c.number))
_NEWEST = Statement(_JOB.order_by(jobs.c.number.desc()).limit(bindparam("limit", type_=Integer)))
_MOVABLE: Final = ("state", "is_active", "wave", "wave_ends_at", "ended_at", "reason", *_TALLY)
_MOVE = Statement(
    updating(jobs).where(jobs.c.number == bindparam("of")).values({name: bindparam(name) for name in _MOVABLE})
)
_COUNTED: Final = ("done", "failed", "missed", "silent")
_RECOUNT = Statement(
    updating(jobs)
    .where(jobs.c.number == bindparam("of"))
    .values({name: jobs.c[name] + bindparam(f"{name}_more", type_=Integer) for name in _COUNTED})
)
_REST = Statement(updating(jobs).where(jobs.c.number == bindparam("of")).values(is_active=False))
_ADD_TARGET = insert_into(job_targets, "job", "position", "device", "epoch", "command", "skipped")
_WAITING = Statement(
    select(job_targets.c.position, job_targets.c.device, job_targets.c.epoch)
    .where(
        job_targets.c.job == bindparam("of"),
        job_targets.c.position >= bindparam("first"),
        job_targets.c.position < bindparam("end"),
    )
    .order_by(job_targets.c.position)
)
_TAKE_TURN = Statement(
    updating(job_targets)
    .where(job_targets.c.job == bindparam("of"), job_targets.c.position == bindparam("at"))
    .values(command=bindparam("command"), skipped=bindparam("skipped"))
)
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
_SILENCE: Final = "silent"
_BEGUN: Final = (CommandState.ACCEPTED, CommandState.RUNNING)
_NOT_BEGUN: Final = (CommandState.QUEUED, CommandState.SENT)
_TALLIED: Final = {
    CommandState.DONE.value: "done",
    CommandState.FAILED.value: "failed",
    CommandState.EXPIRED.value: "missed",
    _SILENCE: "silent",
}


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


def add(transaction: Connection, job: Job) -> None:
    """Add a job, whatever its number says; it gets the next one."""
    _ADD.run(
        transaction,
        id=job.id,
        name=job.name,
        args=job.args,
        asked=job.asked,
        waves=json.dumps(job.plan.waves),
        canary=job.plan.canary,
        max_failures=job.plan.max_failures,
        wave_seconds=_seconds(job.plan.wave_timeout),
        command_seconds=_seconds(job.plan.command_ttl),
        created_at=job.created_at,
        created_by=job.created_by,
        **_moving(job),
    )


def move(transaction: Connection, job: Job) -> None:
    """Store what changes of a job; dispatch looks at it from now on if that makes a difference."""
    _MOVE.run(transaction, of=job.number, **_moving(job))


def rest(transaction: Connection, job: Job) -> None:
    """Nothing is left to do for a job that is at its end."""
    _REST.run(transaction, of=job.number)


def _moving(job: Job) -> dict[str, object]:
    return {
        "state": job.state.value,
        "is_active": job.state in (JobState.RUNNING, JobState.HALTED, JobState.ABORTED),
        "wave": job.wave,
        "wave_ends_at": job.wave_ends_at,
        "ended_at": job.ended_at,
        "reason": job.reason,
    } | {name: getattr(job.tally, name) for name in _TALLY}


def _seconds(span: timedelta) -> int:
    return int(span.total_seconds())


def find(transaction: Connection, id: str) -> Job | None:
    """The job of that id."""
    row = _BY_ID.first(transaction, of=id)
    return None if row is None else _job(row)


def active(transaction: Connection) -> list[Job]:
    """The jobs that dispatch has to look at, oldest first."""
    return [_job(row) for row in _ACTIVE.all(transaction)]


def newest(transaction: Connection, limit: int) -> list[Job]:
    """The `limit` newest jobs, oldest first."""
    return [_job(row) for row in _NEWEST.all(transaction, limit=limit)][::-1]


def add_targets(transaction: Connection, job: Job, targets: Iterable[Target], first: int) -> None:
    """Add devices to a job that is being prepared, from that position on."""
    for position, target in enumerate(targets, first):
        _ADD_TARGET.run(
            transaction,
            job=job.number,
            position=position,
            device=target.device,
            epoch=target.epoch,
            command=None,
            skipped="",
        )


def waiting(transaction: Connection, job: Job, end: int) -> list[tuple[int, Target]]:
    """Whose turn comes next, by position, below the position `end`."""
    rows = _WAITING.all(transaction, of=job.number, first=job.tally.reached, end=end)
    return [(position, Target(DeviceId(device), epoch)) for position, device, epoch in rows]


def take_turn(transaction: Connection, job: Job, position: int, *, command: str | None, skipped: str) -> None:
    """The device there was given that command, or was skipped for that reason."""
    _TAKE_TURN.run(transaction, of=job.number, at=position, command=command, skipped=skipped)


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
    for state in _NOT_BEGUN:
        rows = _UNBEGUN.all(transaction, of=job.number, state=state.value, limit=limit)
        found += [number for (number,) in rows]
    return list(dict.fromkeys(found))[:limit]


def withdraw(transaction: Connection, found: Iterable[int], reason: str, now: datetime) -> None:
    """Give up these commands, which no device has begun."""
    for number in found:
        _WITHDRAW.run(transaction, of=number, at=now, error=reason, due=False)


def _job(row: Row) -> Job:
    number, name_of, name, args, state, canary, waves, max_failures, wave_seconds, command_seconds, *rest = row
    tally, (created_at, created_by, asked, wave, wave_ends_at, ended_at, reason) = Tally(*rest[:7]), rest[7:]
    times = timedelta(seconds=wave_seconds), timedelta(seconds=command_seconds)
    plan = Plan(canary, tuple(json.loads(waves)), max_failures, *times)
    fixed = (number, name_of, name, args, plan, JobState(state), tally, created_at, created_by, asked)
    return Job(*fixed, wave, wave_ends_at, ended_at, reason)


def _place(row: Row) -> Place:
    position, device, epoch, skipped, command, state, counted, error, changed_at = row
    target = Target(DeviceId(device), epoch)
    if state is None:
        standing = Standing.SKIPPED if skipped else Standing.WAITING
        return Place(position, target, standing, None, skipped, None)
    is_silent = counted == _SILENCE and CommandState(state) in _BEGUN
    standing = Standing.SILENT if is_silent else Standing(_TALLIED.get(str(state), str(state)))
    return Place(position, target, standing, command, error, changed_at)
