"""`enroll init`: a fleet from nothing."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from enroll.cli.options import HomeOption, home_path, now, token_bytes
from enroll.cli.output import say, table
from fleet.config import (
    DEFAULT_BROKER_LISTEN,
    DEFAULT_CRL,
    DEFAULT_CRL_LISTEN,
    DEFAULT_ENROLL_LISTEN,
    parse_address,
    parse_crl_listen,
)
from fleet.errors import FleetError, InvalidInput
from fleet.identity import TrustDomain
from fleet.layout import AdminHome

if TYPE_CHECKING:
    from enroll.authority import Authority

_MIN_CHARS = 8
_VARIABLE = "FLEET_CA_PASSPHRASE"


def init(
    trust_domain: Annotated[str, typer.Option(metavar="NAME", help="The fleet's name in every certificate.")],
    host: Annotated[
        list[str],
        typer.Option(metavar="HOST", help="A DNS name or address of service and broker; the first is advertised."),
    ],
    crl_url: Annotated[
        str, typer.Option(metavar="URL", help="Where the CRLs will be published.", show_default="http://HOST:8080/crl")
    ] = "",
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the service listens.")] = (
        DEFAULT_ENROLL_LISTEN
    ),
    broker_listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the broker listens.")] = (
        DEFAULT_BROKER_LISTEN
    ),
    crl_listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT|off", help="Where the CRLs are served.", show_default=DEFAULT_CRL_LISTEN),
    ] = None,
    passphrase_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"Holds the root key's passphrase; else {_VARIABLE}, else asks.")
    ] = None,
    home: HomeOption = None,
) -> None:
    """Make a fleet: its CA, registry and first identities."""
    from enroll.initialise import Plan, initialise

    path = home_path(home)
    plan = Plan(
        TrustDomain(trust_domain),
        tuple(host),
        crl_url or f"http://{host[0]}:8080/crl",
        passphrase(passphrase_file, is_new=True),
        parse_address(listen),
        parse_address(broker_listen),
        DEFAULT_CRL if crl_listen is None else parse_crl_listen(crl_listen),
    )
    authority = initialise(AdminHome(path), plan, now=now(), token_bytes=token_bytes)
    _tell(AdminHome(path), authority, host)


def passphrase(file: Path | None, *, is_new: bool) -> bytes:
    """The root key's passphrase: from a file, FLEET_CA_PASSPHRASE, or whoever is there; a new one is typed twice.

    Raises: InvalidInput, FleetError.
    """
    if file is not None:
        try:
            return _first_line(file.read_bytes())
        except OSError as error:
            raise InvalidInput(f"{file} cannot be read: {(error.strerror or '').lower()}") from error
    if _VARIABLE in os.environ:
        return os.fsencode(os.environ[_VARIABLE])
    if not sys.stdin.isatty():
        raise InvalidInput(
            "the root key needs a passphrase, and nobody is there to type it",
            hint=f"give --passphrase-file FILE, or set {_VARIABLE}",
        )
    return _typed(is_new=is_new)


def _first_line(data: bytes) -> bytes:
    """The passphrase in a file: its one line, without the newline that an editor adds."""
    lines = data.splitlines()
    if len(lines) != 1:
        raise InvalidInput("the passphrase file does not hold one line", hint="put the passphrase alone on one line")
    return lines[0]


def _typed(*, is_new: bool) -> bytes:
    try:
        first = getpass.getpass("Passphrase of the root key: ")
        if is_new and len(first) < _MIN_CHARS:
            raise InvalidInput(f"the passphrase has under {_MIN_CHARS} characters", hint="take a longer one")
        if is_new and getpass.getpass("Once more: ") != first:
            raise InvalidInput("the two passphrases differ", hint="type it again")
    except EOFError as error:
        raise FleetError("no passphrase was typed", hint=f"or give --passphrase-file FILE, or {_VARIABLE}") from error
    return first.encode()


def _tell(home: AdminHome, authority: Authority, hosts: list[str]) -> None:
    print(
        table(
            (),
            [
                ("fleet", authority.domain),
                ("home", str(home.path)),
                ("hosts", ", ".join(hosts)),
                ("root pin", authority.root_pin.hex()),
                ("root until", f"{authority.root.not_valid_after_utc:%Y-%m-%d}"),
                ("operator", f"admin, in {home.operator.path}"),
            ],
        )
    )
    say("")
    say("Keep the passphrase: without it no issuing CA can ever be made again. Next:")
    for command in ("enroll serve", "broker serve", "enroll token create --device ID"):
        say(f"  {command} --home {home.path}")
