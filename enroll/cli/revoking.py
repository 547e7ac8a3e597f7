"""Revoking many: who they are, on stdout, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from enroll.cli.progress import progress
from fleet.errors import FleetError, PartlyDone


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
