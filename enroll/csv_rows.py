"""CSV files as admins keep them in spreadsheets: a header, known columns, every problem told with its line (pure)."""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from fleet.errors import InvalidInput
from fleet.identity import DeviceId, InvalidDeviceId

MAX_ROWS: Final = 1_000_000
_MAX_PROBLEMS: Final = 10


@dataclass(frozen=True, slots=True)
class CsvRow:
    """One row: the line that it ends on, and its cells by column, stripped; empty ones are left out."""

    line: int
    cells: Mapping[str, str]


def read_rows(lines: Iterable[str], *, required: Collection[str], optional: Collection[str]) -> list[CsvRow]:
    """The rows below the header, blank ones left out. Raises: InvalidInput that names the first problems."""
    reader = csv.reader(lines, strict=True)
    try:
        header = [name.strip().lower().removeprefix("\ufeff") for name in next(reader, [])]
        _check_header(header, required, optional)
        rows, problems = list[CsvRow](), list[str]()
        for cells in reader:
            if len(rows) + len(problems) > MAX_ROWS:
                raise InvalidInput(f"the file has more than {MAX_ROWS} rows", hint="split it")
            for problem_or_row in _row(reader.line_num, header, cells, required):
                if isinstance(problem_or_row, str):
                    problems.append(problem_or_row)
                else:
                    rows.append(problem_or_row)
    except csv.Error as error:
        raise InvalidInput(f"line {reader.line_num} is not CSV: {error}", hint="save it as plain CSV") from error
    check_problems(problems)
    return rows


def check_problems(problems: list[str]) -> None:
    """Raises: InvalidInput that tells the first problems and how many more there are, unless there are none."""
    if problems:
        more = f"; and {len(problems) - _MAX_PROBLEMS} more" if len(problems) > _MAX_PROBLEMS else ""
        raise InvalidInput("; ".join(problems[:_MAX_PROBLEMS]) + more, hint="nothing was done: mend the file")


def check_rows(rows: Iterable[CsvRow], unique: Collection[str], problem_of: Callable[[CsvRow], str]) -> None:
    """Raises: InvalidInput that tells, line by line, what stands in an earlier row too and what `problem_of` says."""
    first: dict[tuple[str, str], int] = {}
    problems = []
    for row in rows:
        for column in unique:
            cell = row.cells[column]
            if (line := first.setdefault((column, cell), row.line)) != row.line:
                problems.append(f"line {row.line}: {cell[:80]!r} is in line {line} already")
        if problem := problem_of(row):
            problems.append(f"line {row.line}: {problem}")
    check_problems(problems)


def device_problem(row: CsvRow) -> str:
    """What is wrong with the row's id; nothing if it is one."""
    try:
        DeviceId(row.cells["id"])
    except InvalidDeviceId as error:
        return error.message
    return ""


def _check_header(header: list[str], required: Collection[str], optional: Collection[str]) -> None:
    unknown = [name for name in header if name not in required and name not in optional]
    missing = [name for name in required if name not in header]
    if unknown or missing or len(set(header)) != len(header):
        what = [*(f"no column {name}" for name in missing), *(f"unknown column {name[:40]!r}" for name in unknown)]
        columns = ", ".join([*required, *(f"[{name}]" for name in optional)])
        raise InvalidInput(f"the header: {'; '.join(what) or 'a column twice'}", hint=f"the columns are: {columns}")


def _row(line: int, header: list[str], cells: list[str], required: Collection[str]) -> Iterator[str | CsvRow]:
    if not any(cell.strip() for cell in cells):
        return
    if len(cells) != len(header):
        yield f"line {line}: {len(cells)} cells, and the header has {len(header)}"
        return
    found = {name: cell.strip() for name, cell in zip(header, cells, strict=True) if cell.strip()}
    missing = [name for name in required if name not in found]
    yield f"line {line}: no {missing[0]}" if missing else CsvRow(line, found)
