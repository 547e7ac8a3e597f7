"""`enroll command`: what has become of commands that were sent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enroll.cli.options import HomeOption, Output, OutputOption, Verbs, admin_home, now, open_registry
from enroll.cli.output import Row, minute, print_one, print_rows, time_or_none
from enroll.cli.selected import check_known
from fleet.identity import DeviceId

if TYPE_CHECKING:
    from enroll.registry.records import CommandRecord

_LABELS = ("command", "device", "name", "state", "answer", "given", "until", "changed")


def list_(
    id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Of one device.", show_default="of all")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, metavar="N", help="The N newest.")] = 100,
    output: OutputOption = Output.TABLE,
    home: HomeOption = None,
) -> None:
    """List commands with their answers, the newest last."""
    from enroll.registry import messaging

    device = None if id is None else DeviceId(id)
    with open_registry(admin_home(home)) as registry:
        if device is not None:
            check_known(registry, device)
        with registry.read() as transaction:
            found = [each.at(now()) for each in messaging.newest_commands(transaction, device, limit)]
    rows = [Row(each.id, _fields(each), _cells(each)) for each in found]
    headers = ("COMMAND", "DEVICE", "NAME", "STATE", "GIVEN", "ANSWER")
    print_rows(output, headers, rows, nothing="no command was given; enroll send gives one")


def show(
    id: Annotated[str, typer.Argument(metavar="COMMAND", help="Its id, as `enroll send` prints it.")],
    output: OutputOption = Output.TABLE,
    home: HomeOption = None,
) -> None:
    """Show what has become of one command."""
    from enroll import commands

    with open_registry(admin_home(home)) as registry:
        found = commands.find(registry, id).at(now())
    cells = (
        found.id,
        found.device,
        f"{found.name} {found.args}" if found.args != "{}" else found.name,
        found.state.value,
        answer_of(found) or "-",
        minute(found.created_at),
        minute(found.deadline),
        minute(found.changed_at),
    )
    print_one(output, Row(found.id, _fields(found), cells), _LABELS)


VERBS: Verbs = {"list": list_, "show": show}


def outcome_row(record: CommandRecord) -> Row:
    """What a command has come to, as `enroll send` shows it."""
    fields = {
        "device": record.device,
        "command": record.id,
        "state": record.state.value,
        "output": output_of(record),
        "error": record.error,
    }
    return Row(record.id, fields, (record.device, record.id, record.state.value, answer_of(record) or "-"))


def answer_of(record: CommandRecord) -> str:
    """What the device said, for people; empty while it has not."""
    return record.error or ("" if record.output is None else json.dumps(output_of(record), ensure_ascii=True))


def output_of(record: CommandRecord) -> Any:
    """The value that the firmware answered with, if it did."""
    return None if record.output is None else json.loads(record.output)


def _fields(record: CommandRecord) -> dict[str, Any]:
    return outcome_row(record).fields | {
        "name": record.name,
        "args": json.loads(record.args),
        "created_at": time_or_none(record.created_at),
        "deadline": time_or_none(record.deadline),
        "changed_at": time_or_none(record.changed_at),
    }


def _cells(record: CommandRecord) -> tuple[str, ...]:
    given, state = minute(record.created_at), record.state.value
    return record.id, record.device, record.name, state, given, answer_of(record) or "-"
