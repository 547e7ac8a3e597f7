"""docs/mqtt-3.1.1.md: that it has every statement of the standard, and that the tests which it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.processes import run

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "mqtt-3.1.1.md"

# How many statements each section has: the standard numbers them MQTT-section-1, -2 and so on. Two of the numbers are
# misprinted there: [MQTT-3.1.2.7] and [MQTT-3-8.3-4].
STATEMENTS = {
    "1.5.3": 3,
    "2.2.2": 2,
    "2.3.1": 7,
    "3.1.0": 2,
    "3.1.2": 24,
    "3.1.3": 11,
    "3.1.4": 5,
    "3.2.0": 1,
    "3.2.2": 6,
    "3.3.1": 12,
    "3.3.2": 3,
    "3.3.4": 1,
    "3.3.5": 2,
    "3.6.1": 1,
    "3.8.1": 1,
    "3.8.3": 4,
    "3.8.4": 6,
    "3.9.3": 2,
    "3.10.1": 1,
    "3.10.3": 2,
    "3.10.4": 6,
    "3.12.4": 1,
    "3.14.1": 1,
    "3.14.4": 3,
    "4.1.0": 2,
    "4.3.1": 1,
    "4.3.2": 2,
    "4.3.3": 2,
    "4.4.0": 1,
    "4.5.0": 2,
    "4.6.0": 6,
    "4.7.1": 3,
    "4.7.2": 1,
    "4.7.3": 4,
    "4.8.0": 2,
    "6.0.0": 4,
    "7.0.0": 2,
    "7.1.1": 1,
    "7.1.2": 1,
}
WITHOUT_TEST = ("client's: ", "not offered: ")


def rows() -> list[tuple[str, str]]:
    """Each statement of the page with what shows it."""
    return re.findall(r"^\| (MQTT-\S+) \| [^|]+ \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def named_tests() -> set[tuple[str, str]]:
    """Every test on the page: the path with the function's name, and a part of the case, or nothing."""
    text = PAGE.read_text(encoding="utf-8")
    return set(re.findall(r"`([\w/]+\.py::\w+)(?:\[([^`]+)\])?`", text))


@pytest.fixture(scope="module")
def collected() -> list[str]:
    """Every test that pytest finds in the files of the page."""
    files = sorted({f"tests/{name.split('::')[0]}" for name, _ in named_tests()})
    options = ("-c", ROOT / "pyproject.toml", "--rootdir", ROOT, "-p", "no:cacheprovider", "--collect-only", "-q")
    found = run("python", "-m", "pytest", *options, *(ROOT / file for file in files)).check().stdout
    return [line.removeprefix("tests/") for line in found.splitlines() if "::" in line]


def test_every_statement_is_there_once_and_in_order() -> None:
    """A rule of the standard would be forgotten."""
    expected = [f"MQTT-{section}-{n}" for section, count in STATEMENTS.items() for n in range(1, count + 1)]
    assert 141 == len(expected)
    assert expected == [statement for statement, _ in rows()]


def test_every_statement_names_a_test_or_says_why_there_is_none() -> None:
    """Conformance would be claimed."""
    bare = [statement for statement, shown in rows() if ".py::test_" not in shown]
    assert [] == [s for s, shown in rows() if s in bare and not shown.startswith(WITHOUT_TEST)]
    assert 12 >= len(bare), bare


def test_every_test_that_is_named_exists(collected: list[str]) -> None:
    """A test that was renamed or deleted would go on showing something."""
    missing = [(name, case) for name, case in sorted(named_tests()) if not any(_is(t, name, case) for t in collected)]
    assert [] == missing


def _is(test: str, name: str, case: str) -> bool:
    found, _, cases = test.partition("[")
    return found == name and case in cases
