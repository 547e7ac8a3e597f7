"""What admins do about jobs: create, pause, resume, abort, try again, look. Needs the registry alone; dispatch drives.

Each is safe beside a running service, and beside another admin.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Final

from enroll import audit, commands
from enroll.commands import Giver, Order
from enroll.registry import Registry, Transaction, job_outcomes, jobs, overview
from enroll.registry.job_outcomes import Place, Standing
from enroll.registry.overview import Filter
from enroll.rollout import Job, JobState, Plan, Tally, Target, in_order
from fleet.errors import Denied, FleetError, InvalidInput, NotFound
from fleet.identity import DeviceId, Role, State
from fleet.messages import JsonObject, decode_object, encode_object

AT_ONCE: Final = 500  # devices of one transaction: enrolments wait no longer
_ID_BYTES: Final = 5


@dataclass(frozen=True, slots=True)
class JobOrder:
    """What a job is to do, and how carefully. `asked` says which devices were meant."""

    name: str
    args: JsonObject
    plan: Plan
    asked: str


def fitting(registry: Registry, wanted: Filter) -> list[Target]:
    """Every active device that fits, as it is now."""
    wanted = replace(wanted, role=Role.DEVICE, state=State.ACTIVE)
    found: list[Target] = []
    last: DeviceId | None = None
    while True:
        with registry.read() as transaction:
            page = overview.page(transaction, wanted, last, AT_ONCE)
        if not page:
            return found
        found += [
            Target(each.record.id, each.record.epoch, bool(each.presence and each.presence.is_online)) for each in page
        ]
        last = page[-1].record.id


def named(registry: Registry, devices: Sequence[DeviceId]) -> list[Target]:
    """These devices, each once. Raises: NotFound, InvalidInput (no device), Denied (it may not connect)."""
    with registry.read() as transaction:
        return [_named(transaction, device) for device in dict.fromkeys(devices)]


def _named(transaction: Transaction, device: DeviceId) -> Target:
    found = overview.summary(transaction, device)
    if found is None:
        raise NotFound(f"there is no {device}", hint="enroll device list")
    if found.record.principal.role is not Role.DEVICE:
        raise InvalidInput(f"{device} is of role {found.record.principal.role}", hint="jobs are for devices")
    if found.record.state is not State.ACTIVE:
        raise Denied(f"{device} is {found.record.state}", hint=f"enroll device show {device}")
    return Target(device, found.record.epoch, bool(found.presence and found.presence.is_online))


def create(registry: Registry, order: JobOrder, targets: Sequence[Target], giver: Giver, chance: random.Random) -> Job:
    """A job for these devices, which runs from when this returns; the list is frozen.

    Whoever is killed amid it leaves a job that is `preparing` for ever: nothing is sent, and it can be aborted.
    Raises: NotFound (nobody is meant), InvalidInput (the message is too large), RegistryUnavailable.
    """
    if not targets:
        raise NotFound("there is no active device of these", hint="enroll device list shows who there is")
    longest = max((target.device for target in targets), key=len)
    commands.check_size(longest, Order(order.name, order.args, giver.now + order.plan.command_ttl), giver)
    turns = in_order(targets, order.plan.canary, chance)
    with registry.group() if len(turns) <= AT_ONCE else nullcontext():
        with registry.write() as transaction:
            job = _add(transaction, order, len(turns), giver)
        for start in range(0, len(turns), AT_ONCE):
            with registry.write() as transaction:
                jobs.add_targets(transaction, job, turns[start : start + AT_ONCE], start)
        with registry.write() as transaction:
            return _start(transaction, job.id, giver)


def _add(transaction: Transaction, order: JobOrder, total: int, giver: Giver) -> Job:
    name = base64.b32encode(giver.token_bytes(_ID_BYTES)).decode().lower()
    args = encode_object(order.args).decode()
    tally, state = Tally(total), JobState.PREPARING
    jobs.add(transaction, Job(0, name, order.name, args, order.plan, state, tally, giver.now, giver.by, order.asked))
    return _find(transaction, name)


def _start(transaction: Transaction, id: str, giver: Giver) -> Job:
    job = _find(transaction, id)
    if job.state is not JobState.PREPARING:
        raise FleetError(f"job {id} is {job.state}")
    plan = job.plan
    audit.record(
        transaction,
        giver.now,
        "job.created",
        job=id,
        name=job.name,
        devices=job.tally.total,
        asked=job.asked,
        canary=plan.canary,
        waves=plan.waves,
        max_failures=plan.max_failures,
        by=giver.by,
    )
    return _moved(transaction, replace(job, state=JobState.RUNNING))


def retry(registry: Registry, id: str, giver: Giver, chance: random.Random) -> Job:
    """A new job, by the same plan, for the devices of an ended one that have not done it and are active.

    Who is at it is left out. Raises: NotFound (no such job, or nobody is left), FleetError (it goes on), ...
    """
    job = find(registry, id)
    if not job.state.is_final:
        raise FleetError(f"job {id} is {job.state}", hint=f"enroll job abort {id}")
    targets: list[Target] = []
    for page in pages(registry, job):
        if any(place.standing in (Standing.QUEUED, Standing.SENT) for place in page):
            raise FleetError(f"commands of job {id} are still being withdrawn", hint="try again in a moment")
        targets += _still_to_do(registry, page)
    if not targets:
        raise NotFound(f"job {id} left nobody who is active and has not done it", hint=f"enroll job show {id}")
    order = JobOrder(job.name, decode_object(job.args.encode()), job.plan, f"{jobs.RETRY_OF}{id}")
    return create(registry, order, targets, giver, chance)


def _still_to_do(registry: Registry, page: Sequence[Place]) -> Iterator[Target]:
    with registry.read() as transaction:
        for place in page:
            if place.standing is Standing.DONE or place.standing.may_still_change:
                continue
            found = overview.summary(transaction, place.target.device)
            if found is not None and found.record.state is State.ACTIVE:
                is_online = found.presence is not None and found.presence.is_online
                yield Target(place.target.device, found.record.epoch, is_online)


def pause(registry: Registry, id: str, giver: Giver) -> Job:
    """Give no further device the command until it is resumed. Raises: NotFound, FleetError (it has ended), ..."""
    return _move(registry, id, JobState.PAUSED, (JobState.RUNNING,), giver)


def resume(registry: Registry, id: str, giver: Giver) -> Job:
    """Let a paused job go on. Raises: NotFound, FleetError (it has ended), RegistryUnavailable."""
    return _move(registry, id, JobState.RUNNING, (JobState.PAUSED,), giver)


def abort(registry: Registry, id: str, giver: Giver) -> Job:
    """End a job; dispatch withdraws what no device has begun. Raises: NotFound, FleetError, RegistryUnavailable."""
    return _move(registry, id, JobState.ABORTED, (JobState.PREPARING, JobState.RUNNING, JobState.PAUSED), giver)


_EVENTS: Final = {JobState.PAUSED: "paused", JobState.RUNNING: "resumed", JobState.ABORTED: "aborted"}


def _move(registry: Registry, id: str, to: JobState, allowed: Sequence[JobState], giver: Giver) -> Job:
    with registry.write() as transaction:
        job = _find(transaction, id)
        if job.state is to:
            return job
        if job.state not in allowed:
            raise FleetError(f"job {id} is {job.state}", hint=f"enroll job show {id}")
        audit.record(transaction, giver.now, f"job.{_EVENTS[to]}", job=id, by=giver.by)
        is_end = to is JobState.ABORTED
        return _moved(
            transaction,
            replace(job, state=to, reason=f"by {giver.by}" if is_end else "", ended_at=giver.now if is_end else None),
        )


def _moved(transaction: Transaction, job: Job) -> Job:
    jobs.move(transaction, job)
    return job


def find(registry: Registry, id: str) -> Job:
    """The job as it is now. Raises: NotFound."""
    with registry.read() as transaction:
        return _find(transaction, id)


def newest(registry: Registry, limit: int) -> list[Job]:
    """The newest jobs, oldest first."""
    with registry.read() as transaction:
        return jobs.newest(transaction, limit)


def pages(registry: Registry, job: Job) -> Iterator[list[Place]]:
    """The devices of a job by their turns, as they are when each page is read."""
    first = 0
    while True:
        with registry.read() as transaction:
            page = job_outcomes.places(transaction, job, first, AT_ONCE)
        if not page:
            return
        yield page
        first = page[-1].position + 1


def _find(transaction: Transaction, id: str) -> Job:
    found = jobs.find(transaction, id)
    if found is None:
        raise NotFound(f"there is no job {id[:40]!r}", hint="enroll job list")
    return found
