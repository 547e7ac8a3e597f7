"""`enroll device history`: how a device came and went, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enroll.cli.options import HomeOption, Output, OutputOption, admin_home, open_registry
from enroll.cli.output import Row, print_rows, say, second, span, time_or_none
from fleet.errors import NotFound
from fleet.identity import DeviceId
from fleet.messages import format_time

if TYPE_CHECKING:
    from enroll.registry import Transaction
    from enroll.registry.records import PresenceChange, PresenceRecord

SHOWN_WITH_DEVICE = 3
_HEADERS = ("AT", "BECAME", "AFTER", "REASON", "SAID", "ADDRESS", "BROKER")


def history(
    id: Annotated[str, typer.Argument(metavar="ID", help="Its id.")],
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, metavar="N", help="The newest N.")] = 100,
    output: OutputOption = Output.TABLE,
    home: HomeOption = None,
) -> None:
    """Show when it came and went, and why, oldest first.

    Of each the last 100 times are kept.
    """
    from enroll.registry import history as kept
    from enroll.registry import identity

    device = DeviceId(id)
    with open_registry(admin_home(home)) as registry, registry.read() as transaction:
        if identity.find_principal(transaction, device) is None:
            raise NotFound(f"there is no {device}", hint="enroll device list")
        changes = kept.last(transaction, device, limit)[::-1]
    print_rows(output, _HEADERS, [_row(change) for change in changes], nothing=f"{device} was never connected")
    if skipped := _skipped(changes):
        say(f"it came and went {skipped} more times in between, too fast to keep each")


def _skipped(changes: Sequence[PresenceChange]) -> int:
    return changes[-1].number - changes[0].number + 1 - len(changes) if changes else 0


def _row(change: PresenceChange) -> Row:
    cells = (
        second(change.at),
        "online" if change.is_online else "offline",
        _after(change),
        change.reason or "-",
        change.said or "-",
        change.address or "-",
        change.broker or "-",
    )
    return Row(format_time(change.at), change_fields(change), cells)


def _after(change: PresenceChange) -> str:
    """How long it had been the other."""
    return "-" if change.before is None else span((change.at - change.before).total_seconds())


def change_fields(change: PresenceChange) -> dict[str, Any]:
    """One change for programs."""
    return {
        "number": change.number,
        "at": time_or_none(change.at),
        "online": change.is_online,
        "reason": change.reason,
        "said": change.said,
        "address": change.address,
        "broker": change.broker,
        "before": time_or_none(change.before),
        "seconds": None if change.before is None else round((change.at - change.before).total_seconds(), 3),
    }


@dataclass(frozen=True, slots=True)
class Coming:
    """Where a device is, or was last, connected, and how it came and went lately, the newest first."""

    heard: PresenceRecord | None
    changes: Sequence[PresenceChange]

    def place(self) -> list[tuple[str, str]]:
        """By a label, if its broker tells."""
        heard = self.heard
        return [("address", f"{heard.address} at {heard.broker}")] if heard is not None and heard.address else []

    def trouble(self) -> list[tuple[str, str]]:
        """By a label, what a device that is connected says to be wrong with it."""
        return [("trouble", self._trouble)] if self._trouble else []

    @property
    def _trouble(self) -> str:
        heard = self.heard
        return heard.said if heard is not None and heard.is_online and heard.is_claimed else ""

    def rows(self) -> list[tuple[str, str]]:
        """Each change in a line, the first by a label."""
        return [("history" if not at else "", _line(change)) for at, change in enumerate(self.changes)]

    def fields(self) -> dict[str, Any]:
        """All of it for programs."""
        heard = self.heard
        return {
            "since": None if heard is None else time_or_none(heard.changed_at),
            "address": None if heard is None else heard.address,
            "broker": None if heard is None else heard.broker,
            "trouble": self._trouble,
            "history": [change_fields(change) for change in self.changes],
        }


def read_coming(transaction: Transaction, device: DeviceId) -> Coming:
    """What `enroll device show` says of it."""
    from enroll.registry import history as kept
    from enroll.registry import messaging

    return Coming(messaging.find_presence(transaction, device), kept.last(transaction, device, SHOWN_WITH_DEVICE))


def _line(change: PresenceChange) -> str:
    what = "online" if change.is_online else "offline"
    after = f" after {_after(change)}" if change.before is not None else ""
    why = f": {change.reason}" if change.reason else ""
    said = f" ({change.said})" if change.said else ""
    return f"{second(change.at)} {what}{after}{why}{said}"
