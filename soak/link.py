"""One TLS connection to the broker, and the frames that come over it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Final, Self, cast

HOST: Final = "127.0.0.1"
_NAME: Final = "localhost"
DEADLINE_SECONDS: Final = 30.0  # how long an honest client waits for anything that it was promised


OnFrame = Callable[["Link", int, bytes], None]
"""Is given the link, a frame's first byte, and its body."""


class Link(asyncio.Protocol):
    """Frames to `on_frame`, until it is muted; `ended` is set when the connection is gone."""

    def __init__(self, on_frame: OnFrame, on_end: Callable[[Link], None]) -> None:
        self.ended = asyncio.Event()
        self._on_frame = on_frame
        self._on_end = on_end
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._is_muted = False

    @classmethod
    async def open(cls, port: int, context: ssl.SSLContext, on_frame: OnFrame, on_end: Callable[[Link], None]) -> Self:
        """A connection with its handshake done. Raises: OSError, TimeoutError."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(DEADLINE_SECONDS):
            _, link = await loop.create_connection(
                lambda: cls(on_frame, on_end), HOST, port, ssl=context, server_hostname=_NAME
            )
        return link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.ended.set()
        self._on_end(self)

    def data_received(self, data: bytes) -> None:
        rest = self._rest + data if self._rest else data
        at = 0
        while not self._is_muted and (found := _frame_at(rest, at)):
            body, end = found
            self._on_frame(self, rest[at], rest[body:end])
            at = end
        self._rest = rest[at:]

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    @property
    def unsent_bytes(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def send(self, frame: bytes) -> None:
        """Write; what is written to a connection that has ended is lost, as it would be on the wire."""
        if self._transport is not None:
            self._transport.write(frame)

    def mute(self) -> None:
        """Whatever comes from now on counts as lost."""
        self._is_muted = True

    def pause(self) -> None:
        """Read no more."""
        if self._transport is not None:
            self._transport.pause_reading()

    def abort(self) -> None:
        """As if the cable were pulled."""
        self.mute()
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """End it once everything is written."""
        if self._transport is not None:
            self._transport.close()

    async def wait_ended(self, seconds: float = DEADLINE_SECONDS) -> bool:
        """Whether it ended in time."""
        try:
            async with asyncio.timeout(seconds):
                await self.ended.wait()
        except TimeoutError:
            return False
        return True


def _frame_at(data: bytes, at: int) -> tuple[int, int] | None:
    """Where the body of the frame at `at` begins and ends; None where it is not whole."""
    length, shift = 0, 0
    for body in range(at + 1, min(at + 5, len(data))):
        length |= (data[body] & 0x7F) << shift
        if data[body] < 0x80:
            end = body + 1 + length
            return (body + 1, end) if end <= len(data) else None
        shift += 7
    return None
