"""Which devices a bulk verb means: those it names, or all that fit a selection."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from enroll.cli.output import say
from fleet.errors import InvalidInput, NotFound
from fleet.identity import DeviceId, Role, State
from fleet.messages import JsonObject

if TYPE_CHECKING:
    from enroll.registry import Registry
    from enroll.registry.overview import Filter
    from enroll.registry.records import PrincipalRecord

WhereOption = Annotated[
    str | None,
    typer.Option("--where", metavar="SELECTION", help="All that fit: 'site=berlin and not online'."),
]
NoCheckOption = Annotated[
    bool, typer.Option("--no-check", help="Send it even where it does not fit what the device says that it takes.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]

BATCH: Final = 500  # of one transaction
_MAX_REMEMBERED: Final = 10_000
_MAX_MISFITS: Final = 10
_MAX_NAMED: Final = 10
_ALL_THE_SAME: Final = "--no-check sends it all the same"
_Item = TypeVar("_Item")


def ids_of(registry: Registry, wanted: Filter) -> list[DeviceId]:
    """The ids of all who fit, in their order."""
    from enroll.registry import overview

    found: list[DeviceId] = []
    with registry.read() as transaction:
        while page := overview.page(transaction, wanted, found[-1] if found else None, BATCH):
            found += [summary.record.id for summary in page]
    return found


def fitting(registry: Registry, group: str | None, where: str | None, states: Sequence[State]) -> list[DeviceId]:
    """The devices in one of these states that are in the group and fit, by id. Raises: InvalidInput (`where`)."""
    from enroll.registry.overview import Filter
    from enroll.selection import parse

    selection = None if where is None else parse(where)
    filters = [Filter(Role.DEVICE, state, group, where=selection) for state in states]
    return sorted(device for each in filters for device in ids_of(registry, each))


def say_left_out(registry: Registry, group: str | None, where: str | None, states: Sequence[State]) -> None:
    """Say which devices are in the group and fit, and are not meant because of these states."""
    found = [(device, state) for state in states for device in fitting(registry, group, where, (state,))]
    if found:
        named = ", ".join(f"{device} ({state})" for device, state in found[:_MAX_NAMED])
        more = f" and {len(found) - _MAX_NAMED} more" if len(found) > _MAX_NAMED else ""
        say(f"left out: {named}{more}")


def nobody(registry: Registry, group: str | None, what: str = "device") -> NotFound:
    """Why nobody is meant: the group may be mistyped."""
    from enroll.registry.overview import Filter

    if group is not None:
        with contextlib.closing(Members(registry, Filter(group=group))) as members:
            if not members.is_anybody():
                return NotFound(f"nobody is in {group}", hint="enroll device list -o json shows who is where")
    return NotFound(f"there is no {what} of these", hint="enroll device list shows who there is")


def check_fit(registry: Registry, devices: Sequence[DeviceId], name: str, args: JsonObject) -> None:
    """Raises: InvalidInput, after a line for each of the first of them, if there are any that would not do it."""
    from enroll.fitting import misfits

    found = misfits(registry, devices, name, args)
    if not found:
        return
    if len(devices) == 1:
        ((device, reason),) = found.items()
        raise InvalidInput(f"{device}: {reason}", hint=f"enroll device show {device}; {_ALL_THE_SAME}")
    for device, reason in list(found.items())[:_MAX_MISFITS]:
        say(f"{device}: {reason}")
    if len(found) > _MAX_MISFITS:
        say(f"and {len(found) - _MAX_MISFITS} more")
    raise InvalidInput(f"{len(found)} of {len(devices)} would not do it, so none is asked", hint=_ALL_THE_SAME)


def batches(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    """The items, so many at a time as one transaction takes."""
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def check_known(registry: Registry, id: DeviceId) -> PrincipalRecord:
    """Who that is, whatever its role and state. Raises: NotFound, RegistryUnavailable."""
    from enroll.registry import identity

    with registry.read() as transaction:
        found = identity.find_principal(transaction, id)
    if found is None:
        raise NotFound(f"there is no {id}", hint="enroll device list")
    return found


class Members:
    """Who fits, by now: each is looked up when it is asked about, and again once anybody has written to the registry.

    Not thread-safe, as the registry's mark is not.
    """

    def __init__(self, registry: Registry, wanted: Filter) -> None:
        self._registry = registry
        self._wanted = wanted
        self._mark = registry.commit_mark()
        self._known: dict[str, bool] = {}

    def is_anybody(self) -> bool:
        """Whether there is one at all. Raises: RegistryUnavailable."""
        return bool(self._page(self._wanted))

    def has(self, id: DeviceId) -> bool:
        """Whether this one fits. Raises: RegistryUnavailable."""
        if self._mark.has_moved() or len(self._known) >= _MAX_REMEMBERED:
            self._known.clear()
        if id not in self._known:
            self._known[id] = bool(self._page(replace(self._wanted, pattern=id)))
        return self._known[id]

    def close(self) -> None:
        self._mark.close()

    def _page(self, wanted: Filter) -> Sequence[object]:
        from enroll.registry import overview

        with self._registry.read() as transaction:
            return overview.page(transaction, wanted, None, 1)
