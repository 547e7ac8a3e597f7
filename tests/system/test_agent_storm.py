"""A broker that restarts under many agents, in short: `./dev soak storm` does it with a few hundred."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.storm import restart_under
from tests.system.agents import Agent, live_fleet


@pytest.mark.timeout(180)
def test_a_fleet_comes_back_spread_as_it_was_asked(tmp_path: Path) -> None:
    """All devices would come back in the second in which a broker restarts, and bring it down again."""
    with live_fleet(tmp_path, with_broker=True) as fleet:
        home = fleet.joined("pump-01")
        with Agent(home).wait_ready() as agent:
            mark = agent.line_count("stderr")
            returned = restart_under(fleet, tmp_path / "storm", 40, spread_seconds=6)
            agent.wait_for_line("connection.ready", stream="stderr", after=mark, seconds=60)
    assert 40 == len(returned.seconds)
    assert returned.busiest_second <= 32  # some 7; a busy machine that stands still for some seconds gathers them
    assert returned.seconds[20] > 1, "half of them were there at once"
