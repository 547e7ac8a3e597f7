"""What the firmware said while the broker was away: over real processes, kills and restarts."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from device_agent.outbox import MAX_MESSAGES
from fleet.layout import AgentHome
from tests.deadlines import within
from tests.faults.cutting import Traced
from tests.processes import run
from tests.system.agents import Agent, Application, LiveFleet, Operator, live_fleet, status_of


@pytest.fixture(scope="module", name="fleet")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path_factory.mktemp("spool"), with_broker=True) as fleet:
        yield fleet


def wait_until(home: AgentHome, is_so: Callable[[dict[str, int]], bool]) -> None:
    """The status of the running agent's spool becomes such."""
    deadline = time.monotonic() + within(20)
    while not is_so(spool := status_of(home)["spool"]):
        assert time.monotonic() < deadline, spool


def rows_of(home: AgentHome) -> int:
    """How many messages are on disk, once the agent is gone."""
    with closing(sqlite3.connect(home.path / "spool.db")) as database:
        return int(database.execute("SELECT count(*) FROM telemetry").fetchone()[0])


def test_an_outage_with_two_kills_in_it_loses_nothing_and_mixes_nothing_up(fleet: LiveFleet) -> None:
    """A flaky uplink and a flaky power supply would cost the measurements of a week."""
    home = fleet.joined("pump-01")
    assert fleet.broker is not None
    with Agent(home).wait_ready():
        pass
    fleet.broker.stop()
    for part in range(2):
        with Agent(home) as agent, ExitStack() as stack:
            agent.wait_for_line("connection.failed", stream="stderr")
            app = stack.enter_context(Application(home))
            for number in range(60 * part, 60 * part + 60):
                app.say(type="telemetry", stream="load", data={"n": number})
            wait_until(home, lambda spool, part=part: spool["messages"] == 60 * part + 60)  # type: ignore[misc]
            agent.kill()
    fleet.start_broker()
    with Operator(fleet) as operator, Agent(home) as agent:
        heard = [operator.next("devices/pump-01/up/telemetry/load") for _ in range(120)]
        assert list(range(120)) == [each["data"]["n"] for each in heard]
        assert 2 == len({each["boot"] for each in heard})
        wait_until(home, lambda spool: spool["messages"] == 0)
        agent.stop()
        assert 0 == rows_of(home)
        with Agent(home).wait_ready(), Application(home) as app:
            app.say(type="telemetry", stream="load", data={"n": 120}, qos=1)
            assert {"n": 120} == operator.next("devices/pump-01/up/telemetry/load")["data"], "sent a second time"


def test_a_working_connection_leaves_the_disk_alone(fleet: LiveFleet) -> None:
    """SD cards wear."""
    home = fleet.joined("pump-02")
    with Operator(fleet) as operator, Agent(home).wait_ready() as agent, Application(home) as app:
        for number in range(100):
            app.say(type="telemetry", stream="load", data=number, qos=1)
        for number in range(100):
            assert number == operator.next("devices/pump-02/up/telemetry/load")["data"]
        agent.stop()
    assert not (home.path / "spool.db").exists()


def test_a_full_disk_is_told_and_ends_nothing(fleet: LiveFleet, tmp_path: Path) -> None:
    """A card that other programs have filled would take the device offline, or its memory."""
    home = fleet.joined("pump-04")
    (home.path / "config.json").write_text('{"v":1,"brokers":["mqtts://127.0.0.1:1"]}')
    meta = json.loads(home.meta.read_bytes()) | {"enroll_url": "https://127.0.0.1:1"}
    home.meta.write_text(json.dumps(meta))
    files = [home.path / "spool.db", home.path / "spool.db-wal"]
    with Traced(tmp_path / "log", files, "pwrite64:error=ENOSPC", "device-agent", "run", "--home", home.path) as agent:
        agent.wait_for_line("connection.failed", stream="stderr")
        with Application(home) as app:
            for number in range(MAX_MESSAGES + 500):
                app.say(type="telemetry", stream="load", data={"n": number})
            agent.wait_for_line("spool.failed .*full", stream="stderr")
            wait_until(home, lambda spool: "full" in str(spool["error"]))
            app.say(type="status")
            fields = app.next("status")
            assert (MAX_MESSAGES, 500) == (fields["waiting_messages"], fields["dropped_messages"])
        told = run("device-agent", "doctor", "-o", "json", "--home", home.path).stdout
        assert {"spool-failed", "messages-dropped"} <= {each["code"] for each in json.loads(told)}
        assert 1 == agent.stderr.count("spool.failed")


def test_a_damaged_spool_does_not_keep_a_device_offline(fleet: LiveFleet) -> None:
    """A worn card would make a loop of crashes, and a journey to the device."""
    home = fleet.joined("pump-03")
    (home.path / "spool.db").write_bytes(b"garbage" * 5_000)
    with Agent(home).wait_ready() as agent:
        agent.wait_for_line("spool.damaged", stream="stderr")
        assert str(home.path / "spool.damaged") in status_of(home)["spool"]["problem"]
    with Agent(home).wait_ready() as agent:
        assert "spool.damaged" not in agent.stderr
    meta = json.loads(home.meta.read_bytes())
    assert "pump-03" == meta["id"]
