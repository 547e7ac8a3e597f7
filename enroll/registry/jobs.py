"""Jobs, and whom they are for: reads and writes within a caller's transaction.

What becomes of their commands is in `job_outcomes`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime, timedelta
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
    exists,
    literal,
    or_,
    select,
    text,
)
from sqlalchemy import update as updating

from enroll.registry.schema import Instant, metadata
from enroll.registry.statement import Row, Statement, insert_into
from enroll.rollout import Job, JobState, Plan, Tally, Target
from fleet.identity import DeviceId

RETRY_OF: Final = "not done by job "
"""What a job that retries another was asked for, before the other's id."""
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
_later = jobs.alias()
_IS_RETRIED = exists().where(_later.c.number > jobs.c.number, _later.c.asked == literal(RETRY_OF) + jobs.c.id)
_UNSETTLED = _JOB.where(
    or_(
        jobs.c.state.in_([JobState.PREPARING.value, JobState.RUNNING.value, JobState.PAUSED.value]),
        (jobs.c.state == JobState.HALTED.value) & (jobs.c.ended_at > bindparam("since", type_=Instant)) & ~_IS_RETRIED,
    )
).order_by(jobs.c.number)
_MOVABLE: Final = ("state", "is_active", "wave", "wave_ends_at", "ended_at", "reason", *_TALLY)
_MOVE = Statement(
    updating(jobs).where(jobs.c.number == bindparam("of")).values({name: bindparam(name) for name in _MOVABLE})
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


def unsettled(transaction: Connection, since: datetime) -> list[Job]:
    """Those that have not ended, oldest first, and of those that were halted since then the ones not retried yet."""
    return [_job(row) for row in transaction.execute(_UNSETTLED, {"since": since})]


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


def _job(row: Row) -> Job:
    number, name_of, name, args, state, canary, waves, max_failures, wave_seconds, command_seconds, *rest = row
    tally, (created_at, created_by, asked, wave, wave_ends_at, ended_at, reason) = Tally(*rest[:7]), rest[7:]
    times = timedelta(seconds=wave_seconds), timedelta(seconds=command_seconds)
    plan = Plan(canary, tuple(json.loads(waves)), max_failures, *times)
    fixed = (number, name_of, name, args, plan, JobState(state), tally, created_at, created_by, asked)
    return Job(*fixed, wave, wave_ends_at, ended_at, reason)
