"""`enroll device`: whoever holds, or held, a certificate."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enroll.cli.history import history, read_coming
from enroll.cli.lineage import mark, read_story, resolve
from enroll.cli.mark import group, label
from enroll.cli.options import (
    HomeOption,
    Output,
    OutputOption,
    ReasonOption,
    Verbs,
    YesOption,
    admin_home,
    confirm,
    now,
    open_registry,
    parse_reason,
    user,
)
from enroll.cli.output import Row, ago, ahead, minute, print_one, print_pages, say, time_or_none
from enroll.cli.revoking import open_to_revoke
from enroll.cli.selected import WhereOption
from enroll.cli.token import parse_role
from enroll.cli.upkeep import pace, renew
from fleet.catalogue import catalogue_fields
from fleet.errors import InvalidInput, NotFound
from fleet.identity import DeviceId, Role, State

if TYPE_CHECKING:
    from enroll.registry import Registry
    from enroll.registry.lineage import AlarmKind
    from enroll.registry.overview import Filter, Summary

_PAGE = 500

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Its id.")]


def list_(
    role: Annotated[str | None, typer.Option(metavar="ROLE", help="Only these.", show_default="all")] = None,
    state: Annotated[str | None, typer.Option(metavar="STATE", help="active, suspended or revoked.")] = None,
    group: Annotated[str | None, typer.Option(metavar="G", help="Only those in the group.")] = None,
    online: Annotated[
        bool | None, typer.Option("--online/--offline", help="Only those that are, or were and are not.")
    ] = None,
    match: Annotated[str | None, typer.Option(metavar="PATTERN", help="Only ids like this: 'pump-*'.")] = None,
    alarms: Annotated[bool, typer.Option("--alarms", help="Only those that an admin has to look at.")] = False,
    where: WhereOption = None,
    after: Annotated[str | None, typer.Option(metavar="ID", help="Begin behind this id.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, metavar="N", help="At most so many.")] = 1000,
    output: OutputOption = Output.TABLE,
    home: HomeOption = None,
) -> None:
    """List them by id: who is online, whose certificate ends."""
    from enroll.registry.overview import Filter
    from enroll.selection import parse

    wanted = Filter(
        None if role is None else parse_role(role),
        None if state is None else _parse_state(state),
        group,
        online,
        None if match is None else _parse_pattern(match),
        alarms,
        None if where is None else parse(where),
    )
    begin = None if after is None else DeviceId(after)
    with open_registry(admin_home(home)) as registry:
        listing = _Listing(registry, wanted, begin, limit, now())
        headers = ("ID", "ROLE", "STATE", "ONLINE", "LAST-SEEN", "EXPIRES")
        print_pages(output, headers, listing.pages(), nothing=_nothing(wanted, begin))
    if listing.has_more:
        say(f"there are more: --after {listing.last}")


@dataclass(slots=True)
class _Listing:
    """Pages of devices, each read for itself; behind them `last` is the last id, and whether there are more."""

    registry: Registry
    wanted: Filter
    last: DeviceId | None
    left: int
    moment: datetime
    has_more: bool = False

    def pages(self) -> Iterator[list[Row]]:
        from enroll.registry import lineage, overview

        while True:
            size = min(self.left, _PAGE)
            with self.registry.read() as transaction:
                page = overview.page(transaction, self.wanted, self.last, size + 1)
                alarms = lineage.kinds_of(transaction, [summary.record.id for summary in page])
            self.has_more = len(page) > size
            if page[:size]:
                self.last = page[:size][-1].record.id
                yield [_row(each, alarms.get(each.record.id, ()), self.moment) for each in page[:size]]
            self.left -= size
            if not self.has_more or not self.left:
                return


def _nothing(wanted: Filter, begin: DeviceId | None) -> str:
    if begin is None and wanted in (type(wanted)(), type(wanted)(Role.DEVICE)):
        return "there are no devices yet: enroll token create lets the first one in"
    return "there are none of these"


def _parse_state(text: str) -> State:
    try:
        return State(text)
    except ValueError as error:
        raise InvalidInput(f"{text[:40]!r} is not a state", hint=f"one of {', '.join(State)}") from error


def _parse_pattern(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9_*-]{1,64}", text):
        raise InvalidInput(f"{text[:80]!r} is not a pattern of ids", hint="use a-z, 0-9, _, - and *: 'pump-*'")
    return text


def _row(summary: Summary, alarms: Sequence[AlarmKind], moment: datetime) -> Row:
    record, heard = summary.record, summary.presence
    return Row(
        record.id,
        _fields(summary) | {"alarms": [kind.value for kind in alarms]},
        (
            record.id,
            record.principal.role.value,
            record.state.value + mark(alarms),
            _online(summary),
            ago(heard.last_seen, moment) if heard else "-",
            ahead(summary.not_after, moment),
        ),
    )


def _online(summary: Summary) -> str:
    if summary.presence is None:
        return "-"
    return "yes" if summary.presence.is_online else "no"


def _fields(summary: Summary) -> dict[str, Any]:
    record, heard = summary.record, summary.presence
    return {
        "id": record.id,
        "role": record.principal.role.value,
        "state": record.state.value,
        "groups": list(record.groups),
        "online": None if heard is None else heard.is_online,
        "reason": None if heard is None else heard.reason,
        "agent": None if heard is None else heard.agent_version,
        "last_seen": time_or_none(None if heard is None else heard.last_seen),
        "not_after": time_or_none(summary.not_after),
        "enrolments": record.epoch,
        "created_at": time_or_none(record.created_at),
    }


def show(id: IdArgument, output: OutputOption = Output.TABLE, home: HomeOption = None) -> None:
    """Show one, with its certificates.

    If two may use its identity, with what is known of both.
    """
    from enroll.fitting import catalogue_of
    from enroll.registry import labels, overview

    device, moment = DeviceId(id), now()
    with open_registry(admin_home(home)) as registry, registry.read() as transaction:
        summary = overview.summary(transaction, device)
        if summary is None:
            raise NotFound(f"there is no {device}", hint="enroll device list")
        story = read_story(transaction, summary.record)
        noted, coming = labels.labels_of(transaction, device), read_coming(transaction, device)
        taken = catalogue_of(transaction, device)
    record, heard = summary.record, summary.presence
    shown = [
        ("id", record.id),
        ("role", record.principal.role.value),
        ("state", record.state.value + mark([alarm.kind for alarm in story.alarms])),
        ("groups", ", ".join(record.groups) or "-"),
        ("labels", ", ".join(f"{name}={value}" for name, value in noted.items()) or "-"),
        ("online", _online(summary)),
        ("since", minute(heard.changed_at if heard else None)),
        *coming.trouble(),
        *coming.place(),
        ("reason", (heard.reason if heard else "") or "-"),
        ("last seen", ago(heard.last_seen, moment) if heard else "-"),
        ("agent", (heard.agent_version if heard else "") or "-"),
        ("known since", minute(record.created_at)),
        ("enrolments", str(record.epoch)),
        *([] if taken is None else [("commands", ", ".join(sorted(taken)) or "none")]),
        *coming.rows(),
        *story.rows(moment),
    ]
    said = {"commands": None if taken is None else catalogue_fields(taken)}
    fields = _fields(summary) | coming.fields() | {"labels": noted} | said | story.fields()
    row = Row(record.id, fields, tuple(value for _, value in shown))
    print_one(output, row, [label for label, _ in shown])


def suspend(id: IdArgument, home: HomeOption = None) -> None:
    """Keep it out until it is resumed.

    Its connection ends at once.
    """
    from enroll.service import suspend as suspend_principal

    with open_registry(admin_home(home)) as registry:
        suspend_principal(registry, DeviceId(id), by=user(), now=now())
    say(f"{id} is suspended; enroll device resume {id} lets it in again")


def resume(id: IdArgument, home: HomeOption = None) -> None:
    """Let it in again."""
    from enroll.service import resume as resume_principal

    with open_registry(admin_home(home)) as registry:
        resume_principal(registry, DeviceId(id), by=user(), now=now())
    say(f"{id} is active")


def revoke(id: IdArgument, reason: ReasonOption = None, yes: YesOption = False, home: HomeOption = None) -> None:
    """Keep it out for good.

    Its connection ends at once; its certificates, and tokens that could replace them, are void.
    """
    from enroll.service import revoke as revoke_principal

    device, why, at = DeviceId(id), parse_reason(reason), admin_home(home)
    with open_to_revoke(at) as registry:
        confirm(f"revoke {device} for good?", yes=yes)
        revoke_principal(registry, device, by=user(), now=now(), reason=why)
    say(f"{device} is revoked; enroll token create --device {device} --replace gives its name to a new key")


VERBS: Verbs = {
    "list": list_,
    "show": show,
    "history": history,
    "resolve": resolve,
    "group": group,
    "label": label,
    "renew": renew,
    "pace": pace,
    "suspend": suspend,
    "resume": resume,
    "revoke": revoke,
}
