"""`enroll request`: devices that wait until an admin has looked at them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
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
from enroll.cli.progress import progress
from fleet.errors import FleetError, InvalidInput, PartlyDone, report
from fleet.join import fingerprint

if TYPE_CHECKING:
    from enroll.registry import Registry
    from enroll.registry.records import ApprovalRecord
    from enroll.service import History

IdsArgument = Annotated[list[str] | None, typer.Argument(metavar="[REQUEST]...", help="As request list shows it.")]
MatchOption = Annotated[str | None, typer.Option(metavar="PATTERN", help="All for ids like this: 'pump-*'.")]
TokenOption = Annotated[str | None, typer.Option(metavar="TOKEN", help="All that came with this token.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]


def list_(
    all_: Annotated[bool, typer.Option("--all", help="With those that were decided of late.")] = False,
    output: OutputOption = Output.TABLE,
    home: HomeOption = None,
) -> None:
    """List who waits. Compare the key with what the device shows."""
    from enroll.service import requests

    moment = now()
    with open_registry(admin_home(home)) as registry:
        rows = [_row(record, moment) for record in requests(registry, moment) if all_ or record.is_open]
    headers = ("REQUEST", "FOR", "BY", "ADDRESS", "SERIAL", "MODEL", "AGE", "STATE", "KEY")
    print_rows(output, headers, rows, nothing="nobody waits")


def _row(record: ApprovalRecord, moment: datetime) -> Row:
    cells = (
        record.id,
        record.device,
        _by(record),
        record.address or "-",
        record.hardware_serial or "-",
        record.model or "-",
        ago(record.created_at, moment).removesuffix(" ago"),
        record.state.value,
        fingerprint(record.key),
    )
    return Row(record.id, _fields(record), cells)


def _by(record: ApprovalRecord) -> str:
    if record.recovers is not None:
        return f"recovery of {record.recovers}"
    return "pairing" if record.token is None else f"token {record.token}"


def _fields(record: ApprovalRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "device": record.device,
        "token": record.token,
        "recovers": record.recovers,
        "state": record.state.value,
        "key_sha256": record.key.hex(),
        "address": record.address,
        "serial": record.hardware_serial,
        "model": record.model,
        "created_at": time_or_none(record.created_at),
        "expires_at": time_or_none(record.expires_at),
        "decided_by": record.decided_by,
        "reason": record.reason,
    }


def show(
    id: Annotated[str, typer.Argument(metavar="REQUEST", help="As request list, or the device, shows it.")],
    output: OutputOption = Output.TABLE,
    home: HomeOption = None,
) -> None:
    """Show one request; of a device whose certificate has expired its history, too."""
    from enroll.service import find_request, history

    moment = now()
    with open_registry(admin_home(home)) as registry:
        record = find_request(registry, id, moment)
        past = history(registry, record, moment)
    shown = [
        ("request", record.id),
        ("for", record.device),
        ("by", _by(record)),
        ("state", record.state.value),
        ("key", fingerprint(record.key)),
        ("address", record.address or "-"),
        ("says serial", record.hardware_serial or "-"),
        ("says model", record.model or "-"),
        ("since", minute(record.created_at)),
        ("until", f"{minute(record.expires_at)}, {ahead(record.expires_at, moment)}"),
        ("decided by", record.decided_by or "-"),
        ("reason", record.reason or "-"),
    ]
    fields = _fields(record)
    if past is not None:
        shown += _history(past, moment)
        fields |= _history_fields(past, moment)
    print_one(output, Row(record.id, fields, tuple(value for _, value in shown)), [name for name, _ in shown])


def _history(past: History, moment: datetime) -> list[tuple[str, str]]:
    """What to look at before a device is let back in."""
    rows = [("why", past.why(moment)), ("last seen", ago(past.last_seen, moment) if past.last_seen else "-")]
    for each, ended in past.certificates:
        state = f"{each.state}{'' if ended is None else f' on {minute(ended.at)}'}"
        rows.append(
            (f"cert {each.generation}", f"{each.serial} {state}, {minute(each.not_before)} to {minute(each.not_after)}")
        )
    return rows


def _history_fields(past: History, moment: datetime) -> dict[str, Any]:
    return {
        "why": past.why(moment),
        "last_seen": time_or_none(past.last_seen),
        "certificates": [
            {
                "serial": each.serial,
                "generation": each.generation,
                "state": each.state.value,
                "not_before": time_or_none(each.not_before),
                "not_after": time_or_none(each.not_after),
                "ended_at": time_or_none(None if ended is None else ended.at),
            }
            for each, ended in past.certificates
        ],
    }


def approve(
    ids: IdsArgument = None,
    match: MatchOption = None,
    token: TokenOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    home: HomeOption = None,
) -> None:
    """Let devices in. A pairing is approved by its own code alone, never with others."""
    from enroll.service import approve as approve_request
    from enroll.service import check_approvable

    which = Which(ids or (), match, token, is_pairing_meant=False)
    with open_registry(admin_home(home)) as registry:
        if dry_run:
            _each(which.find(registry), lambda name: check_approvable(registry, name, now()), "would be approved")
            return
        chosen = which.find(registry, "approve", yes=yes)
        _each(chosen, lambda name: approve_request(registry, name, by=user(), now=now()), "approved")


def deny(
    ids: IdsArgument = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="The device shows it.")] = "no reason was given",
    match: MatchOption = None,
    token: TokenOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    home: HomeOption = None,
) -> None:
    """Turn devices away, and tell them why."""
    from enroll.service import deny as deny_request
    from enroll.service import find_request

    which = Which(ids or (), match, token, is_pairing_meant=True)
    with open_registry(admin_home(home)) as registry:
        if dry_run:
            _each(which.find(registry), lambda name: find_request(registry, name, now()), "would be denied")
            return
        chosen = which.find(registry, "deny", yes=yes)
        _each(chosen, lambda name: deny_request(registry, name, reason, by=user(), now=now()), "denied")


@dataclass(frozen=True, slots=True)
class Which:
    """The requests that a command line means: those it names, or all that wait and fit."""

    ids: Sequence[str]
    match: str | None
    token: str | None
    is_pairing_meant: bool

    def find(self, registry: Registry, verb: str | None = None, *, yes: bool = False) -> list[str]:
        """Their ids; asked for with `verb` where they are many.

        Raises: InvalidInput where the command line says neither or both, FleetError if the answer is no.
        """
        from enroll.service import requests

        if bool(self.ids) == (self.match is not None or self.token is not None):
            raise InvalidInput("name requests, or say which", hint="REQUEST..., or --match 'pump-*', or --token TOKEN")
        if self.ids:
            return list(dict.fromkeys(self.ids))
        chosen = [record.id for record in requests(registry, now()) if self._fits(record)]
        if verb is not None:
            confirm(f"{verb} {len(chosen)} requests?", yes=yes)
        return chosen

    def _fits(self, record: ApprovalRecord) -> bool:
        from enroll.registry.records import ApprovalState

        return (
            record.state is ApprovalState.WAITING
            and (self.is_pairing_meant or not record.is_pairing)
            and (self.match is None or fnmatchcase(record.device, self.match))
            and (self.token is None or record.token == self.token)
        )


def _each(ids: Sequence[str], act: Callable[[str], ApprovalRecord], done: str) -> None:
    """Act on each, each for itself. Raises: FleetError, PartlyDone where some failed."""
    errors: list[FleetError] = []
    with progress(done, len(ids) if len(ids) > 1 else 0) as bar:
        for name in ids:
            try:
                record = act(name)
            except FleetError as error:
                errors.append(error)
            else:
                bar.hide()
                print(record.id)
                say(f"{record.device} {done}: request {record.id}, key {fingerprint(record.key)}")
            bar.advance(1)
    if not ids:
        say("nobody waits who fits")
    if len(ids) == len(errors) == 1:
        raise errors[0]
    if errors:
        for failed in errors:
            say(report(failed).partition("\n")[0])
        kind = FleetError if len(errors) == len(ids) else PartlyDone
        raise kind(f"{len(errors)} of {len(ids)} failed", hint="enroll request list")


VERBS: Verbs = {"list": list_, "show": show, "approve": approve, "deny": deny}
