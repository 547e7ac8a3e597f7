"""What another policy would have done to those whom the audit log has seen (pure).

The log knows who was let in and what they were commanded, not each message. So each certificate that was issued stands
for all that its holder may do, by the policy that is or by the one that is proposed, and each command for its topics.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from enroll.registry.records import AuditRecord
from fleet import topics
from fleet.errors import FleetError
from fleet.identity import DISPATCH, DeviceId, Principal, Role
from fleet.policy import OWN_ID, Action, Policy, Rule

MAX_CHANGES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Use:
    """Something that a principal does, or may do; `shape` is the topic without what differs from one to the next."""

    principal: Principal
    action: Action
    topic: str
    shape: str


@dataclass(frozen=True, slots=True)
class Kind:
    """Uses that are alike, and the rules that allow them, before and after; None is a no."""

    who: str
    action: Action
    shape: str
    before: str | None
    after: str | None

    @property
    def is_lost(self) -> bool:
        return self.before is not None and self.after is None

    @property
    def is_changed(self) -> bool:
        return (self.before is None) != (self.after is None)


@dataclass(slots=True)
class Outcome:
    """How often each kind of use occurred, in `entries` entries of the log. At most MAX_CHANGES kinds are kept."""

    counts: dict[Kind, int]
    entries: int = 0

    @property
    def uses(self) -> int:
        return sum(self.counts.values())


def simulate(entries: Iterable[AuditRecord], present: Policy, proposed: Policy) -> Outcome:
    """Decide everything that the entries tell of by both policies."""
    outcome = Outcome({})
    for entry in entries:
        outcome.entries += 1
        for use in _uses(entry, present, proposed):
            kind = _decided(use, present, proposed)
            if kind in outcome.counts or len(outcome.counts) < MAX_CHANGES:
                outcome.counts[kind] = outcome.counts.get(kind, 0) + 1
    return outcome


def _decided(use: Use, present: Policy, proposed: Policy) -> Kind:
    is_for_one = any(rule.id == use.principal.id for policy in (present, proposed) for rule in policy.rules)
    who = str(use.principal) if is_for_one else use.principal.role.value
    return Kind(who, use.action, use.shape, _rule(use, present), _rule(use, proposed))


def _rule(use: Use, policy: Policy) -> str | None:
    """The rule that allows all of the use: of a filter every topic, to publish as to subscribe."""
    grants = policy.grants(use.principal)
    allowed = grants.publish if use.action is Action.PUBLISH else grants.subscribe
    return next((rule.name for filter_, rule in allowed if topics.covers(filter_, use.topic)), None)


def _uses(entry: AuditRecord, present: Policy, proposed: Policy) -> Iterator[Use]:
    fields = json.loads(entry.fields)
    match entry.event:
        case "certificate.issued":
            principal = _principal(str(fields.get("principal", "")))
            if principal is not None:
                rules = dict.fromkeys([*present.rules, *proposed.rules])
                yield from (_granted(principal, rule) for rule in rules if _is_for(rule, principal))
        case "command.given":
            yield from _commanding(fields)
        case _:
            return


def _is_for(rule: Rule, principal: Principal) -> bool:
    return rule.role is principal.role and rule.id in (None, principal.id)


def _granted(principal: Principal, rule: Rule) -> Use:
    return Use(principal, rule.action, rule.filter_for(principal.id), rule.pattern)


def _commanding(fields: dict[str, object]) -> Iterator[Use]:
    try:
        device = DeviceId(str(fields["device"]))
        command, name = str(fields["command"]), str(fields["name"])
        down, result = topics.Command(device, name, command).format(), topics.Result(device, command).format()
    except (KeyError, FleetError):
        return
    yield Use(DISPATCH, Action.PUBLISH, down, f"devices/+/down/commands/{name}/+")
    yield Use(Principal(Role.DEVICE, device), Action.PUBLISH, result, f"devices/{OWN_ID}/up/results/+")


def _principal(text: str) -> Principal | None:
    """The principal in `role/id`; None for a server of the fleet."""
    role, _, id_ = text.partition("/")
    try:
        return Principal(Role(role), DeviceId(id_))
    except (ValueError, FleetError):
        return None
