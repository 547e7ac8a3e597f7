"""Operators and services: enrolled as devices are, with narrower tokens, and with their own rights at the broker."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator

import pytest

from fleet.join import parse_join_code
from fleet.layout import AgentHome
from tests import mqtt
from tests.mqtt import Peer
from tests.processes import run
from tests.system.agents import LiveFleet, join, live_fleet


@pytest.fixture(scope="module", name="fleet")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path_factory.mktemp("principals"), with_broker=True) as fleet:
        yield fleet


def invited(fleet: LiveFleet, name: str, role: str) -> AgentHome:
    """The home of a new principal of that role."""
    code = fleet.enroll("token", "create", "--device", name, "--role", role, "-o", "code").stdout
    home = fleet.new_agent_home()
    said = join(home, parse_join_code(code), name).check().stdout
    assert f"enrolled {name} ({role})" in said
    assert str(home.identity.certificate) in said
    assert "device-agent run" not in said, "the agent runs for devices"
    return home


def peer(fleet: LiveFleet, home: AgentHome) -> Peer:
    context = ssl.create_default_context(cafile=home.trust)
    context.load_cert_chain(home.identity.certificate, home.identity.key)
    return Peer(fleet.broker_address, context)


def test_an_operator_and_a_service_enrol_with_a_token_each(fleet: LiveFleet) -> None:
    """The second admin, or the first dashboard, cannot be let in; or each may do what the other may."""
    anna, dashboard = invited(fleet, "anna", "operator"), invited(fleet, "dashboard", "service")
    for name, home, granted in (("anna", anna, 0), ("dashboard", dashboard, 0x80)):
        with peer(fleet, home) as client:
            assert mqtt.ACCEPTED == client.ask(mqtt.connect(name))
            assert mqtt.suback(0, granted) == client.ask(mqtt.subscribe(("devices/+/up/#", 0), ("$SYS/#", 0)))


@pytest.mark.parametrize(
    ("name", "role", "action", "topic", "rule"),
    [
        ("bea", "operator", "publish", "devices/pump-07/down/commands/open/1", "operator-commands-devices"),
        ("bea", "operator", "subscribe", "devices/+/up/#", "operator-reads-devices"),
        ("archive", "service", "subscribe", "devices/+/up/telemetry/#", "service-reads-devices"),
        ("archive", "service", "publish", "devices/pump-07/down/commands/open/1", None),
        ("bea", "operator", "publish", "devices/pump-07/up/status", None),
    ],
)
def test_policy_check_names_the_rule_that_decides(
    fleet: LiveFleet, name: str, role: str, action: str, topic: str, rule: str | None
) -> None:
    """An admin does not find out why somebody may, or may not."""
    if run("enroll", "device", "show", name, "--home", fleet.home.path).returncode:
        invited(fleet, name, role)
    done = run("enroll", "policy", "check", name, action, topic, "-o", "json", "--home", fleet.home.path)
    assert (0 if rule else 4, rule) == (done.returncode, json.loads(done.stdout)["rule"])


def test_an_operators_token_is_for_one_name_and_one_hour(fleet: LiveFleet) -> None:
    """A token that was meant for one admin makes a dozen, next week."""
    create = ("token", "create", "--role", "operator", "--home", fleet.home.path)
    for wrong in (("--match", "op-*"), ("--device", "carl", "--ttl", "61m"), ("--device", "carl", "--uses", "2")):
        assert 2 == run("enroll", *create, *wrong).returncode
    code = parse_join_code(run("enroll", *create, "--device", "carl", "-o", "code").check().stdout)
    refused = join(fleet.new_agent_home(), code, "carla")
    assert (4, "") == (refused.returncode, refused.stdout)
