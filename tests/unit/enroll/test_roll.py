"""Who has a session, from words of a broker that come late, twice, or not at all."""

from __future__ import annotations

from datetime import timedelta

import pytest

from enroll.reports import SessionSeen
from enroll.roll import ASK_AGAIN_SECONDS, Moment, Roll
from fleet.identity import DeviceId, Principal, Role, Serial
from fleet.sessions import Alive, Began, Changes, Ended, Ending, Page
from tests.fleets import NOW

BOOT = "b1"
PUMP = DeviceId("pump-07")
SOON = Moment(1.0, NOW)
LATER = Moment(2.0 + ASK_AGAIN_SECONDS, NOW)


def new_roll() -> Roll:
    """One that knows of nobody, as the list has been asked for."""
    return Roll.begin("gw:8883", {}, 60.0, Moment(0.0, NOW))


def began(seq: int, ahead: timedelta = timedelta(0)) -> Began:
    return Began(seq, PUMP, Principal(Role.DEVICE, PUMP), Serial("ab12"), "10.0.0.7:1", NOW + ahead)


def page(seq: int, *sessions: Began) -> Page:
    return Page(BOOT, seq, 1, 0, sessions)


def test_a_list_that_comes_late_takes_nothing_back() -> None:
    """A device that has left is online again, by a change that is older than the list that it is not in."""
    roll = new_roll()
    for said in (page(10), page(5), Changes(BOOT, 6, 6, (began(6),))):
        roll.hear(said, SOON, is_retained=False)
    assert [] == roll.take(10, SOON)


def test_who_came_again_does_not_leave_by_a_list_of_those_that_left() -> None:
    """Each list has a device leave that was away for a moment some time ago, and come back."""
    roll = new_roll()
    roll.hear(Changes(BOOT, 3, 3, (began(3),)), SOON, is_retained=False)
    left = Ended(2, PUMP, 1, Ending.LOST, NOW)
    roll.hear(Page(BOOT, 5, 1, 0, (began(3),), (left,)), SOON, is_retained=True)
    (seen,) = roll.take(10, SOON)
    assert isinstance(seen, SessionSeen)
    assert 3 == seen.number


@pytest.mark.parametrize(("seq", "is_lacking"), [(2, True), (3, True), (4, False), (7, False)])
def test_what_happened_between_the_list_and_the_first_change_is_asked_for(seq: int, is_lacking: bool) -> None:
    """Who came between the two is offline for as long as it stays."""
    roll = new_roll()
    roll.hear(Changes(BOOT, 5, 5, (began(5),)), SOON, is_retained=False)
    roll.hear(Alive(BOOT, seq, 100.0), SOON, is_retained=True)
    roll.hear(page(seq), SOON, is_retained=True)
    assert is_lacking == roll.must_ask(LATER)
    roll.asked(LATER)
    assert not roll.must_ask(LATER)


def test_nobody_is_online_since_tomorrow() -> None:
    """A broker whose clock is ahead has devices that were away for less than nothing."""
    roll = new_roll()
    roll.hear(page(1, began(1, ahead=timedelta(days=1))), SOON, is_retained=True)
    (seen,) = roll.take(10, SOON)
    assert isinstance(seen, SessionSeen)
    assert NOW == seen.since
