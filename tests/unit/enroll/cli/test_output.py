"""How the command line reads times and prints tables."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enroll.cli import output
from enroll.cli.options import Output, parse_duration
from enroll.cli.send import parse_args
from fleet.errors import InvalidInput

NOW = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("90s", timedelta(seconds=90)),
        ("15m", timedelta(minutes=15)),
        ("24h", timedelta(days=1)),
        ("7d", timedelta(days=7)),
    ],
)
def test_durations(text: str, span: timedelta) -> None:
    """A token would live for another time than was asked."""
    assert span == parse_duration(text)


@pytest.mark.parametrize("text", ["", "0s", "1", "s", "-1s", "1.5h", "1h30m", "1s\n", "9999999999s", "٣s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """A slip would be taken for some other time."""
    with pytest.raises(InvalidInput):
        parse_duration(text)


def test_columns_line_up_and_nothing_drives_the_terminal() -> None:
    """A device's reason could move the cursor, or a column hide another."""
    assert "ID     REASON\na      \\x1b[2J\nlong   b" == output.table(
        ("ID", "REASON"), [("a", "\x1b[2J"), ("long", "b")]
    )


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0s ago"), (119, "119s ago"), (120, "2m ago"), (7_200, "2h ago"), (172_800, "2d ago")]
)
def test_the_largest_unit_that_says_it(seconds: int, words: str) -> None:
    """Whoever looks would have to count seconds."""
    assert words == output.ago(NOW - timedelta(seconds=seconds), NOW)
    assert "in 2d" == output.ahead(NOW + timedelta(days=2), NOW)
    assert "2d ago" == output.ahead(NOW - timedelta(days=2), NOW)


@pytest.mark.fuzz
@given(st.text())
def test_arguments_are_an_object_or_refused(text: str) -> None:
    """A slip in the JSON would be a traceback."""
    with contextlib.suppress(InvalidInput):
        assert isinstance(parse_args(text), dict)


@pytest.mark.parametrize(("count", "form"), [(0, "json"), (1, "json"), (5, "json"), (5, "name"), (5, "table")])
def test_a_list_in_pages_reads_as_one(count: int, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A program gets several JSON values, or a header between the rows."""
    rows = [output.Row(f"d{n}", {"id": f"d{n}"}, (f"d{n}", "x")) for n in range(count)]
    pages = [rows[at : at + 2] for at in range(0, count, 2)]
    output.print_pages(Output(form), ("ID", "X"), pages, nothing="none")
    printed = capsys.readouterr().out
    match form:
        case "json":
            assert [row.fields for row in rows] == json.loads(printed)
        case "name":
            assert [row.name for row in rows] == printed.split()
        case _:
            assert [["ID", "X"], *(list(row.cells) for row in rows)] == [line.split() for line in printed.splitlines()]
