"""`enroll job`: one command to many devices, a few first, then in waves; the service brings it to them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Annotated

import typer

from enroll.cli.job_view import WaitingFor, print_job, say_plan, watch_job
from enroll.cli.options import (
    HomeOption,
    Output,
    OutputOption,
    Verbs,
    admin_home,
    now,
    open_registry,
    parse_duration,
    token_bytes,
    user,
)
from enroll.cli.output import Row, minute, print_rows, say
from enroll.cli.running import say_if_away
from enroll.cli.selected import DryRunOption, NoCheckOption, WhereOption, check_fit, nobody, say_left_out
from enroll.cli.send import parse_args
from fleet.errors import InvalidInput
from fleet.identity import DeviceId, State
from fleet.topics import check_name

if TYPE_CHECKING:
    from enroll.commands import Giver
    from enroll.registry import Registry
    from enroll.rollout import Job, Plan, Target
    from fleet.layout import AdminHome

JobArgument = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The command's name.")],
    args: Annotated[str, typer.Argument(metavar="[JSON]", help="Its arguments.")] = "{}",
    where: WhereOption = None,
    group: Annotated[str | None, typer.Option(metavar="G", help="All of this group.")] = None,
    device: Annotated[list[str] | None, typer.Option(metavar="ID", help="This one; may be given again.")] = None,
    canary: Annotated[int, typer.Option(metavar="N", help="So many first, of those that are online.")] = 1,
    waves: Annotated[str, typer.Option(metavar="PERCENTS", help="How much of all has it after each.")] = "10,50,100",
    max_failures: Annotated[
        int, typer.Option("--max-failures", metavar="PERCENT", help="Halt if more of the answers are failures.")
    ] = 10,
    wave_timeout: Annotated[
        str, typer.Option("--wave-timeout", metavar="TIME", help="A wave is over then at the latest.")
    ] = "10m",
    command_ttl: Annotated[
        str | None,
        typer.Option("--command-ttl", metavar="TIME", help="Each may begin until then.", show_default="the wave's"),
    ] = None,
    no_check: NoCheckOption = False,
    dry_run: DryRunOption = False,
    home: HomeOption = None,
) -> None:
    """Bring a command to many devices, carefully. Print the job's id.

    First to the canary, then to more; never further than it goes well. The list of devices is frozen here.
    """
    from enroll.service import jobs

    check_name(name)
    plan = _plan(canary, waves, max_failures, wave_timeout, command_ttl)
    at, order = admin_home(home), jobs.JobOrder(name, parse_args(args), plan, _asked(where, group, device))
    with open_registry(at) as registry:
        targets = _targets(registry, where, group, device)
        if not no_check:
            check_fit(registry, [target.device for target in targets], order.name, order.args)
        if dry_run:
            print("\n".join(sorted(target.device for target in targets)))
            say_plan(plan, len(targets))
        else:
            _tell(at, jobs.create(registry, order, targets, _giver(), random.SystemRandom()))


def _plan(canary: int, waves: str, max_failures: int, wave_timeout: str, command_ttl: str | None) -> Plan:
    from enroll.rollout import Plan

    try:
        percents = tuple(int(part) for part in waves.removesuffix("%").split(","))
    except ValueError as error:
        raise InvalidInput(f"{waves[:40]!r} are no waves", hint="write per cents: --waves 10,50,100") from error
    ttl = parse_duration(command_ttl or wave_timeout)
    return Plan(canary, percents, max_failures, parse_duration(wave_timeout), ttl)


def _asked(where: str | None, group: str | None, devices: list[str] | None) -> str:
    """Who is meant, in words. Raises: InvalidInput unless it is said, in one way."""
    if bool(devices) == (where is not None or group is not None):
        raise InvalidInput("say which devices are meant", hint="--where SELECTION, --group G, or --device ID ...")
    named = f"{len(devices or ())} by name" if devices else ""
    return " and ".join(filter(None, (named, group and f"group {group}", where)))


def _targets(registry: Registry, where: str | None, group: str | None, devices: list[str] | None) -> list[Target]:
    from enroll.registry.overview import Filter
    from enroll.selection import parse
    from enroll.service import jobs

    if devices:
        return jobs.named(registry, [DeviceId(each) for each in devices])
    found = jobs.fitting(registry, Filter(group=group, where=None if where is None else parse(where)))
    say_left_out(registry, group, where, (State.SUSPENDED, State.REVOKED, State.REMOVED))
    if not found:
        raise nobody(registry, group, "active device")
    return found


def _giver() -> Giver:
    from enroll.commands import Giver

    return Giver(user(), now(), token_bytes)


def _tell(at: AdminHome, job: Job) -> None:
    print(job.id)
    say_plan(job.plan, job.tally.total)
    say_if_away(at, "it begins")
    say(f"enroll job watch {job.id}")


def list_(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, metavar="N", help="The N newest.")] = 100,
    output: OutputOption = Output.TABLE,
    home: HomeOption = None,
) -> None:
    """List jobs, the newest last."""
    from enroll.service import jobs

    with open_registry(admin_home(home)) as registry:
        found = jobs.newest(registry, limit)
    headers = ("ID", "COMMAND", "STATE", "WAVE", "DONE", "FAILED", "MISSED", "OF", "CREATED")
    print_rows(output, headers, [_row(job) for job in found], nothing="there are no jobs")


def _row(job: Job) -> Row:
    from enroll.cli.job_view import fields_of, wave_of

    tally = job.tally
    counts = (tally.done, tally.failures, tally.missed + tally.skipped, tally.total)
    cells = (job.id, job.name, job.state.value, wave_of(job), *map(str, counts), minute(job.created_at))
    return Row(job.id, fields_of(job), cells)


def show(
    id: JobArgument,
    state: Annotated[
        str | None, typer.Option(metavar="STATE", help="Only devices that are done, failed, missed, silent, ...")
    ] = None,
    output: OutputOption = Output.TABLE,
    home: HomeOption = None,
) -> None:
    """Show a job, and what has become of each device, by their turns; -o name prints the devices' ids."""
    from enroll.registry.job_outcomes import Standing
    from enroll.service import jobs

    wanted = None if state is None else _parse_standing(state, list(map(str, Standing)))
    with open_registry(admin_home(home)) as registry:
        job = jobs.find(registry, id)
        print_job(output, job, jobs.pages(registry, job), wanted)


def _parse_standing(text: str, known: list[str]) -> str:
    if text not in known:
        raise InvalidInput(f"{text[:40]!r} is not a state of a device", hint=f"one of {', '.join(known)}")
    return text


def watch(id: JobArgument, home: HomeOption = None) -> None:
    """Show how far a job is, until it ends. Exit status 0 if all did it, 6 if some did not, 1 if it was stopped."""
    at = admin_home(home)
    with open_registry(at) as registry:
        watch_job(at, WaitingFor(registry, id))


def pause(id: JobArgument, home: HomeOption = None) -> None:
    """Give the command to no further device; those that have it go on."""
    from enroll.service import jobs

    with open_registry(admin_home(home)) as registry:
        jobs.pause(registry, id, _giver())
    say(f"job {id} is paused; enroll job resume {id} lets it go on")


def resume(id: JobArgument, home: HomeOption = None) -> None:
    """Let a paused job go on."""
    from enroll.service import jobs

    with open_registry(admin_home(home)) as registry:
        jobs.resume(registry, id, _giver())
    say(f"job {id} runs")


def abort(id: JobArgument, home: HomeOption = None) -> None:
    """End a job for good. What no device has begun is withdrawn; what one has begun, it does."""
    from enroll.service import jobs

    with open_registry(admin_home(home)) as registry:
        under_way = jobs.abort(registry, id, _giver()).tally.open
    left = f"; {under_way} device{'s' * (under_way != 1)} had the command and gave no answer yet" if under_way else ""
    say(f"job {id} is aborted{left}")


def retry(id: JobArgument, home: HomeOption = None) -> None:
    """Begin a new job, by the same plan, for those of an ended one that have not done it. Print its id."""
    from enroll.service import jobs

    at = admin_home(home)
    with open_registry(at) as registry:
        _tell(at, jobs.retry(registry, id, _giver(), random.SystemRandom()))


VERBS: Verbs = {
    "create": create,
    "list": list_,
    "show": show,
    "watch": watch,
    "pause": pause,
    "resume": resume,
    "abort": abort,
    "retry": retry,
}
