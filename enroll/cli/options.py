"""What every command takes, the home it means, and the world that only the command line reads: clock, user, entropy."""

from __future__ import annotations

import os
import pwd
import re
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from fleet.clock import SEEN, Floor, FlooredClock
from fleet.errors import FleetError, InvalidInput
from fleet.layout import AdminHome

if TYPE_CHECKING:
    from enroll.registry import Registry
    from enroll.registry.records import Reason

SYSTEM_HOME: Final = Path("/var/lib/mqtt-fleet")
token_bytes = secrets.token_bytes

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home",
        metavar="DIR",
        envvar="FLEET_HOME",
        show_envvar=True,
        help="The fleet's home.",
        show_default="/var/lib/mqtt-fleet, or your own",
        readable=False,  # looked at by `open_home`, which says what to do
    ),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.", show_default=False)]


Verbs = Mapping[str, Callable[..., None]]
"""A noun's commands."""


class Output(StrEnum):
    """What to print on stdout."""

    TABLE = "table"
    JSON = "json"
    NAME = "name"


OutputOption = Annotated[
    Output, typer.Option("--output", "-o", metavar="table|json|name", help="What to print.", show_default="table")
]


def group(verbs: Verbs, help_: str) -> typer.Typer:
    """A noun with its verbs."""
    noun = typer.Typer(help=help_, no_args_is_help=True, add_completion=False, rich_markup_mode=None)
    for verb, function in verbs.items():
        noun.command(verb)(function)
    return noun


clock: Final = FlooredClock(lambda: datetime.now(UTC), time.monotonic)
"""The time of day of this process: a gateway's clock may be wrong."""


def now() -> datetime:
    """The time of day."""
    return clock.now()


def user() -> str:
    """Who types, for the log: the name behind the user id, which no variable can change."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def home_path(given: Path | None) -> Path:
    """The home that is meant: the one given, the system's if it is there and writable, or the user's own."""
    if given is not None:
        return given.absolute()
    if os.access(SYSTEM_HOME, os.W_OK):
        return SYSTEM_HOME
    data = os.environ.get("XDG_DATA_HOME", "")
    return (Path(data) if Path(data).is_absolute() else Path.home() / ".local" / "share") / "mqtt-fleet"


def admin_home(given: Path | None) -> AdminHome:
    """The initialised home. Raises: NotFound, Denied."""
    from enroll.home import open_home, read_seen

    home = open_home(home_path(given))
    if (seen := read_seen(home)) is not None:
        clock.raise_to(Floor(seen, SEEN))
    return home


def open_registry(home: AdminHome, *, is_urgent: bool = False) -> AbstractContextManager[Registry]:
    """The registry of an initialised home, closed at the end; `is_urgent` as `Registry.open` has it.

    Raises: FleetError.
    """
    from enroll.registry import Registry

    if not home.registry.exists():
        raise FleetError(f"{home.registry} is missing", hint="restore it from a backup")
    return Registry.open(home.registry, is_urgent=is_urgent)


def confirm(question: str, *, yes: bool) -> None:
    """Raises: InvalidInput unless whoever is there says yes, or did so with --yes."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidInput(f"nobody is there to answer: {question}", hint="add --yes")
    if not typer.confirm(question, err=True):
        raise typer.Exit(1)


ReasonOption = Annotated[
    str | None,
    typer.Option("--reason", metavar="REASON", help="Why, as RFC 5280 names it.", show_default="unspecified"),
]


def parse_reason(text: str | None) -> Reason | None:
    """A reason by its name in RFC 5280, `keyCompromise` or `key-compromise`. Raises: InvalidInput."""
    from enroll.registry.records import Reason

    if text is None:
        return None
    plain = text.replace("-", "").replace("_", "").lower()
    reasons = {reason.value.lower(): reason for reason in Reason}
    if plain == Reason.CERTIFICATE_HOLD.value.lower():
        raise InvalidInput("a certificate is on hold while its device is suspended", hint="enroll device suspend ID")
    if plain == "unspecified":
        return None
    if plain not in reasons:
        known = ", ".join(each for each in Reason if each is not Reason.CERTIFICATE_HOLD)
        raise InvalidInput(f"{text[:40]!r} is not a reason", hint=f"one of {known}")
    return reasons[plain]


_DURATION = re.compile(r"([0-9]{1,6})(s|m|h|d)")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_duration(text: str) -> timedelta:
    """`90s`, `15m`, `24h` or `7d`. Raises: InvalidInput."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise InvalidInput(f"{text[:40]!r} is not a duration", hint="write 90s, 15m, 24h or 7d")
    if int(found[1]) == 0:
        raise InvalidInput(f"{text[:40]!r} is no time at all", hint="write 1s or more: 90s, 15m, 24h or 7d")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})
