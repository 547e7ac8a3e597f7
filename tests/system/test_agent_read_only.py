"""A card that takes no writing any more: the home of an agent on a file system that really is read-only."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from device_agent.application import spare_path
from fleet.layout import AgentHome
from tests.deadlines import within
from tests.system.agents import Agent, Application, LiveFleet, Operator, join, live_fleet, serial_of

PUMP = "pump-01"


@pytest.fixture(name="fleet", scope="module")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path_factory.mktemp("read-only"), with_broker=True) as fleet:
        yield fleet


@pytest.fixture(name="card")
def _card() -> Iterator[Path]:
    """A file system of its own, in a place whose name leaves room for that of a socket."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system to write-protect")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def remount(card: Path, mode: str) -> None:
    """`ro` or `rw`."""
    subprocess.run(["mount", "-o", f"remount,{mode}", str(card)], check=True)


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + within(20)
    while not is_so():
        assert time.monotonic() < deadline


def shown(fleet: LiveFleet) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(fleet.enroll("device", "show", PUMP, "-o", "json").stdout)
    return fields


def test_an_agent_on_a_read_only_card_lives_and_says_so_and_recovers(fleet: LiveFleet, card: Path) -> None:
    """A Pi whose card has died would be silent, and nobody would know why."""
    home = AgentHome(card / "agent")
    join(home, fleet.invite(PUMP), PUMP).check()
    serial, events = serial_of(home), f"devices/{PUMP}/up/events/storage"
    remount(card, "ro")
    with Operator(fleet) as operator, Agent(home).wait_ready() as agent:
        assert {"state": "read-only"} == operator.next(events)["data"]
        with Application(home, ("open",), path=spare_path(home)) as app:
            app.say(type="telemetry", stream="load", data={"n": 1}, qos=1)
            assert {"n": 1} == operator.next(f"devices/{PUMP}/up/telemetry/load")["data"]
            operator.send(PUMP, "open", "c-1")
            refused = operator.final_result(PUMP, "c-1")
            assert ("failed", True) == (refused["state"], "cannot remember it: Read-only" in refused["error"])
            app.say(type="renew")
            assert "disk" == app.next("renewal")["code"]
            app.say(type="status")
            assert app.next("status")["storage"]["is_read_only"]
            fleet.service.wait_for_line(f'device.unwell device={PUMP} said="storage is read-only"', stream="stderr")
            assert "storage is read-only" == shown(fleet)["trouble"]
            assert [PUMP] == json.loads(fleet.enroll("status", "-o", "json").stdout)["unwell"]
            remount(card, "rw")
            assert {"state": "writable"} == operator.next(events)["data"]
            operator.send(PUMP, "open", "c-2")
            assert "c-2" == app.next("command")["command_id"]
            app.say(type="result", command_id="c-2", state="done")
            assert "done" == operator.final_result(PUMP, "c-2")["state"]
        until((home.path / "run" / "app.sock").exists)
        agent.stop()
    assert not shown(fleet)["trouble"]
    assert serial == serial_of(home)
    assert not spare_path(home).exists()
    assert "failed" == commands_of(home)["c-1"]["state"]


def commands_of(home: AgentHome) -> dict[str, dict[str, Any]]:
    """What is remembered of commands."""
    lines = map(json.loads, (home.path / "commands.json").read_text().splitlines())
    return {line["id"]: line for line in lines if "id" in line}
