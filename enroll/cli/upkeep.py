"""`enroll device renew` and `pace`: what the fleet asks of agents themselves, as commands that they answer."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Annotated

import typer

from enroll.cli.options import HomeOption, Output, OutputOption, parse_duration
from enroll.cli.selected import DryRunOption, WhereOption
from enroll.cli.send import send
from fleet.errors import InvalidInput
from fleet.messages import JsonObject
from fleet.upkeep import LONGEST, PACE, RENEW, PaceOrder, RenewOrder

IdOption = Annotated[
    str | None, typer.Argument(metavar="[ID]", help="The device, unless --group or --where says which.")
]
GroupOption = Annotated[str | None, typer.Option(metavar="G", help="All active devices of this group.")]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait until they have answered.")]
TimeoutOption = Annotated[
    str, typer.Option("--timeout", metavar="TIME", help="How long it may take to reach them: they may be away.")
]


def renew(
    id: IdOption = None,
    group: GroupOption = None,
    where: WhereOption = None,
    within: Annotated[
        str | None,
        typer.Option("--within", metavar="TIME", help="Each at a random point of this time.", show_default="at once"),
    ] = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = "1m",
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
    home: HomeOption = None,
) -> None:
    """Have devices renew their certificates now. Without --wait, print the commands' ids.

    With waves and a canary: enroll job create agent.renew.
    """
    spread = timedelta(0) if within is None else _spread(within)
    until = _seconds(parse_duration(timeout) + spread)
    words = _words(RENEW, RenewOrder(spread.total_seconds()).encode(), id, group, where)
    send(words, group, where, wait, until, dry_run=dry_run, output=output, home=home)


def pace(
    reconnect: Annotated[
        str, typer.Option("--reconnect", metavar="TIME", help="How long their return may take; an hour at most.")
    ],
    id: IdOption = None,
    group: GroupOption = None,
    where: WhereOption = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = "1m",
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
    home: HomeOption = None,
) -> None:
    """Have devices come back at random points of some time after they lose the broker, until their agents restart.

    Before a restart of a broker with many devices: so they do not all come back at once.
    """
    words = _words(PACE, PaceOrder(_spread(reconnect).total_seconds()).encode(), id, group, where)
    send(words, group, where, wait, _seconds(parse_duration(timeout)), dry_run=dry_run, output=output, home=home)


def _spread(text: str) -> timedelta:
    """Raises: InvalidInput, for what an agent would not do as it was said."""
    found = parse_duration(text)
    if found > LONGEST:
        raise InvalidInput(f"{text} is too long: agents take an hour at most", hint="write 1h, or less")
    return found


def _words(name: str, args: JsonObject, id: str | None, group: str | None, where: str | None) -> list[str]:
    is_for_many = group is not None or where is not None
    if (id is None) is not is_for_many:
        hint = "an ID, or --group or --where"
        raise InvalidInput("it is not said which devices" if id is None else "one device, or those that fit", hint=hint)
    return [*([] if id is None else [id]), name, json.dumps(args)]


def _seconds(time: timedelta) -> str:
    return f"{time.total_seconds():.0f}s"
