"""An office with a registry of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleets import Office, open_office
from tests.unit.enroll.sleepers import Sleeper


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    """A fleet made at NOW, with its service."""
    with open_office(tmp_path / "fleet") as opened:
        yield opened


@pytest.fixture
def pump(office: Office) -> Sleeper:
    """A device whose certificate expired a second ago."""
    sleeper = Sleeper(office)
    sleeper.oversleep()
    return sleeper
