"""How admins' CSV files are read."""

from __future__ import annotations

import contextlib
import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enroll.csv_rows import CsvRow, check_rows, device_problem, read_rows
from fleet.errors import InvalidInput


def read(text: str) -> list[CsvRow]:
    return read_rows(io.StringIO(text, newline=""), required=("id",), optional=("groups",))


def test_rows_are_known_by_column_and_line() -> None:
    """A device gets the groups of another, or the admin looks in the wrong line."""
    rows = read('\ufeffGroups, ID\r\n"a b", pump-1 \r\n,\r\n,pump-2\r\n')
    assert [CsvRow(2, {"groups": "a b", "id": "pump-1"}), CsvRow(4, {"id": "pump-2"})] == rows


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column id"),
        ("groups\na\n", "no column id"),
        ("id,colour\na,b\n", "unknown column 'colour'"),
        ("id,id\na,b\n", "a column twice"),
        ("id,groups\na\n", "line 2: 1 cells, and the header has 2"),
        ("id,groups\n,b\n", "line 2: no id"),
        ('id\n"a\n', "is not CSV"),
        ("id,groups\n" + ",b\n" * 12, "and 2 more"),
    ],
)
def test_what_cannot_be_used_is_told_with_its_line(text: str, words: str) -> None:
    """Somebody looks for a slip in ten thousand lines."""
    with pytest.raises(InvalidInput) as raised:
        read(text)
    assert words in raised.value.message
    assert raised.value.hint


def test_problems_are_told_line_by_line() -> None:
    """One of two rows wins, and nobody knows which; or the admin jumps back and forth in the file."""
    rows = read("id\na\nB\na\n/\n")
    with pytest.raises(InvalidInput) as refused:
        check_rows(rows, ("id",), device_problem)
    assert [
        "line 3: 'B' is not a device id",
        "line 4: 'a' is in line 2 already",
        "line 5: '/' is not a device id",
    ] == refused.value.message.split("; ")
    check_rows(rows[:1], ("id",), device_problem)


@given(st.text())
def test_any_text_is_rows_or_an_error_in_words(text: str) -> None:
    """A damaged file ends in a traceback."""
    with contextlib.suppress(InvalidInput):
        read(text)


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), min_size=1).filter(str.strip)


@given(st.lists(CELLS))
def test_what_a_spreadsheet_writes_is_read_back(cells: list[str]) -> None:
    """A quote or a comma in a cell moves what stands behind it."""
    file = io.StringIO(newline="")
    csv.writer(file).writerows([["id"], *([cell] for cell in cells)])
    assert [cell.strip() for cell in cells] == [row.cells["id"] for row in read(file.getvalue())]
