"""`enroll device`: whoever holds, or held, a certificate."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enroll.cli.options import (
    HomeOption,
    Output,
    OutputOption,
    Verbs,
    YesOption,
    admin_home,
    confirm,
    now,
    open_registry,
    user,
)
from enroll.cli.output import Row, ago, ahead, minute, print_one, print_rows, say, time_or_none
from enroll.cli.token import parse_role
from fleet.errors import NotFound
from fleet.identity import DeviceId

if TYPE_CHECKING:
    from enroll.registry.overview import Summary

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Its id.")]


def list_(
    role: Annotated[str | None, typer.Option(metavar="ROLE", help="Only these.", show_default="all")] = None,
    output: OutputOption = Output.TABLE,
    home: HomeOption = None,
) -> None:
    """List them: who is online, whose certificate ends."""
    from enroll.registry import overview

    wanted, moment = None if role is None else parse_role(role), now()
    with open_registry(admin_home(home)) as registry, registry.read() as transaction:
        rows = [_row(summary, moment) for summary in overview.summaries(transaction, wanted)]
    headers = ("ID", "ROLE", "STATE", "ONLINE", "LAST-SEEN", "EXPIRES")
    print_rows(output, headers, rows, nothing="there are no devices yet: enroll token create lets the first one in")


def _row(summary: Summary, moment: datetime) -> Row:
    record, heard = summary.record, summary.presence
    return Row(
        record.id,
        _fields(summary),
        (
            record.id,
            record.principal.role.value,
            record.state.value,
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
    """Show one, with its certificates."""
    from enroll.registry import identity, overview

    device, moment = DeviceId(id), now()
    with open_registry(admin_home(home)) as registry, registry.read() as transaction:
        summary = overview.summary(transaction, device)
        certificates = identity.certificates_of(transaction, device)
    if summary is None:
        raise NotFound(f"there is no {device}", hint="enroll device list")
    record, heard = summary.record, summary.presence
    shown = [
        ("id", record.id),
        ("role", record.principal.role.value),
        ("state", record.state.value),
        ("groups", ", ".join(record.groups) or "-"),
        ("online", _online(summary)),
        ("since", minute(heard.changed_at if heard else None)),
        ("reason", (heard.reason if heard else "") or "-"),
        ("last seen", ago(heard.last_seen, moment) if heard else "-"),
        ("agent", (heard.agent_version if heard else "") or "-"),
        ("known since", minute(record.created_at)),
        ("enrolments", str(record.epoch)),
        *((f"cert {c.generation}", f"{c.serial} {c.state}, until {minute(c.not_after)}") for c in certificates),
    ]
    fields = _fields(summary) | {
        "certificates": [
            {"serial": c.serial, "state": c.state.value, "not_after": time_or_none(c.not_after)} for c in certificates
        ]
    }
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


def revoke(id: IdArgument, yes: YesOption = False, home: HomeOption = None) -> None:
    """Keep it out for good.

    Its connection ends at once; its certificates, and tokens that could replace them, are void.
    """
    from enroll.service import revoke as revoke_principal

    device, at = DeviceId(id), admin_home(home)
    with open_registry(at) as registry:
        confirm(f"revoke {device} for good?", yes=yes)
        revoke_principal(registry, device, by=user(), now=now())
    say(f"{device} is revoked; enroll token create --device {device} --replace gives its name to a new key")


VERBS: Verbs = {"list": list_, "show": show, "suspend": suspend, "resume": resume, "revoke": revoke}
