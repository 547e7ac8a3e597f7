"""A TCP relay that can stop forwarding: what a dead mobile link looks like from both of its ends."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 65_536


class Relay:
    """Forwards from a free port to `target`. While frozen it accepts and is silent: nobody is told of anything."""

    def __init__(self, target: tuple[str, int], delay_seconds: float = 0.0) -> None:
        self._target = target
        self._delay_seconds = delay_seconds
        self._under_way: deque[tuple[float, socket.socket, socket.socket, bytes]] = deque()
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._wake_in, self._wake_out = socket.socketpair()
        self.bytes_read = 0
        self._is_frozen = self._is_closing = self._is_cutting = False
        self._bound: tuple[int, Callable[[], None]] | None = None
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def point_to(self, target: tuple[str, int]) -> None:
        """New connections go there from now on."""
        self._target = target

    def freeze(self) -> None:
        self._is_frozen = True
        self._wake_out.send(b"\0")

    def cut(self) -> None:
        """Every connection ends at once, with a reset."""
        self._is_cutting = True
        self._wake_out.send(b"\0")

    def cut_after(self, count: int) -> None:
        """Once so many more bytes have come, from whichever end, every connection ends at once, with a reset."""
        self._bound = count, self.cut

    def freeze_after(self, count: int) -> threading.Event:
        """Once so many more bytes have come, from whichever end, it freezes; that is set then."""
        is_frozen = threading.Event()

        def freeze() -> None:
            self.freeze()
            is_frozen.set()

        self._bound = count, freeze
        return is_frozen

    def thaw(self) -> None:
        """New connections are forwarded again; those from before stay as dead as they are."""
        self._is_frozen = False
        self._wake_out.send(b"\0")

    def __enter__(self) -> Self:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_in, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_closing = True
        self._wake_out.send(b"\0")
        self._thread.join(5)
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        for _, source, target, _ in self._under_way:
            source.close()
            target.close()
        for each in (self._listener, self._wake_in, self._wake_out):
            each.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._is_closing:
            for key, _ in self._selector.select(self._next_arrival()):
                if key.fileobj is self._wake_in:
                    self._wake_in.recv(_CHUNK_BYTES)
                    self._cut_if_asked()
                elif key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket) and isinstance(key.data, socket.socket):
                    self._forward(key.fileobj, key.data)
            self._deliver()

    def _next_arrival(self) -> float | None:
        """How long until what is under way arrives, in seconds; None if nothing is."""
        return max(0.0, self._under_way[0][0] - time.monotonic()) if self._under_way else None

    def _deliver(self) -> None:
        """Hand over what has arrived, in its order, and ends behind what they end."""
        while self._under_way and self._under_way[0][0] <= time.monotonic():
            _, source, target, data = self._under_way.popleft()
            try:
                if data:
                    target.sendall(data)
                    continue
            except OSError:
                pass
            self._end(source, target)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(self._target, timeout=5)
        except OSError:
            near.close()
            return
        self._selector.register(near, selectors.EVENT_READ, far)
        self._selector.register(far, selectors.EVENT_READ, near)

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        """What was read while frozen is gone, as on a link that loses it; an end is not passed on then either."""
        data = b""
        with contextlib.suppress(OSError):
            data = source.recv(_CHUNK_BYTES)
        self._count(len(data))
        if not data:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(source)
        if not self._is_frozen:
            self._under_way.append((time.monotonic() + self._delay_seconds, source, target, data))
        elif not data:
            source.close()

    def _count(self, count: int) -> None:
        self.bytes_read += count
        if self._bound is not None:
            left, act = self._bound
            self._bound = (left - count, act) if left > count else None
            if self._bound is None:
                act()

    def _cut_if_asked(self) -> None:
        if self._is_cutting:
            self._is_cutting = False
            for key in list(self._selector.get_map().values()):
                if isinstance(key.fileobj, socket.socket) and isinstance(key.data, socket.socket):
                    key.fileobj.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self._end(key.fileobj)

    def _end(self, *sockets: socket.socket) -> None:
        for each in sockets:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(each)
            each.close()
