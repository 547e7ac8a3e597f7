"""What a broker announces, and what dispatch makes of it: in the end it is the same, whatever is lost on the way."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.engine import Reason
from broker.engines.amqtt.announcing import FLUSH_SECONDS, Announcements
from broker.engines.amqtt.packets import Connect, Subscribe, Unsubscribe
from broker.engines.amqtt.session import FleetSession
from enroll.reports import SessionOver, SessionSeen
from enroll.roll import ASK_AGAIN_SECONDS, Moment, Recorded, Roll
from fleet import sessions
from fleet.identity import DeviceId, Principal, Role, Serial, State
from fleet.sessions import Alive, Began, Changes, Ended, Ending, Page
from tests.fuzz.hubs import NOW, PRINCIPALS, SmallBroker, Wire

A, B, OPERATOR = PRINCIPALS
GRACE_SECONDS: Final = 60.0


@dataclass
class Clockwork:
    """A loop whose time the test moves: what was asked for later is called when its time has come."""

    seconds: float = 1000.0
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _timers: list[tuple[float, int, _Timer]] = field(default_factory=list)

    def time(self) -> float:
        return self.seconds

    def call_soon(self, function: Callable[[], None]) -> _Timer:
        return self.call_later(0, function)

    def call_later(self, seconds: float, function: Callable[[], None]) -> _Timer:
        timer = _Timer(function)
        heapq.heappush(self._timers, (self.seconds + seconds, next(self._numbers), timer))
        return timer

    def advance(self, seconds: float) -> None:
        until = self.seconds + seconds
        while self._timers and self._timers[0][0] <= until:
            at, _, timer = heapq.heappop(self._timers)
            self.seconds = max(self.seconds, at)
            timer.run()
        self.seconds = until


@dataclass
class _Timer:
    function: Callable[[], None] | None

    def run(self) -> None:
        if self.function is not None:
            self.function()

    def cancel(self) -> None:
        self.function = None


Said = tuple[str, bytes, bool]
"""Topic, payload, and whether it is retained."""


def said_to(wire: Wire) -> list[Said]:
    """What the broker said on this wire, in its order."""
    found = []
    for frame in wire.sent:
        if frame[0] >> 4 == 3:
            at = next(at for at in range(1, 5) if frame[at] < 0x80) + 1
            end = at + 2 + int.from_bytes(frame[at : at + 2])
            assert not frame[0] & 6, "kept for who is not there"
            found.append((frame[at + 2 : end].decode(), frame[end:], bool(frame[0] & 1)))
    return found


class House:
    """A broker that announces, and an operator who listens, as dispatch would."""

    def __init__(self, boot: str = "b1") -> None:
        self.broker = SmallBroker()
        self.clockwork = Clockwork()
        loop = cast("asyncio.AbstractEventLoop", self.clockwork)
        self.announcements = Announcements(self.broker.hub, loop, boot, lambda: NOW)
        connected = self.broker.connect(OPERATOR, Connect("op", True, 0, None))
        assert connected is not None
        self.wire, self.session = connected

    def subscribe(self) -> None:
        self.broker.hub.handle(self.session, Subscribe(1, ((sessions.ALL, 1),)))

    def unsubscribe(self) -> None:
        self.broker.hub.handle(self.session, Unsubscribe(2, (sessions.ALL,)))

    def connect(self, who: Principal) -> FleetSession:
        found = self.broker.connect(who, Connect(who.id, True, 0, None))
        assert found is not None
        return found[1]

    def leave(self, who: Principal, reason: Reason = Reason.LOST) -> None:
        self.broker.hub.disconnect(who, reason)

    def settle(self) -> None:
        self.clockwork.advance(2 * FLUSH_SECONDS)

    def heard(self) -> list[Said]:
        """All that was said since the last call."""
        found = said_to(self.wire)
        self.wire.sent[:] = self.wire.sent[:1]  # CONNACK
        for topic, payload, _ in found:
            if isinstance(said := sessions.decode(topic, payload), Changes):
                assert list(range(said.first, said.last + 1)) == [each.seq for each in said.changes], "a wrong number"
        return found

    def moment(self) -> Moment:
        return Moment(self.clockwork.seconds, NOW + timedelta(seconds=self.clockwork.seconds))

    def truth(self) -> set[DeviceId]:
        clients = (client for _, client in self.broker.hub.live())
        return {client.principal.id for client in clients if client.principal.role is Role.DEVICE}

    def roll(self, recorded: Recorded | None = None, stopped: str = "") -> Roll:
        return Roll.begin("gw:8883", recorded or {}, GRACE_SECONDS, self.moment(), stopped)

    def tell(self, roll: Roll, said: list[Said]) -> None:
        for topic, payload, is_retained in said:
            roll.hear(sessions.decode(topic, payload), self.moment(), is_retained=is_retained)

    def reports(self, roll: Roll) -> list[SessionSeen | SessionOver]:
        return roll.take(1000, self.moment())


def told(reports: list[SessionSeen | SessionOver]) -> list[tuple[str, str]]:
    """Who came (no word) and who left (why)."""
    return [(each.device, each.ending if isinstance(each, SessionOver) else "") for each in reports]


def online(reports: list[SessionSeen | SessionOver]) -> set[DeviceId]:
    """Who is online once these were recorded."""
    found: set[DeviceId] = set()
    for each in reports:
        (found.add if isinstance(each, SessionSeen) else found.discard)(each.device)
    return found


def test_who_comes_and_goes_is_told_with_the_reason() -> None:
    """The history would not say why."""
    house = House()
    roll = house.roll()
    house.subscribe()
    house.connect(A)
    house.settle()
    house.leave(A, Reason.KEEPALIVE)
    house.settle()
    house.tell(roll, house.heard())
    assert [("a", ""), ("a", "keepalive")] == told(house.reports(roll))


def test_who_was_there_before_is_in_the_list() -> None:
    """After a start of the service everybody would seem to be gone."""
    house = House()
    house.connect(A)
    house.connect(B)
    house.leave(B, Reason.REVOKED)
    roll = house.roll({B.id: ("b1", 3)})
    house.subscribe()
    house.tell(roll, house.heard())
    assert roll.is_complete
    assert [("b", "revoked"), ("a", "")] == told(house.reports(roll))
    assert not roll.must_ask(Moment(house.clockwork.seconds + 100, NOW))


def test_a_storm_is_told_in_few_messages() -> None:
    """Two thousand devices that come back at once cost two thousand messages more."""
    house = House()
    house.subscribe()
    house.heard()
    for _ in range(1000):
        house.connect(A)
    house.settle()
    changes = [sessions.decode(topic, payload) for topic, payload, _ in house.heard() if topic == sessions.CHANGES]
    assert 1999 == sum(len(said.changes) for said in changes if isinstance(said, Changes))
    assert 10 == len(changes)


def test_while_nobody_listens_nothing_is_kept_but_who_is_there() -> None:
    """A fleet that nobody watches would fill the broker's memory."""
    house = House()
    for _ in range(3000):
        house.connect(A)
    assert [] == house.announcements._pending
    assert 1000 == len(house.announcements._ended)
    assert 2 == sum(map(len, house.announcements._lists))
    assert [] == house.heard()


def test_the_list_of_many_is_in_pieces() -> None:
    """Ten thousand sessions would be one message of two megabytes."""
    house = House()
    many = [Principal(Role.DEVICE, DeviceId(f"d{number}")) for number in range(600)]
    for each in many:
        house.broker.announce(each, State.ACTIVE)
        house.connect(each)
    roll = house.roll()
    house.subscribe()
    said = house.heard()
    assert 30_000 > max(len(payload) for _, payload, _ in said)
    house.tell(roll, said)
    assert roll.is_complete
    assert {each.id for each in many} == online(house.reports(roll))
    for each in many:
        house.leave(each)
    house.subscribe()
    house.tell(roll, house.heard())
    assert 600 == len(house.reports(roll))
    assert 2 > len([topic for topic, _, is_retained in house.heard() if is_retained])


def test_whoever_does_not_come_back_after_a_restart_is_offline_after_the_grace() -> None:
    """A device that is gone with its broker stays online for ever, or the whole fleet flickers at each restart."""
    house = House("b2")
    house.subscribe()
    roll = house.roll({A.id: ("b1", 7), B.id: ("b1", 9)})
    house.connect(B)
    house.settle()
    house.tell(roll, house.heard())
    assert [("b", "broker-restarted"), ("b", "")] == told(house.reports(roll))
    house.clockwork.advance(GRACE_SECONDS - 1)
    assert [] == house.reports(roll)
    house.clockwork.advance(1)
    (gone,) = house.reports(roll)
    assert isinstance(gone, SessionOver)
    assert ("a", Ending.RESTARTED, "b1", 7) == (gone.device, gone.ending, gone.boot, gone.number)
    assert abs(gone.at - NOW - timedelta(seconds=1000)) < timedelta(seconds=1), "when the broker began"


def test_a_broker_that_says_goodbye_was_stopped() -> None:
    """An admin looks for a crash that was none."""
    house = House("b1")
    house.subscribe()
    roll = house.roll()
    house.announcements.stop()
    house.tell(roll, house.heard())
    again = House("b2")
    again.subscribe()
    next_roll = again.roll({A.id: ("b1", 7)}, roll.stopped)
    again.clockwork.advance(GRACE_SECONDS)
    again.tell(next_roll, again.heard())
    assert [("a", "broker-stopped")] == told(again.reports(next_roll))


def test_a_status_without_a_session_counts_for_nothing() -> None:
    """A device that only says that it is online is listed as such."""
    house = House()
    house.clockwork.advance(GRACE_SECONDS)
    roll = house.roll({A.id: ("", 0)})
    house.subscribe()
    house.tell(roll, house.heard())
    assert [("a", "no-session")] == told(house.reports(roll))


def test_while_the_list_is_not_complete_nobody_is_given_up() -> None:
    """One list that is late has half a fleet offline."""
    house = House("b2")
    house.clockwork.advance(GRACE_SECONDS)
    roll = house.roll({A.id: ("b1", 1), B.id: ("b2", 2)})
    house.subscribe()
    alive = [each for each in house.heard() if each[0] == sessions.BROKER]
    house.tell(roll, alive)
    assert [] == house.reports(roll)
    assert not roll.must_ask(house.moment())
    house.clockwork.advance(ASK_AGAIN_SECONDS)
    assert roll.must_ask(house.moment())


@pytest.mark.parametrize("is_last", [False, True])
def test_what_is_missing_is_asked_for(is_last: bool) -> None:
    """A device that left in the moment that a queue was full stays online."""
    house = House()
    roll = house.roll()
    house.subscribe()
    house.connect(A)
    house.settle()
    house.tell(roll, house.heard())
    house.leave(A)
    house.settle()
    house.heard()  # lost
    if not is_last:
        house.connect(B)
        house.settle()
    house.clockwork.advance(sessions.HEARTBEAT_SECONDS)
    house.tell(roll, house.heard())
    assert roll.must_ask(house.moment())
    roll.asked(house.moment())
    house.subscribe()
    house.tell(roll, house.heard())
    assert not roll.must_ask(Moment(house.clockwork.seconds + 100, NOW))
    assert house.truth() == online(house.reports(roll))


@given(st.data())
def test_in_the_end_the_list_is_the_truth(data: st.DataObject) -> None:
    """Some order, loss or repetition of what is said leaves a device online that is not there, or offline."""
    house = House("b2")
    recorded: dict[DeviceId, tuple[str, int]] = {
        who.id: (data.draw(st.sampled_from(["", "b1", "b2"])), data.draw(st.integers(0, 5)))
        for who in (A, B)
        if data.draw(st.booleans())
    }
    roll, said, seen = house.roll(recorded), list[Said](), set(recorded)

    def take() -> None:
        for each in house.reports(roll):
            assert isinstance(each, SessionSeen) or each.device in seen, "who was not there left"
            (seen.add if isinstance(each, SessionSeen) else seen.discard)(each.device)

    for step in data.draw(
        st.lists(st.sampled_from(["a", "b", "-a", "-b", "sub", "unsub", "time", "hear"]), max_size=25)
    ):
        who = A if step.endswith("a") else B
        match step:
            case "a" | "b":
                house.connect(who)
            case "-a" | "-b":
                house.leave(who)
            case "sub":
                house.subscribe()
            case "unsub":
                house.unsubscribe()
            case "time":
                house.clockwork.advance(data.draw(st.sampled_from([0.05, 1.0, 11.0])))
            case "hear":
                said += house.heard()
                kept = [each for each in said if data.draw(st.integers(0, 3))]
                house.tell(roll, data.draw(st.permutations(kept)) if data.draw(st.booleans()) else kept)
                take()
    said += house.heard()
    house.subscribe()
    house.settle()
    last = house.heard()
    mixed = data.draw(st.permutations(last + [each for each in said if each[0] == sessions.CHANGES][-8:]))
    house.tell(roll, mixed)
    house.clockwork.advance(GRACE_SECONDS)
    take()
    assert house.truth() == seen


def came(seq: int, who: Principal = A) -> Changes:
    began = Began(seq, who.id, who, Serial("a"), "10.0.0.7:1", NOW)
    return Changes("b1", seq, seq, (began,))


def went(seq: int, began: int) -> Changes:
    return Changes("b1", seq, seq, (Ended(seq, A.id, began, Ending.LOST, NOW),))


def listed(seq: int, *changes: Changes) -> Page:
    found = [each for said in changes for each in said.changes if isinstance(each, Began)]
    return Page("b1", seq, 1, 0, tuple(found))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([listed(9, came(7)), went(6, 3)], [("a", "")]),
        ([listed(9, came(7)), came(3)], [("a", "")]),
        ([listed(9), came(7)], []),
        ([listed(9), listed(4, came(3))], []),
        ([went(9, 7), came(7), listed(8, came(7))], []),
        ([came(7), listed(9)], [("a", ""), ("a", "unheard")]),
        ([listed(9), came(10), listed(9)], [("a", "")]),
        ([came(10), listed(9)], [("a", "")]),
        ([came(3), came(7)], [("a", ""), ("a", "unheard"), ("a", "")]),
        ([came(3, OPERATOR), listed(4, came(3, OPERATOR))], []),
    ],
)
def test_what_has_the_highest_number_holds(said: list[Page | Changes], expected: list[tuple[str, str]]) -> None:
    """What comes late or twice says who is there."""
    house = House()
    roll = house.roll()
    for each in said:
        roll.hear(each, house.moment(), is_retained=False)
    assert expected == told(house.reports(roll))


def test_who_listens_again_is_told_the_right_numbers() -> None:
    """What was still to be told when the last listener went is told as something else."""
    house = House()
    house.subscribe()
    house.connect(A)
    house.unsubscribe()
    house.connect(B)
    house.subscribe()
    house.settle()
    assert not [topic for topic, _, _ in house.heard() if topic == sessions.CHANGES]
    house.leave(B)
    house.settle()
    assert [sessions.CHANGES] == [topic for topic, _, _ in house.heard()]


def test_lists_are_remembered_of_two_divisions() -> None:
    """A broker that divides its lists anew each time fills the memory."""
    house = House()
    roll = house.roll()
    for buckets in (2, 3, 4):
        roll.hear(Page("b1", buckets, buckets, 0, ()), house.moment(), is_retained=True)
    roll.hear(Page("b1", 5, 2, 1, ()), house.moment(), is_retained=True)
    assert not roll.is_complete, "the first of two is known still"


def test_old_lists_displace_none_that_are_new() -> None:
    """Lists that come late bring back who has left."""
    house = House()
    roll = house.roll()
    for buckets, seq in ((1, 30), (2, 20), (3, 5), (4, 6), (5, 7)):
        for bucket in range(buckets):
            roll.hear(Page("b1", seq, buckets, bucket, ()), house.moment(), is_retained=True)
        assert roll.is_complete
    roll.hear(came(25), house.moment(), is_retained=False)
    assert not house.reports(roll)


def test_of_another_start_nothing_is_heard() -> None:
    """Numbers of two starts are compared with each other."""
    house = House()
    roll = house.roll()
    roll.hear(Alive("b1", 0, 0.0), house.moment(), is_retained=True)
    roll.hear(Alive("b2", 9, 0.0, is_stopping=True), house.moment(), is_retained=False)
    assert ("", False) == (roll.stopped, roll.must_ask(house.moment()))
