"""`enroll send`: a command to one device or to many, through the registry; the service delivers it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, assert_never

import typer

from enroll.cli.command import outcome_row, output_of
from enroll.cli.interrupted import going_on
from enroll.cli.options import (
    HomeOption,
    Output,
    OutputOption,
    admin_home,
    now,
    open_registry,
    parse_duration,
    token_bytes,
    user,
)
from enroll.cli.output import print_rows, say, time_or_none
from enroll.cli.progress import progress
from enroll.cli.running import say_if_away
from enroll.cli.selected import (
    DryRunOption,
    NoCheckOption,
    WhereOption,
    batches,
    check_fit,
    fitting,
    nobody,
    say_left_out,
)
from fleet import messages
from fleet.errors import FleetError, InvalidInput, PartlyDone, TimedOut
from fleet.identity import DeviceId, State
from fleet.topics import check_name

if TYPE_CHECKING:
    from enroll.commands import Giver, Order
    from enroll.registry import Registry
    from enroll.registry.records import CommandRecord
    from fleet.layout import AdminHome

_POLL_SECONDS = 0.02
_POLL_SECONDS_OF_MANY = 0.25


def send(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[ID] NAME [JSON]",
            help="The device, unless --group or --where says which; the command's name; its arguments.",
        ),
    ],
    group: Annotated[str | None, typer.Option(metavar="G", help="To all active devices of this group.")] = None,
    where: WhereOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the result, and print its output.")] = False,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="TIME", help="Its deadline: it is not begun later.")
    ] = "30s",
    no_check: NoCheckOption = False,
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
    home: HomeOption = None,
) -> None:
    """Send a command. Without --wait, print its id.

    To many, each gets a command of its own, and a table says what each answered; exit status 6 if not all did it.
    """
    from enroll.commands import Order

    is_for_many = group is not None or where is not None
    device, rest = (None, words) if is_for_many else (DeviceId(words[0]), words[1:])
    if is_for_many and len(rest) > 1 and not rest[1].lstrip().startswith(("{", "[")):
        raise InvalidInput("there is an ID besides --group or --where", hint="enroll send --group G NAME [JSON]")
    name, args = _command(rest)
    order, at = Order(name, args, now() + parse_duration(timeout)), admin_home(home)
    with open_registry(at) as registry:
        chosen = _chosen(registry, group, where) if device is None else [device]
        if not no_check:
            check_fit(registry, chosen, order.name, order.args)
        if dry_run:
            print("\n".join(chosen))
            say(f"{len(chosen)} would be sent {name}")
        elif device is not None:
            _send_one(at, registry, device, order, output, wait=wait)
        else:
            _send_many(at, registry, chosen, order, output, wait=wait)


def _command(words: list[str]) -> tuple[str, messages.JsonObject]:
    """A command's name and its arguments."""
    if not words:
        raise InvalidInput("missing argument 'NAME'", hint="enroll send --help")
    if len(words) > 2:
        raise InvalidInput("there is a word too many", hint="[ID] NAME [JSON]; with --group or --where no ID")
    return check_name(words[0]), parse_args(words[1] if len(words) > 1 else "{}")


def parse_args(text: str) -> messages.JsonObject:
    """A command's arguments. Raises: InvalidInput."""
    try:
        return messages.decode_object(text.encode("utf-8", "surrogateescape"))
    except InvalidInput as error:
        raise InvalidInput(
            f"the arguments: {error.message}", hint="""write an object, as '{"interval": 5}'"""
        ) from error


def _send_one(
    home: AdminHome, registry: Registry, device: DeviceId, order: Order, output: Output, *, wait: bool
) -> None:
    from enroll import commands

    sent = commands.send(registry, device, order, _giver())
    if not wait:
        print(json.dumps(outcome_row(sent).fields, indent=2) if output is Output.JSON else sent.id)
        say_if_away(home, "the command is kept, and goes out")
        return
    with going_on(f"the command is not withdrawn; its result is kept: enroll command show {sent.id}"):
        say(f"command {sent.id} to {device}, until {time_or_none(sent.deadline)}")
        say_if_away(home, "the command is kept, and goes out")
        (finished,) = _wait(registry, [sent], _POLL_SECONDS)
    match output:
        case Output.JSON:
            print(json.dumps(outcome_row(finished).fields, indent=2))
        case Output.NAME:
            print(finished.id)
        case Output.TABLE if finished.output is not None and not finished.error:
            print(json.dumps(output_of(finished), ensure_ascii=True))
    _judge_one(finished)


def _giver() -> Giver:
    from enroll.commands import Giver

    return Giver(user(), now(), token_bytes)


def _chosen(registry: Registry, group: str | None, where: str | None) -> list[DeviceId]:
    """Every active device that is in the group and fits; whom that leaves out is said. Raises: NotFound if none."""
    chosen = fitting(registry, group, where, (State.ACTIVE,))
    say_left_out(registry, group, where, (State.SUSPENDED, State.REVOKED, State.REMOVED))
    if not chosen:
        raise nobody(registry, group, "active device")
    return chosen


def _send_many(
    home: AdminHome, registry: Registry, chosen: list[DeviceId], order: Order, output: Output, *, wait: bool
) -> None:
    from enroll import commands

    sent: list[CommandRecord] = []
    with going_on("what was given is not withdrawn; the results are kept: enroll command list"):
        for batch in batches(chosen):
            sent += commands.send_all(registry, batch, order, _giver())
        is_one = len(sent) == 1
        say(f"{len(sent)} command{'s' * (not is_one)}, until {time_or_none(order.deadline)}")
        say_if_away(home, "it is kept, and goes out" if is_one else "they are kept, and go out")
        records = _wait(registry, sent, _POLL_SECONDS_OF_MANY) if wait else sent
    rows = [outcome_row(record) for record in records]
    print_rows(output, ("DEVICE", "COMMAND", "STATE", "ANSWER"), rows, nothing="nobody was left to send it to")
    if wait:
        _judge(records)


def _wait(registry: Registry, sent: Sequence[CommandRecord], poll_seconds: float) -> list[CommandRecord]:
    """The commands when all have come to their end, or as they are at the deadline."""
    mark, waiting = registry.commit_mark(), _Waiting(registry, {record.id: record for record in sent})
    try:
        with progress("answered", len(sent) if len(sent) > 1 else 0) as bar:
            while waiting.open and now() < sent[0].deadline:
                time.sleep(poll_seconds)
                if mark.has_moved():
                    bar.advance(waiting.look())
            bar.advance(waiting.look())
    finally:
        mark.close()
    return list(waiting.records.values())


@dataclass(slots=True)
class _Waiting:
    """Commands whose end is waited for."""

    registry: Registry
    records: dict[str, CommandRecord]

    @property
    def open(self) -> list[str]:
        return [record.id for record in self.records.values() if not record.state.is_final]

    def look(self) -> int:
        """How many have come to their end since the last look."""
        from enroll import commands

        before = self.open
        for batch in batches(before):
            self.records |= {record.id: record.at(now()) for record in commands.find_all(self.registry, batch)}
        return len(before) - len(self.open)


def _judge(records: Sequence[CommandRecord]) -> None:
    """Raises: PartlyDone, TimedOut or FleetError, where not all did it."""
    from enroll.registry.records import CommandState

    done = sum(record.state is CommandState.DONE and not record.error for record in records)
    if done == len(records):
        return
    if done:
        raise PartlyDone(f"{done} of {len(records)} did it", hint="the table says what became of the others")
    if any(record.state.is_final and record.state is not CommandState.EXPIRED for record in records):
        raise FleetError(f"none of {len(records)} did it", hint="the table says why")
    raise TimedOut(f"none of {len(records)} answered in time", hint="enroll device list --online")


def _judge_one(record: CommandRecord) -> None:
    """Raises: TimedOut or FleetError, unless its device did it."""
    from enroll.registry.records import CommandState

    hint = f"enroll device show {record.device}"
    match record.state:
        case CommandState.DONE if record.error:  # the agent could not keep or send what the firmware answered
            raise FleetError(f"{record.device} did it, but {record.error}", hint="have it answer with less")
        case CommandState.DONE:
            return
        case CommandState.FAILED:
            raise FleetError(f"{record.device} failed: {record.error or 'it does not say why'}")
        case CommandState.QUEUED | CommandState.SENT | CommandState.EXPIRED:
            raise TimedOut(f"{record.device} did not take the command in time", hint=hint)
        case CommandState.ACCEPTED | CommandState.RUNNING:
            raise TimedOut(
                f"{record.device} has not finished ({record.state})",
                hint=f"its result is kept when it comes: enroll command show {record.id}",
            )
        case _:
            assert_never(record.state)
