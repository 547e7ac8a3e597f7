"""`enroll state`: what devices are to be, and are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enroll.cli.options import HomeOption, Output, OutputOption, Verbs, admin_home, now, open_registry, user
from enroll.cli.output import Row, ago, print_rows, say, time_or_none
from enroll.cli.running import say_if_away
from enroll.cli.selected import DryRunOption, WhereOption, batches, fitting, nobody, say_left_out
from fleet import messages
from fleet.errors import InvalidInput, PartlyDone
from fleet.identity import DeviceId, State

if TYPE_CHECKING:
    from enroll.registry import Registry
    from enroll.registry.state import StateRecord
    from enroll.states import Change
    from fleet.layout import AdminHome

DIFFERS = 1

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The device.")]


def get(id: IdArgument, output: OutputOption = Output.TABLE, home: HomeOption = None) -> None:
    """Show both states of a device, and whether it has what is desired."""
    from enroll import states

    with open_registry(admin_home(home)) as registry:
        record = states.find(registry, DeviceId(id))
    if output is Output.TABLE:
        _print_both(record, now())
    else:
        print(json.dumps(_fields(record), indent=2) if output is Output.JSON else record.device)


def set_(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[ID]... JSON", help="The devices, unless --group or --where says which; and what they are to be."
        ),
    ],
    replace: Annotated[
        bool,
        typer.Option("--replace/--merge", help="This is all there is to be, or only what changes (null: removed)."),
    ] = False,
    if_version: Annotated[
        int | None, typer.Option("--if-version", min=0, metavar="N", help="Only if this is the version now.")
    ] = None,
    group: Annotated[str | None, typer.Option(metavar="G", help="All devices of this group.")] = None,
    where: WhereOption = None,
    dry_run: DryRunOption = False,
    home: HomeOption = None,
) -> None:
    """Say what devices are to be. They are told at once, or when they are back.

    Of one device the new version is printed; of many the ids of those to whom it was a change.
    """
    from enroll.states import Change

    ids, change = _wanted(words), Change(_document(words[-1]), replace, if_version)
    is_for_many = group is not None or where is not None
    if is_for_many == bool(ids):
        what = "ids and a selection" if ids else "no id and no selection"
        raise InvalidInput(f"there is {what}", hint="[ID]... JSON; with --group or --where no ID")
    if if_version is not None and len(ids) != 1:
        raise InvalidInput("--if-version is for one device", hint="leave it out, or name one ID")
    at = admin_home(home)
    with open_registry(at) as registry:
        chosen = _chosen(registry, group, where) if is_for_many else _known(registry, ids)
        if dry_run:
            print("\n".join(chosen))
            say(f"{len(chosen)} would be changed, where that is a change")
        elif len(ids) == 1:
            _set_one(at, registry, ids[0], change)
        else:
            _set_many(at, registry, chosen, change)


def diff(id: IdArgument, output: OutputOption = Output.TABLE, home: HomeOption = None) -> None:
    """Show where a device does not report what is desired of it; exit status 1 if there is anything."""
    from enroll import states
    from fleet.state import lacking

    with open_registry(admin_home(home)) as registry:
        record = states.find(registry, DeviceId(id))
    rows = [_row(*each) for each in lacking(record.desired.value, record.reported.value)]
    print_rows(output, ("WHERE", "DESIRED", "REPORTED"), rows, nothing=f"{id} reports all that is desired")
    if rows:
        raise typer.Exit(DIFFERS)


def _wanted(words: Sequence[str]) -> list[DeviceId]:
    """The ids, each once."""
    return list(dict.fromkeys(map(DeviceId, words[:-1])))


def _document(text: str) -> messages.JsonObject:
    try:
        return messages.decode_object(text.encode("utf-8", "surrogateescape"))
    except InvalidInput as error:
        hint = """write an object, as '{"interval": 5}'; it comes last"""
        raise InvalidInput(f"the state: {error.message}", hint=hint) from error


def _chosen(registry: Registry, group: str | None, where: str | None) -> list[DeviceId]:
    """Every device that is in the group and fits, suspended ones too; whom that leaves out is said.

    Raises: NotFound if there is none.
    """
    chosen = fitting(registry, group, where, (State.ACTIVE, State.SUSPENDED))
    say_left_out(registry, group, where, (State.REVOKED, State.REMOVED))
    if not chosen:
        raise nobody(registry, group)
    return chosen


def _known(registry: Registry, ids: list[DeviceId]) -> list[DeviceId]:
    """These, if all can be told: nobody is changed where one cannot. Raises: NotFound, Denied, InvalidInput."""
    from enroll import states

    wrong = states.check_all(registry, ids)
    if wrong and len(ids) > 1:
        for error in wrong.values():
            say(error.message)
        first = next(iter(wrong.values()))
        raise type(first)(f"{len(wrong)} of {len(ids)} cannot be told, so none is", hint="leave them out")
    return ids


def _set_one(home: AdminHome, registry: Registry, device: DeviceId, change: Change) -> None:
    from enroll import states

    record, is_change = states.set_desired(registry, device, change, by=user(), now=now())
    print(record.desired.version)
    if is_change:
        say_if_away(home, "the device is told")
    else:
        say(f"{device} is to be that already")


def _set_many(home: AdminHome, registry: Registry, chosen: Sequence[DeviceId], change: Change) -> None:
    """Raises: PartlyDone if some could not be told any more when their turn came."""
    from enroll import states

    count, left_out = 0, list[DeviceId]()
    for batch in batches(chosen):
        outcome = states.set_all(registry, batch, change, by=user(), now=now())
        count += len(outcome.changed)
        left_out += outcome.left_out
        if outcome.changed:
            print("\n".join(outcome.changed))
    say(f"{count} of {len(chosen)} changed")
    if count:
        say_if_away(home, "they are told")
    if left_out:
        raise PartlyDone(
            f"left out, because they may not connect any more: {', '.join(left_out[:10])}", hint="enroll device show ID"
        )


def _print_both(record: StateRecord, moment: datetime) -> None:
    for name, document, at in (
        ("desired", record.desired, record.desired_at),
        ("reported", record.reported, record.reported_at),
    ):
        since = f"version {document.version}, {ago(at, moment)}" if document.version else "nothing yet"
        print(f"{name}: {since}" + (f"; {_reached(record, moment)}" if name == "desired" and document.version else ""))
        if document.version:
            print(json.dumps(document.value, indent=2, sort_keys=True))  # ASCII, and what controls is escaped


def _reached(record: StateRecord, moment: datetime) -> str:
    if record.known is None:
        return "the device has not said what it has"
    if record.known.mark == record.desired.mark:
        return f"the device said {ago(record.known_at, moment)} that it has it"
    return f"the device has version {record.known.version}"


def _fields(record: StateRecord) -> dict[str, Any]:
    known = record.known
    desired = {
        "version": record.desired.version,
        "at": time_or_none(record.desired_at),
        "document": record.desired.value,
        "known_version": known.version if known else None,
        "known_at": time_or_none(record.known_at),
        "is_acknowledged": known is not None and known.mark == record.desired.mark,
    }
    reported = {
        "version": record.reported.version,
        "at": time_or_none(record.reported_at),
        "document": record.reported.value,
    }
    return {"device": record.device, "desired": desired, "reported": reported}


def _row(path: tuple[str, ...], wanted: Any, found: Any) -> Row:
    """A name may hold anything, so it is written as JSON where it is no plain word."""
    where = ".".join(name if name.replace("_", "").replace("-", "").isalnum() else json.dumps(name) for name in path)
    cells = (where, json.dumps(wanted, sort_keys=True), "-" if found is None else json.dumps(found, sort_keys=True))
    return Row(where, {"path": list(path), "desired": wanted, "reported": found}, cells)


VERBS: Verbs = {"get": get, "set": set_, "diff": diff}
