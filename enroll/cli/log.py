"""`enroll log`: what was done, each entry chained to the one before it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from enroll.cli.options import HomeOption, Output, OutputOption, Verbs, admin_home, open_registry
from enroll.cli.output import Row, print_rows, second, time_or_none
from fleet.errors import FleetError


def list_(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, metavar="N", help="The newest N.")] = 50,
    output: OutputOption = Output.TABLE,
    home: HomeOption = None,
) -> None:
    """List the newest entries, oldest first."""
    from enroll.registry import log

    with open_registry(admin_home(home)) as registry, registry.read() as transaction:
        newest = log.newest(transaction, limit)
    rows = []
    for entry in newest:
        fields = json.loads(entry.fields)
        words = " ".join(f"{name}={value}" for name, value in fields.items() if value not in (None, ""))
        shown = {"seq": entry.seq, "at": time_or_none(entry.at), "event": entry.event, "fields": fields}
        rows.append(Row(str(entry.seq), shown, (str(entry.seq), second(entry.at), entry.event, words)))
    print_rows(output, ("SEQ", "AT", "EVENT", "FIELDS"), rows, nothing="the log is empty")


def verify(home: HomeOption = None) -> None:
    """Check that no entry was changed, dropped or moved."""
    from enroll import audit
    from enroll.registry import log

    with open_registry(admin_home(home)) as registry, registry.read() as transaction:
        broken = audit.first_broken(log.entries(transaction))
        head = log.last_digest(transaction)
    if broken is not None:
        raise FleetError(
            f"entry {broken} of the log does not follow from the one before it",
            hint="someone changed the registry's file: compare it with a backup",
        )
    print("intact, up to", head.hex() if head else "nothing")


VERBS: Verbs = {"list": list_, "verify": verify}
