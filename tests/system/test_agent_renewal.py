"""A certificate's renewal by real processes over real TLS: the agent, the service, the broker."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from fleet.join import JoinCode, parse_join_code
from fleet.layout import AgentHome
from tests.processes import run
from tests.system.agents import Agent, LiveFleet, Operator, live_fleet, serial_of, status_of

LIFE = '\n[enroll.life]\ntest = "30s"\n'


@pytest.fixture(scope="module", name="fleet")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path_factory.mktemp("renewal"), with_broker=True) as fleet:
        yield fleet


def invite(fleet: LiveFleet, device: str, profile: str) -> JoinCode:
    made = fleet.enroll("token", "create", "--device", device, "--profile", profile, "-o", "json")
    return parse_join_code(json.loads(made.stdout)["code"])


def certificates(fleet: LiveFleet, device: str) -> list[str]:
    """The state of each, oldest first."""
    shown = json.loads(fleet.enroll("device", "show", device, "-o", "json").stdout)
    return [str(each["state"]) for each in shown["certificates"]]


def generations(home: AgentHome) -> list[str]:
    return sorted(path.name for path in home.path.glob("gen-*"))


def test_renew_gives_a_running_agent_a_new_key_with_one_reconnect(fleet: LiveFleet) -> None:
    """A renewal would interrupt a device for long, or leave it with the old key."""
    home = fleet.joined("pump-01")
    first, key = serial_of(home), home.identity.key.read_bytes()
    with Operator(fleet) as operator, Agent(home).wait_ready() as agent:
        renewed = run("device-agent", "renew", "--home", home.path).check()
        second = serial_of(home)
        assert second in renewed.stdout
        assert second != first
        assert key != home.identity.key.read_bytes()
        agent.wait_for_line("renewal.confirmed", stream="stderr")
        assert 2 == agent.stderr.count("connection.ready")
        assert "connection.failed" not in agent.stderr
        assert "renewed" == operator.next("devices/pump-01/up/events/renewal")["data"]["state"]
        said = status_of(home)
        assert ("online", second) == (said["state"], said["serial"])
        assert (1, 0, None) == tuple(said["renewal"][name] for name in ("renewed_count", "failed_count", "code"))
    states = [fields["status"] for topic, fields in operator.heard if topic.endswith("/status")]
    assert "offline" not in states
    assert ["confirmed", "confirmed"] == certificates(fleet, "pump-01")
    assert ["gen-2"] == generations(home)
