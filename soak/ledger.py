"""The account: what was sent and acknowledged, who was subscribed when, and what came.

A message is owed to a subscriber if its publisher has an acknowledgement (QoS 1, 2), and the subscription was granted
before the message was sent and still stood when it was acknowledged; for a clean session only if that connection lived
on to the end, for what is on its way to it may be lost with it.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, NamedTuple

from fleet import topics
from fleet.errors import FleetError
from fleet.identity import DeviceId
from fleet.messages import Envelope, Presence, StatusMessage
from fleet.topics import NOTICES

EVER: Final = math.inf
_SHOWN: Final = 40
ALL_UP: Final = "devices/+/up/#"


class Kind(StrEnum):
    """What a message of ours is, for its order is kept among its own kind."""

    DATA = "d"
    STATUS = "s"
    WILL = "w"


class Key(NamedTuple):
    """A message: the count of its publisher, kind and QoS."""

    publisher: str
    kind: Kind
    qos: int
    number: int


class Message:
    """One that was sent. `acked_at` is when its publisher knew that the broker has it."""

    __slots__ = ("acked_at", "is_void", "sent_at", "times_sent", "topic")

    def __init__(self, topic: str, sent_at: float) -> None:
        self.topic = topic
        self.sent_at = sent_at
        self.acked_at = EVER
        self.times_sent = 0
        self.is_void = False


@dataclass(slots=True, eq=False)
class Subscription:
    """A filter of a subscriber, from when it was granted to when it was about to end."""

    subscriber: str
    qos: int
    is_durable: bool
    start: float
    end: float = EVER

    def owes(self, message: Message) -> bool:
        """Whether the subscriber has to get an acknowledged message."""
        if self.end != EVER and not self.is_durable:
            return False
        return self.start <= message.sent_at and message.acked_at <= self.end


@dataclass(slots=True)
class Ledger:
    """Of one round. Everything that must not be goes to `faults`.

    `timed` is the subscriber whose delays are measured: one that is always there. Of `strangers` nothing is known but
    that they publish; of those `shut_out` the broker may say that they are offline.
    """

    timed: str
    strangers: frozenset[str]
    shut_out: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    fault_count: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    delays: list[float] = field(default_factory=list)
    _messages: dict[Key, Message] = field(default_factory=dict)
    _subscriptions: defaultdict[str, list[Subscription]] = field(default_factory=lambda: defaultdict(list))
    _came: defaultdict[str, dict[Key, int]] = field(default_factory=lambda: defaultdict(dict))
    _last: dict[tuple[str, str, Kind, int, int], int] = field(default_factory=dict)
    _numbers: Counter[tuple[str, Kind, int]] = field(default_factory=Counter)

    def fault(self, text: str) -> None:
        """Something went wrong that must not."""
        self.fault_count += 1
        if len(self.faults) < _SHOWN:
            self.faults.append(text)

    # Publishers

    def write(self, publisher: str, topic: str, qos: int, kind: Kind, padding: bytes) -> tuple[Key, bytes]:
        """A new message and its payload; a status is one that the fleet understands."""
        lane = publisher, kind, qos
        self._numbers[lane] += 1
        key = Key(*lane, self._numbers[lane])
        self._messages[key] = Message(topic, EVER)
        if kind is Kind.DATA:
            return key, b"%s|%s|%d|%d|" % (publisher.encode(), kind.encode(), qos, key.number) + padding
        presence = Presence.OFFLINE if kind is Kind.WILL else Presence.ONLINE
        envelope = Envelope(DeviceId(publisher), datetime.now(UTC), f"{kind}{qos}", key.number)
        return key, StatusMessage(envelope, presence).encode()

    def sent(self, key: Key) -> None:
        """It is about to be sent, for the first time."""
        message = self._messages[key]
        message.sent_at, message.times_sent = time.monotonic(), 1
        self.counts[f"sent at QoS {key.qos}"] += key.kind is Kind.DATA

    def sent_again(self, key: Key) -> None:
        """After a reconnect."""
        self._messages[key].times_sent += 1

    def acked(self, key: Key) -> None:
        """Its publisher has the broker's word for it."""
        self._messages[key].acked_at = time.monotonic()

    def due(self, key: Key, seconds: float) -> None:
        """A will that the broker has to publish, within `seconds` from now."""
        message = self._messages[key]
        message.sent_at = time.monotonic()
        message.acked_at = message.sent_at + seconds

    def void(self, key: Key) -> None:
        """A will that nobody may ever see."""
        message = self._messages[key]
        message.is_void = True
        message.acked_at = EVER

    # Subscribers

    def subscribed(self, subscriber: str, topic_filter: str, qos: int, *, is_durable: bool) -> Subscription:
        """Granted now."""
        found = Subscription(subscriber, qos, is_durable, time.monotonic())
        self._subscriptions[topic_filter].append(found)
        return found

    def delivered(self, subscriber: str, filters: set[str], first: int, topic: str, payload: bytes) -> None:
        """A PUBLISH came. `filters` are those that this client may have subscriptions to."""
        if not any(topics.matches(filter_, topic) for filter_ in filters):
            self.fault(f"{subscriber} was sent {topic!r}, which it never asked for")
            return
        if first & 1:
            self.counts["retained"] += 1
            return
        key = _read(topic, payload)
        if key is None or key not in self._messages:
            self._of_stranger(subscriber, topic, payload)
            return
        message, qos = self._messages[key], first >> 1 & 3
        if message.topic != topic:
            self.fault(f"{subscriber}: {key} came on {topic!r}, it was sent on {message.topic!r}")
        if message.is_void or message.sent_at == EVER:
            self.fault(f"{subscriber}: the will {key} was published")
        self._arrived(subscriber, key, qos)
        if subscriber == self.timed and message.times_sent == 1:
            self.delays.append(time.monotonic() - message.sent_at)

    def _of_stranger(self, subscriber: str, topic: str, payload: bytes) -> None:
        publisher = topic.split("/")[1]
        if publisher in self.strangers:
            self.counts["of strangers"] += 1
        elif publisher in self.shut_out and b'"boot":"broker"' in payload and b'"offline"' in payload:
            self.counts["broker says offline"] += 1
        else:
            self.fault(f"{subscriber} was sent something on {topic!r} that nobody published")

    def _arrived(self, subscriber: str, key: Key, qos: int) -> None:
        came = self._came[subscriber]
        times = came[key] = came.get(key, 0) + 1
        self.counts["delivered" if times == 1 else "delivered again"] += 1
        if times > 1:
            if qos != 1:
                self.fault(f"{subscriber}: {key} came {times} times at QoS {qos}")
            return
        if key.kind is Kind.WILL:
            return
        # MQTT-4.6.0-6: in order per QoS. One of QoS 2 waits for the disk, while others may pass.
        lane = subscriber, key.publisher, key.kind, key.qos, qos
        last = self._last.get(lane, 0)
        if key.number < last:
            self.fault(f"{subscriber}: {key} came after number {last}")
        self._last[lane] = max(last, key.number)

    # The end

    def owed(self) -> Iterator[tuple[str, Key, bool]]:
        """Every subscriber and message that it was owed, and whether it came."""
        for key, message in self._messages.items():
            if key.qos and message.acked_at < EVER:
                for subscription in self._subscriptions[filter_of(message.topic)]:
                    if subscription.qos and subscription.owes(message):
                        yield subscription.subscriber, key, key in self._came[subscription.subscriber]

    def missing(self) -> list[tuple[str, Key]]:
        """What was owed and did not come."""
        return [(subscriber, key) for subscriber, key, came in self.owed() if not came]

    def unacknowledged(self, is_still_there: Callable[[str], bool]) -> list[Key]:
        """What was sent at QoS 1 or 2 by those who could wait for an answer, and got none."""
        return [
            key
            for key, message in self._messages.items()
            if key.qos
            and key.kind is not Kind.WILL
            and message.sent_at < EVER == message.acked_at
            and is_still_there(key.publisher)
        ]


def filter_of(topic: str) -> str:
    """The one filter of those used here that matches a topic."""
    match topic.split("/"):
        case ["devices", _, "up", *_]:
            return ALL_UP
        case ["devices", device, "down", *_]:
            return down(device)
    return NOTICES


def down(device: str) -> str:
    return f"devices/{device}/down/#"


def _read(topic: str, payload: bytes) -> Key | None:
    """The message that a payload is; None where it is none of ours."""
    try:
        if topic.endswith("/up/status"):
            fields = json.loads(payload)
            kind, qos = fields["boot"]
            return Key(DeviceId(fields["id"]), Kind(kind), int(qos), int(fields["seq"]))
        publisher, kind, qos, number, _ = payload.split(b"|", 4)
        return Key(publisher.decode(), Kind(kind.decode()), int(qos), int(number))
    except (ValueError, KeyError, TypeError, FleetError):
        return None
