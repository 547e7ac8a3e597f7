"""A proxy answers 502 for an hour while renewals of a whole site are due: what its agents do, in their own time."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta

from device_agent.core.effects import Connect, Disconnect, Effect, Renew, UsePredecessor, UseSuccessor
from device_agent.core.events import IdentityChanged, RenewalFailed, SuccessorReady, Tick
from device_agent.core.step import next_deadline
from device_agent.renewal import Life, Problem
from fleet.identity import Serial
from tests.unit.device_agent.story import SETTINGS, START, Story, of_kind

_HOUR = 3_600.0
_DUE = (SETTINGS.life.due - START).total_seconds()
_BAD_GATEWAY = Problem("service-error", "gateway.local:8443 cannot renew now (HTTP 502)", "its log says why")
_NEXT = Life(Serial("60"), START + timedelta(days=60), START + timedelta(days=150))
_AGENTS = 30


@dataclass
class Agent:
    """One agent of the site, with a chance of its own; `attempts`: when it asked, in seconds since it was due."""

    chance: random.Random
    story: Story = field(default_factory=Story)
    attempts: list[float] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.story.go_online()
        self.story.seconds = _DUE + 1

    def run(self, until: float, outage_ends: float) -> None:
        """Until so many seconds after it was due. Whoever asks before `outage_ends` gets 502, and later a successor."""
        while (at := next_deadline(self.story.state)) is not None and at <= _DUE + until:
            self.story.seconds = max(self.story.seconds, at)
            self._feed(Tick(), outage_ends)

    def _feed(self, event: Tick | RenewalFailed | SuccessorReady | IdentityChanged, outage_ends: float) -> None:
        self.story.chance = self.chance.random()
        effects = self.story.feed(event)
        self.effects += effects
        self.story.confirm_all()
        if of_kind(effects, Renew):
            self.attempts.append(self.story.seconds - _DUE)
            is_out = self.attempts[-1] < outage_ends
            self._feed(RenewalFailed(_BAD_GATEWAY) if is_out else SuccessorReady(_NEXT), outage_ends)
        if of_kind(effects, UseSuccessor):
            self._feed(IdentityChanged(_NEXT), outage_ends)


def _site(until: float) -> list[Agent]:
    agents = [Agent(random.Random(number)) for number in range(_AGENTS)]
    for agent in agents:
        agent.run(until, _HOUR)
    return agents


def test_an_hour_of_502_costs_no_connection_and_no_certificate() -> None:
    """A proxy that is mended within the hour would have taken a site offline."""
    for agent in _site(_HOUR - 1):
        assert agent.story.state.is_online
        assert [] == [e for e in agent.effects if isinstance(e, Connect | Disconnect | UseSuccessor | UsePredecessor)]
        assert SETTINGS.serial == agent.story.state.settings.serial


def test_it_is_asked_again_ever_more_rarely_and_by_no_two_at_once() -> None:
    """A site would keep its proxy down, each agent in step with the others; or give up."""
    agents = _site(_HOUR - 1)
    for agent in agents:
        assert 4 <= len(agent.attempts) <= 20, agent.attempts
    later = Counter(int(at) for agent in agents for at in agent.attempts[2:])
    assert later.most_common(1)[0][1] <= 4, "agents ask in step"


def test_when_it_is_over_each_renews_by_itself_within_the_longest_pause() -> None:
    """Somebody would have to visit the site after its proxy was mended."""
    for agent in _site(3 * _HOUR):
        assert 1 == len(of_kind(agent.effects, UseSuccessor))
        assert _HOUR <= agent.attempts[-1] <= 2 * _HOUR + 1
        assert _NEXT.serial == agent.story.state.settings.serial
