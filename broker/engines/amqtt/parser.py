"""A strict, incremental parser of what an MQTT 3.1.1 client sends: bytes in, packets out, no IO.

Whatever the standard does not allow raises ProtocolViolation, and nothing else is ever raised. What the standard lets
a server refuse (control characters, a length in more bytes than it takes) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from broker.engines.amqtt.packets import (
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    ProtocolViolation,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    Unsubscribe,
    UnsupportedLevel,
    Will,
)
from fleet import topics

# 1.5.3: NUL must not be in a text; other control characters and non-characters should not, and a receiver may close.
# Of the non-characters (Unicode, 23.7) the last two of every plane are among them.
_PLANE_ENDS = "".join(chr(plane << 16 | 0xFFFE) + chr(plane << 16 | 0xFFFF) for plane in range(17))
_UNWANTED = re.compile(f"[\x00-\x1f\x7f-\x9f\ufdd0-\ufdef{_PLANE_ENDS}]")
_MAX_CACHED_TOPICS: Final = 16_384
_MAX_CACHED_TOPIC_BYTES: Final = 128

# What a client may send: packet type and flags in one byte (2.2.1, 2.2.2). PUBLISH has flags of its own.
_PUBLISH_FIRST: Final = frozenset(range(0x30, 0x40)) - {0x36, 0x37, 0x3E, 0x3F, 0x38, 0x39}
_PUBACK: Final = 0x40
_CONTROL_FIRST: Final = frozenset({0x10, 0x40, 0x50, 0x62, 0x70, 0x82, 0xA2, 0xC0, 0xE0})


class TopicNames:
    """Topic names that were found valid, by their bytes; shared by connections, the last few thousand of them."""

    __slots__ = ("_known_before", "_max_bytes", "_max_levels", "known")

    def __init__(self, max_bytes: int = 1024, max_levels: int = 32) -> None:
        self.known: dict[bytes, str] = {}
        self._known_before: dict[bytes, str] = {}
        self._max_bytes = max_bytes
        self._max_levels = max_levels

    def name(self, data: bytes) -> str:
        """The topic name in `data`. Raises: ProtocolViolation."""
        known = self.known.get(data)
        if known is not None:
            return known
        name = self._known_before.get(data) or self._checked(data)
        if len(data) > _MAX_CACHED_TOPIC_BYTES:
            return name
        if len(self.known) >= _MAX_CACHED_TOPICS:
            # Who makes up a topic for each message displaces others' for the time of one generation at most.
            self._known_before, self.known = self.known, {}
        self.known[data] = name
        return name

    def _checked(self, data: bytes) -> str:
        name = _decode_text(data)
        self.check_size(name, len(data))
        if not data or b"+" in data or b"#" in data:  # what else makes a topic's name was checked
            raise _not_a_topic_name(name)
        return name

    def check_size(self, topic: str, size_bytes: int) -> None:
        """Refuse what is too long or too deep to route cheaply. Raises: ProtocolViolation."""
        if size_bytes > self._max_bytes or topic.count("/") >= self._max_levels:
            raise ProtocolViolation("4.7.3", f"a topic has over {self._max_bytes} bytes or {self._max_levels} levels")


class Parser:
    """Parses the stream of one connection."""

    __slots__ = ("_max_packet_bytes", "_needed", "_topics", "held")

    def __init__(self, max_packet_bytes: int, topic_names: TopicNames) -> None:
        self._max_packet_bytes = max_packet_bytes
        self._topics = topic_names
        self.held = bytearray()  # the beginning of a packet that has not ended
        self._needed = 0  # how many bytes until parsing can go on

    def allow(self, max_packet_bytes: int) -> None:
        """From the next packet on, take packets of up to that size."""
        self._max_packet_bytes = max_packet_bytes

    @property
    def is_within_packet(self) -> bool:
        """Whether a packet has begun and not ended."""
        return bool(self.held)

    def feed(self, data: bytes) -> Iterator[Packet]:
        """Every packet that `data` completes, as it is asked for. Raises: ProtocolViolation after the last good one.

        To be exhausted before the next call.
        """
        # One PUBLISH or PUBACK, and nothing beside it: what most reads bring.
        size = len(data)
        if self.held or not 4 <= size < 130 or size != 2 + data[1] or size > self._max_packet_bytes:
            return self._feed(data)
        if data[0] in _PUBLISH_FIRST:
            try:
                return iter((self._publish(data, 2),))
            except ProtocolViolation:
                return self._feed(data)  # which says so when it is asked for it
        if data[0] == _PUBACK and size == 4 and (data[2] or data[3]):
            return iter((Puback(data[2] << 8 | data[3]),))
        return self._feed(data)

    def _feed(self, data: bytes) -> Iterator[Packet]:
        if self.held:
            self.held += data
            if len(self.held) < self._needed:
                return
            data = bytes(self.held)
            self.held.clear()
        at, end = 0, len(data)
        while at < end:
            first = data[at]
            if first == _PUBACK and data[at + 1 : at + 2] == b"\2" and at + 4 <= end:
                # As `_acknowledgement` would, for what comes with every message.
                if not (packet_id := data[at + 2] << 8 | data[at + 3]):
                    raise ProtocolViolation("MQTT-2.3.1-1", "a packet identifier is 0")
                yield Puback(packet_id)
                at += 4
                continue
            if first in _PUBLISH_FIRST and at + 2 < end and data[at + 1] < 0x80:  # as `_measure` would
                body, stop = at + 2, at + 2 + data[at + 1]
                if stop - at > self._max_packet_bytes:
                    self._measure(data, at, end)
            else:
                body, stop = self._measure(data, at, end)
            if stop > end or not body:
                self.held += data[at:]
                self._needed = stop - at
                return
            if first in _PUBLISH_FIRST:
                yield self._publish(data[at:stop], body - at)
            else:
                yield _CONTROL[first](_Body(data, body, stop, self._topics))
            at = stop

    def _measure(self, data: bytes, at: int, end: int) -> tuple[int, int]:
        """Where the body begins (0 if the header is not complete), and up to where to read before asking again."""
        first = data[at]
        if first not in _PUBLISH_FIRST and first not in _CONTROL_FIRST:
            raise _not_a_first_byte(first)
        length = 0
        for digit in range(4):
            here = at + 1 + digit
            if here >= end:
                return 0, here + 1
            byte = data[here]
            length |= (byte & 0x7F) << 7 * digit
            if byte < 0x80:
                if digit and not byte:
                    raise ProtocolViolation("2.2.3", "a remaining length is written with more bytes than it takes")
                if here + 1 - at + length > self._max_packet_bytes:
                    raise ProtocolViolation("2.2.3", f"a packet is larger than {self._max_packet_bytes} bytes")
                return here + 1, here + 1 + length
        raise ProtocolViolation("2.2.3", "a remaining length has more than four bytes")

    def _publish(self, frame: bytes, topic_at: int) -> Publish:
        """`frame` is one whole packet, its first byte known to be good."""
        name_at = topic_at + 2
        body_at = name_at + (frame[topic_at] << 8 | frame[topic_at + 1]) if len(frame) >= name_at else name_at
        name_end = body_at
        packet_id = 0
        if frame[0] & 0x06:
            body_at += 2
            if body_at <= len(frame):
                packet_id = frame[body_at - 2] << 8 | frame[body_at - 1]
                if not packet_id:
                    raise ProtocolViolation("MQTT-2.3.1-1", "a packet identifier is 0")
        if body_at > len(frame):
            raise ProtocolViolation("3.3.2", "a PUBLISH ends within its header")
        name = frame[name_at:name_end]
        names = self._topics
        return Publish(names.known.get(name) or names.name(name), frame, topic_at, body_at, packet_id)


class _Body:
    """Reads the fields of one packet's body, never past its end."""

    __slots__ = ("at", "data", "stop", "topics")

    def __init__(self, data: bytes, at: int, stop: int, topic_names: TopicNames) -> None:
        self.data, self.at, self.stop, self.topics = data, at, stop, topic_names

    @property
    def has_more(self) -> bool:
        return self.at < self.stop

    def byte(self) -> int:
        if self.at >= self.stop:
            raise ProtocolViolation("4.8", "a packet ends within a field")
        self.at += 1
        return self.data[self.at - 1]

    def number(self) -> int:
        return self.byte() << 8 | self.byte()

    def binary(self) -> bytes:
        size = self.number()
        if self.at + size > self.stop:
            raise ProtocolViolation("4.8", "a field is longer than its packet")
        self.at += size
        return self.data[self.at - size : self.at]

    def text(self) -> str:
        return _decode_text(self.binary())

    def packet_id(self) -> int:
        found = self.number()
        if not found:
            raise ProtocolViolation("MQTT-2.3.1-1", "a packet identifier is 0")
        return found

    def topic_filter(self) -> str:
        data = self.binary()
        found = _decode_text(data)
        self.topics.check_size(found, len(data))
        if not topics.is_topic_filter(found):
            raise _not_a_topic_filter(found)
        return found

    def end(self) -> None:
        if self.at != self.stop:
            raise ProtocolViolation("4.8", "a packet is longer than its fields")


def _decode_text(data: bytes) -> str:
    try:
        text = data.decode("utf-8")  # strict: no surrogates, nothing over-long (MQTT-1.5.3-1)
    except UnicodeDecodeError as error:
        raise ProtocolViolation("MQTT-1.5.3-1", "a text is not UTF-8") from error
    if text.isascii() and text.isprintable():
        return text
    if _UNWANTED.search(text):
        if "\0" in text:
            raise ProtocolViolation("MQTT-1.5.3-2", "a text has a NUL")
        raise ProtocolViolation("1.5.3", "a text has a control character or a non-character")
    return text


# Which statement it was, once it is known that there is one.


def _not_a_first_byte(first: int) -> ProtocolViolation:
    match first >> 4:
        case 0 | 2 | 9 | 11 | 13 | 15:
            return ProtocolViolation("2.2.1", f"a client does not send a packet of type {first >> 4}")
        case 3 if first & 0x06 == 0x06:
            return ProtocolViolation("MQTT-3.3.1-4", "the QoS of a PUBLISH is 3")
        case 3:
            return ProtocolViolation("MQTT-3.3.1-2", "DUP is set at QoS 0")
        case kind:
            return ProtocolViolation("MQTT-2.2.2-2", f"the flags of a packet of type {kind} are {first & 0x0F:#03x}")


def _not_a_topic_name(name: str) -> ProtocolViolation:
    if not name:
        return ProtocolViolation("MQTT-4.7.3-1", "a topic name is empty")
    return ProtocolViolation("MQTT-4.7.1-1", "a topic name has a wildcard")


def _not_a_topic_filter(topic_filter: str) -> ProtocolViolation:
    if not topic_filter:
        return ProtocolViolation("MQTT-4.7.3-1", "a topic filter is empty")
    if any("#" in level and level != "#" for level in topic_filter.split("/")) or "#/" in topic_filter:
        return ProtocolViolation("MQTT-4.7.1-2", "# in a topic filter is not alone in the last level")
    return ProtocolViolation("MQTT-4.7.1-3", "+ in a topic filter is not alone in its level")


def _connect(body: _Body) -> Connect | UnsupportedLevel:
    name, level = body.text(), body.byte()
    if (name, level) != ("MQTT", 4):
        if name not in ("MQTT", "MQIsdp"):
            raise ProtocolViolation("MQTT-3.1.2-1", "the protocol's name is not MQTT")
        return UnsupportedLevel(name, level)
    flags, keep_alive = body.byte(), body.number()
    _check_connect_flags(flags)
    client_id = body.text()
    will = _will(body, flags) if flags & 0x04 else None
    if flags & 0x80:
        body.text()
    if flags & 0x40:
        body.binary()
    body.end()
    return Connect(client_id, bool(flags & 0x02), keep_alive, will)


def _check_connect_flags(flags: int) -> None:
    if flags & 0x01:
        raise ProtocolViolation("MQTT-3.1.2-3", "the reserved flag of CONNECT is set")
    if not flags & 0x04 and flags & 0x18:
        raise ProtocolViolation("MQTT-3.1.2-13", "CONNECT has no will, but its QoS")
    if not flags & 0x04 and flags & 0x20:
        raise ProtocolViolation("MQTT-3.1.2-15", "CONNECT has no will, but its retain flag")
    if flags & 0x18 == 0x18:
        raise ProtocolViolation("MQTT-3.1.2-14", "the will's QoS is 3")
    if flags & 0xC0 == 0x40:
        raise ProtocolViolation("MQTT-3.1.2-22", "CONNECT has a password, but no user name")


def _will(body: _Body, flags: int) -> Will:
    topic = body.topics.name(body.binary())
    return Will(topic, body.binary(), flags >> 3 & 3, bool(flags & 0x20))


def _subscribe(body: _Body) -> Subscribe:
    packet_id = body.packet_id()
    requests = []
    while body.has_more:
        topic_filter, qos = body.topic_filter(), body.byte()
        if qos > 2:
            raise ProtocolViolation("MQTT-3.8.3-4", "a QoS asked for is not 0, 1 or 2")
        requests.append((topic_filter, qos))
    if not requests:
        raise ProtocolViolation("MQTT-3.8.3-3", "a SUBSCRIBE has no topic filter")
    return Subscribe(packet_id, tuple(requests))


def _unsubscribe(body: _Body) -> Unsubscribe:
    packet_id = body.packet_id()
    filters = []
    while body.has_more:
        filters.append(body.topic_filter())
    if not filters:
        raise ProtocolViolation("MQTT-3.10.3-2", "an UNSUBSCRIBE has no topic filter")
    return Unsubscribe(packet_id, tuple(filters))


def _acknowledgement(
    kind: type[Puback] | type[Pubrec] | type[Pubrel] | type[Pubcomp],
) -> Callable[[_Body], Packet]:
    def parse(body: _Body) -> Packet:
        packet_id = body.packet_id()
        body.end()
        return kind(packet_id)

    return parse


def _empty(kind: type[Pingreq] | type[Disconnect]) -> Callable[[_Body], Packet]:
    packet = kind()

    def parse(body: _Body) -> Packet:
        body.end()
        return packet

    return parse


_CONTROL: Final[dict[int, Callable[[_Body], Packet]]] = {
    0x10: _connect,
    0x40: _acknowledgement(Puback),
    0x50: _acknowledgement(Pubrec),
    0x62: _acknowledgement(Pubrel),
    0x70: _acknowledgement(Pubcomp),
    0x82: _subscribe,
    0xA2: _unsubscribe,
    0xC0: _empty(Pingreq),
    0xE0: _empty(Disconnect),
}
