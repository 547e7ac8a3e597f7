"""State end to end: an admin, the service, the broker, the agent and a firmware, each a process of its own."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from enroll import states
from enroll.registry import Registry
from enroll.registry.state import StateRecord
from fleet.identity import DeviceId
from fleet.layout import AgentHome
from tests.deadlines import within
from tests.processes import Program
from tests.system.agents import Agent, Application, LiveFleet, live_fleet

PUMP = DeviceId("pump-07")
PATIENCE = 90  # an agent whose broker is away pauses for longer each time, and on a busy machine a broker takes long


def want(fleet: LiveFleet, value: dict[str, Any]) -> None:
    with Registry.open(fleet.home.registry) as registry:
        states.set_desired(registry, PUMP, states.Change(value), by="test", now=datetime.now(UTC))


def found(fleet: LiveFleet) -> StateRecord:
    with Registry.open(fleet.home.registry) as registry:
        return states.find(registry, PUMP)


def heard(fleet: LiveFleet, line: str) -> None:
    fleet.service.wait_for_line(line, stream="stderr", seconds=PATIENCE)


def lose_all(fleet: LiveFleet) -> None:
    """Every session, subscription, queued and retained message of the broker."""
    assert fleet.broker is not None
    fleet.broker.kill()
    for file in fleet.home.broker_sessions.parent.glob(f"{fleet.home.broker_sessions.name}*"):
        file.unlink()


def firmware(home: AgentHome) -> Program:
    return Program("firmware-stub", "--socket", home.path / "run" / "app.sock", "--interval", "0.1")


@pytest.mark.timeout(within(4 * PATIENCE))
def test_a_device_becomes_what_it_was_to_be_while_it_was_away_and_the_broker_lost_everything(tmp_path: Path) -> None:
    """What an admin wants is lost with a broker, or with the power of the device."""
    with live_fleet(tmp_path, with_broker=True) as fleet:
        home = fleet.joined(PUMP)
        fleet.enroll("state", "set", PUMP, '{"interval": 0.2, "note": "kept"}')
        with Agent(home) as agent, firmware(home):
            heard(fleet, "state.acknowledged device=pump-07 version=1")
            agent.wait_ready()
            heard(fleet, "state.reported device=pump-07 version=2")
            assert {"interval": 0.2} == found(fleet).reported.value
            _, port = fleet.broker_address
            lose_all(fleet)
            want(fleet, {"interval": 0.3})
            fleet.start_broker(port)
            heard(fleet, "state.acknowledged device=pump-07 version=2")
            heard(fleet, "state.reported device=pump-07 version=3")
            agent.kill()
        want(fleet, {"interval": 0.4})
        lose_all(fleet)
        with ExitStack() as stack:
            again = stack.enter_context(Agent(home))
            again.wait_for_line("connection.failed", stream="stderr")
            app = stack.enter_context(Application(home))
            app.connection.settimeout(within(PATIENCE))
            line = app.next("state")
            assert (2, {"interval": 0.3, "note": "kept"}) == (line["version"], line["desired"])
            fleet.start_broker(port)
            line = app.next("state")
            assert (3, {"interval": 0.4}) == (line["version"], line["patch"])
            app.say(type="reported", patch={"interval": 0.4})
            heard(fleet, "state.reported device=pump-07 version=4")
            heard(fleet, "state.acknowledged device=pump-07 version=3")
        record = found(fleet)
        assert {"interval": 0.4} == record.reported.value
        assert record.known == record.desired
