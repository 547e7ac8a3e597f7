"""How jobs are shown: in words, as tables, as JSON, and while they go on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from textwrap import indent
from typing import TYPE_CHECKING, Any, Final, assert_never

from enroll.cli.interrupted import going_on
from enroll.cli.options import Output
from enroll.cli.output import Row, minute, print_one, print_pages, say, time_or_none
from enroll.cli.progress import Progress, progress
from enroll.cli.running import say_if_away
from fleet.errors import FleetError, PartlyDone

if TYPE_CHECKING:
    from enroll.registry import Registry
    from enroll.registry.job_outcomes import Place
    from enroll.rollout import Job, Plan
    from fleet.layout import AdminHome

_POLL_SECONDS: Final = 0.25
_IN_STATUS: Final = 10
_UNITS: Final = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))
_LABELS: Final = ("job", "command", "devices", "state", "wave", "so far", "plan", "created", "ended")


def say_plan(plan: Plan, total: int) -> None:
    """How many have the command after each wave."""
    ceilings = plan.ceilings(total)
    devices, waves = f"{total} device{'s' * (total != 1)}", f"{len(ceilings)} wave{'s' * (len(ceilings) != 1)}"
    say(f"{devices} in {waves}: {', then '.join(map(str, ceilings))}")


def wave_of(job: Job) -> str:
    """The wave it is in, for people."""
    return f"{job.wave + 1}/{len(job.ceilings)}"


def fields_of(job: Job) -> dict[str, Any]:
    """A job for programs, without its devices."""
    tally, plan = job.tally, job.plan
    names = ("total", "reached", "done", "failed", "silent", "missed", "skipped", "open")
    return {
        "id": job.id,
        "name": job.name,
        "args": json.loads(job.args),
        "asked": job.asked,
        "state": job.state.value,
        "reason": job.reason,
        "wave": job.wave + 1,
        "waves": list(job.ceilings),
        "wave_ends_at": time_or_none(job.wave_ends_at),
        "counts": {name: getattr(tally, name) for name in names},
        "canary": plan.canary,
        "percents": list(plan.waves),
        "max_failures": plan.max_failures,
        "wave_timeout_seconds": plan.wave_timeout.total_seconds(),
        "command_ttl_seconds": plan.command_ttl.total_seconds(),
        "created_at": time_or_none(job.created_at),
        "created_by": job.created_by,
        "ended_at": time_or_none(job.ended_at),
    }


def print_job(output: Output, job: Job, pages: Iterable[Sequence[Place]], state: str | None) -> None:
    """A job and its devices, or those in one state, in the memory of a page."""
    rows = ([_row(place) for place in page if state in (None, place.standing)] for page in pages)
    filled = (page for page in rows if page)
    match output:
        case Output.JSON:
            print(json.dumps(fields_of(job), indent=2).removesuffix("\n}"), end=',\n  "devices": ')
            _print_list(filled)
            print("}")
        case Output.NAME:
            print_pages(output, (), filled, nothing="")
        case Output.TABLE:
            print_one(output, Row(job.id, {}, _cells(job)), _LABELS)
            print()
            print_pages(output, ("DEVICE", "STATE", "SINCE", "ERROR"), filled, nothing="no device is in that state")
        case _:
            assert_never(output)


def _print_list(pages: Iterable[Sequence[Row]]) -> None:
    count = 0
    for page in pages:
        for row in page:
            print("," if count else "[", "\n", indent(json.dumps(row.fields), "    "), sep="", end="")
            count += 1
    print("\n  ]" if count else "[]")


def _cells(job: Job) -> tuple[str, ...]:
    plan = job.plan
    percents = ", ".join(f"{percent} %" for percent in plan.waves)
    limit = f"halted beyond {plan.max_failures} % failures; a wave lasts {duration(plan.wave_timeout)}"
    return (
        job.id,
        f"{job.name} {job.args}" if job.args != "{}" else job.name,
        f"{job.tally.total}: {job.asked}",
        job.state.value + (f": {job.reason}" if job.reason else ""),
        wave_of(job),
        counts_of(job),
        f"canary {plan.canary}, then {percents}; {limit}",
        f"{minute(job.created_at)} by {job.created_by}",
        minute(job.ended_at),
    )


def status_rows(jobs: Sequence[Job]) -> list[tuple[str, str]]:
    """A line for each job, with what to do where it does not go on by itself; the first of them by a label."""
    lines = [_status_line(job) for job in jobs[:_IN_STATUS]]
    if len(jobs) > _IN_STATUS:
        lines.append(f"and {len(jobs) - _IN_STATUS} more: enroll job list")
    return [("jobs" if not at else "", line) for at, line in enumerate(lines)]


def _status_line(job: Job) -> str:
    why = f" ({job.reason})" if job.reason else ""
    return f"{job.id} {job.name}: {job.state} in wave {wave_of(job)}{why}, {counts_of(job)}{_next_step(job)}"


def _next_step(job: Job) -> str:
    match job.state.value:
        case "halted":
            return f": enroll job show {job.id} --state failed, then enroll job retry {job.id}"
        case "paused":
            return f": enroll job resume {job.id}"
        case "preparing":
            return f": enroll job abort {job.id}, if nobody is creating it"
        case _:
            return ""


def counts_of(job: Job) -> str:
    """What its devices have come to, for people; what none has is left out."""
    tally = job.tally
    named = {
        "done": tally.done,
        "failed": tally.failed,
        "silent": tally.silent,
        "missed": tally.missed,
        "skipped": tally.skipped,
        "under way": tally.open,
        "waiting": tally.total - tally.reached,
    }
    return ", ".join(f"{count} {name}" for name, count in named.items() if count)


def duration(span: timedelta) -> str:
    """The inverse of `options.parse_duration`, in the largest unit that says it."""
    seconds = int(span.total_seconds())
    unit, length = next(each for each in _UNITS if seconds % each[1] == 0)
    return f"{seconds // length}{unit}"


def _row(place: Place) -> Row:
    fields = {
        "device": place.target.device,
        "state": place.standing.value,
        "command": place.command,
        "changed_at": time_or_none(place.changed_at),
        "error": place.error,
    }
    cells = (place.target.device, place.standing.value, minute(place.changed_at), place.error or "-")
    return Row(place.target.device, fields, cells)


@dataclass(slots=True)
class WaitingFor:
    """A job whose end is waited for."""

    registry: Registry
    id: str

    def looks(self) -> Iterator[Job]:
        """The job as it is now, and again whenever that may be something else, to its end."""
        from enroll.service import jobs

        mark = self.registry.commit_mark()
        try:
            yield (job := jobs.find(self.registry, self.id))
            while not job.state.is_final:
                time.sleep(_POLL_SECONDS)
                if mark.has_moved():
                    yield (job := jobs.find(self.registry, self.id))
        finally:
            mark.close()


def watch_job(home: AdminHome, waiting: WaitingFor) -> None:
    """Show a job until it ends. Raises: PartlyDone, FleetError (it was stopped, or nobody did it)."""
    looks = waiting.looks()
    job = next(looks)
    if not job.state.is_final:
        say_if_away(home, "the job goes on")
    with (
        going_on(f"job {job.id} goes on: enroll job watch {job.id}"),
        progress(f"job {job.id}", job.tally.total) as bar,
    ):
        watching = _Watching(bar)
        watching.show(job)
        for job in looks:
            watching.show(job)
    _judge(job)


@dataclass(slots=True)
class _Watching:
    """What has been said of a job so far."""

    bar: Progress
    finished: int = 0
    said: str = ""

    def show(self, job: Job) -> None:
        words = f"wave {wave_of(job)}" if job.state == "running" else f"{job.state} in wave {wave_of(job)}"
        if words != self.said and not job.state.is_final:
            self.said = words
            self.bar.hide()
            say(f"{words}: {counts_of(job)}")
        self.bar.advance(job.tally.finished - self.finished)
        self.finished = job.tally.finished


def _judge(job: Job) -> None:
    hint = f"enroll job show {job.id}"
    if job.state != "finished":
        raise FleetError(f"job {job.id} was {job.state}: {job.reason}; {counts_of(job)}", hint=hint)
    if job.tally.done == job.tally.total:
        say(f"job {job.id} is finished: {counts_of(job)}")
    elif job.tally.done:
        raise PartlyDone(f"job {job.id} is finished: {counts_of(job)}", hint=hint)
    else:
        raise FleetError(f"job {job.id} is finished, and nobody did it: {counts_of(job)}", hint=hint)
