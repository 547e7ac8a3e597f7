"""Who is online, from status, will and the broker's word, and what is kept of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enroll import presence
from enroll.bookkeeping import Books
from enroll.registry import Registry, feed, history, identity, messaging, overview
from enroll.registry.records import PresenceChange, PresenceRecord, PrincipalRecord
from enroll.reports import HelloSeen, Report, SessionOver, SessionSeen, StatusSeen
from fleet.identity import DeviceId, Principal, Role, State
from fleet.messages import Envelope, Presence, StatusMessage
from fleet.sessions import Ending
from tests.fleets import NOW

PUMP, VALVE = DeviceId("pump-07"), DeviceId("valve-1")
SECOND = timedelta(seconds=1)
GATEWAY = "gw:8883"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """A registry with two devices."""
    with Registry.open(tmp_path / "registry.db") as opened:
        with opened.write() as transaction:
            feed.set_feed(transaction, "feed")
            for device in (PUMP, VALVE):
                record = PrincipalRecord(Principal(Role.DEVICE, device), State.ACTIVE, 1, (), NOW)
                identity.add_principal(transaction, record)
        yield opened


def at(seconds: float) -> datetime:
    return NOW + seconds * SECOND


def status(what: Presence, reason: str = "", version: str = "", *, is_retained: bool = False) -> StatusSeen:
    return StatusSeen(PUMP, StatusMessage(Envelope(PUMP, NOW, "boot", 1), what, reason, version), is_retained)


def seen(number: int, seconds: float = 0, boot: str = "b1") -> SessionSeen:
    return SessionSeen(PUMP, boot, number, at(seconds), f"10.0.0.7:{number}", GATEWAY)


def over(number: int, ending: Ending = Ending.LOST, seconds: float = 0, boot: str = "b1") -> SessionOver:
    return SessionOver(PUMP, boot, number, ending, at(seconds), GATEWAY)


def fuse(
    before: PresenceRecord | None, report: Report, now: datetime, *, is_witnessed: bool = True
) -> presence.Fused | None:
    """As bookkeeping does it."""
    match report:
        case StatusSeen():
            return presence.status(before, report, now, is_witnessed=is_witnessed)
        case HelloSeen():
            return presence.hello(before, report, now, is_witnessed=is_witnessed)
        case SessionSeen():
            return presence.session_seen(before, report, now)
        case SessionOver():
            return presence.session_over(before, report, now)
        case _:
            raise AssertionError(report)


def told(*reports: Report, is_witnessed: bool = True) -> tuple[PresenceRecord, list[PresenceChange]]:
    """What is recorded after these reports, one a second."""
    before, changes = None, list[PresenceChange]()
    for number, report in enumerate(reports):
        if fused := fuse(before, report, at(number), is_witnessed=is_witnessed):
            before, changes = fused.after, [*changes, *fused.changes]
    assert before is not None
    return before, changes


def words(changes: list[PresenceChange]) -> list[str]:
    return ["online" if change.is_online else change.reason for change in changes]


@pytest.mark.parametrize(
    ("reports", "is_online", "reason"),
    [
        ([seen(1)], True, ""),
        ([seen(1), over(1, Ending.KEEPALIVE)], False, "keepalive"),
        ([seen(1), status(Presence.OFFLINE, "connection lost")], True, ""),
        ([status(Presence.ONLINE)], False, "no-session"),
        ([status(Presence.ONLINE, is_retained=True)], False, "no-session"),
        ([HelloSeen(PUMP, "1.0")], False, ""),
        ([status(Presence.ONLINE), seen(1)], True, ""),
        ([seen(1), over(1, Ending.REVOKED), status(Presence.ONLINE)], False, "revoked"),
        ([seen(1), over(1), seen(3), over(1)], True, ""),
        ([seen(3), seen(1), over(1)], True, ""),
        ([seen(1), seen(3), over(3, Ending.TAKEN_OVER)], False, "taken-over"),
        ([seen(1), over(9, Ending.RESTARTED, boot="b0")], False, "broker-restarted"),
    ],
)
def test_the_broker_is_believed_before_the_device(reports: list[Report], is_online: bool, reason: str) -> None:
    """A status from long ago, or a will that came late, would say who is there."""
    found, _ = told(*reports)
    assert (is_online, reason) == (found.is_online, found.reason)


def test_what_a_device_says_when_it_leaves_is_kept_beside_the_reason() -> None:
    """An admin would know that it said goodbye, and not why."""
    found, changes = told(
        seen(1),
        status(Presence.ONLINE, version="1.2"),
        status(Presence.OFFLINE, "stopped"),
        over(1, Ending.DISCONNECTED),
    )
    assert ("disconnected", "stopped", "1.2") == (found.reason, changes[-1].said, found.agent_version)
    assert ("10.0.0.7:1", GATEWAY) == (changes[-1].address, changes[-1].broker)
    _, changes = told(seen(1), status(Presence.OFFLINE, "stopped"), over(1), seen(3), over(3))
    assert "" == changes[-1].said, "of the session before"


@pytest.mark.parametrize("is_witnessed", [True, False])
def test_what_is_wrong_with_a_device_that_is_online_is_kept_until_it_says_that_it_is_well(is_witnessed: bool) -> None:
    """An admin would never hear that the storage of a device is read-only; or for ever."""
    unwell, well = status(Presence.ONLINE, "storage is read-only"), status(Presence.ONLINE)
    session = [seen(1)] if is_witnessed else []
    hello = HelloSeen(PUMP, "1.0")
    orders: list[list[Report]] = [[*session, unwell, hello], [unwell, *session, hello], [well, *session, hello, unwell]]
    for order in orders:
        found, changes = told(*order, is_witnessed=is_witnessed)
        assert (True, "storage is read-only") == (found.is_online, found.said)
        assert {True} == {change.is_online for change in changes}
    found, _ = told(*session, unwell, hello, well, is_witnessed=is_witnessed)
    assert "" == found.said
    kept = status(Presence.ONLINE, "storage is read-only", is_retained=True)
    found, _ = told(*session, well, kept, is_witnessed=is_witnessed)
    assert "storage is read-only" == found.said, "heard by a dispatch that was away"


def test_how_long_it_was_what_it_was_is_kept() -> None:
    """The history would not say for how long a device was away."""
    _, changes = told(seen(1, 0), over(1, seconds=1), seen(3, 2), over(3, seconds=3))
    assert [None, at(0), at(1), at(2)] == [change.before for change in changes]
    assert [0, 1, 2, 3] == [change.number for change in changes]


def test_an_end_that_nobody_told_is_noted() -> None:
    """Two sessions would look like one."""
    assert ["online", "unheard", "online"] == words(told(seen(1), seen(5, 1))[1])


def test_a_broker_that_does_not_tell_leaves_it_to_the_device() -> None:
    """With Mosquitto nobody would ever be online."""
    found, changes = told(
        status(Presence.ONLINE),
        status(Presence.OFFLINE, "connection lost"),
        HelloSeen(PUMP, "1.0"),
        status(Presence.OFFLINE, "stopped"),
        is_witnessed=False,
    )
    assert (False, "stopped", "1.0") == (found.is_online, found.reason, found.agent_version)
    assert ["online", "connection lost", "online", "stopped"] == words(changes)


def test_when_a_broker_tells_no_more_the_device_is_believed_again() -> None:
    """After a change of the engine everybody stays as they were."""
    online, _ = told(seen(1), status(Presence.ONLINE))
    gone = fuse(online, status(Presence.OFFLINE, "connection lost"), at(9), is_witnessed=False)
    assert gone is not None
    assert (False, "connection lost", "") == (gone.after.is_online, gone.after.reason, gone.after.boot)


def test_no_time_is_before_the_one_before_it() -> None:
    """A broker whose clock is wrong would make a history that runs backwards."""
    _, changes = told(seen(1, 0), over(1, seconds=-50), seen(3, -70), over(3, seconds=1e6))
    assert sorted(each.at for each in changes) == [each.at for each in changes]
    assert changes[-1].at == at(3)


_sessions = st.integers(1, 6)
_reports: st.SearchStrategy[Report] = st.one_of(
    st.builds(seen, _sessions.map(lambda number: 2 * number)),
    st.builds(over, _sessions.map(lambda number: 2 * number), st.sampled_from(Ending)),
    st.builds(status, st.sampled_from(Presence), st.sampled_from(["", "stopped"]), is_retained=st.booleans()),
    st.just(HelloSeen(PUMP, "1.0")),
)


@given(st.lists(_reports, max_size=12), st.booleans(), st.lists(_reports.filter(lambda r: isinstance(r, StatusSeen))))
def test_after_whatever_was_said_the_last_word_of_the_broker_holds(
    before: list[Report], is_there: bool, later: list[Report]
) -> None:
    """Some order, loss or repetition of status, will and sessions leaves a device online that is not there."""
    last: Report = seen(100) if is_there else over(100, Ending.KEEPALIVE)
    found, changes = told(*before, seen(99), last, *later)
    assert is_there == found.is_online
    assert is_there or "keepalive" == found.reason
    assert [change.number for change in changes] == list(range(found.changes))
    states = [change.is_online for change in changes]
    assert all(one != other for one, other in pairwise(states)), "a change that is none"


# What is kept


def kept(registry: Registry, device: DeviceId = PUMP) -> list[PresenceChange]:
    with registry.read() as transaction:
        return history.last(transaction, device)


def test_sessions_are_recorded_and_listed(registry: Registry) -> None:
    """`enroll device list` would not show who is there, or `history` why it left."""
    books = Books(registry)
    books.enter([seen(1), replace(seen(2), device=VALVE)], [], at(0), is_witnessed=True)
    assert {PUMP: ("b1", 1), VALVE: ("b1", 2)} == books.who_is_online()
    books.enter([over(1, Ending.KEEPALIVE)], [], at(5), is_witnessed=True)
    assert {VALVE: ("b1", 2)} == books.who_is_online()
    assert ["keepalive", "online"] == words(kept(registry))
    with registry.read() as transaction:
        assert 1 == overview.counts(transaction)["online"]
        found = messaging.find_presence(transaction, PUMP)
    assert found is not None
    assert ("b1", 1, "10.0.0.7:1", GATEWAY, 2) == (
        found.boot,
        found.session,
        found.address,
        found.broker,
        found.changes,
    )


def test_of_each_device_so_many_changes_are_kept_and_no_more(registry: Registry) -> None:
    """A device that comes and goes for years fills the gateway's disk."""
    with registry.write() as transaction:
        for number in range(3 * history.KEPT):
            change = PresenceChange(number, at(number), bool(number % 2), "", "", "", "", None)
            history.add(transaction, PUMP, change)
    found = kept(registry)
    assert list(range(3 * history.KEPT - 1, 2 * history.KEPT - 1, -1)) == [change.number for change in found]


def test_a_device_that_flaps_is_counted_and_not_written_each_time(registry: Registry) -> None:
    """One certified device wears the gateway's SD card out."""
    books = Books(registry)
    for number in range(1, 101):
        books.enter([seen(2 * number), over(2 * number)], [], at(number / 10), is_witnessed=True)
    assert 20 == len(kept(registry))
    books.enter([seen(1000, 100)], [], at(100), is_witnessed=True)
    assert 200 == kept(registry)[0].number, "how often it did is known"


def test_a_session_of_nobody_spoils_no_other(registry: Registry) -> None:
    """A device that was removed while it was connected would hold up the whole list."""
    books = Books(registry)
    books.enter([replace(seen(1), device=DeviceId("nobody")), seen(2)], [], at(0), is_witnessed=True)
    assert {PUMP: ("b1", 2)} == books.who_is_online()


def test_what_is_given_to_who_is_connected_waits_until_it_takes_commands(registry: Registry) -> None:
    """A command would go out before its device has subscribed, and be lost with a clean session."""
    from enroll import commands

    books = Books(registry)
    books.enter([seen(1)], [], at(0), is_witnessed=True)
    order = commands.Order("echo", {}, at(60))
    given = commands.send(registry, PUMP, order, commands.Giver("test", NOW, bytes)).id
    assert [] == [command.id for command in books.agenda(at(1)).due]
    books.enter([status(Presence.ONLINE)], [], at(1), is_witnessed=True)
    assert [given] == [command.id for command in books.agenda(at(1)).due]
    books.enter([over(1)], [], at(2), is_witnessed=True)
    assert [] == [command.id for command in books.agenda(at(2)).due]
