"""What goes over a wire: frames built beforehand and of one length, so that what arrives is counted by its length.

So a message costs the load generator a fraction of what it costs any of the brokers.
"""

from __future__ import annotations

from typing import Protocol


class Refused(Exception):
    """A broker ended a connection, or answered another thing than yes."""


class Counted(Protocol):
    """A connection whose messages are counted."""

    received: int
    rest: bytes

    @property
    def id(self) -> str: ...

    def send(self, data: bytes) -> None:
        """Write."""


def text(value: str) -> bytes:
    """A string of MQTT (1.5.3)."""
    data = value.encode()
    return len(data).to_bytes(2, "big") + data


def subscribe(topic_filter: str, qos: int) -> bytes:
    """SUBSCRIBE with packet id 1."""
    body = b"\0\1" + text(topic_filter) + bytes((qos,))
    return b"\x82" + bytes((len(body),)) + body


def unsubscribe(topic_filter: str) -> bytes:
    """UNSUBSCRIBE with packet id 1."""
    body = b"\0\1" + text(topic_filter)
    return b"\xa2" + bytes((len(body),)) + body


class Frames:
    """PUBLISH frames to one topic, all of one length: at a QoS, with a payload of `size` bytes."""

    __slots__ = ("head", "length", "qos", "size")

    def __init__(self, topic: str, qos: int, size: int) -> None:
        name = text(topic)
        remaining = len(name) + 2 * bool(qos) + size
        assert remaining < 16_384
        encoded = bytes((remaining,)) if remaining < 128 else bytes((remaining & 0x7F | 0x80, remaining >> 7))
        self.head = bytes((0x30 | qos << 1,)) + encoded + name
        self.qos, self.size = qos, size
        self.length = len(self.head) + 2 * bool(qos) + size

    def frame(self, packet_id: int, payload: bytes) -> bytes:
        """One message; the packet id counts from QoS 1 on."""
        return self.head + packet_id.to_bytes(2, "big") + payload if self.qos else self.head + payload


class Reader:
    """Counts, checks and acknowledges messages of one length on each connection."""

    def __init__(self, frames: Frames) -> None:
        """`frames`: of a topic as long as all that come."""
        self.length, self.qos = frames.length, frames.qos
        self._payload_at = self.length - frames.size
        self._first = bytes((frames.head[0],))

    def count(self, wire: Counted, data: bytes) -> tuple[int, bytes]:
        """How many messages ended in `data`, and them; they are acknowledged. Raises: Refused if one is no message."""
        length = self.length
        if wire.rest:
            data = wire.rest + data
        count = len(data) // length
        whole = count * length
        wire.rest = data[whole:]
        if data[:whole:length] != self._first * count:
            raise Refused(f"{wire.id}: not the messages that were sent: {data[:80]!r}")
        wire.received += count
        if self.qos and count:
            answers = bytearray(b"\x40\x02\0\0" * count)
            id_at = self._payload_at - 2
            answers[2::4], answers[3::4] = data[id_at:whole:length], data[id_at + 1 : whole : length]
            wire.send(bytes(answers))
        return count, data

    def stamps(self, count: int, data: bytes) -> list[int]:
        """The first eight bytes of each payload, as numbers."""
        at, length = self._payload_at, self.length
        return [int.from_bytes(data[n * length + at : n * length + at + 8], "big") for n in range(count)]
