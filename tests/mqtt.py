"""A client of MQTT 3.1.1 that sends whatever bytes a test wants. Nothing of the broker's own codec."""

from __future__ import annotations

import socket
import ssl
from types import TracebackType
from typing import Self

from tests.deadlines import within

PINGREQ, PINGRESP, DISCONNECT = b"\xc0\x00", b"\xd0\x00", b"\xe0\x00"
ACCEPTED = b"\x20\x02\x00\x00"
ACCEPTED_PRESENT = b"\x20\x02\x01\x00"


def packet(first: int, *fields: bytes) -> bytes:
    """A packet with its remaining length."""
    body = b"".join(fields)
    length, encoded = len(body), bytearray()
    while True:
        encoded.append(length % 128 | (0x80 if length > 127 else 0))
        length //= 128
        if not length:
            return bytes((first,)) + bytes(encoded) + body


def field(data: str | bytes) -> bytes:
    """A text or binary field."""
    raw = data.encode() if isinstance(data, str) else data
    return len(raw).to_bytes(2, "big") + raw


def number(value: int) -> bytes:
    return value.to_bytes(2, "big")


def connect(
    client_id: str,
    *,
    clean: bool = True,
    keep_alive: int = 60,
    will: tuple[str, bytes, int, bool] | None = None,
    level: int = 4,
    user: str | None = None,
) -> bytes:
    """CONNECT; `will` is topic, payload, QoS, retain; `user` claims a user name."""
    flags, payload = (0x02 if clean else 0), field(client_id)
    if will is not None:
        topic, message, qos, retain = will
        flags |= 0x04 | qos << 3 | (0x20 if retain else 0)
        payload += field(topic) + field(message)
    if user is not None:
        flags |= 0x80
        payload += field(user)
    return packet(0x10, field("MQTT"), bytes((level, flags)), number(keep_alive), payload)


def publish(
    topic: str | bytes, payload: bytes = b"", qos: int = 0, id: int = 1, *, retain: bool = False, dup: bool = False
) -> bytes:
    first = 0x30 | qos << 1 | int(retain) | (8 if dup else 0)
    return packet(first, field(topic), number(id) if qos else b"", payload)


def subscribe(*filters: tuple[str, int], id: int = 1) -> bytes:
    return packet(0x82, number(id), *(field(topic) + bytes((qos,)) for topic, qos in filters))


def unsubscribe(*filters: str, id: int = 1) -> bytes:
    return packet(0xA2, number(id), *(field(topic) for topic in filters))


def suback(*codes: int, id: int = 1) -> bytes:
    return packet(0x90, number(id), bytes(codes))


def puback(id: int) -> bytes:
    return packet(0x40, number(id))


def pubrec(id: int) -> bytes:
    return packet(0x50, number(id))


def pubrel(id: int) -> bytes:
    return packet(0x62, number(id))


def pubcomp(id: int) -> bytes:
    return packet(0x70, number(id))


class Peer:
    """One TLS connection. Reads end with AssertionError when the deadline passes."""

    def __init__(
        self, address: tuple[str, int], context: ssl.SSLContext, session: ssl.SSLSession | None = None
    ) -> None:
        raw = socket.create_connection(address, timeout=within(10))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.socket = context.wrap_socket(raw, server_hostname=address[0], session=session)
        except BaseException:
            raw.close()
            raise
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(frames))

    def receive(self) -> bytes:
        """The next frame, whole. Raises: ConnectionError at the end of the connection."""
        while True:
            if frame := self._frame():
                return frame
            try:
                data = self.socket.recv(65_536)
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                data = b""
            except ssl.SSLError as error:
                raise ConnectionError(str(error)) from error
            except TimeoutError as error:
                raise AssertionError("nothing came before the deadline") from error
            if not data:
                raise ConnectionError("the broker closed the connection")
            self._buffer += data

    def _frame(self) -> bytes:
        length = 0
        for at in range(1, min(5, len(self._buffer))):
            length |= (self._buffer[at] & 0x7F) << 7 * (at - 1)
            if self._buffer[at] < 0x80:
                end = at + 1 + length
                if len(self._buffer) < end:
                    return b""
                frame, self._buffer = self._buffer[:end], self._buffer[end:]
                return frame
        return b""

    def ask(self, frame: bytes) -> bytes:
        """Send one frame; the next that comes."""
        self.send(frame)
        return self.receive()

    def sync(self) -> None:
        """Everything sent so far was handled, and nothing else came."""
        assert PINGRESP == self.ask(PINGREQ)

    def is_closed(self) -> bool:
        """Whether the broker closes the connection, sending nothing more."""
        try:
            self.receive()
        except ConnectionError:
            return True
        return False
