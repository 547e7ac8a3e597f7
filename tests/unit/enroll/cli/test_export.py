"""Exports that would be in each other's way."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from enroll.cli.export import _alone
from enroll.export.source import Source, by_address
from fleet.errors import FleetError
from fleet.layout import AgentHome


def source(home: Path, session: str) -> Source:
    return Source(AgentHome(home), f"export:{session}", by_address("mqtts://localhost:1"), time.monotonic)


def test_a_session_is_one_exports(tmp_path: Path) -> None:
    """Two exports to stdout end each other's connection for ever, and each has half of the lines."""
    one, other = source(tmp_path, "export-influx-1"), source(tmp_path, "night")
    with _alone(one), _alone(other):
        with pytest.raises(FleetError, match="another export has the session export-influx-1") as error, _alone(one):
            pass
        assert "--session NAME" in error.value.hint
    with _alone(one):
        pass


def test_an_identity_that_cannot_be_written_beside_serves(tmp_path: Path) -> None:
    """An export with its identity on a medium that is read-only does not begin."""
    (tmp_path / ".night.lock").mkdir()
    with _alone(source(tmp_path, "night")):
        pass
