"""A TCP relay that loses the answer of one connection: the peer has done what it was asked, and nobody hears of it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.deadlines import within
from tests.unit.device_agent.servers import Listener, listening

_CHUNK_BYTES = 65_536


@dataclass
class Loss:
    """Which connection, counted from 1, loses its answer; `count` is how many there were."""

    target: tuple[str, int]
    number: int
    count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def serve(self, near: socket.socket) -> None:
        with self._lock:
            self.count += 1
            is_lost = self.count == self.number
        with socket.create_connection(self.target, within(10)) as far:
            asked = _Asked()
            back = threading.Thread(target=self._bring_back, args=(far, near, asked, is_lost), daemon=True)
            back.start()
            _forward(near, far, asked)
            with contextlib.suppress(OSError):
                far.shutdown(socket.SHUT_WR)
            back.join(within(10))

    @staticmethod
    def _bring_back(far: socket.socket, near: socket.socket, asked: _Asked, is_lost: bool) -> None:
        """What the server says: of a lost answer only what it said before it was asked, its handshake.

        Under TLS 1.3 without tickets a server speaks once before the request, and once after it.
        """
        with contextlib.suppress(OSError):
            while data := far.recv(_CHUNK_BYTES):
                if is_lost and asked.has_heard and asked.since:
                    break
                asked.has_heard, asked.since = True, False
                near.sendall(data)
            near.shutdown(socket.SHUT_RDWR)


@dataclass
class _Asked:
    """Whether the server has spoken, and the client since then."""

    has_heard: bool = False
    since: bool = False


def _forward(near: socket.socket, far: socket.socket, asked: _Asked) -> None:
    with contextlib.suppress(OSError):
        while data := near.recv(_CHUNK_BYTES):
            asked.since = asked.has_heard
            far.sendall(data)


@contextmanager
def losing(target: tuple[str, int], number: int) -> Iterator[tuple[Listener, Loss]]:
    """A relay to `target` whose `number`-th connection loses its answer."""
    loss = Loss(target, number)
    with listening(loss.serve) as listener:
        yield listener, loss
