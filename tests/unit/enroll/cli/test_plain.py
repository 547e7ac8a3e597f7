"""`enroll.cli.plain`: Typer itself says what a value becomes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.core import TyperArgument, TyperCommand, TyperOption
from typer.main import get_command

from enroll.cli.plain import NOT_PLAIN, PlainCommand, plain


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Kept(TyperCommand):
    """Typer's own command, to compare with."""


def every_kind(
    one: Annotated[str, typer.Argument()],
    more: Annotated[list[str] | None, typer.Argument()] = None,
    text: Annotated[str | None, typer.Option("--text")] = None,
    texts: Annotated[list[str] | None, typer.Option("--texts")] = None,
    path: Annotated[Path | None, typer.Option("--path")] = None,
    paths: Annotated[list[Path] | None, typer.Option("--paths")] = None,
    there: Annotated[Path | None, typer.Option("--there", exists=True)] = None,
    number: Annotated[int, typer.Option("--number", min=1, max=50)] = 10,
    colour: Annotated[Colour, typer.Option("--colour")] = Colour.RED,
    any_case: Annotated[Colour | None, typer.Option("--any-case", case_sensitive=False)] = None,
    flag: Annotated[bool, typer.Option("--flag")] = False,
    part: Annotated[float | None, typer.Option("--part")] = None,
) -> None:
    pass


def parameters(cls: type[TyperCommand]) -> dict[str, Any]:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(cls=cls)(every_kind)
    command = get_command(app)
    return {each.name: each for each in command.get_params(typer.Context(command))}


TYPERS: Final = parameters(Kept)
OURS: Final = parameters(PlainCommand)
ONE: Final = st.none() | st.text(max_size=12) | st.integers(-3, 99).map(str) | st.sampled_from(["red", "RED", "/", "٣"])
VALUES: Final = ONE | st.lists(ONE.filter(lambda each: each is not None), max_size=3).map(tuple)


def outcome(parameter: TyperOption | TyperArgument, value: object) -> object:
    """What it becomes, or what is said about it."""
    context = typer.Context(typer.main.get_command(typer.Typer(callback=lambda: None)))
    try:
        return parameter.process_value(context, value)
    except typer.TyperException as error:
        return type(error), error.format_message()


@given(name=st.sampled_from(sorted(TYPERS)), value=VALUES)
def test_a_value_becomes_what_typer_makes_of_it(name: str, value: object) -> None:
    """A command would take something else than its help says, or refuse it in other words."""
    if isinstance(value, str) and "\0" in value:
        return  # no argument of a process has one
    theirs, ours = outcome(TYPERS[name], value), outcome(OURS[name], value)
    assert theirs == ours
    assert type(theirs) is type(ours)


def test_what_admins_type_is_plain() -> None:
    """Each command would load pydantic."""
    typed = {"text": "a", "texts": ("a", "b"), "path": "/nowhere", "number": "7", "colour": "blue", "more": None}
    assert not [name for name, value in typed.items() if plain(OURS[name], value) is NOT_PLAIN]
