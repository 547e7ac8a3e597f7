"""`enroll device group` and `enroll device label`: what devices are found by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from enroll.cli.options import HomeOption, YesOption, admin_home, confirm, now, open_registry, user
from enroll.cli.output import say
from enroll.cli.progress import progress
from enroll.cli.selected import DryRunOption, WhereOption, batches, ids_of
from fleet.errors import InvalidInput
from fleet.identity import DeviceId

if TYPE_CHECKING:
    from pathlib import Path

    from enroll.registry import Registry
    from enroll.service import Change

IdsArgument = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="These.", show_default=False)]


def group(
    ids: IdsArgument = None,
    where: WhereOption = None,
    add: Annotated[list[str] | None, typer.Option(metavar="G", help="Be in this group; may be repeated.")] = None,
    remove: Annotated[list[str] | None, typer.Option(metavar="G", help="Be in it no more; may be repeated.")] = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    home: HomeOption = None,
) -> None:
    """Put devices into groups, or take them out. No certificate changes."""
    from enroll.service import Change
    from enroll.tokens import check_group

    change = Change(groups=[check_group(name) for name in add or ()], no_groups=remove or ())
    _mark(home, ids or [], where, change, is_dry_run=dry_run, yes=yes)


def label(
    ids: IdsArgument = None,
    where: WhereOption = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Have this label; may be repeated.")
    ] = None,
    remove: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Have it no more; may be repeated.")] = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    home: HomeOption = None,
) -> None:
    """Note what devices are, and find them by it.

    As in device list --where 'site=berlin', and in send --where.
    """
    from enroll.service import Change

    _mark(
        home, ids or [], where, Change(labels=_labels(set_ or []), no_labels=remove or ()), is_dry_run=dry_run, yes=yes
    )


def _labels(texts: list[str]) -> dict[str, str]:
    from enroll.selection import check_label, check_value

    for text in texts:
        if "=" not in text:
            raise InvalidInput(f"{text[:80]!r} is no label with a value", hint="--set NAME=VALUE, as site=berlin")
    pairs = [text.partition("=") for text in texts]
    return {check_label(name): check_value(value) for name, _, value in pairs}


def _mark(home: Path | None, ids: list[str], where: str | None, change: Change, *, is_dry_run: bool, yes: bool) -> None:
    if not (change.groups or change.no_groups or change.labels or change.no_labels):
        raise InvalidInput("nothing is to be changed", hint="say what to add, to set or to remove; --help shows how")
    if bool(ids) == (where is not None):
        raise InvalidInput("name devices, or say which", hint="ID..., or --where 'site=berlin'")
    with open_registry(admin_home(home)) as registry:
        chosen = [DeviceId(name) for name in dict.fromkeys(ids)] if where is None else _fitting(registry, where)
        if is_dry_run:
            print("\n".join(chosen))
            say(f"{len(chosen)} would be changed, where it is not so already")
            return
        if where is not None:
            confirm(f"change {len(chosen)} devices?", yes=yes)
        _mark_all(registry, chosen, change)


def _fitting(registry: Registry, where: str) -> list[DeviceId]:
    from enroll.registry.overview import Filter
    from enroll.selection import parse

    return ids_of(registry, Filter(where=parse(where)))


def _mark_all(registry: Registry, chosen: list[DeviceId], change: Change) -> None:
    from enroll.service import mark

    changed = 0
    with progress("changed", len(chosen) if len(chosen) > 1 else 0) as bar:
        for batch in batches(chosen):
            done = mark(registry, batch, change, by=user(), now=now())
            changed += len(done)
            bar.hide()
            for device in done:
                print(device)
            bar.advance(len(batch))
    say(f"{changed} changed, {len(chosen) - changed} were so already")
