"""Which devices a bulk verb means: those it names, or all that fit a selection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from fleet.identity import DeviceId

if TYPE_CHECKING:
    from enroll.registry import Registry
    from enroll.registry.overview import Filter

WhereOption = Annotated[
    str | None,
    typer.Option("--where", metavar="SELECTION", help="All that fit: 'site=berlin and not online'."),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]

BATCH: Final = 500  # of one transaction
_Item = TypeVar("_Item")


def ids_of(registry: Registry, wanted: Filter) -> list[DeviceId]:
    """The ids of all who fit, in their order."""
    from enroll.registry import overview

    found: list[DeviceId] = []
    with registry.read() as transaction:
        while page := overview.page(transaction, wanted, found[-1] if found else None, BATCH):
            found += [summary.record.id for summary in page]
    return found


def batches(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    """The items, so many at a time as one transaction takes."""
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]
