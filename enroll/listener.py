"""Accepts connections, each with a slot from before its handshake to its end (`slots`), and serves HTTP over them.

Who may have how many is decided in `slots`, how long each may take in `connection`; what is answered is the caller's.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

from aiohttp import web

from enroll.connection import Connection, Limits, Received
from enroll.rate_limit import Sparsely, network_of
from enroll.slots import Holder, Slot, Slots
from fleet.config import Address
from fleet.errors import FleetError
from fleet.logs import event

_log = logging.getLogger(__name__)

_BACKLOG: Final = 512
_PAUSE_SECONDS: Final = 0.1
_RECEIVE_BYTES: Final = 8192
_LOOK_SECONDS: Final = 0.05


class Listener:
    """One listening socket, over TLS if there is a `context` for the next connection; `handle` answers one request."""

    def __init__(
        self,
        handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        limits: Limits,
        context: Callable[[], ssl.SSLContext] | None = None,
        send_buffer_bytes: int | None = None,
    ) -> None:
        self._send_buffer_bytes = send_buffer_bytes
        self._limits = limits
        self._context = context
        self._slots = Slots(limits.connections, limits.grace)
        self._knock = asyncio.Event()
        self._freed = asyncio.Event()
        self._told = Sparsely()
        self._http = web.Server(handle)
        self._socket: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._handshakes: set[asyncio.Task[None]] = set()
        self._open: dict[Slot, Connection] = {}

    def start(self, address: Address) -> Address:
        """Accept connections; the address with its real port. Raises: FleetError."""
        self._socket = listen(address)
        if self._send_buffer_bytes is not None:  # each connection inherits it; else it grows to megabytes
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._send_buffer_bytes)
        # Each connection inherits it: a broker that follows the feed may hear nothing for hours, and be gone.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._hear(self._socket)
        self._accepting = asyncio.create_task(self._accept(self._socket))
        self._watching = asyncio.create_task(self._watch())
        return Address(address.host, self._socket.getsockname()[1])

    def share(self, holder: Holder) -> int:
        """How many connections one holder may have at once."""
        return self._slots.share(holder)

    async def close(self) -> None:
        """Accept no more; whoever has asked stays."""
        if self._accepting is not None:
            await _cancelled(self._accepting)
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
        for handshake in list(self._handshakes):
            await _cancelled(handshake)
        for http in list(self._open.values()):
            if http.owes_a_head:
                http.abort()

    def end_unasked(self) -> None:
        """End every connection whose peer has not asked to the end."""
        for http in list(self._open.values()):
            if http.owes_a_head or http.owes_a_body:
                http.abort()

    async def end_all(self) -> None:
        """End every connection that is left; what is being answered has a moment."""
        self._http.pre_shutdown()
        await self._http.shutdown(self._limits.shutdown)
        if self._watching is not None:
            await _cancelled(self._watching)

    async def _accept(self, listener: socket.socket) -> None:
        """Accept one at a time, in turn with what else there is to do."""
        while True:
            await self._knock.wait()
            self._knock.clear()
            try:
                connection, peer = listener.accept()
            except BlockingIOError:
                continue
            except OSError as error:  # out of descriptors, or the peer was gone at once
                with self._deaf(listener):
                    await self._not_accepted(error)
                continue
            connection.setblocking(False)
            try:
                await self._make_room(network_of(peer[0]), listener)
            except asyncio.CancelledError:
                connection.close()
                raise
            self._begin(connection, peer[0])

    def _hear(self, listener: socket.socket) -> None:
        """Know of it when somebody knocks. (The loop's own way to accept asks the kernel anew for each of them.)"""
        asyncio.get_running_loop().add_reader(listener, self._knock.set)

    @contextlib.contextmanager
    def _deaf(self, listener: socket.socket) -> Iterator[None]:
        """While this lasts nobody is heard: whoever knocks does so until he is let in."""
        asyncio.get_running_loop().remove_reader(listener)
        try:
            yield
        finally:
            self._hear(listener)

    async def _not_accepted(self, error: OSError) -> None:
        if count := self._told.count("connection.not_accepted", _now()):
            _log.warning(event("connection.not_accepted", reason=error.strerror, count=count))
        if error.errno in (errno.EMFILE, errno.ENFILE) and (slot := self._slots.oldest_of_most(_now())):
            self._evict(slot)
            await asyncio.sleep(_PAUSE_SECONDS / 20)  # until its descriptor is free
        else:
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _make_room(self, network: str, listener: socket.socket) -> None:
        """Returns when one more connection from `network` may be opened."""
        while True:
            if slot := self._slots.in_the_way(network, _now()):
                self._evict(slot)
            elif not self._slots.is_full:
                return
            else:  # nobody may be ended now; somebody will soon
                self._freed.clear()
                with self._deaf(listener), contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._freed.wait(), _PAUSE_SECONDS)

    async def _watch(self) -> None:
        """End who is late, and who keeps the loop at work with bytes that come to nothing, for ever.

        A thousand looks take 2 ms; a timer for each step of each connection took more.
        """
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now = _now()
            for slot, http in list(self._open.items()):
                http.check_deadline(now)
                if http.says_nothing:
                    if count := self._told.count("connection.says_nothing", _now()):
                        _log.warning(event("connection.says_nothing", holder=_shown(slot.holder), count=count))
                    slot.end()

    def _evict(self, slot: Slot) -> None:
        if count := self._told.count("connection.evicted", _now()):
            _log.warning(event("connection.evicted", holder=_shown(slot.holder), count=count))
        self._slots.close(slot)
        slot.end()

    def recognised(self, slot: Slot, certificate: bytes) -> None:
        """A connection's peer has a certificate: others of the same one may have to go."""
        if (other := self._slots.over_share(certificate, _now())) is not None:
            self._evict(other)
        self._slots.recognise(slot, certificate)

    def released(self, slot: Slot) -> None:
        """A connection has ended."""
        self._slots.close(slot)
        self._open.pop(slot, None)
        self._freed.set()

    def heard_garbage(self, slot: Slot, reason: str) -> None:
        """A connection's peer speaks no HTTP."""
        holder = _shown(slot.holder)
        if count := self._told.count(f"request.malformed {holder}", _now()):
            _log.info(event("request.malformed", holder=holder, reason=reason, count=count))

    def _begin(self, connection: socket.socket, address: str) -> None:
        """Shake hands, beside all others."""
        loop = asyncio.get_running_loop()
        slot = Slot(network_of(address), _now(), connection.close)
        http = Connection(self._http, loop, self._limits, slot, self, Received(connection))
        self._slots.open(slot)
        self._open[slot] = http
        handshake = loop.create_task(self._shake_hands(connection, address, http))

        def end() -> None:
            handshake.cancel()

        def ended(_: asyncio.Task[None]) -> None:
            self._handshakes.discard(handshake)
            if not http.was_made:
                self.released(slot)
                connection.close()

        slot.end = end
        self._handshakes.add(handshake)
        handshake.add_done_callback(ended)

    async def _shake_hands(self, connection: socket.socket, address: str, http: Connection) -> None:
        limits, context = self._limits, self._context and self._context()
        tls = {"ssl_handshake_timeout": limits.handshake, "ssl_shutdown_timeout": limits.goodbye}
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: http, connection, ssl=context, **(tls if context else {})
            )
        except OSError as error:
            if count := self._told.count(f"handshake.failed {network_of(address)}", _now()):
                _log.info(event("handshake.failed", address=address, reason=error, count=count))


def _shown(holder: Holder) -> str:
    return holder if isinstance(holder, str) else "certificate"


def listen(address: Address) -> socket.socket:
    """A listening socket. Raises: FleetError when the address is taken or not ours."""
    is_ipv6 = ":" in address.host
    try:
        listener = socket.create_server(
            (address.host, address.port),
            family=socket.AF_INET6 if is_ipv6 else socket.AF_INET,
            backlog=_BACKLOG,
            dualstack_ipv6=address.host == "::" and socket.has_dualstack_ipv6(),
        )
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise FleetError(
            f"cannot listen on {address}: {reason}", hint="give another address: --listen HOST:PORT"
        ) from error
    # What accepted connections inherit: the loop reads a peer's records until its buffer is empty, and a record need
    # not hold a byte for us (TLS 1.3 key updates, each of which costs a derivation). Requests are small.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
    listener.setblocking(False)
    return listener


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _now() -> float:
    return asyncio.get_running_loop().time()
