"""The load generator: many MQTT connections over mutual TLS 1.3, one process, one thread, one epoll, OpenSSL."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum, auto
from typing import Final

from benchmarks.brokers.contenders import Contender, Fleet
from benchmarks.brokers.frames import Refused, subscribe, text
from fleet.identity import DeviceId

_READ_BYTES: Final = 262_144
_ACCEPTED: Final = b"\x20\x02\x00\x00"
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: no TIME_WAIT, and the broker learns of it at once
_STALLED_SECONDS: Final = 60.0
_AT_ONCE: Final = 16  # connections looked at before others have their turn: a handshake takes a millisecond here


class Stage(Enum):
    """How far a connection has come."""

    HANDSHAKE = auto()
    CONNACK = auto()
    SUBACK = auto()
    READY = auto()


class Wire:
    """One connection; `wants` is the filter and QoS that it subscribes to before it is ready."""

    __slots__ = (
        *("_backed_up", "_in", "_out", "_tls", "_unsent"),
        *("id", "is_clean", "ready_after", "received", "rest", "sock", "stage", "wants"),
    )

    def __init__(
        self, id: DeviceId, context: ssl.SSLContext, port: int, wants: tuple[str, int] | None, backed_up: set[Wire]
    ) -> None:
        self.id = id
        self._backed_up = backed_up
        self.wants = wants
        self.is_clean = True  # otherwise the broker keeps the session, and where it is durable its messages
        self.stage = Stage.HANDSHAKE
        self.received = 0  # messages
        self.rest = b""
        self.ready_after = 0.0
        self._unsent = b""
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname="localhost")
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.connect_ex(("127.0.0.1", port))

    def send(self, data: bytes) -> None:
        """One TLS record up to 16 KB, one write."""
        self._tls.write(data)
        self.flush()

    def flush(self) -> None:
        """Write what is to be written; what does not go is tried again by whoever polls."""
        data = self._unsent + self._out.read() if self._unsent else self._out.read()
        try:
            sent = self.sock.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        self._unsent = data[sent:]
        if self._unsent:
            self._backed_up.add(self)
        else:
            self._backed_up.discard(self)

    @property
    def is_backed_up(self) -> bool:
        """Whether the broker reads more slowly than this was written to."""
        return bool(self._unsent)

    def receive(self) -> bytes:
        """What came. Raises: Refused at the end of the connection."""
        try:
            data = self.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise Refused(f"{self.id}: {error}") from error
        if not data:
            raise Refused(f"{self.id}: the broker ended the connection in {self.stage}")
        self._in.write(data)
        try:
            return self._decrypt() if self.stage is not Stage.HANDSHAKE or self.shake_hands() else b""
        except ssl.SSLError as error:
            raise Refused(f"{self.id}: {error}") from error

    def shake_hands(self) -> bool:
        """Go on with the handshake; whether it is done, and CONNECT sent."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self.flush()
            return False
        self._say_connect()
        return True

    def _decrypt(self) -> bytes:
        pieces: list[bytes] = []
        read, pending = self._tls.read, self._in
        try:
            while True:
                pieces.append(read(65_536))
                if not pending.pending and not self._tls.pending():
                    break
        except ssl.SSLWantReadError:
            pass
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _say_connect(self) -> None:
        if self._tls.version() != "TLSv1.3":
            raise Refused(f"not TLS 1.3: {self._tls.version()}")
        name = text(self.id)
        flags = b"\x82" if self.is_clean else b"\x80"
        body = b"\x00\x04MQTT\x04" + flags + b"\0\0" + name + name  # amqtt knows no other user name
        self.stage = Stage.CONNACK
        self.send(b"\x10" + bytes((len(body),)) + body)

    def settle(self, data: bytes) -> bool:
        """Go on with connecting; whether that is done. Raises: Refused."""
        data = self.rest + data
        if self.stage is Stage.CONNACK and len(data) >= 4:
            if data[:4] != _ACCEPTED:
                raise Refused(f"{self.id}: CONNACK {data[:4]!r}")
            data = data[4:]
            self.stage = Stage.SUBACK if self.wants else Stage.READY
            if self.wants:
                self.send(subscribe(*self.wants))
        if self.stage is Stage.SUBACK and len(data) >= 5:
            if data[:4] != b"\x90\x03\0\1" or data[4] > 2:
                raise Refused(f"{self.id}: SUBACK {data[:5]!r}")
            data, self.stage = data[5:], Stage.READY
        self.rest = data
        return self.stage is Stage.READY

    def close(self) -> None:
        """End at once."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.sock.close()


class Swarm:
    """Connections to one broker; a context that ends them all."""

    def __init__(self, fleet: Fleet, broker: Contender) -> None:
        self._fleet = fleet
        self.broker = broker
        self._epoll = select.epoll()
        self._wires: dict[int, Wire] = {}
        self._backed_up: set[Wire] = set()
        self.refused: list[Wire] = []
        self.kept: DeviceId | None = None  # whose session is not clean
        self.is_tolerant = False  # whether a connection that is not let in is counted and no more
        # One context: OpenSSL copies the certificate into each connection as it is made.
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.load_verify_locations(fleet.home.root.certificate)

    def __enter__(self) -> Swarm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(tuple(self._wires.values()))
        self._epoll.close()

    def open(
        self, wanted: Sequence[tuple[DeviceId, tuple[str, int] | None]], at_once: int = 16, others: Others | None = None
    ) -> list[Wire]:
        """Connect and subscribe, `at_once` handshakes at a time. Raises: Refused, TimeoutError."""
        began = time.perf_counter()
        wires: list[Wire] = []
        coming, opening, refused = iter(wanted), 0, 0
        while True:
            opening, refused = opening - len(self.refused) + refused, len(self.refused)
            begun = len(wires)
            while len(wires) < begun + _AT_ONCE and opening < at_once and (one := next(coming, None)) is not None:
                wires.append(self._begin(*one))
                opening += 1
            if not opening:
                return wires
            for wire, data in self.poll(0.0 if len(wires) > begun else _STALLED_SECONDS):
                if wire.stage is Stage.READY:
                    if others is not None:
                        others.arrived(wire, data)
                    continue
                if wire.settle(data):
                    wire.ready_after = time.perf_counter() - began
                    opening -= 1
            if others is not None:
                others.go_on()

    def _begin(self, id: DeviceId, wants: tuple[str, int] | None) -> Wire:
        files = self._fleet.files(id)
        self._context.load_cert_chain(files.certificate, files.key)
        wire = Wire(id, self._context, self.broker.port, wants, self._backed_up)
        wire.is_clean = id != self.kept
        self._wires[wire.sock.fileno()] = wire
        self._epoll.register(wire.sock, select.EPOLLOUT)
        return wire

    def poll(self, seconds: float) -> Iterator[tuple[Wire, bytes]]:
        """What arrives within that time, by connection. Raises: Refused; TimeoutError after a minute of nothing."""
        if seconds > 0 and not select.select([self._epoll], [], [], seconds)[0]:
            if seconds >= _STALLED_SECONDS:
                raise TimeoutError(f"nothing came from {self.broker.name}")
            return
        for wire in tuple(self._backed_up):
            wire.flush()
        for descriptor, events in self._epoll.poll(0, _AT_ONCE if self.is_tolerant else -1):
            wire = self._wires[descriptor]
            if events == select.EPOLLOUT:  # connected
                self._epoll.modify(descriptor, select.EPOLLIN)
                wire.shake_hands()
            elif data := self._receive(wire):
                yield wire, data

    def _receive(self, wire: Wire) -> bytes:
        try:
            return wire.receive()
        except Refused:
            if not self.is_tolerant or wire.stage is Stage.READY:
                raise
            self.refused.append(wire)
            self.close([wire])
            return b""

    def close(self, wires: Iterable[Wire]) -> None:
        """End connections at once."""
        for wire in wires:
            del self._wires[wire.sock.fileno()]
            self._backed_up.discard(wire)
            wire.close()


class Others:
    """What goes on while connections are opened."""

    def arrived(self, wire: Wire, data: bytes) -> None:
        """Something came on a connection that is ready."""

    def go_on(self) -> None:
        """Called after each round."""
