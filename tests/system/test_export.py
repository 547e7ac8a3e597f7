"""`enroll export` over a real fleet: what the broker acknowledged to a device is in the sink."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.agents import LiveFleet, live_fleet
from tests.system.exports import connected, export, joined_service, lift_rates, ready, rows, until


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path, with_broker=False) as live:
        lift_rates(live.home.path)
        live.start_broker()
        joined_service(live)
        yield live


def test_killed_at_any_moment_everything_is_in_sqlite_exactly_once(fleet: LiveFleet, tmp_path: Path) -> None:
    """A crash of the export loses what the broker had acknowledged to a device, or counts it twice."""
    path, draw = tmp_path / "telemetry.db", random.Random(8)
    ready(export(fleet, "sqlite", path)).stop()  # from here on the broker keeps what comes
    with connected(fleet, "pump-1") as pump, connected(fleet, "pump-2") as other:
        for _ in range(5):
            with export(fleet, "sqlite", path) as program:
                ready(program)
                pump.publish(draw.randint(20, 400))
                other.publish(draw.randint(20, 100), "flow")
                program.kill()
            pump.publish(draw.randint(0, 30))
        expected = [("pump-1", "boot-1", seq, "load") for seq in sorted(pump.acknowledged)]
        expected += [("pump-2", "boot-1", seq, "flow") for seq in sorted(other.acknowledged)]
    with export(fleet, "sqlite", path) as program:
        until(lambda: len(rows(path)) >= len(expected), program.describe)
    assert 0 == program.returncode
    assert expected == rows(path, order="device, seq")
