"""Any order of connects, packets, losses and revocations: nobody hears or keeps what is not theirs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.directory import Directory
from broker.engine import Reason, Rules
from broker.engines.amqtt.admission import Admitted
from broker.engines.amqtt.hub import Hub
from broker.engines.amqtt.identity import PeerIdentity
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
from fleet.directory import Entry
from fleet.identity import DeviceId, Principal, Role, Serial, State
from fleet.limits import Limits
from fleet.policy import DEFAULT_POLICY, Action

NOW = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
PRINCIPALS = (
    Principal(Role.DEVICE, DeviceId("a")),
    Principal(Role.DEVICE, DeviceId("b")),
    Principal(Role.OPERATOR, DeviceId("op")),
)
LIMITS = Limits(
    sessions_per_principal=2,
    inflight_per_session=2,
    queued_messages_per_session=4,
    subscriptions_per_session=3,
    retained_per_principal=2,
)
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


@dataclass(eq=False)
class Wire:
    """What a client has been sent; it may stop reading."""

    principal: Principal
    serial: Serial
    is_congested: bool = False
    ended: Reason | None = None
    sent: list[bytes] = field(default_factory=list)

    def send(self, frame: bytes) -> None:
        assert self.ended is None, "written to after its end"
        self.sent.append(frame)

    def end(self, reason: Reason, detail: str = "") -> None:
        self.ended = reason

    def published(self) -> Iterator[tuple[str, int, int]]:
        """Topic, QoS and packet id of each PUBLISH."""
        for frame in self.sent:
            if frame[0] >> 4 == 3:
                body = frame[2:] if frame[1] < 0x80 else frame[3:]  # no frame here is longer than 16 KB
                size = int.from_bytes(body[:2])
                qos = frame[0] >> 1 & 3
                yield body[2 : 2 + size].decode(), qos, int.from_bytes(body[2 + size : 4 + size]) if qos else 0


async def _look_up(_serial: Serial) -> None:
    return None


class HubMachine(RuleBasedStateMachine):
    """Drives a hub as listeners would."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Directory()
        self.hub = Hub(
            Rules(DEFAULT_POLICY, self.directory, _look_up, lambda: True), LIMITS, lambda: NOW, lambda _: None
        )
        self.seq = 0
        self.wires: list[tuple[Wire, FleetSession]] = []
        for principal in PRINCIPALS:
            self.announce(principal, State.ACTIVE)

    def announce(self, principal: Principal, state: State) -> None:
        """A new certificate, a new enrolment, a new line of the directory."""
        self.seq += 1
        entry = Entry(self.seq, principal, state, self.seq, frozenset({Serial(f"{self.seq:x}")}))
        for change in self.directory.apply_found(entry):
            self.hub.apply(change)

    def live(self) -> list[tuple[Wire, FleetSession]]:
        return [(wire, session) for wire, session in self.wires if wire.ended is None]

    @rule(who=WHO, suffix=SUFFIX, clean=st.booleans(), will=WILLS)
    def connect(self, who: Principal, suffix: str, clean: bool, will: Will | None) -> None:
        entry = self.directory.entry(who.id)
        assert entry is not None
        (serial,) = entry.serials
        connect = Connect(who.id + suffix, clean, 60, will)
        decision = self.hub.decide(connect, PeerIdentity(who.id, serial, NOW))
        if isinstance(decision, Admitted):
            wire = Wire(who, serial)
            self.wires.append((wire, self.hub.register(connect, decision, serial, "?", wire)))
            assert b"\x20\x02" == wire.sent[0][:2], "CONNACK is not first"
        else:
            may_will = will is None or DEFAULT_POLICY.decide(who, Action.PUBLISH, will.topic).allowed
            is_own = not suffix or who.role is Role.OPERATOR
            is_full = len({s.client_id for w, s in self.live() if w.principal == who} - {who.id + suffix}) >= 2
            assert not (entry.state is State.ACTIVE and may_will and is_own) or is_full

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def packet(self, data: st.DataObject) -> None:
        wire, session = data.draw(st.sampled_from(self.live()), "who")
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
        wire.is_congested = not wire.is_congested
        if not wire.is_congested:
            session.pump()

    @precondition(lambda self: self.seq < len(self.wires) + 6)  # not all the time
    @rule(who=WHO, state=STATES)
    def change(self, who: Principal, state: State) -> None:
        self.announce(who, state)
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
    def everyone_who_is_connected_is_admitted(self) -> None:
        for wire, session in self.live():
            assert self.directory.admits(wire.principal.id, wire.serial)
            assert self.hub.sessions[session.client_id] is session
            assert session.link is wire

    @invariant()
    def nobody_was_sent_what_they_may_not_read(self) -> None:
        for wire, _ in self.wires:
            for topic, _, _ in wire.published():
                assert DEFAULT_POLICY.decide(wire.principal, Action.SUBSCRIBE, topic).allowed, (wire.principal, topic)

    @invariant()
    def nothing_is_kept_beyond_its_bounds(self) -> None:
        hub = self.hub
        assert hub.subscriptions.count == sum(len(session.filters) for session in hub.sessions.values())
        for session in hub.sessions.values():
            assert len(session.deliveries) <= LIMITS.inflight_per_session
            assert len(session.received_ids) <= LIMITS.inflight_per_session
            assert len(session.waiting) <= LIMITS.queued_messages_per_session
            assert len(session.filters) <= LIMITS.subscriptions_per_session
            assert session.link is not None or not session.clean_session
        for principal in PRINCIPALS:
            owned = [session for session in hub.sessions.values() if session.owner == principal.id]
            assert len(owned) <= (LIMITS.sessions_per_principal if principal.role is Role.OPERATOR else 1)

    @invariant()
    def what_was_released_is_forgotten(self) -> None:
        owners = {session.owner for session in self.hub.sessions.values()}
        assert owners == set(self.hub._of_owner)
        if not self.hub.sessions:
            assert self.hub.subscriptions._root.is_bare()


def _publish(topic: str, payload: bytes, qos: int, id: int, retain: bool) -> Publish:
    message = Publish.of(topic, payload, qos, retain=retain)
    message.packet_id = id if qos else 0
    return message


TestHub = pytest.mark.fuzz(HubMachine.TestCase)
