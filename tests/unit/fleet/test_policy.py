"""Who may do what: the table of DESIGN section 7, and that nothing else is allowed."""

import pytest
from hypothesis import given

from fleet import topics
from fleet.errors import InvalidInput
from fleet.identity import DISPATCH, DeviceId, Principal, Role
from fleet.policy import DEFAULT_POLICY, DEFAULT_RULES, Action, Policy, Rule
from tests.unit.fleet.strategies import device_ids, topic_filters, topic_names

DEVICE = Principal(Role.DEVICE, DeviceId("pump-07"))
OPERATOR = Principal(Role.OPERATOR, DeviceId("admin"))
SERVICE = Principal(Role.SERVICE, DeviceId("grafana"))
BROKER = Principal(Role.BROKER, DeviceId("gateway"))


@pytest.mark.parametrize(
    ("principal", "action", "topic", "rule"),
    [
        (DEVICE, Action.PUBLISH, "devices/pump-07/up/telemetry/load", "device-publishes-own-up"),
        (DEVICE, Action.PUBLISH, "devices/pump-07/down/state", None),
        (DEVICE, Action.PUBLISH, "devices/pump-070/up/status", None),
        (DEVICE, Action.PUBLISH, "devices/pump-0/up/status", None),
        (DEVICE, Action.PUBLISH, "devices/PUMP-07/up/status", None),
        (DEVICE, Action.PUBLISH, "devices//up/status", None),
        (DEVICE, Action.PUBLISH, "/devices/pump-07/up/status", None),
        (DEVICE, Action.PUBLISH, "fleet/notices/hello", None),
        (DEVICE, Action.PUBLISH, "$SYS/broker/uptime", None),
        (DEVICE, Action.PUBLISH, "devices/pump-07/up/#", None),
        (DEVICE, Action.SUBSCRIBE, "devices/pump-07/down/#", "device-reads-own-down"),
        (DEVICE, Action.SUBSCRIBE, "devices/pump-07/down/commands/+/+", "device-reads-own-down"),
        (DEVICE, Action.SUBSCRIBE, "fleet/notices/#", "device-reads-notices"),
        (DEVICE, Action.SUBSCRIBE, "devices/+/down/#", None),
        (DEVICE, Action.SUBSCRIBE, "devices/other/down/#", None),
        (DEVICE, Action.SUBSCRIBE, "devices/pump-07/up/#", None),
        (DEVICE, Action.SUBSCRIBE, "devices/pump-07/#", None),
        (DEVICE, Action.SUBSCRIBE, "#", None),
        (DEVICE, Action.SUBSCRIBE, "+/pump-07/down/#", None),
        (DEVICE, Action.SUBSCRIBE, "$SYS/#", None),
        (DEVICE, Action.SUBSCRIBE, "$share/g/devices/pump-07/down/#", None),
        (SERVICE, Action.PUBLISH, "devices/pump-07/down/state", None),
        (SERVICE, Action.SUBSCRIBE, "devices/+/up/#", "service-reads-devices"),
        (SERVICE, Action.SUBSCRIBE, "devices/pump-07/up/status", "service-reads-devices"),
        (SERVICE, Action.SUBSCRIBE, "$SYS/#", None),
        (SERVICE, Action.SUBSCRIBE, "devices/#", None),
        (OPERATOR, Action.PUBLISH, "devices/pump-07/down/commands/echo/1", "operator-commands-devices"),
        (OPERATOR, Action.PUBLISH, "devices/pump-07/up/status", None),
        (OPERATOR, Action.SUBSCRIBE, "$SYS/#", "operator-reads-broker-counters"),
        (DISPATCH, Action.PUBLISH, "devices/pump-07/down/commands/echo/1", "dispatch-commands-devices"),
        (DISPATCH, Action.SUBSCRIBE, "devices/+/up/results/+", "service-reads-devices"),
        (BROKER, Action.PUBLISH, "devices/pump-07/up/status", None),
        (BROKER, Action.SUBSCRIBE, "fleet/notices/#", None),
    ],
)
def test_decisions(principal: Principal, action: Action, topic: str, rule: str | None) -> None:
    """A principal may do what DESIGN section 7 does not say, or may not do what it says."""
    decision = DEFAULT_POLICY.decide(principal, action, topic)
    assert (decision.rule.name if decision.rule else None, decision.allowed) == (rule, rule is not None)


@given(device_ids, topic_names)
def test_a_device_publishes_below_its_own_up_only(device: DeviceId, topic: str) -> None:
    """A device publishes outside `devices/{id}/up/`."""
    allowed = DEFAULT_POLICY.decide(Principal(Role.DEVICE, device), Action.PUBLISH, topic).allowed
    assert allowed == (topic.startswith(f"devices/{device}/up/") or topic == f"devices/{device}/up")


@given(device_ids, topic_filters, topic_names)
def test_no_subscription_of_a_device_reaches_another(device: DeviceId, topic_filter: str, topic: str) -> None:
    """An accepted filter matches a topic that is neither the device's own nor everybody's."""
    principal = Principal(Role.DEVICE, device)
    if DEFAULT_POLICY.decide(principal, Action.SUBSCRIBE, topic_filter).allowed and topics.matches(topic_filter, topic):
        assert topics.matches(topics.own_down(device), topic) or topics.matches(topics.NOTICES, topic)


def test_a_rule_for_one_id_is_for_it_alone() -> None:
    """A rule with an id is applied to the whole role."""
    bridge = Rule("bridge", Role.SERVICE, Action.PUBLISH, "homeassistant/#", DeviceId("bridge"))
    policy = Policy((*DEFAULT_RULES, bridge))
    topic = "homeassistant/sensor/x/config"
    assert policy.decide(Principal(Role.SERVICE, DeviceId("bridge")), Action.PUBLISH, topic).rule == bridge
    assert not policy.decide(SERVICE, Action.PUBLISH, topic).allowed


@pytest.mark.parametrize("pattern", ["", "a/#/b", "a{id}", "{id}x/y", "{other}/x", "$share/g/a", "a/b{"])
def test_a_rule_that_cannot_be_meant_is_refused(pattern: str) -> None:
    """A pattern that means something else than it looks like is accepted."""
    with pytest.raises(InvalidInput):
        Rule("r", Role.DEVICE, Action.PUBLISH, pattern)
