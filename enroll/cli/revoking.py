"""Revoking: also where the registry's disk is full; many of them on stdout, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from enroll.cli.options import open_registry
from enroll.cli.output import say
from enroll.cli.progress import progress
from fleet.errors import FleetError, PartlyDone

if TYPE_CHECKING:
    from enroll.registry import Registry
    from fleet.layout import AdminHome


@contextmanager
def open_to_revoke(home: AdminHome) -> Iterator[Registry]:
    """The registry, whose reserve is for this; where some of it was needed that is said. Raises: FleetError."""
    with open_registry(home, is_urgent=True) as registry:
        try:
            yield registry
        finally:
            if registry.reserve.was_needed:
                say(
                    "warning: the registry's disk is full; of the room that is kept for revocations "
                    f"{registry.reserve.size_bytes >> 10} KiB are left"
                )
                say("hint: free space on its disk: nothing but a revocation can be written")


def print_revoked(batches: Iterable[Sequence[str]], expected: int) -> int:
    """Print them as they are revoked, each batch whole: a fleet's service goes on meanwhile. How many there were.

    Raises: PartlyDone when it cannot go on, or what it failed with if none was done.
    """
    count = 0
    with progress("revoked", expected) as bar:
        try:
            for some in batches:
                count += len(some)
                bar.hide()
                print("\n".join(some), flush=True)
                bar.advance(len(some))
        except FleetError as error:
            if not count:
                raise
            raise PartlyDone(f"{count} of {expected} are revoked: {error.message}", hint="run it again") from error
    return count
