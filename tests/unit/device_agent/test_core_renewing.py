"""The certificate's renewal, as the core decides it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from device_agent.core.effects import (
    Confirm,
    Connect,
    Disconnect,
    ForgetPredecessor,
    Log,
    Renew,
    Tell,
    UsePredecessor,
    UseSuccessor,
)
from device_agent.core.events import (
    AppSaid,
    ConfirmationFailed,
    Confirmed,
    Connected,
    Disconnected,
    IdentityChanged,
    RenewalFailed,
    RenewalPutOff,
    Started,
    StopRequested,
    Subscribed,
    SuccessorReady,
    Tick,
)
from device_agent.core.report import status_line
from device_agent.core.state import Stage, initial
from device_agent.core.step import next_deadline
from device_agent.failures import Cause, Failure
from device_agent.renewal import Life, Problem
from device_agent.requests import AskRenewal
from fleet.identity import Serial
from tests.unit.device_agent.story import FETCHED, GATEWAY, SETTINGS, START, Story, of_kind, published

DAY = 86_400.0
PRESENT = SETTINGS.life
NEXT = Life(Serial("60"), START + timedelta(days=60), START + timedelta(days=150))
DUE_SECONDS = (PRESENT.due - START).total_seconds()
AWAY = Problem("service-error", "the service is away", "wait")
REFUSED = Failure(Cause.REFUSED, str(GATEWAY), "CONNACK: not authorized")


def due() -> Story:
    """A connected agent in the moment in which its renewal has begun."""
    story = Story()
    story.go_online()
    story.seconds = DUE_SECONDS + 1
    assert [Renew(is_paced=False, is_fresh=False)] == of_kind(story.feed(Tick()), Renew)
    return story


def trying() -> Story:
    """One whose successor is in use, and whose next connection is being made."""
    story = due()
    assert [UseSuccessor()] == of_kind(story.feed(SuccessorReady(NEXT)), UseSuccessor)
    effects = story.feed(IdentityChanged(NEXT))
    assert [story.state.epoch] == [effect.epoch for effect in of_kind(effects, Disconnect)]
    story.seconds += 1
    assert 1 == len(of_kind(story.feed(Tick()), Connect))
    return story


def pass_time(story: Story, seconds: float) -> list[Any]:
    """Ticks whenever one is due."""
    until, effects = story.seconds + seconds, list[Any]()
    while (at := next_deadline(story.state)) is not None and at <= until:
        story.seconds = max(story.seconds, at)
        effects += story.feed(Tick())
    story.seconds = until
    return effects


def told(effects: list[Any]) -> list[dict[str, Any]]:
    """The renewal events that were published."""
    return [json.loads(payload)["data"] for topic, payload in published(effects) if topic == "events/renewal"]


def test_nothing_happens_before_the_time() -> None:
    """Every start, or every hour, would make a certificate."""
    story = Story()
    story.go_online()
    assert [] == of_kind(pass_time(story, DUE_SECONDS - 10), Renew)
    assert 1 == len(of_kind(pass_time(story, 20), Renew))
    assert [] == of_kind(pass_time(story, 10 * DAY), Renew), "a second one begins while the first is under way"


def test_a_clock_that_was_wrong_is_noticed_within_the_hour() -> None:
    """A Pi that started in 1970 would renew 56 years later."""
    story = Story()
    story.settings = replace(SETTINGS, not_before=START - timedelta(days=80), not_after=START + timedelta(days=10))
    story.state = initial(story.settings, (GATEWAY,), story.journal)
    real, story.__dict__["now"] = story.now, lambda: replace(real(), utc=START.replace(year=1970))
    story.go_online()
    assert [] == of_kind(pass_time(story, 60), Renew)
    story.__dict__["now"] = real
    assert 1 == len(of_kind(pass_time(story, 3_600), Renew))


def test_the_connection_is_made_anew_once_and_proves_the_certificate() -> None:
    """A renewal would cost several interruptions, or the new certificate would be believed without proof."""
    story = trying()
    assert Stage.TRYING is story.state.renewal.stage
    assert NEXT == story.state.settings.life
    effects = story.feed(Connected(story.state.epoch, True), Subscribed(story.state.epoch))
    assert [Confirm()] == of_kind(effects, Confirm)
    assert [("renewed", "60")] == [(each["state"], each["serial"]) for each in told(effects)]
    assert [ForgetPredecessor()] == of_kind(story.feed(Confirmed()), ForgetPredecessor)
    assert (Stage.IDLE, 1) == (story.state.renewal.stage, story.state.renewal.done)
    assert [] == of_kind(pass_time(story, 3_600), Renew)


def test_the_old_connection_proves_nothing() -> None:
    """What the old certificate can would be taken for what the new one can."""
    story = Story()
    story.feed(Started())
    story.feed(Connected(1, False))
    story.seconds = DUE_SECONDS + 1
    story.state = replace(story.state, renewal=replace(story.state.renewal, stage=Stage.PREPARING))
    story.feed(SuccessorReady(NEXT), IdentityChanged(NEXT), Subscribed(1))
    assert Stage.TRYING is story.state.renewal.stage


@pytest.mark.parametrize("cause", [Cause.REFUSED, Cause.LOCAL, Cause.OWN_EXPIRED])
def test_a_certificate_that_the_broker_refuses_is_given_back(cause: Cause) -> None:
    """A device would be lost by its own renewal."""
    story = trying()
    effects = story.feed(Disconnected(story.state.epoch, replace(REFUSED, cause=cause)))
    assert [UsePredecessor()] == of_kind(effects, UsePredecessor)
    effects = story.feed(IdentityChanged(PRESENT))
    assert PRESENT == story.state.settings.life
    assert "broker-refuses" == status_line(story.state, story.now())["renewal"]["code"]
    story.seconds += 1
    assert 1 == len(of_kind(story.feed(Tick()), Connect))
    story.go_online()
    assert [Renew(is_paced=False, is_fresh=True)] == of_kind(pass_time(story, 4_000), Renew)


def test_a_network_that_is_away_refuses_nothing() -> None:
    """Every outage during a renewal would throw a good certificate away."""
    story = trying()
    for cause in (Cause.UNREACHABLE, Cause.TIMED_OUT, Cause.NO_NAME, Cause.LOST, Cause.CLOSED, Cause.CLOSED):
        effects = story.feed(Disconnected(story.state.epoch, Failure(cause, str(GATEWAY), "")))
        assert [] == of_kind(effects, UsePredecessor)
        story.seconds += 200
        story.feed(Tick(), FETCHED)
    effects = story.feed(Disconnected(story.state.epoch, Failure(Cause.CLOSED, str(GATEWAY), "")))
    assert [UsePredecessor()] == of_kind(effects, UsePredecessor)


def test_failures_are_retried_for_ever_and_told_sparsely() -> None:
    """A device would give up, or flood the fleet with its complaints."""
    story, events = due(), list[dict[str, Any]]()
    for _ in range(20):
        effects = story.feed(RenewalFailed(AWAY))
        events += told(effects)
        story.confirm_all()
        assert 1 == len(of_kind(pass_time(story, 4_000), Renew))
    assert [1, 2, 4, 8, 16] == [each["failures"] for each in events if each["state"] == "failed"]
    said = status_line(story.state, story.now())["renewal"]
    assert ("service-error", "the service is away", 20) == (said["code"], said["words"], said["failures"])


def test_the_alarm_is_given_once() -> None:
    """Nobody would hear of it in time, or everybody every minute."""
    story, effects = due(), list[Any]()
    for _ in range(30):
        effects += story.feed(RenewalFailed(AWAY))
        effects += pass_time(story, DAY)
        story.confirm_all()
    assert 1 == len([log for log in of_kind(effects, Log) if log.name == "renewal.alarm"])
    assert 1 == len([each for each in told(effects) if each["state"] == "alarm"])
    assert status_line(story.state, story.now())["renewal"]["is_alarming"]


def test_the_service_paces_once_and_within_bounds() -> None:
    """A service could keep a device waiting until its certificate is over."""
    story = due()
    story.feed(RenewalPutOff(1e9))
    assert [] == of_kind(pass_time(story, 3_590), Renew)
    assert [Renew(is_paced=True, is_fresh=False)] == of_kind(pass_time(story, 20), Renew)


def test_an_overdue_start_waits_its_share_of_the_crowd() -> None:
    """All devices of a site would renew in the second in which its power comes back."""
    story = Story(seconds=DUE_SECONDS + DAY, chance=0.5)
    story.go_online()
    assert [] == of_kind(pass_time(story, 299), Renew)
    assert 1 == len(of_kind(pass_time(story, 2), Renew))


def test_a_successor_from_before_a_restart_is_tried_and_confirmed() -> None:
    """After a power cut in the wrong moment the predecessor would be good for months, or there would be no way back."""
    story = Story()
    story.state = initial(SETTINGS, (GATEWAY,), story.journal, has_predecessor=True)
    assert [Confirm()] == of_kind(story.go_online(), Confirm)
    story.state = initial(SETTINGS, (GATEWAY,), story.journal, has_predecessor=True)
    story.feed(Started())
    assert [UsePredecessor()] == of_kind(story.feed(Disconnected(1, REFUSED)), UsePredecessor)


def test_a_confirmation_is_tried_until_it_is_heard() -> None:
    """One lost answer would leave two keys that connect."""
    story = trying()
    story.feed(Connected(story.state.epoch, True), Subscribed(story.state.epoch))
    for _ in range(5):
        story.feed(ConfirmationFailed(AWAY))
        assert not status_line(story.state, story.now())["renewal"]["is_confirmed"]
        assert 1 == len(of_kind(pass_time(story, 4_000), Confirm))
    story.feed(Confirmed())
    assert status_line(story.state, story.now())["renewal"]["is_confirmed"]
    assert [] == of_kind(pass_time(story, DAY), Confirm)


def test_who_asked_hears_how_it_ended() -> None:
    """`device-agent renew` would wait for ever."""
    story = Story()
    story.go_online()
    story.application(number=7)
    assert [Renew(is_paced=True, is_fresh=False)] == of_kind(story.feed(AppSaid(7, AskRenewal())), Renew)
    (tell,) = [each for each in of_kind(story.feed(RenewalFailed(AWAY)), Tell) if each.line["type"] == "renewal"]
    assert (7, "failed", "service-error") == (tell.app, tell.line["state"], tell.line["code"])
    assert [] == of_kind(pass_time(story, DAY), Renew), "it was asked for once, and is not due"
    story.feed(AppSaid(7, AskRenewal()), SuccessorReady(NEXT), IdentityChanged(NEXT))
    story.seconds += 1
    story.feed(Tick())
    effects = story.feed(Connected(story.state.epoch, True), Subscribed(story.state.epoch))
    (tell,) = [each for each in of_kind(effects, Tell) if each.line["type"] == "renewal"]
    assert (7, "renewed", "60") == (tell.app, tell.line["state"], tell.line["serial"])


def test_a_home_that_cannot_be_written_keeps_the_certificate() -> None:
    """The agent would believe that it has another identity than the files say."""
    story = due()
    story.feed(SuccessorReady(NEXT), IdentityChanged(PRESENT, "No space left on device"))
    assert (PRESENT, "disk") == (story.state.settings.life, status_line(story.state, story.now())["renewal"]["code"])
    assert story.state.is_online


def test_an_agent_that_ends_changes_nothing_any_more() -> None:
    """The identity would change under the farewell, which would be lost."""
    story = due()
    story.feed(StopRequested())
    assert [] == of_kind(story.feed(SuccessorReady(NEXT)), UseSuccessor)
