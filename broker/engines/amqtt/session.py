"""The state of one client id (MQTT 3.1.1, 3.1.2.4): subscriptions, what is on its way, what waits.

It is not amqtt's Session: that has forty fields and a state machine (23 KB and 0.4 ms each) that nobody here asks, and
mypyc compiles no class of ours that has one of theirs for a base. It knows no certificate: who publishes is the
connection's to say. It is never carried over a reconnect: the successor takes over what it holds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

from broker.engine import Client, Reason, Stats
from broker.engines.amqtt.backlog import Backlog
from broker.engines.amqtt.journal import NO_ROW, Journal
from broker.engines.amqtt.packets import Connect, Publish, Will, pubrel
from broker.engines.amqtt.routing import Retained
from fleet.directory import Entry
from fleet.identity import DeviceId
from fleet.limits import Limits
from fleet.policy import Action, Grants

_PACKET_IDS: Final = 65_535


class Link(Protocol):
    """The connection that a session has at present."""

    @property
    def is_congested(self) -> bool:
        """Whether the client reads more slowly than it is written to: what can wait must wait."""

    def send(self, frame: bytes) -> None:
        """Write soon; several frames go out together."""

    def send_after(self, commit: int, frame: bytes, *, is_door: bool = False) -> None:
        """Write once that commit has ended, and after everything that waits so already.

        Until a door is written, which CONNACK and SUBACK are, the link is congested.
        """

    def end(self, reason: Reason, detail: str = "") -> None:
        """Close, after what was sent. The session has left already, or does so now."""


class Delivery:
    """One message of QoS 1 or 2 on its way to one client; `is_released` once PUBREC came (4.3.3)."""

    __slots__ = ("is_released", "packet_id", "publish", "qos", "retain", "row")

    def __init__(self, publish: Publish, packet_id: int, qos: int, retain: bool, row: int = NO_ROW) -> None:
        self.publish = publish
        self.packet_id = packet_id
        self.qos = qos
        self.retain = retain
        self.is_released = False
        self.row = row

    def frame(self, packet_id: int, *, dup: bool) -> bytes:
        """What has to be sent (again): PUBREL where PUBREC came, else the message."""
        if self.is_released:
            return pubrel(packet_id)
        return self.publish.to_send(self.qos, packet_id, retain=self.retain, dup=dup)


class Stored(Protocol):
    """A message of QoS 1 or 2 as it was kept; `packet_id` is 0 where it was never sent."""

    @property
    def row(self) -> int: ...
    @property
    def message(self) -> Publish: ...
    @property
    def qos(self) -> int: ...
    @property
    def retain(self) -> bool: ...
    @property
    def packet_id(self) -> int: ...
    @property
    def is_released(self) -> bool: ...
    @property
    def sender(self) -> DeviceId | None: ...


def _as_sent(under_way: list[Stored]) -> list[Stored]:
    """In the order in which they were sent first: ids count up, and begin again after the widest gap between them."""
    found = sorted(under_way, key=lambda kept: kept.packet_id)
    gaps = [
        (after.packet_id - before.packet_id) % _PACKET_IDS
        for before, after in zip(found[-1:] + found, found, strict=False)
    ]
    first = gaps.index(max(gaps)) if len(found) > 1 else 0
    return found[first:] + found[:first]


class Unloaded:
    """What a session has on disk and not in memory: how much, and how to ask for it."""

    __slots__ = ("ask", "count", "size_bytes")

    def __init__(self, count: int, size_bytes: int, ask: Callable[[], None]) -> None:
        self.count = count
        self.size_bytes = size_bytes
        self.ask = ask


class FleetSession:
    """One client id's state and, while it is connected, its link."""

    __slots__ = (
        "_max_inflight",
        "_owed",
        "_packet_id",
        "_retained",
        "_stats",
        "absent_seconds",
        "clean_session",
        "client",
        "client_id",
        "deliveries",
        "denials",
        "epoch",
        "filters",
        "granted_topics",
        "grants",
        "has_stored_will",
        "journal",
        "keep_alive",
        "link",
        "number",
        "owner",
        "principal",
        "promised",
        "received_ids",
        "unloaded",
        "waiting",
        "will",
    )

    def __init__(
        self, connect: Connect, client_id: str, entry: Entry, limits: Limits, retained: Retained, stats: Stats
    ) -> None:
        self.client_id = client_id
        self.clean_session = connect.clean_session
        self.keep_alive = connect.keep_alive
        self.principal = entry.principal
        self.owner: DeviceId = entry.principal.id
        self.epoch = entry.epoch
        self.will: Will | None = connect.will
        self.link: Link | None = None
        self.grants = Grants((), ())
        self.client: Client | None = None
        self.granted_topics: set[str] = set()
        self.denials = 0
        self.filters: dict[str, int] = {}
        self.received_ids: set[int] = set()  # QoS 2: PUBREC sent, PUBREL awaited
        self.deliveries: dict[int, Delivery] = {}  # by packet id, in the order in which each was sent first
        multiple = limits.multiple_for(entry.principal.role)
        self._packet_id = 0  # that was given last
        self._max_inflight = limits.inflight_per_session
        # All that waits for the client, but for retained messages.
        self.waiting = Backlog(
            limits.queued_messages_per_session * multiple, limits.queued_bytes_per_session * multiple, stats
        )
        # Topics whose retained message a new subscription is owed, with the QoS to send it at. What it says is looked
        # up when there is room: it takes no queue, and is never older than what was sent already.
        self._owed: OrderedDict[str, int] = OrderedDict()
        self._stats = stats
        self._retained = retained
        # Where it outlives the broker: under which number, and which commit has all that was promised so far.
        self.journal: Journal | None = None
        self.number = 0
        self.promised = 0
        self.has_stored_will = False
        self.unloaded: Unloaded | None = None
        self.absent_seconds = 0.0

    def keep_in(self, journal: Journal, number: int) -> None:
        """From now on what it holds is noted."""
        self.journal, self.number = journal, number
        self.waiting.on_drop = journal.done

    def take_over(self, predecessor: FleetSession) -> None:
        """Hold what the predecessor held: all that outlives a connection, and nothing of the connection."""
        self.filters = dict(predecessor.filters)
        self.received_ids = set(predecessor.received_ids)
        self.deliveries = dict(predecessor.deliveries)
        self._packet_id = predecessor._packet_id
        self.waiting, predecessor.waiting = predecessor.waiting, self.waiting
        self._owed, predecessor._owed = predecessor._owed, self._owed
        self.journal, self.number, self.promised = predecessor.journal, predecessor.number, predecessor.promised
        predecessor.journal, predecessor.number = None, 0

    def deliver(self, publish: Publish, qos: int, owner: DeviceId | None) -> bool:
        """Send a message now, or keep it until there is room; whether it was sent now."""
        link = self.link
        if qos == 0:
            if link is None:
                return False  # QoS 0 is not kept for the absent, and not owed to them
            if not self.waiting.has_qos_0 and not link.is_congested:
                link.send(publish.plain())
                return True
        elif link is not None and not self.waiting.has_others and self._has_room(link):
            self._send(link, publish, qos, NO_ROW, owner)
            return True
        if self.journal is not None and qos:
            row = self.journal.queue(self.number, publish, qos, owner)
            self.waiting.put(publish, qos, owner, row)
            if self.unloaded is not None and self.waiting.would_fill(self.unloaded.count, self.unloaded.size_bytes):
                self.unloaded.ask()
        else:
            self.waiting.put(publish, qos, owner)
        return False

    def owe_retained(self, topic: str, qos: int) -> None:
        """A new subscription gets what is retained for this topic, as soon as `pump` finds room."""
        self._owed[topic] = qos = max(qos, self._owed.get(topic, 0))
        if self.journal is not None:
            self.journal.owed(self.number, topic, qos)

    @property
    def owed(self) -> Mapping[str, int]:
        """Topics whose retained message it is owed, with the QoS."""
        return self._owed

    def _has_room(self, link: Link) -> bool:
        return len(self.deliveries) < self._max_inflight and not link.is_congested

    def _send(
        self, link: Link, publish: Publish, qos: int, row: int, sender: DeviceId | None = None, *, retain: bool = False
    ) -> None:
        packet_id = self._free_packet_id()
        journal = self.journal
        if journal is None:
            self.deliveries[packet_id] = Delivery(publish, packet_id, qos, retain)
            link.send(publish.to_send(qos, packet_id, retain=retain))
            return
        if row:
            journal.sent(row, packet_id, is_promised=qos == 2)
        else:
            row = journal.queue(self.number, publish, qos, sender, packet_id, retain)
        self.deliveries[packet_id] = Delivery(publish, packet_id, qos, retain, row)
        frame = publish.to_send(qos, packet_id, retain=retain)
        if qos == 1:
            link.send(frame)
        else:
            # The client tells messages of QoS 2 apart by their ids: what was sent under one goes under no other.
            self.promised = journal.number
            link.send_after(journal.number, frame)

    def _free_packet_id(self) -> int:
        packet_id = self._packet_id % _PACKET_IDS + 1
        while packet_id in self.deliveries:  # ends: far fewer are in flight than there are ids
            packet_id = packet_id % _PACKET_IDS + 1
        self._packet_id = packet_id
        return packet_id

    def pump(self) -> None:
        """Send what waits, then what is retained and owed, as far as there is room."""
        link, waiting = self.link, self.waiting
        while link is not None and not link.is_congested:
            if waiting.has_others and len(self.deliveries) < self._max_inflight:
                self._send(link, *waiting.pop_other())
            elif waiting.has_qos_0:
                link.send(waiting.pop_qos_0()[0].plain())
            else:
                break
            self._stats.messages_sent += 1
        if link is not None and self._owed and not waiting:
            self._send_owed(link)

    def _send_owed(self, link: Link) -> None:
        while self._owed and self._has_room(link):
            topic, granted_qos = self._owed.popitem(last=False)
            if self.journal is not None:
                self.journal.owed(self.number, topic, None)
            message = self._retained.get(topic)
            # That the filter was granted is one check, this is another.
            if message is None or not self.grants.decide(Action.SUBSCRIBE, topic).allowed:
                continue
            self._stats.messages_sent += 1
            if qos := min(granted_qos, message.qos):
                self._send(link, message, qos, NO_ROW, retain=True)
            else:
                link.send(message.to_send(0, 0, retain=True))

    def fill(self, waiting: Iterable[Stored], received: Iterable[int], owed: Mapping[str, int]) -> None:
        """Hold what it held on disk, before what came since."""
        self.unloaded = None
        late = list(self.waiting.others())
        self.waiting.clear()
        under_way = []
        for kept in waiting:
            if kept.packet_id:
                under_way.append(kept)
            else:
                self.waiting.put(kept.message, kept.qos, kept.sender, kept.row)
        for sender, (publish, qos, row) in late:
            self.waiting.put(publish, qos, sender, row)
        for kept in _as_sent(under_way):
            delivery = Delivery(kept.message, kept.packet_id, kept.qos, kept.retain, kept.row)
            delivery.is_released = kept.is_released
            self.deliveries[kept.packet_id] = delivery
            self._packet_id = kept.packet_id
        self.received_ids.update(received)
        for topic, qos in owed.items():
            self._owed.setdefault(topic, qos)

    @property
    def has_more(self) -> bool:
        """Whether `pump` would send something if there were room."""
        return self.waiting.has_qos_0 or self.waiting.has_others or bool(self._owed)

    def send_again(self) -> None:
        """After a reconnect: everything unacknowledged, in its first order, then what waits (4.4, 4.6)."""
        if self.link is not None:
            for packet_id, delivery in self.deliveries.items():
                self._stats.messages_sent += not delivery.is_released
                self.link.send(delivery.frame(packet_id, dup=True))
            self.pump()

    def acknowledged(self, packet_id: int) -> bool:
        """PUBACK came; whether it was awaited. `pump` is the caller's, after the last of them."""
        delivery = self.deliveries.get(packet_id)
        if delivery is not None and delivery.qos == 1:
            del self.deliveries[packet_id]
            if self.journal is not None:
                self.journal.done(delivery.row)
            return True
        return False

    def received(self, packet_id: int) -> None:
        """PUBREC came: answered with PUBREL, for an id that is not known too, so that the client can finish."""
        delivery, journal = self.deliveries.get(packet_id), self.journal
        if delivery is not None and delivery.qos == 2 and not delivery.is_released:
            delivery.is_released = True
            if journal is not None:
                journal.released(delivery.row, packet_id)
                self.promised = journal.number
        if self.link is None:
            return
        if journal is None:
            self.link.send(pubrel(packet_id))
        else:
            self.link.send_after(self.promised, pubrel(packet_id))

    def completed(self, packet_id: int) -> None:
        """PUBCOMP came."""
        delivery = self.deliveries.get(packet_id)
        if delivery is not None and delivery.is_released:
            del self.deliveries[packet_id]
            if self.journal is not None:
                self.journal.done(delivery.row)
            self.pump()

    def purge(self) -> None:
        """Forget everything."""
        self.filters.clear()
        self.received_ids.clear()
        self.deliveries.clear()
        self.waiting.clear()
        self._owed.clear()
        self.will = None
