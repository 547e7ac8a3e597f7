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


# A certificate that has expired -----------------------------------------------------------------------------------

SAYS_EXPIRED = Failure(Cause.REFUSED, str(GATEWAY), "sslv3 alert certificate expired")
WAITS = Problem("waiting-for-approval", "request abcd", "enroll request approve abcd", 5.0)


def expired(seconds: float = 1.0) -> Story:
    """An agent that starts when its certificate has expired."""
    return Story(seconds=90 * DAY + seconds)


def test_one_that_has_expired_is_followed_at_once() -> None:
    """A device from a drawer would stay offline for as long as a crowd is spread over."""
    story = expired()
    story.feed(Started())
    assert 1 == len(of_kind(pass_time(story, 60), Renew))


def test_failures_to_recover_are_retried_for_ever() -> None:
    """A device would give up, or hammer a service that is away."""
    story, waits = expired(), []
    story.chance = 0.999
    story.feed(Started())
    pass_time(story, 60)
    for _ in range(20):
        story.feed(RenewalFailed(AWAY))
        began = story.seconds
        while not of_kind(pass_time(story, 1), Renew):
            assert story.seconds - began < 3_700
        waits.append(story.seconds - began)
    assert waits[0] <= 61
    assert max(waits) > 1_000


def test_it_is_said_what_becomes_of_it() -> None:
    """Whoever stands before the device would read "refused", and fetch a new token."""
    story = expired()
    story.feed(Started(), Disconnected(1, SAYS_EXPIRED))
    line = status_line(story.state, story.now())
    assert ("recovering", "waiting") == (line["code"], line["state"])
    assert "has expired on 2027-02-19 08:00 UTC: recovering" in line["words"]
    for problem in (AWAY, WAITS, Problem("recovery-refused", "pump-07 is revoked", "ask an admin")):
        pass_time(story, 4_000)
        story.feed(RenewalFailed(problem))
        line = status_line(story.state, story.now())
        assert ("recovering" if problem is AWAY else problem.code) == line["code"]
        assert problem.message in line["words"]
        assert problem.hint == line["hint"]


def test_a_server_that_says_so_is_believed_before_our_clock() -> None:
    """A Pi that starts in 1970 would wait for its certificate's renewal for 56 years."""
    story = Story(chance=0.5)
    story.feed(Started())
    assert [] == of_kind(pass_time(story, 40), Renew)
    story.feed(Disconnected(1, SAYS_EXPIRED))
    assert "recovering" == status_line(story.state, story.now())["code"]
    assert 1 == len(of_kind(pass_time(story, 31), Renew))


def test_a_successor_that_has_expired_unused_is_not_given_back() -> None:
    """The key that the service waits for would be put away for one that it does not take any more."""
    story = expired()
    story.state = initial(SETTINGS, (GATEWAY,), story.journal, has_predecessor=True)
    story.feed(Started())
    for _ in range(5):
        effects = story.feed(Disconnected(story.state.epoch, SAYS_EXPIRED))
        assert [] == of_kind(effects, UsePredecessor)
        pass_time(story, 200)
    assert 1 == len([each for each in story.effects if isinstance(each, Renew)])


def test_who_waits_for_an_admin_asks_as_often_as_it_is_told() -> None:
    """The device would come an hour after the admin has approved it, or start a process every second."""
    story = expired()
    story.feed(Started())
    pass_time(story, 60)
    effects: list[Any] = []
    for asked, longest in ((2.0, 10.0 + 30), (300.0, 300.0 + 30)):
        for _ in range(10):
            effects = story.feed(RenewalFailed(replace(WAITS, retry_seconds=asked)))
            assert [] == of_kind(pass_time(story, max(asked, 10.0) - 1), Renew)
            assert 1 == len(of_kind(pass_time(story, longest), Renew))
    assert [] == [log for log in of_kind(effects, Log) if log.name == "renewal.failed"], "the same line each time"


def test_applications_may_ask_once_a_minute_after_a_few_times() -> None:
    """A firmware in a loop would keep the device busy with processes, and the fleet with certificates."""
    story, answers = Story(), []
    story.go_online()
    story.application(number=7)
    for _ in range(9):
        effects = story.feed(AppSaid(7, AskRenewal()))
        effects += story.feed(RenewalFailed(AWAY))
        answers += [each.line["code"] for each in of_kind(effects, Tell) if each.line["type"] == "renewal"]
    assert ["service-error"] * 5 + ["too-soon"] * 4 == answers
    assert 5 == len([each for each in story.effects if isinstance(each, Renew)])
    story.seconds += 60
    story.feed(AppSaid(7, AskRenewal()), RenewalFailed(AWAY), AppSaid(7, AskRenewal()))
    assert 6 == len([each for each in story.effects if isinstance(each, Renew)])


def test_who_asks_twice_is_answered_once() -> None:
    """An application that says nothing else would fill the memory."""
    story = due()
    story.application(number=7)
    for _ in range(1000):
        story.feed(AppSaid(7, AskRenewal()))
    assert (7,) == story.state.renewal.askers
