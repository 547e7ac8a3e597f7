"""A card that was copied: two real agents with one identity, the alarm, the admin's decision, and who goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from fleet.layout import AgentHome
from tests.processes import Program, run
from tests.system.agents import Agent, LiveFleet, live_fleet, serial_of, status_of

TWICE = "identity-used-twice"


@pytest.fixture(scope="module", name="fleet")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path_factory.mktemp("clones"), with_broker=True) as fleet:
        yield fleet


def copied(fleet: LiveFleet, home: AgentHome) -> AgentHome:
    """The card in another device."""
    copy = fleet.new_agent_home()
    shutil.copytree(home.path, copy.path, symlinks=True)
    shutil.rmtree(copy.path / "run", ignore_errors=True)
    return copy


def shown(fleet: LiveFleet, device: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(fleet.enroll("device", "show", device, "-o", "json").stdout)
    return fields


def kinds(fleet: LiveFleet, device: str) -> set[str]:
    return {str(alarm["kind"]) for alarm in shown(fleet, device)["alarms"]}


def codes(home: AgentHome) -> set[str]:
    looked = run("device-agent", "doctor", "-o", "json", "--home", home.path)
    return {each["code"] for each in json.loads(looked.stdout)}


@pytest.mark.timeout(240)
def test_a_copied_card_is_found_out_and_an_admin_decides(fleet: LiveFleet) -> None:
    """The copy would get certificates for ever, or the owner would lose its own to it."""
    owner = fleet.joined("pump-01")
    clone, other = copied(fleet, owner), fleet.joined("pump-02")
    with Agent(other).wait_ready() as bystander, Agent(owner).wait_ready() as agent:
        run("device-agent", "renew", "--home", owner.path).check()
        agent.wait_for_line("renewal.confirmed", stream="stderr")
        refused = run("device-agent", "renew", "--home", clone.path)
        assert 4 == refused.returncode
        assert TWICE in refused.stderr
        fleet.service.wait_for_line("identity.used_twice device=pump-01", stream="stderr")
        frozen = run("device-agent", "renew", "--home", owner.path)
        assert (4, True) == (frozen.returncode, TWICE in frozen.stderr)
        told = status_of(owner)
        assert ("online", TWICE) == (told["state"], told["renewal"]["code"])
        assert TWICE in codes(owner) & codes(clone)
        assert "pump-01\n" == fleet.enroll("device", "list", "--alarms", "-o", "name").stdout
        fields = shown(fleet, "pump-01")
        assert ["forked"] == [alarm["kind"] for alarm in fields["alarms"]]
        assert [serial_of(clone)] == [alarm["serial"] for alarm in fields["alarms"]]
        assert ["confirmed", "confirmed"] == [each["state"] for each in fields["certificates"]]
        assert serial_of(clone) == fields["certificates"][1]["parent"]
        assert "127.0.0.1" == fields["certificates"][1]["issued_to"]["address"]
        decided = fleet.enroll("device", "resolve", "pump-01", "--keep", serial_of(owner), "--yes")
        assert f"{serial_of(clone)} is revoked: keyCompromise (generation 1)" in decided.stdout
        with Program("device-agent", "run", "--home", clone.path) as copy:
            copy.wait_for_line("connection.failed .*cause=(refused|closed)", stream="stderr")
        assert 4 == run("device-agent", "renew", "--home", clone.path).returncode
        assert [] == shown(fleet, "pump-01")["alarms"]
        run("device-agent", "renew", "--home", owner.path).check()
        assert ("online", None) == (status_of(owner)["state"], status_of(owner)["renewal"]["code"])
        assert 1 == bystander.stderr.count("connection.ready")
        assert "online" == status_of(other)["state"]


def test_an_owner_that_a_thief_has_shut_out_is_heard_and_comes_back(fleet: LiveFleet) -> None:
    """Whoever renews first would be the device, and the owner would need somebody to come."""
    owner = fleet.joined("pump-11")
    thief = copied(fleet, owner)
    run("device-agent", "renew", "--home", thief.path).check()
    assert 4 == run("device-agent", "renew", "--home", owner.path).returncode
    assert {"forked"} == kinds(fleet, "pump-11")
    with Agent(owner).wait_ready():  # frozen, and not cut: it may be the right one
        fleet.enroll("device", "resolve", "pump-11", "--keep", serial_of(owner), "--yes")
        run("device-agent", "renew", "--home", owner.path).check()
    assert 4 == run("device-agent", "renew", "--home", thief.path).returncode
    states = [each["state"] for each in shown(fleet, "pump-11")["certificates"]]
    assert ["confirmed", "revoked", "confirmed"] == states


def test_two_agents_that_throw_each_other_out_are_an_alarm(fleet: LiveFleet) -> None:
    """A copy that never renews would go unnoticed for weeks, but for a device that is now here, now there."""
    owner = fleet.joined("pump-21")
    clone = copied(fleet, owner)
    with Agent(owner).wait_ready(), Program("device-agent", "run", "--home", clone.path):
        fleet.service.wait_for_line("alarm.two-agents device=pump-21", stream="stderr", seconds=60)
    fields = shown(fleet, "pump-21")
    assert {"two-agents"} == kinds(fleet, "pump-21")
    assert 2 <= len({start["boot"] for start in fields["certificates"][0]["starts"]})
    assert "active, alarm" in fleet.enroll("device", "list", "--match", "pump-21").stdout
