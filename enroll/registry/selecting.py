"""A selection as SQL: which principals fit."""

from __future__ import annotations

from typing import Any, assert_never

from sqlalchemy import ColumnElement, Select, and_, not_, or_, select

from enroll.registry.schema import labels, memberships, presence, principals
from enroll.selection import ONLINE, Every, Has, Is, Not, Selection, Some


def fits(selection: Selection) -> ColumnElement[bool]:
    """The selection as a condition on `principals`.

    What is in another table is a set of ids, which an index gives, so that a few of a million are found among the few.
    """
    match selection:
        case Has(name):
            return principals.c.id.in_(_online() if name == ONLINE else _labelled(name))
        case Is(name, pattern):
            return _is(name, pattern)
        case Not(inner):
            return not_(fits(inner))
        case Every(parts):
            return and_(*map(fits, parts))
        case Some(parts):
            return or_(*map(fits, parts))
        case _:
            assert_never(selection)


def like(column: ColumnElement[str], pattern: str) -> ColumnElement[bool]:
    """Whether a column matches a pattern with `*` for any run of characters."""
    if "*" not in pattern:
        return column == pattern
    escaped = pattern.replace("_", "\\_").replace("*", "%")
    return column.like(escaped, escape="\\")


def _is(name: str, pattern: str) -> ColumnElement[bool]:
    match name:
        case "id" | "role" | "state":
            return like(principals.c[name], pattern)
        case "group":
            return principals.c.id.in_(select(memberships.c.principal).where(like(memberships.c.name, pattern)))
        case "agent":
            return principals.c.id.in_(select(presence.c.principal).where(like(presence.c.agent, pattern)))
        case _:
            return principals.c.id.in_(_labelled(name).where(like(labels.c.value, pattern)))


def _online() -> Select[Any]:
    return select(presence.c.principal).where(presence.c.online)


def _labelled(name: str) -> Select[Any]:
    return select(labels.c.principal).where(labels.c.name == name)
