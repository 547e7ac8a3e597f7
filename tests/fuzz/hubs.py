"""A small broker without sockets, its clients, and what has to be true of it after every step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from broker.directory import Directory
from broker.engine import Reason, Rules
from broker.engines.amqtt.admission import Admitted
from broker.engines.amqtt.hub import Hub
from broker.engines.amqtt.identity import PeerIdentity
from broker.engines.amqtt.packets import Connect
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
    multiple_for_services=2,
)
# Packet types that a server sends (table 2.1).
_FROM_SERVER = frozenset({2, 3, 4, 5, 6, 7, 9, 11, 13})


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
        assert self.sent or frame[0] == 0x20, "CONNACK is not first"
        assert is_whole(frame), frame
        self.sent.append(frame)

    def send_after(self, commit: int, frame: bytes, *, is_door: bool = False) -> None:
        self.send(frame)

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


def is_whole(frame: bytes) -> bool:
    """Whether these bytes are one packet of a server."""
    size = next(at for at in range(1, 5) if frame[at] < 0x80)
    length = sum((frame[at] & 0x7F) << 7 * (at - 1) for at in range(1, size + 1))
    return frame[0] >> 4 in _FROM_SERVER and len(frame) == 1 + size + length


def _multiple(owner: DeviceId) -> int:
    return LIMITS.multiple_for(next(principal.role for principal in PRINCIPALS if principal.id == owner))


class SmallBroker:
    """A hub and its directory: two devices and an operator, admitted at first."""

    def __init__(self) -> None:
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

    def connect(self, who: Principal, connect: Connect) -> tuple[Wire, FleetSession] | None:
        """A CONNECT with the newest certificate; None if it is not let in."""
        entry = self.directory.entry(who.id)
        assert entry is not None
        (serial,) = entry.serials
        decision = self.hub.decide(connect, PeerIdentity(who.id, serial, NOW))
        if not isinstance(decision, Admitted):
            return None
        wire = Wire(who, serial)
        self.wires.append((wire, self.hub.register(connect, decision, serial, "?", wire)))
        return self.wires[-1]

    def check(self) -> None:
        """Everything that has to be true at any time."""
        self.everyone_who_is_connected_is_admitted()
        self.nobody_was_sent_what_they_may_not_read()
        self.nothing_is_kept_beyond_its_bounds()
        self.what_was_released_is_forgotten()

    def everyone_who_is_connected_is_admitted(self) -> None:
        for wire, session in self.live():
            assert self.directory.admits(wire.principal.id, wire.serial)
            assert self.hub.sessions[session.client_id] is session
            assert session.link is wire

    def nobody_was_sent_what_they_may_not_read(self) -> None:
        for wire, _ in self.wires:
            for topic, _, _ in wire.published():
                assert DEFAULT_POLICY.decide(wire.principal, Action.SUBSCRIBE, topic).allowed, (wire.principal, topic)

    def nothing_is_kept_beyond_its_bounds(self) -> None:
        hub = self.hub
        assert hub.subscriptions.count == sum(len(session.filters) for session in hub.sessions.values())
        for session in hub.sessions.values():
            assert len(session.deliveries) <= LIMITS.inflight_per_session
            assert len(session.received_ids) <= LIMITS.inflight_per_session
            assert len(session.waiting) <= LIMITS.queued_messages_per_session * _multiple(session.owner)
            assert len(session.filters) <= LIMITS.subscriptions_per_session
            assert session.link is not None or not session.clean_session
        for principal in PRINCIPALS:
            owned = [session for session in hub.sessions.values() if session.owner == principal.id]
            assert len(owned) <= (LIMITS.sessions_per_principal if principal.role is Role.OPERATOR else 1)

    def what_was_released_is_forgotten(self) -> None:
        owners = {session.owner for session in self.hub.sessions.values()}
        assert owners == set(self.hub._of_owner)
        if not self.hub.sessions:
            assert self.hub.subscriptions._root.is_bare()
