"""An office with a registry of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleets import Office, open_office


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    """A fleet made at NOW, with its service."""
    with open_office(tmp_path / "fleet") as opened:
        yield opened
