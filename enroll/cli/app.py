"""All commands, noun then verb. A list of them needs this file alone: what is meant is loaded when that is known.

A noun's file is called as the noun is; so is the function of a command without one, in its file.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Annotated, Any, Final, TypeAlias

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

from enroll.cli.options import HomeOption, group
from fleet.starting import version_of

COMMANDS: Final = {
    "init": "Make a fleet: its CA, registry and first identities.",
    "serve": "Run the enrollment service, with dispatch.",
    "status": "Show whether all is there; exit status 5 if not.",
    "send": "Send a command.",
    "tail": "Print messages as they arrive, until Ctrl-C.",
}
"""The first sentence of each one's docstring."""

NOUNS: Final = {
    "token": "What lets a device in once.",
    "request": "Devices that wait for an admin's yes.",
    "manufacturer": "Whose certificates prove what hardware a device is.",
    "device": "Devices, operators, services and brokers.",
    "cert": "Every certificate that was issued.",
    "ca": "The certificate authority.",
    "policy": "Who may publish and subscribe where.",
    "state": "What devices are to be, and are.",
    "command": "What became of commands that were sent.",
    "job": "One command to many devices, a few first, then in waves.",
    "fetch": "Logs and files of devices.",
    "bridge": "The fleet in other people's systems, as a service.",
    "export": "Telemetry into databases and files, as a service.",
    "log": "What was done, and that nobody changed it.",
}


_Command: TypeAlias = TyperCommand | TyperGroup


def load(name: str) -> _Command:
    """A command, or a noun with its verbs, from its own file."""
    module = import_module(f"enroll.cli.{name}")
    if name in NOUNS:
        return get_group(group(module.VERBS, NOUNS[name]))
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command(name)(getattr(module, name))
    command = get_command(alone)
    assert isinstance(command, TyperCommand)
    return command


class _Commands(TyperGroup):
    """Knows names and a line of each; gets the one that is typed."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, _Command | None, list[str]]:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, None if listed is None else load(args[0]), rest


app = typer.Typer(
    cls=_Commands,
    help="Give every device of a fleet an identity of its own, and say what it may do.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _say_version(is_asked: bool) -> None:
    if is_asked:
        print(version_of("enroll"))
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_say_version)
]


@app.callback()
def root(home: HomeOption = None, version: VersionOption = False) -> None:
    """Before the verb, `--home` is what FLEET_HOME is for everything behind it."""
    if home is not None:
        os.environ["FLEET_HOME"] = str(home)


def _listed() -> None:
    """Stands for a command in the list of all: `load` has the real one."""


for _name, _line in {**COMMANDS, **NOUNS}.items():
    app.command(_name, help=_line)(_listed)
