"""Any order of connects, packets, losses and revocations: nobody hears or keeps what is not theirs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.engine import Reason
from broker.engines.amqtt.journal import Journal
from broker.engines.amqtt.packets import (
    Connect,
    Disconnect,
    ProtocolViolation,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    Unsubscribe,
    Will,
)
from broker.engines.amqtt.session import FleetSession
from fleet.identity import Principal, Role, State
from fleet.policy import DEFAULT_POLICY, Action
from tests.fuzz.hubs import PRINCIPALS, SmallBroker, Wire

UPLINKS = ["devices/a/up/x", "devices/a/up/status", "devices/b/up/x"]
DOWNLINKS = ["devices/a/down/x", "devices/b/down/x", "fleet/notices/x"]
TOPICS = st.sampled_from(UPLINKS + DOWNLINKS)
FILTERS = st.sampled_from(
    [*UPLINKS[:1], *DOWNLINKS[1:2], "#", "devices/+/up/#", "devices/a/down/#", "devices/b/down/#"]
)
QOS = st.integers(0, 2)
IDS = st.integers(1, 4)
WHO = st.sampled_from(PRINCIPALS)
# Weighted towards what is allowed: whoever is refused has no adventures.
STATES = st.sampled_from([State.ACTIVE] * 4 + [State.REVOKED, State.SUSPENDED, State.REMOVED])
WILLS = st.none() | st.none() | st.builds(Will, TOPICS, st.just(b"w"), QOS, st.booleans())
SUFFIX = st.sampled_from(["", "", "", ":1", ":2"])


class HubMachine(RuleBasedStateMachine):
    """Drives a hub as listeners would."""

    def __init__(self, journal: Journal | None = None) -> None:
        super().__init__()
        self.broker = SmallBroker(journal)
        self.hub, self.directory, self.live = self.broker.hub, self.broker.directory, self.broker.live

    @rule(who=WHO, suffix=SUFFIX, clean=st.booleans(), will=WILLS)
    def connect(self, who: Principal, suffix: str, clean: bool, will: Will | None) -> None:
        entry = self.directory.entry(who.id)
        assert entry is not None
        if self.broker.connect(who, Connect(who.id + suffix, clean, 60, will)) is None:
            may_will = will is None or DEFAULT_POLICY.decide(who, Action.PUBLISH, will.topic).allowed
            is_own = not suffix or who.role is Role.OPERATOR
            is_full = len({s.client_id for w, s in self.live() if w.principal == who} - {who.id + suffix}) >= 2
            assert not (entry.state is State.ACTIVE and may_will and is_own) or is_full

    def let_in(self) -> list[tuple[Wire, FleetSession]]:
        """Those who are read: not while CONNACK waits for the disk."""
        return [(wire, session) for wire, session in self.live() if wire.sent]

    @precondition(lambda self: self.let_in())
    @rule(data=st.data())
    def packet(self, data: st.DataObject) -> None:
        wire, session = data.draw(st.sampled_from(self.let_in()), "who")
        denied = self.hub.stats().denied
        packet = data.draw(
            st.one_of(
                st.builds(_publish, TOPICS, st.sampled_from([b"", b"1"]), QOS, IDS, st.booleans()),
                st.builds(Subscribe, IDS, st.lists(st.tuples(FILTERS, QOS), min_size=1, max_size=2).map(tuple)),
                st.builds(Unsubscribe, IDS, st.lists(FILTERS, min_size=1, max_size=2).map(tuple)),
                st.builds(Puback, IDS),
                st.builds(Pubrec, IDS),
                st.builds(Pubrel, IDS),
                st.builds(Pubcomp, IDS),
                st.builds(Disconnect),
            ),
            "packet",
        )
        try:
            self.hub.handle(session, packet)
        except ProtocolViolation:
            self.hub.leave(session, Reason.PROTOCOL)
        if isinstance(packet, Publish):
            may = DEFAULT_POLICY.decide(wire.principal, Action.PUBLISH, packet.topic).allowed
            assert denied + (not may) == self.hub.stats().denied

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        _, session = data.draw(st.sampled_from(self.live()), "who")
        self.hub.leave(session, Reason.LOST)

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def stop_or_go_on_reading(self, data: st.DataObject) -> None:
        wire, session = data.draw(st.sampled_from(self.live()), "who")
        wire.has_stopped_reading = not wire.has_stopped_reading
        if not wire.is_congested:
            session.pump()

    @precondition(lambda self: self.broker.seq < len(self.broker.wires) + 6)  # not all the time
    @rule(who=WHO, state=STATES)
    def change(self, who: Principal, state: State) -> None:
        self.broker.announce(who, state)
        for wire, _ in self.live():
            assert wire.principal != who, "a certificate that was replaced or revoked is still connected"
        assert not any(session.owner == who.id for session in self.hub.sessions.values())

    @rule(who=WHO, data=st.data())
    def an_older_line(self, who: Principal, data: st.DataObject) -> None:
        entry = self.directory.entry(who.id)
        assert entry is not None
        old = replace(entry, seq=data.draw(st.integers(0, entry.seq)), state=data.draw(st.sampled_from(State)))
        assert () == self.directory.apply_found(old)

    @invariant()
    def all_is_well(self) -> None:
        self.broker.check()


def _publish(topic: str, payload: bytes, qos: int, id: int, retain: bool) -> Publish:
    message = Publish.of(topic, payload, qos, retain=retain)
    message.packet_id = id if qos else 0
    return message


class DurableHubMachine(HubMachine):
    """The same with a disk, whose commits come when they please and may fail."""

    def __init__(self) -> None:
        super().__init__(Journal(lambda: None, lambda: None))

    @rule(fails=st.booleans())
    def commit(self, fails: bool) -> None:
        self.broker.commit(fails=fails)

    @rule()
    def compare(self) -> None:
        self.broker.what_is_on_disk_is_what_there_is()

    def teardown(self) -> None:
        self.broker.what_is_on_disk_is_what_there_is()


TestHub = pytest.mark.fuzz(HubMachine.TestCase)
TestDurableHub = pytest.mark.fuzz(DurableHubMachine.TestCase)
