"""The packets of MQTT 3.1.1 that a server receives, as values, and the frames that it sends.

A message is encoded once however many subscribers it has: `Publish` keeps the bytes it came in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from amqtt.mqtt.connack import ConnackPacket
from amqtt.mqtt.pingresp import PingRespPacket
from amqtt.mqtt.suback import SubackPacket
from amqtt.mqtt.unsuback import UnsubackPacket

MAX_REMAINING_LENGTH: Final = 268_435_455  # 2.2.3
_PUBLISH: Final = 0x30
_DUP: Final = 0x08
_RETAIN: Final = 0x01


class ProtocolViolation(Exception):
    """The peer broke the protocol; its connection is closed. `rule` is the standard's number, as `MQTT-2.2.2-2`."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(f"{message} [{rule}]")
        self.rule = rule


@dataclass(frozen=True, slots=True)
class Will:
    """What is published when the connection ends without DISCONNECT (3.1.2.5)."""

    topic: str
    payload: bytes
    qos: int
    retain: bool


@dataclass(frozen=True, slots=True)
class Connect:
    """CONNECT (3.1). User name and password are read past and kept nowhere: the certificate says who it is."""

    client_id: str
    clean_session: bool
    keep_alive: int
    will: Will | None


@dataclass(frozen=True, slots=True)
class UnsupportedLevel:
    """CONNECT of another version of the protocol: answered with return code 1 (3.1.2.2)."""

    name: str
    level: int


class Publish:
    """PUBLISH (3.3), as received or made here; never changed once it is routed, so that queues may share it."""

    __slots__ = ("_body_at", "_plain", "_prefix", "_topic_at", "dup", "frame", "packet_id", "qos", "retain", "topic")

    def __init__(self, topic: str, frame: bytes, topic_at: int, body_at: int, packet_id: int) -> None:
        """`topic_at` and `body_at` are where the topic's length and the payload begin in `frame`."""
        first = frame[0]
        self.topic = topic
        self.frame = frame
        self.packet_id = packet_id
        self.qos = first >> 1 & 3
        self.retain = first & _RETAIN != 0
        self.dup = first & _DUP != 0
        self._topic_at = topic_at
        self._body_at = body_at
        self._plain: bytes | None = frame if first == _PUBLISH else None
        self._prefix: bytes | None = None

    @classmethod
    def of(cls, topic: str, payload: bytes, qos: int, *, retain: bool) -> Publish:
        """A message that did not come in a packet of its own: a will, or one of the broker's."""
        name = _text(topic)
        packet_id = b"\0\1" if qos else b""
        first = _PUBLISH | qos << 1 | (_RETAIN if retain else 0)
        length = encode_length(len(name) + len(packet_id) + len(payload))
        frame = b"".join((bytes((first,)), length, name, packet_id, payload))
        topic_at = 1 + len(length)
        return cls(topic, frame, topic_at, topic_at + len(name) + len(packet_id), 1 if qos else 0)

    @property
    def payload(self) -> bytes:
        return self.frame[self._body_at :]

    @property
    def size(self) -> int:
        """What it costs to keep, in bytes."""
        return len(self.frame)

    def is_empty(self) -> bool:
        """Whether the payload has no bytes: as a retained message it deletes (3.3.1.3)."""
        return self._body_at == len(self.frame)

    def _topic_field(self) -> bytes:
        end = self._body_at - (2 if self.qos else 0)
        return self.frame[self._topic_at : end]

    def plain(self) -> bytes:
        """The frame at QoS 0, not retained; the very bytes that came in where they were that."""
        if self._plain is None:
            self._plain = self._unnumbered(_PUBLISH)
        return self._plain

    def _unnumbered(self, first: int) -> bytes:
        name, payload = self._topic_field(), self.payload
        return b"".join((bytes((first,)), encode_length(len(name) + len(payload)), name, payload))

    def to_send(self, qos: int, packet_id: int, *, retain: bool = False, dup: bool = False) -> bytes:
        """The frame for one subscriber; `packet_id` counts from QoS 1 on."""
        if qos == 0:
            return self._unnumbered(_PUBLISH | _RETAIN) if retain else self.plain()
        if self._prefix is None:
            self._prefix = self._length_and_name()
        first = _PUBLISH | qos << 1 | (_RETAIN if retain else 0) | (_DUP if dup else 0)
        return b"".join((_BYTE[first], self._prefix, packet_id.to_bytes(2, "big"), self.frame[self._body_at :]))

    def _length_and_name(self) -> bytes:
        """What stands before the packet id."""
        if self.qos:
            return self.frame[1 : self._body_at - 2]  # as it came: the lengths are the same
        name = self._topic_field()
        return encode_length(len(name) + 2 + len(self.frame) - self._body_at) + name


@dataclass(slots=True, init=False)  # not frozen: one is made for every message, and freezing costs thrice
class Puback:
    packet_id: int

    def __init__(self, packet_id: int) -> None:
        # Written out, for mypyc compiles none that is made at run time.
        self.packet_id = packet_id


@dataclass(slots=True)
class Pubrec:
    packet_id: int


@dataclass(slots=True)
class Pubrel:
    packet_id: int


@dataclass(slots=True)
class Pubcomp:
    packet_id: int


@dataclass(frozen=True, slots=True)
class Subscribe:
    """SUBSCRIBE (3.8): topic filters with the QoS asked for."""

    packet_id: int
    requests: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """UNSUBSCRIBE (3.10)."""

    packet_id: int
    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pingreq:
    """PINGREQ (3.12)."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """DISCONNECT (3.14)."""


Packet = (
    Connect
    | UnsupportedLevel
    | Publish
    | Puback
    | Pubrec
    | Pubrel
    | Pubcomp
    | Subscribe
    | Unsubscribe
    | Pingreq
    | Disconnect
)

_BYTE = tuple(bytes((value,)) for value in range(256))


def encode_length(length: int) -> bytes:
    """The remaining length (2.2.3), in as few bytes as it takes."""
    if length < 0x80:
        return _BYTE[length]
    encoded = bytearray()
    while True:
        length, digit = length >> 7, length & 0x7F
        encoded.append(digit | 0x80 if length else digit)
        if not length:
            return bytes(encoded)


def _text(value: str) -> bytes:
    data = value.encode()
    return len(data).to_bytes(2, "big") + data


# amqtt's codecs for what is sent seldom; what is sent with every message is two constant bytes and the packet id.
PINGRESP: Final = PingRespPacket.build().to_bytes()


def connack(return_code: int, *, session_present: bool = False) -> bytes:
    """CONNACK (3.2)."""
    return ConnackPacket.build(int(session_present), return_code).to_bytes()


def suback(packet_id: int, return_codes: list[int]) -> bytes:
    """SUBACK (3.9)."""
    return SubackPacket.build(packet_id, return_codes).to_bytes()


def unsuback(packet_id: int) -> bytes:
    """UNSUBACK (3.11)."""
    return UnsubackPacket.build(packet_id).to_bytes()


def puback(packet_id: int) -> bytes:
    """PUBACK (3.4)."""
    return b"\x40\x02" + packet_id.to_bytes(2, "big")


def pubrec(packet_id: int) -> bytes:
    """PUBREC (3.5)."""
    return b"\x50\x02" + packet_id.to_bytes(2, "big")


def pubrel(packet_id: int) -> bytes:
    """PUBREL (3.6)."""
    return b"\x62\x02" + packet_id.to_bytes(2, "big")


def pubcomp(packet_id: int) -> bytes:
    """PUBCOMP (3.7)."""
    return b"\x70\x02" + packet_id.to_bytes(2, "big")
