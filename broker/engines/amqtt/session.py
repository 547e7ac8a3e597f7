"""The state of one client id (MQTT 3.1.1, 3.1.2.4): subscriptions, what is on its way, what waits.

amqtt's Session, with a light state instead of its state machine (23 KB and 0.4 ms each), equal to itself only, and
a bounded backlog. It knows no certificate: who publishes is the connection's to say. It is never carried over a
reconnect: the successor takes over what it holds.
"""

from __future__ import annotations

from asyncio import Queue
from collections import OrderedDict
from typing import Any, Final, Protocol

from amqtt.session import OutgoingApplicationMessage, Session

from broker.engine import Client, Reason, Stats
from broker.engines.amqtt.backlog import Backlog
from broker.engines.amqtt.packets import Connect, Publish, Will, pubrel
from broker.engines.amqtt.routing import Retained
from fleet.directory import Entry
from fleet.identity import DeviceId
from fleet.limits import Limits
from fleet.policy import Action, Grants


class Link(Protocol):
    """The connection that a session has at present."""

    @property
    def is_congested(self) -> bool:
        """Whether the client reads more slowly than it is written to: what can wait must wait."""

    def send(self, frame: bytes) -> None:
        """Write soon; several frames go out together."""

    def end(self, reason: Reason, detail: str = "") -> None:
        """Close, after what was sent. The session has left already, or does so now."""


class Delivery(OutgoingApplicationMessage):
    """One message of QoS 1 or 2 on its way to one client; `is_released` once PUBREC came (4.3.3)."""

    __slots__ = ("is_released", "publish")

    def __init__(self, publish: Publish, packet_id: int, qos: int, retain: bool) -> None:
        # Without amqtt's initialiser: of its ten fields these three are used, and one is made for every message.
        self.publish = publish
        self.packet_id = packet_id
        self.qos = qos
        self.retain = retain
        self.is_released = False

    def frame(self, packet_id: int, *, dup: bool) -> bytes:
        """What has to be sent (again): PUBREL where PUBREC came, else the message."""
        if self.is_released:
            return pubrel(packet_id)
        return self.publish.to_send(self.qos or 0, packet_id, retain=self.retain, dup=dup)


class _State:
    """What amqtt asks of its state machine."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state = "new"

    def connect(self) -> None:
        self.state = "connected"

    def disconnect(self) -> None:
        self.state = "disconnected"

    def is_connected(self) -> bool:
        return self.state == "connected"


# amqtt's own queues are not bounded and not used; one empty one stands for all.
_NO_QUEUE: Final[Queue[Any]] = Queue(maxsize=1)


class FleetSession(Session):
    """One client id's state and, while it is connected, its link."""

    # What every message touches; the rest, amqtt's forty fields among it, is in a dictionary.
    __slots__ = ("_max_inflight", "_owed", "_packet_id", "deliveries", "granted_topics", "link", "owner", "waiting")

    def __init__(
        self, connect: Connect, client_id: str, entry: Entry, limits: Limits, retained: Retained, stats: Stats
    ) -> None:
        super().__init__()
        self.retained_messages = self.delivered_message_queue = _NO_QUEUE
        self.client_id: str = client_id
        self.clean_session: bool = connect.clean_session
        self.keep_alive = connect.keep_alive
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

    def _init_states(self) -> None:
        self.transitions = _State()  # type: ignore[assignment]  # all of Machine that amqtt calls on a session

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def take_over(self, predecessor: FleetSession) -> None:
        """Hold what the predecessor held: all that outlives a connection, and nothing of the connection."""
        self.filters = dict(predecessor.filters)
        self.received_ids = set(predecessor.received_ids)
        self.deliveries = dict(predecessor.deliveries)
        self._packet_id = predecessor._packet_id
        self.waiting, predecessor.waiting = predecessor.waiting, self.waiting
        self._owed, predecessor._owed = predecessor._owed, self._owed

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
            self._send(link, publish, qos)
            return True
        self.waiting.put(publish, qos, owner)
        return False

    def owe_retained(self, topic: str, qos: int) -> None:
        """A new subscription gets what is retained for this topic, as soon as `pump` finds room."""
        self._owed[topic] = max(qos, self._owed.get(topic, 0))

    def _has_room(self, link: Link) -> bool:
        return len(self.deliveries) < self._max_inflight and not link.is_congested

    def _send(self, link: Link, publish: Publish, qos: int, *, retain: bool = False) -> None:
        packet_id = self._free_packet_id()
        self.deliveries[packet_id] = Delivery(publish, packet_id, qos, retain)
        link.send(publish.to_send(qos, packet_id, retain=retain))

    def _free_packet_id(self) -> int:
        packet_id = self._packet_id % 65_535 + 1
        while packet_id in self.deliveries:  # ends: far fewer are in flight than there are ids
            packet_id = packet_id % 65_535 + 1
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
            message = self._retained.get(topic)
            # That the filter was granted is one check, this is another.
            if message is None or not self.grants.decide(Action.SUBSCRIBE, topic).allowed:
                continue
            self._stats.messages_sent += 1
            if qos := min(granted_qos, message.qos):
                self._send(link, message, qos, retain=True)
            else:
                link.send(message.to_send(0, 0, retain=True))

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
            return True
        return False

    def received(self, packet_id: int) -> None:
        """PUBREC came: answered with PUBREL, for an id that is not known too, so that the client can finish."""
        delivery = self.deliveries.get(packet_id)
        if delivery is not None and delivery.qos == 2:
            delivery.is_released = True
        if self.link is not None:
            self.link.send(pubrel(packet_id))

    def completed(self, packet_id: int) -> None:
        """PUBCOMP came."""
        delivery = self.deliveries.get(packet_id)
        if delivery is not None and delivery.is_released:
            del self.deliveries[packet_id]
            self.pump()

    def purge(self) -> None:
        """Forget everything."""
        self.filters.clear()
        self.received_ids.clear()
        self.deliveries.clear()
        self.waiting.clear()
        self._owed.clear()
        self.will = None
