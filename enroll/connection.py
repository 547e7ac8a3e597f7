"""One connection of a listener: a deadline for every step in which the service waits for its peer.

    handshake -> head -> [body] -> (work: no deadline, the service is at work) -> answer -> head ...
                   |        |                                                        |
                 ends   408, ends                                                  ends

aiohttp reads HTTP; it bounds nothing but idleness, and closes politely: a peer that does not say goodbye in TLS is
waited for. Here a peer that is late loses its connection at once, and one that was answered gets a moment.
"""

from __future__ import annotations

import asyncio
import math
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar, cast

from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from enroll.slots import Holder, Slot

SERVER: Final = "enroll"
_BYTES_RECEIVED_AT: Final = 128
"""tcpi_bytes_received in struct tcp_info of linux/tcp.h, which only ever grows at its end; since Linux 4.1."""
_Response = TypeVar("_Response", bound=web.StreamResponse)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one stranger, or all of them, may take up. Times are in seconds."""

    connections: int = 1000
    waiting_requests: int = 600  # more than the share of one network, or its flood would keep out all others
    handshake: float = 10.0
    head: float = 10.0  # of the first and of every later request, so also how long a kept-alive connection idles
    body: float = 10.0
    answer: float = 10.0  # until the peer has taken it
    linger: float = 2.0  # what was on its way to a refusal is read, so that the client gets to see the refusal
    goodbye: float = 1.0  # until the peer has said its own in TLS
    feed: float = 30.0  # until a broker has taken a chunk
    last_bodies: float = 1.0  # what was asked by half when the service is told to end
    shutdown: float = 10.0
    grace: float = 1.0  # what no connection is ended in, to make room for another
    empty_bytes: int = 32_768  # on the wire that hold nothing: the handshake, what TLS adds to one request


class Owner(Protocol):
    """Whoever keeps the connections."""

    def recognised(self, slot: Slot, certificate: bytes) -> None:
        """The peer has shown a valid certificate."""

    def released(self, slot: Slot) -> None:
        """The connection has ended."""

    def heard_garbage(self, slot: Slot, reason: str) -> None:
        """What the peer sent is no HTTP."""


class Received:
    """How many bytes have come over a TCP connection, as its kernel counts them; 0 where it does not.

    TLS shows only what was in its records, and a peer can send records for ever that hold nothing.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def __call__(self) -> int:
        if not sys.platform.startswith("linux"):
            return 0
        try:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED_AT + 8)
        except OSError:  # it has ended
            return 0
        return int.from_bytes(info[_BYTES_RECEIVED_AT:], sys.byteorder) if len(info) == _BYTES_RECEIVED_AT + 8 else 0


class Connection(RequestHandler):
    """One connection, from its handshake to its end."""

    __slots__ = (
        "_due",
        "_full_bytes",
        "_limits",
        "_owes",
        "_owner",
        "_received",
        "_slot",
        "_stream",
        "certificate",
        "tls_unique",
    )

    def __init__(
        self,
        server: web.Server,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        slot: Slot,
        owner: Owner,
        received: Received,
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            lingering_time=limits.linger,
            tcp_keepalive=False,  # inherited from the listening socket
            access_log=None,  # type: ignore[arg-type] # how aiohttp is told to have none
            auto_decompress=False,  # nothing here is sent compressed, and a bomb stays small
        )
        self._limits = limits
        self._slot = slot
        self._owner = owner
        self._received = received
        self._full_bytes = 0  # of what was received; at the end of a request all that was
        self._owes = True
        self._stream: asyncio.Transport | None = None
        self._due = math.inf
        self.certificate: bytes | None = None
        self.tls_unique: bytes | None = None

    @property
    def holder(self) -> Holder:
        """Whom it counts for."""
        return self._slot.holder

    @property
    def was_made(self) -> bool:
        """Whether the handshake came to its end."""
        return self._stream is not None

    @property
    def owes_a_head(self) -> bool:
        """Whether nothing was asked that is not answered yet."""
        return self._owes and not self._messages and not self._request_in_progress

    @property
    def owes_a_body(self) -> bool:
        """Whether the peer has not asked to the end."""
        return self._owes and self._request_in_progress

    @property
    def says_nothing(self) -> bool:
        """Whether more has come over the wire since the last answer, beside what was to be read, than TLS needs."""
        return self._received() - self._full_bytes > self._limits.empty_bytes

    def check_deadline(self, now: float) -> None:
        """End it if its peer is late. One that idles, kept alive, is told goodbye; whoever owes something is not."""
        if now < self._due:
            return
        self._expect_nothing()
        assert self._stream is not None
        if self._request_count and not self._request_in_progress:
            self.force_close()
        else:
            self._stream.abort()

    def data_received(self, data: bytes) -> None:
        self._full_bytes += len(data)
        super().data_received(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._stream = cast("asyncio.Transport", transport)  # aiohttp forgets its own when it begins to close
        self._slot.end = self._stream.abort
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            self.certificate = tls.getpeercert(binary_form=True)
            self.tls_unique = tls.get_channel_binding() if tls.version() == "TLSv1.2" else None
        if self.certificate is not None:
            self._owner.recognised(self._slot, self.certificate)
        self._expect(self._limits.head)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._expect_nothing()
        super().connection_lost(exc)
        self._owner.released(self._slot)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While this lasts the peer is not waited for."""
        self._expect_nothing()
        self._slot.waits_for_peer = self._owes = False
        try:
            yield
        finally:
            self._slot.waits_for_peer = True

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Within `at_work`, while the peer has to send a body. What bounds it is with the reader."""
        self._slot.waits_for_peer = self._owes = True
        try:
            yield
        finally:
            self._slot.waits_for_peer = self._owes = False

    def abort(self) -> None:
        """End it at once, whatever was to come."""
        if self._stream is not None:
            self._stream.abort()

    def expect_no_more(self) -> None:
        """What is left of a body is not waited for."""
        self._lingering_time = 0.0

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        self._expect(self._limits.answer)
        finished = await super().finish_response(request, resp, start_time)
        self._expect(self._limits.head)
        self._owes, self._full_bytes = True, self._received()
        return finished

    def handle_error(self, *args: Any, **kw: Any) -> web.StreamResponse:
        """The answer to what is no HTTP; it tells neither what this is written with nor what was sent."""
        status = super().handle_error(*args, **kw).status
        text = "this cannot be read as HTTP/1.1\n" if status < 500 else "the service failed\n"
        return closing(web.Response(status=status, text=text, headers={"Server": SERVER}))

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """What is no HTTP is the peer's mistake and one line; anything else is ours, and keeps its traceback.

        What the peer sent is not in that line: it may be a token.
        """
        error = kw.get("exc_info")
        if isinstance(error, HttpProcessingError):
            self._owner.heard_garbage(self._slot, type(error).__name__)
        elif not isinstance(error, ConnectionError):
            super().log_exception(*args, **kw)

    def _expect(self, seconds: float) -> None:
        self._due = self._loop.time() + seconds

    def _expect_nothing(self) -> None:
        self._due = math.inf


def connection_of(request: web.BaseRequest) -> Connection:
    """What the request came over."""
    return cast("Connection", request.protocol)


def closing(response: _Response) -> _Response:
    """The response, as the last one of its connection."""
    response.force_close()
    return response
