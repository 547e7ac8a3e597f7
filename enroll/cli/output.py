"""How values are printed: data on stdout, words on stderr, nothing from a peer raw."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from textwrap import indent
from typing import Any, assert_never

from enroll.cli.options import Output
from fleet.errors import printable
from fleet.messages import format_time

_GAP = "   "


@dataclass(frozen=True, slots=True)
class Row:
    """One thing: its name, all of it for programs, and its cells for people."""

    name: str
    fields: dict[str, Any]
    cells: tuple[str, ...]


def say(words: str) -> None:
    """A message to whoever is there, on stderr."""
    print(printable(words), file=sys.stderr)


def print_rows(output: Output, headers: Sequence[str], rows: Sequence[Row], *, nothing: str) -> None:
    """A list; an empty table is a sentence on stderr instead."""
    match output:
        case Output.JSON:
            print(json.dumps([row.fields for row in rows], indent=2))
        case Output.NAME:
            for row in rows:
                print(printable(row.name))
        case Output.TABLE:
            if rows:
                print(table(headers, [row.cells for row in rows]))
            else:
                say(nothing)
        case _:
            assert_never(output)


def print_pages(output: Output, headers: Sequence[str], pages: Iterable[Sequence[Row]], *, nothing: str) -> None:
    """A list of any length in the memory of a page; a table's columns are as wide as each page needs."""
    count = 0
    for page in pages:
        match output:
            case Output.JSON:
                for row in page:
                    print(",\n" if count else "[\n", indent(json.dumps(row.fields, indent=2), "  "), sep="", end="")
                    count += 1
            case Output.NAME | Output.TABLE:
                print_rows(output, () if count else headers, page, nothing="")
                count += len(page)
            case _:
                assert_never(output)
    if output is Output.JSON:
        print("\n]" if count else "[]")
    elif output is Output.TABLE and not count:
        say(nothing)


def print_one(output: Output, row: Row, labels: Sequence[str]) -> None:
    """One thing, with a label before each of its cells."""
    match output:
        case Output.JSON:
            print(json.dumps(row.fields, indent=2))
        case Output.NAME:
            print(printable(row.name))
        case Output.TABLE:
            print(table((), list(zip(labels, row.cells, strict=True))))
        case _:
            assert_never(output)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as what stands in them; control characters escaped."""
    lines = [[printable(cell) for cell in line] for line in ([headers] if headers else []) + list(rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        _GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def time_or_none(moment: datetime | None) -> str | None:
    """A moment for programs."""
    return None if moment is None else format_time(moment)


def minute(moment: datetime | None) -> str:
    """A moment for people, to the minute in UTC."""
    return "-" if moment is None else f"{moment:%Y-%m-%d %H:%M}Z"


def second(moment: datetime | None) -> str:
    """A moment for people, to the second in UTC."""
    return "-" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}Z"


def ago(moment: datetime | None, now: datetime) -> str:
    """How long ago, in the largest unit that says it."""
    return "never" if moment is None else f"{span((now - moment).total_seconds())} ago"


def ahead(moment: datetime | None, now: datetime) -> str:
    """How far ahead, or how long over."""
    if moment is None:
        return "-"
    seconds = (moment - now).total_seconds()
    return f"in {span(seconds)}" if seconds > 0 else f"{span(-seconds)} ago"


def span(seconds: float) -> str:
    """So long, in the largest unit that says it."""
    whole = max(0, int(seconds))
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if whole >= 2 * length:
            return f"{whole // length}{unit}"
    return f"{whole}s"
