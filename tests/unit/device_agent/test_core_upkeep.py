"""What the agent does when the fleet asks it to renew, or to spread its return."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from device_agent.core.effects import Effect, Renew
from device_agent.core.events import (
    Arrived,
    Connected,
    IdentityChanged,
    RenewalFailed,
    Subscribed,
    SuccessorReady,
    Tick,
)
from device_agent.core.step import next_deadline
from device_agent.journal import decode_journal
from device_agent.renewal import Life, Problem
from fleet.identity import Serial
from fleet.messages import CommandMessage, ResultState, format_time
from fleet.topics import Command
from fleet.upkeep import PACE, RENEW
from tests.unit.device_agent.story import PUMP, START, Story, of_kind, published

NEXT = Life(Serial("60"), START, START + timedelta(days=90))


def online() -> Story:
    story = Story()
    story.go_online()
    return story


def asked(story: Story, id: str, name: str, seconds_left: float = 60.0, **args: Any) -> list[Effect]:
    """The fleet asks for it."""
    now = story.now().utc
    message = CommandMessage(PUMP, now, now + timedelta(seconds=seconds_left), args)
    return story.feed(Arrived(story.state.epoch, 7, Command(PUMP, name, id).format(), message.encode()))


def results(effects: list[Effect]) -> list[tuple[str, str, object, str]]:
    """Command, state, output and error of what was published."""
    found = [(topic, json.loads(payload)) for topic, payload in published(effects) if topic.startswith("results/")]
    return [(topic.removeprefix("results/"), each["state"], each["output"], each["error"]) for topic, each in found]


def renewed(story: Story) -> list[Effect]:
    """The renewal that has begun comes to its end, and the agent is online by the new certificate."""
    effects = story.feed(SuccessorReady(NEXT), IdentityChanged(NEXT))
    story.seconds += 10
    effects += story.feed(Tick())
    effects += story.feed(Connected(story.state.epoch, False), Subscribed(story.state.epoch))
    return effects


def test_a_device_renews_when_it_is_asked_and_says_what_it_has() -> None:
    """A key that may have been read stays in use for weeks."""
    story = online()
    effects = asked(story, "a", RENEW)
    assert 1 == len(of_kind(effects, Renew))
    assert [("a", "accepted", None, "")] == results(effects)
    output = {"serial": "60", "not_after": format_time(NEXT.not_after)}
    assert ("a", "done", output, "") in results(renewed(story))
    story.confirm_all()
    assert [] == of_kind(asked(story, "a", RENEW), Renew)


def test_the_first_failure_is_its_answer() -> None:
    """The admin waits for the deadline, and learns nothing."""
    story = online()
    asked(story, "a", RENEW)
    effects = story.feed(RenewalFailed(Problem("service-error", "the service is away", "wait")))
    assert [("a", "failed", None, "not renewed (service-error): the service is away")] == results(effects)


def test_a_fleet_renews_at_random_points() -> None:
    """All ask in the same second."""
    story = online()  # which draws the half
    assert [] == of_kind(asked(story, "a", RENEW, 900.0, within_seconds=600), Renew)
    assert 300.0 == next_deadline(story.state)
    story.seconds = 299.0
    assert [] == of_kind(story.feed(Tick()), Renew)
    story.seconds = 300.0
    assert 1 == len(of_kind(story.feed(Tick()), Renew))


def test_what_is_over_before_its_moment_is_not_begun() -> None:
    """It renews, although nobody has known of it any more."""
    story = online()
    asked(story, "a", RENEW, 60.0, within_seconds=3600)
    story.seconds = 61.0
    effects = story.feed(Tick())
    assert [] == of_kind(effects, Renew)
    assert [("a", "expired", None, "its deadline came before it was begun")] == results(effects)


def test_it_is_asked_for_five_times_and_then_once_a_minute() -> None:
    """Whoever may command makes the fleet's CA sign without end."""
    story = online()
    for number in range(5):
        asked(story, f"a{number}", RENEW)
        renewed(story)
        story.confirm_all()
    effects = asked(story, "b", RENEW)
    assert [] == of_kind(effects, Renew)
    ((command, state, _, error),) = results(effects)
    assert ("b", "failed") == (command, state)
    assert error.startswith("5 certificates were asked for")


def test_what_waits_for_its_connection_is_not_made_again() -> None:
    """Commands that were held make a certificate each, past any bound, as long as no broker is there."""
    story = online()
    for number in range(20):
        asked(story, f"a{number}", RENEW, 900.0, within_seconds=200)
        story.confirm_all()
    asked(story, "b", RENEW)
    story.feed(SuccessorReady(NEXT), IdentityChanged(NEXT))
    story.seconds = 100.0
    assert [] == of_kind(story.feed(Tick()), Renew)
    story.seconds += 10
    story.feed(Tick(), Connected(story.state.epoch, False), Subscribed(story.state.epoch))
    assert [ResultState.DONE] * 21 == [entry.state for entry in story.state.journal.entries]


def test_after_a_restart_it_has_failed() -> None:
    """One restart each time makes one certificate each time."""
    story = online()
    asked(story, "a", RENEW)
    again = Story(journal=decode_journal(story.state.journal.encode()))
    again.go_online()
    assert [] == of_kind(again.effects, Renew)
    assert ["failed"] == [state for _, state, _, _ in results(again.effects)]


def test_the_return_is_spread_as_it_is_asked() -> None:
    """A broker that restarts is met by all its devices at once."""
    story = online()
    assert [("a", "done", {"reconnect_seconds": 600.0}, "")] == results(asked(story, "a", PACE, reconnect_seconds=600))
    assert 600.0 == story.state.spread_seconds
    asked(story, "b", PACE, reconnect_seconds=1e9)
    assert 3600.0 == story.state.spread_seconds


@pytest.mark.parametrize(("name", "args"), [(PACE, {}), (RENEW, {"within": 5}), (PACE, {"reconnect_seconds": "soon"})])
def test_what_cannot_be_read_fails(name: str, args: dict[str, Any]) -> None:
    """It is held until its deadline, or done otherwise than was meant."""
    effects = asked(online(), "a", name, **args)
    assert [] == of_kind(effects, Renew)
    assert [("a", "failed")] == [each[:2] for each in results(effects)]
