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
from broker.engines.amqtt.journal import Batch, Journal, StoredRetained
from broker.engines.amqtt.packets import Connect
from broker.engines.amqtt.restore import snapshot
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
    journal: Journal | None = None
    has_stopped_reading: bool = False
    ended: Reason | None = None
    sent: list[bytes] = field(default_factory=list)
    held: list[tuple[int, bytes, bool]] = field(default_factory=list)

    @property
    def is_congested(self) -> bool:
        return self.has_stopped_reading or any(is_door for _, _, is_door in self.held)

    def send(self, frame: bytes) -> None:
        assert self.ended is None, "written to after its end"
        assert self.sent or frame[0] == 0x20, "CONNACK is not first"
        assert is_whole(frame), frame
        self.sent.append(frame)

    def send_after(self, commit: int, frame: bytes, *, is_door: bool = False) -> None:
        if self.journal is None or (not self.held and commit <= self.journal.committed):
            self.send(frame)
        else:
            assert commit <= self.journal.number, "it waits for what is not noted"
            self.held.append((commit, frame, is_door))

    def committed(self, session: FleetSession) -> None:
        """What waited for the disk goes out."""
        assert self.journal is not None
        while self.held and self.held[0][0] <= self.journal.committed:
            _, frame, is_door = self.held.pop(0)
            self.send(frame)
            if is_door and frame[0] == 0x20:
                session.send_again()
            elif is_door:
                session.pump()

    def end(self, reason: Reason, detail: str = "") -> None:
        self.ended = reason
        self.held.clear()

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


class Disk:
    """What a store would hold after the batches that it was given."""

    def __init__(self) -> None:
        self.batch = Batch()

    def write(self, batch: Batch) -> None:
        """As `Store.write`."""
        kept = self.batch
        kept.absorb(batch)
        kept.done.clear()
        assert not kept.moved, "a message went out that is not there"
        gone = batch.purged
        kept.purged.clear()
        kept.sessions = {number: each for number, each in kept.sessions.items() if number not in gone}
        kept.queued = {row: each for row, each in kept.queued.items() if each.session not in gone}
        kept.filters = {key: qos for key, qos in kept.filters.items() if key[0] not in gone and qos is not None}
        kept.owed = {key: qos for key, qos in kept.owed.items() if key[0] not in gone and qos is not None}
        kept.received = {key: is_there for key, is_there in kept.received.items() if key[0] not in gone and is_there}
        kept.retained = {topic: each for topic, each in kept.retained.items() if each is not None}
        kept.wills = {client_id: each for client_id, each in kept.wills.items() if each is not None}


def told(batch: Batch) -> dict[str, object]:
    """What a batch says, but for the time that somebody left, and who sent what is under way."""
    return {
        "sessions": {number: (each.client_id, each.owner, each.epoch) for number, each in batch.sessions.items()},
        "filters": batch.filters,
        "owed": batch.owed,
        "received": batch.received,
        "retained": {topic: _told_of(each) for topic, each in batch.retained.items() if each is not None},
        "wills": batch.wills,
        "queued": {
            row: (each.session, each.publish, each.qos, each.retain, each.packet_id, each.is_released)
            for row, each in batch.queued.items()
        },
    }


def _told_of(kept: StoredRetained) -> tuple[object, ...]:
    """Whose enrolment a topic is of counts for what the device is told."""
    return kept.message, kept.owner, kept.owner_epoch, "/down/" in kept.message.topic and kept.subject_epoch


class SmallBroker:
    """A hub and its directory: two devices and an operator, admitted at first."""

    def __init__(self, journal: Journal | None = None) -> None:
        self.directory = Directory()
        self.journal = journal
        self.disk = Disk()
        rules = Rules(DEFAULT_POLICY, self.directory, _look_up, lambda: True)
        self.hub = Hub(rules, LIMITS, lambda: NOW, lambda _: None, journal)
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
        wire = Wire(who, serial, self.journal)
        self.wires.append((wire, self.hub.register(connect, decision, serial, "?", wire)))
        return self.wires[-1]

    def commit(self, *, fails: bool = False) -> None:
        """All that was noted reaches the disk, or does not and is part of the next."""
        assert self.journal is not None
        number, batch = self.journal.number, self.journal.take()
        if fails:
            self.journal.give_back(batch)
            return
        self.disk.write(batch)
        self.journal.committed = number
        for wire, session in self.live():
            wire.committed(session)

    def what_is_on_disk_is_what_there_is(self) -> None:
        """Nothing was changed that was not noted."""
        self.commit()
        there, _ = snapshot(self.hub)
        assert told(there) == told(self.disk.batch)

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
