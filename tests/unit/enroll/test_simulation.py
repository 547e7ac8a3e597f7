"""What other rules would have done to those whom the log has seen."""

from __future__ import annotations

import json
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from enroll import commands
from enroll.registry import log
from enroll.registry.records import AuditRecord
from enroll.simulation import Kind, Outcome, simulate
from fleet.identity import DeviceId, Role
from fleet.policy import DEFAULT_POLICY, DEFAULT_RULES, Action, Policy, Rule
from tests.fleets import NOW, Office

ODD = Rule("odd-pumps", Role.DEVICE, Action.PUBLISH, "odd/{id}", None)
SILENT = Policy(tuple(rule for rule in DEFAULT_RULES if rule.name != "device-publishes-own-up"))


def replay(office: Office, present: Policy, proposed: Policy) -> Outcome:
    with office.registry.read() as transaction:
        return simulate(log.entries(transaction), present, proposed)


def changed(outcome: Outcome) -> dict[Kind, int]:
    return {kind: count for kind, count in outcome.counts.items() if kind.is_changed}


def test_the_same_rules_change_nothing(office: Office) -> None:
    """An admin is frightened by a change that is none."""
    office.enrolled("pump-07")
    outcome = replay(office, DEFAULT_POLICY, DEFAULT_POLICY)
    assert {} == changed(outcome)
    assert outcome.uses > 0
    with office.registry.read() as transaction:
        assert len(list(log.entries(transaction))) == outcome.entries


def test_what_devices_would_lose_is_told_once_with_how_often(office: Office) -> None:
    """A rule that every device needs is left out, and nobody hears of it before the fleet is silent."""
    for number in range(3):
        office.enrolled(f"pump-{number}")
    lost = changed(replay(office, DEFAULT_POLICY, SILENT))
    kind = Kind("device", Action.PUBLISH, "devices/{id}/up/#", "device-publishes-own-up", None)
    assert {kind: 3} == lost
    assert kind.is_lost


def test_what_devices_would_gain_is_told(office: Office) -> None:
    """A rule lets more in than its author thinks."""
    office.enrolled("pump-07")
    gained = changed(replay(office, DEFAULT_POLICY, Policy((*DEFAULT_RULES, ODD))))
    assert {Kind("device", Action.PUBLISH, "odd/{id}", None, "odd-pumps"): 1} == gained


def test_a_rule_under_another_name_is_no_loss(office: Office) -> None:
    """Renaming a rule looks like a loss and a gain."""
    office.enrolled("pump-07")
    wider = Rule("all-of-it", Role.DEVICE, Action.PUBLISH, "devices/{id}/#", None)
    assert {} == {
        kind: 1 for kind in changed(replay(office, DEFAULT_POLICY, Policy((*SILENT.rules, wider)))) if kind.is_lost
    }


def test_a_rule_for_one_principal_is_told_with_its_name(office: Office) -> None:
    """The admin does not see who it is that would lose something."""
    office.enrolled("pump-07")
    own = Rule("own", Role.DEVICE, Action.SUBSCRIBE, "site/#", DeviceId("pump-07"))
    lost = changed(replay(office, Policy((*DEFAULT_RULES, own)), DEFAULT_POLICY))
    assert [("device/pump-07", "site/#")] == [(kind.who, kind.shape) for kind in lost]


def test_commands_that_were_given_are_replayed(office: Office) -> None:
    """Dispatch loses the right to command, and the log of a thousand commands says nothing."""
    office.enrolled("pump-07")
    for _ in range(2):
        commands.send(
            office.registry,
            DeviceId("pump-07"),
            commands.Order("open", {}, office.now + timedelta(hours=1)),
            commands.Giver("test", office.now, office.app.enrolment.token_bytes),
        )
    mute = Policy(tuple(rule for rule in DEFAULT_RULES if rule.name != "dispatch-commands-devices"))
    lost = {kind.shape: count for kind, count in changed(replay(office, DEFAULT_POLICY, mute)).items()}
    assert 2 == lost["devices/+/down/commands/open/+"]


@given(st.sampled_from(["certificate.issued", "command.given", "other"]), st.text(), st.text())
def test_an_entry_of_any_kind_is_read(event: str, one: str, other: str) -> None:
    """An entry of another release ends the command in a traceback."""
    fields = json.dumps({"principal": one, "device": one, "command": other, "name": other})
    simulate([AuditRecord(1, NOW, event, fields, b"")], DEFAULT_POLICY, SILENT)
