"""Who may publish and subscribe where: rules as data, and the decision with the rule that made it.

The default is no. A rule's pattern is a topic filter in which the level `{id}` stands for the principal's own id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from fleet import topics
from fleet.errors import InvalidInput
from fleet.identity import DISPATCH, DeviceId, Principal, Role

OWN_ID = "{id}"


class Action(StrEnum):
    PUBLISH = "publish"
    SUBSCRIBE = "subscribe"


@dataclass(frozen=True, slots=True)
class Rule:
    """Allows every principal of `role` (or only the one with `id`) an action on the topics of `pattern`.

    Raises: InvalidInput for a pattern that is no topic filter, or that starts with `$share`.
    """

    name: str
    role: Role
    action: Action
    pattern: str
    id: DeviceId | None = None

    def __post_init__(self) -> None:
        literal = self.pattern.replace(OWN_ID, "id")
        if not topics.is_topic_filter(literal) or self.pattern.startswith("$share/"):
            raise InvalidInput(f"rule {self.name!r}: {self.pattern!r} is not a topic filter")
        if "{" in literal or "}" in literal or any(OWN_ID in lv and lv != OWN_ID for lv in self.pattern.split("/")):
            raise InvalidInput(
                f"rule {self.name!r}: {OWN_ID} stands alone in its level", hint="write devices/{id}/up/#"
            )

    def filter_for(self, device: DeviceId) -> str:
        """The topic filter that this rule means for `device`."""
        return self.pattern.replace(OWN_ID, device)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether an action is allowed, and by which rule; `rule` is None where none allows it."""

    allowed: bool
    rule: Rule | None = None


DENIED = Decision(False)


@dataclass(frozen=True, slots=True)
class Grants:
    """All that one principal may do: each rule with its pattern filled in."""

    publish: tuple[tuple[str, Rule], ...]
    subscribe: tuple[tuple[str, Rule], ...]

    def may_publish(self, topic: str) -> bool:
        """Whether `decide` allows to publish to this valid topic name, for a caller that asks for every message."""
        for allowed, _ in self.publish:  # noqa: SIM110 - `any` makes a generator for it
            if topics.matches(allowed, topic):
                return True
        return False

    def decide(self, action: Action, topic: str) -> Decision:
        """Decide a valid topic name (publish) or topic filter (subscribe)."""
        if action is Action.PUBLISH:
            return next(
                (Decision(True, rule) for allowed, rule in self.publish if topics.matches(allowed, topic)), DENIED
            )
        if topic.startswith("$share/"):
            return DENIED  # shared subscriptions are MQTT 5's; the filter inside is never looked at
        return next((Decision(True, rule) for allowed, rule in self.subscribe if topics.covers(allowed, topic)), DENIED)


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of a fleet."""

    rules: tuple[Rule, ...]

    def grants(self, principal: Principal) -> Grants:
        """What `principal` may do, for callers that decide often."""
        mine = [r for r in self.rules if r.role is principal.role and r.id in (None, principal.id)]
        return Grants(
            tuple((r.filter_for(principal.id), r) for r in mine if r.action is Action.PUBLISH),
            tuple((r.filter_for(principal.id), r) for r in mine if r.action is Action.SUBSCRIBE),
        )

    def decide(self, principal: Principal, action: Action, topic: str) -> Decision:
        """Decide one action of `principal`; a topic that is not valid is denied."""
        is_valid = topics.is_topic_name if action is Action.PUBLISH else topics.is_topic_filter
        return self.grants(principal).decide(action, topic) if is_valid(topic) else DENIED


def _rules(
    role: Role, publish: Mapping[str, str], subscribe: Mapping[str, str], device: DeviceId | None = None
) -> Iterable[Rule]:
    for action, patterns in ((Action.PUBLISH, publish), (Action.SUBSCRIBE, subscribe)):
        for name, pattern in patterns.items():
            yield Rule(f"{device or role.value}-{name}", role, action, pattern, device)


_COMMANDING_PUBLISH = {"commands-devices": topics.ALL_DOWN, "publishes-notices": topics.NOTICES}
_LISTENING = {"reads-devices": topics.ALL_UP, "reads-notices": topics.NOTICES}
_BROKER_COUNTERS = {"reads-broker-counters": "$SYS/#"}

DEFAULT_RULES: tuple[Rule, ...] = (
    *_rules(
        Role.DEVICE,
        {"publishes-own-up": "devices/{id}/up/#"},
        {"reads-own-down": "devices/{id}/down/#", "reads-notices": topics.NOTICES},
    ),
    *_rules(Role.SERVICE, {}, _LISTENING),
    *_rules(Role.OPERATOR, _COMMANDING_PUBLISH, _LISTENING | _BROKER_COUNTERS),
    *_rules(Role.SERVICE, _COMMANDING_PUBLISH, _BROKER_COUNTERS, DISPATCH.id),
)
"""DESIGN section 7. Role `broker` has none: a broker's own messages do not pass its own door."""

DEFAULT_POLICY = Policy(DEFAULT_RULES)
