"""`enroll send`: one command to one device, through the registry; the service delivers it."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enroll.cli.options import HomeOption, admin_home, now, open_registry, parse_duration, token_bytes, user
from enroll.cli.output import say, time_or_none
from fleet import messages
from fleet.errors import FleetError, InvalidInput, TimedOut
from fleet.identity import DeviceId
from fleet.topics import check_name

if TYPE_CHECKING:
    from enroll.registry import Registry
    from enroll.registry.records import CommandRecord

_POLL_SECONDS = 0.02


def send(
    id: Annotated[str, typer.Argument(metavar="ID", help="The device.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The command, as its firmware knows it.")],
    args: Annotated[str, typer.Argument(metavar="[JSON]", help="Its arguments, an object.", show_default=False)] = "{}",
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the result, and print its output.")] = False,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="TIME", help="Its deadline: it is not begun later.")
    ] = "30s",
    home: HomeOption = None,
) -> None:
    """Send a command. Without --wait, print its id."""
    from enroll import commands

    device, command, arguments = DeviceId(id), check_name(name), parse_args(args)
    deadline = now() + parse_duration(timeout)
    with open_registry(admin_home(home)) as registry:
        sent = commands.send(
            registry, device, command, arguments, deadline=deadline, by=user(), now=now(), token_bytes=token_bytes
        )
        if not wait:
            print(sent.id)
            return
        say(f"command {sent.id} to {device}, until {time_or_none(sent.deadline)}")
        finished = _wait(registry, sent, deadline)
    _print_outcome(finished)


def parse_args(text: str) -> messages.JsonObject:
    """A command's arguments. Raises: InvalidInput."""
    try:
        return messages.decode_object(text.encode("utf-8", "surrogateescape"))
    except InvalidInput as error:
        raise InvalidInput(
            f"the arguments: {error.message}", hint="""write an object, as '{"interval": 5}'"""
        ) from error


def _wait(registry: Registry, sent: CommandRecord, deadline: datetime) -> CommandRecord:
    """The command when it has come to its end, or as it is at the deadline."""
    from enroll import commands

    mark, record = registry.commit_mark(), sent
    try:
        while not record.state.is_final and now() < deadline:
            time.sleep(_POLL_SECONDS)
            if mark.has_moved():
                record = commands.find(registry, sent.id)
    finally:
        mark.close()
    return commands.find(registry, sent.id)


def _print_outcome(record: CommandRecord) -> None:
    from enroll.registry.records import CommandState

    hint = f"enroll device show {record.device}"
    match record.state:
        case CommandState.DONE if record.error:  # the agent could not keep or send what the firmware answered
            raise FleetError(f"{record.device} did it, but {record.error}", hint="have it answer with less")
        case CommandState.DONE:
            print(json.dumps(_output(record), ensure_ascii=True))
        case CommandState.FAILED:
            raise FleetError(f"{record.device} failed: {record.error or 'it does not say why'}")
        case CommandState.QUEUED | CommandState.SENT | CommandState.EXPIRED:
            raise TimedOut(f"{record.device} did not take the command in time", hint=hint)
        case CommandState.ACCEPTED | CommandState.RUNNING:
            raise TimedOut(
                f"{record.device} has not finished ({record.state})", hint="its result is kept when it comes"
            )


def _output(record: CommandRecord) -> Any:
    return None if record.output is None else json.loads(record.output)
