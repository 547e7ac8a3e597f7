"""What is typed becomes what a command takes. Where that is plain, Typer is not asked: it loads pydantic for a `str`.

That is a tenth of a second and 12 MB in every command. All that is not plain, and so each error, stays Typer's.
"""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Any, Final, get_args, get_origin

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.models import ParameterInfo

NOT_PLAIN: Final = object()
_DIGITS: Final = 9


class PlainOption(TyperOption):
    """An option, of which Typer converts what `plain` does not."""

    def process_value(self, ctx: Any, value: Any) -> Any:
        found = plain(self, value)
        return super().process_value(ctx, value) if found is NOT_PLAIN else _called_back(self, ctx, found)


class PlainArgument(TyperArgument):
    """An argument, of which Typer converts what `plain` does not."""

    def process_value(self, ctx: Any, value: Any) -> Any:
        found = plain(self, value)
        return super().process_value(ctx, value) if found is NOT_PLAIN else _called_back(self, ctx, found)


class PlainCommand(TyperCommand):
    """A command with plain parameters."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _plain_parameters(super().get_params(ctx))


class PlainGroup(TyperGroup):
    """A noun with plain parameters: `--help` is one."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _plain_parameters(super().get_params(ctx))


def _plain_parameters(parameters: list[Any]) -> list[Any]:
    """The same, each a plain one from now on; Typer lets nobody say of which class it makes them."""
    for each in parameters:
        if type(each) is TyperOption:
            each.__class__ = PlainOption
        elif type(each) is TyperArgument:
            each.__class__ = PlainArgument
    return parameters


def _called_back(parameter: TyperOption | TyperArgument, ctx: Any, value: Any) -> Any:
    return value if parameter.callback is None else parameter.callback(ctx, parameter, value)


def plain(parameter: TyperOption | TyperArgument, value: Any) -> Any:
    """What Typer makes of `value` for this parameter, or NOT_PLAIN: then nobody knows before it was asked."""
    if parameter.required and not value:
        return NOT_PLAIN
    is_many = parameter.nargs == -1 or bool(getattr(parameter, "multiple", False))
    if value is None:
        return () if is_many else None
    kind: Any = parameter.type_descriptor.annotation
    info = parameter.type_descriptor.parameter_info
    if info.parser is not None:
        return NOT_PLAIN
    if not is_many:
        return _one(kind, info, value)
    if get_origin(kind) is not list or not isinstance(value, list | tuple):
        return NOT_PLAIN
    found = [_one(get_args(kind)[0], info, each) for each in value]
    return NOT_PLAIN if NOT_PLAIN in found else found


def _one(kind: Any, info: ParameterInfo, value: Any) -> Any:
    if not isinstance(kind, type):
        return NOT_PLAIN
    if issubclass(kind, Enum):
        return _member(kind, info, value)
    if kind is Path:
        return _path(info, value)
    if kind is int:
        return _number(info, value)
    return value if kind is str and type(value) is str else NOT_PLAIN


def _member(kind: type[Enum], info: ParameterInfo, value: Any) -> Any:
    if isinstance(value, kind):
        return value
    named = (member for member in kind if info.case_sensitive and value == str(member.value))
    return next(named, NOT_PLAIN)


def _path(info: ParameterInfo, value: Any) -> Any:
    """What is there must be readable, unless told otherwise; what is not may come."""
    is_checked = info.exists or info.writable or info.resolve_path or info.allow_dash or info.path_type is not None
    if is_checked or not (info.file_okay and info.dir_okay and isinstance(value, str | Path)):
        return NOT_PLAIN
    is_usable = not info.readable or os.access(value, os.R_OK) or not os.access(value, os.F_OK)
    return Path(value) if is_usable else NOT_PLAIN


def _number(info: ParameterInfo, value: Any) -> Any:
    if not (type(value) is int or (isinstance(value, str) and value.isascii() and value.isdigit())):
        return NOT_PLAIN
    if info.clamp or (isinstance(value, str) and len(value) > _DIGITS):
        return NOT_PLAIN
    number = int(value)
    is_low, is_high = info.min is not None and number < info.min, info.max is not None and number > info.max
    return NOT_PLAIN if is_low or is_high else number
