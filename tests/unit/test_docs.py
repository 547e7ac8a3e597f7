"""What the documentation says of the tests is true."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_PAGES = sorted(path.relative_to(_ROOT) for path in (_ROOT / "docs").rglob("*.md"))
_NAMED = re.compile(r"`(?:[\w/.]+::)?(test_\w+)`")


@cache
def _tests() -> set[str]:
    """The name of every test function."""
    return {
        node.name
        for path in (_ROOT / "tests").rglob("test_*.py")
        if "node_modules" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize("page", _PAGES, ids=str)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    """A reader would look for a proof that is not there."""
    assert set() == set(_NAMED.findall((_ROOT / page).read_text())) - _tests()


def test_every_attack_on_a_hole_is_in_the_threat_model() -> None:
    """An attack would be known to its test alone."""
    named = set(_NAMED.findall((_ROOT / "docs" / "threat-model.md").read_text()))
    holes = {name for name in _tests() if name.startswith("test_hole_")}
    assert set() == holes - named
    assert {f"{number:02}" for number in range(1, 13)} == {name.split("_")[2] for name in holes}
