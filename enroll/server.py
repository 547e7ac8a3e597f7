"""The TLS listener of the enrollment service: bytes of HTTP to `EstRequest`, `EstResponse` to bytes.

Every connection has a slot from before its handshake to its end (`slots`), and a deadline for each step (`connection`).
What may block runs in one thread (`worker`), so the loop stays free for handshakes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import socket
import ssl
from dataclasses import replace
from typing import Any, Final, TypeVar, cast

from aiohttp import web

from enroll.connection import SERVER, Connection, Limits
from enroll.directory import DirectoryFeed, position_of
from enroll.est_app import EstApp, refusal, too_large
from enroll.rate_limit import Sparsely, network_of
from enroll.registry import RegistryUnavailable
from enroll.slots import Holder, Slot, Slots
from enroll.worker import Worker
from fleet import directory, est
from fleet.config import Address
from fleet.errors import FleetError, InvalidInput
from fleet.est import EstRequest, EstResponse
from fleet.logs import event

_log = logging.getLogger(__name__)


_BACKLOG: Final = 512
_PAUSE_SECONDS: Final = 0.1
_Response = TypeVar("_Response", bound=web.StreamResponse)
# RFC 7030, 3.2.2: it chooses among several CAs, and here is one
_LABELLED = re.compile(re.escape(est.BASE) + r"/[A-Za-z0-9._~-]{1,64}(/[a-z]+)")
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class EnrollServer:
    """Serves `app` and `feed` over TLS."""

    def __init__(self, app: EstApp, feed: DirectoryFeed, context: ssl.SSLContext, limits: Limits) -> None:
        self._app = app
        self._feed = feed
        self._context = context
        self._limits = limits
        self._slots = Slots(limits.connections, limits.grace)
        self._freed = asyncio.Event()
        self._told = Sparsely()
        self._worker = Worker(app.handle_all, limits.waiting_requests, self._slots.share)
        self._open_requests = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._is_stopping = False
        self._http = web.Server(self._handle)
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._handshakes: set[asyncio.Task[None]] = set()

    async def start(self, address: Address) -> Address:
        """Accept connections; the address with its real port. Raises: FleetError."""
        self._listener = listen(address)
        self._accepting = asyncio.create_task(self._accept(self._listener))
        return Address(address.host, self._listener.getsockname()[1])

    async def stop(self) -> None:
        """Accept no more, answer what was asked, end the feeds, close."""
        if self._accepting is not None:
            await _cancelled(self._accepting)
        if self._listener is not None:
            self._listener.close()
        for handshake in list(self._handshakes):
            await _cancelled(handshake)
        self._is_stopping = True
        self._feed.commits.end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.shutdown):
                await self._is_idle.wait()
        self._http.pre_shutdown()
        await self._http.shutdown(self._limits.shutdown)
        self._worker.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await loop.sock_accept(listener)
            except OSError as error:  # out of descriptors, or the peer was gone at once
                await self._not_accepted(error)
                continue
            try:
                await self._make_room(network_of(peer[0]))
            except asyncio.CancelledError:
                connection.close()
                raise
            self._begin(connection, peer[0])

    async def _not_accepted(self, error: OSError) -> None:
        if count := self._told.count("connection.not_accepted", _now()):
            _log.warning(event("connection.not_accepted", reason=error.strerror, count=count))
        if error.errno in (errno.EMFILE, errno.ENFILE) and (slot := self._slots.oldest_of_most(_now())):
            self._evict(slot)
            await asyncio.sleep(_PAUSE_SECONDS / 20)  # until its descriptor is free
        else:
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _make_room(self, network: str) -> None:
        """Returns when one more connection from `network` may be opened."""
        while True:
            if slot := self._slots.in_the_way(network, _now()):
                self._evict(slot)
            elif not self._slots.is_full:
                return
            else:  # nobody may be ended now; somebody will soon
                self._freed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._freed.wait(), _PAUSE_SECONDS)

    def _evict(self, slot: Slot) -> None:
        if count := self._told.count("connection.evicted", _now()):
            holder = slot.holder if isinstance(slot.holder, str) else "certificate"
            _log.warning(event("connection.evicted", holder=holder, count=count))
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
        self._freed.set()

    def _begin(self, connection: socket.socket, address: str) -> None:
        """Shake hands, beside all others."""
        loop = asyncio.get_running_loop()
        slot = Slot(network_of(address), _now(), connection.close)
        http = Connection(self._http, loop, self._limits, slot, self)
        self._slots.open(slot)
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
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: http,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._limits.handshake,
                ssl_shutdown_timeout=self._limits.goodbye,
            )
        except OSError as error:
            if count := self._told.count(f"handshake.failed {network_of(address)}", _now()):
                _log.info(event("handshake.failed", address=address, reason=error, count=count))

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; its connection's last one once the service stops, or if it asks for another protocol."""
        self._open_requests += 1
        self._is_idle.clear()
        try:
            with _connection(request).at_work():
                response = await self._answer(request)
            is_last = self._is_stopping or "Upgrade" in request.headers or request.method == "CONNECT"
            return _closing(response) if is_last else response
        finally:
            self._open_requests -= 1
            if not self._open_requests:
                self._is_idle.set()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = _request_of(request)
        if (fixed := self._app.fixed(asked)) is not None:
            return _response(fixed)
        if asked.method == "GET" and asked.path == directory.PATH and "serial" not in asked.query:
            return await self._stream(request, asked)
        try:
            with _connection(request).reading():
                body = await self._body(request)
        except FleetError as error:
            return _closing(_response(refusal(error)))
        except TimeoutError:
            _connection(request).expect_no_more()
            return _closing(_response(EstResponse(408, b"the body did not come in time\n")))
        return _response(await self._work(replace(asked, body=body), _connection(request).holder))

    async def _body(self, request: web.BaseRequest) -> bytes:
        """The body. Raises: FleetError as soon as it is too large, TimeoutError."""
        if (request.content_length or 0) > est.MAX_BODY_BYTES:
            raise too_large()
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(_CONTINUE)
            request.writer.output_size = 0
        body = b""
        async with asyncio.timeout(self._limits.body):
            while chunk := await request.content.readany():
                body += chunk
                if len(body) > est.MAX_BODY_BYTES:
                    raise too_large()
        return body

    async def _work(self, request: EstRequest, holder: Holder) -> EstResponse:
        try:
            return await self._worker.answer(request, holder)
        except RegistryUnavailable as error:
            return refusal(error)

    async def _stream(self, request: web.BaseRequest, asked: EstRequest) -> web.StreamResponse:
        """The directory's feed, for as long as the broker is admitted and reads."""
        try:
            position = position_of(asked.query)
        except InvalidInput as error:
            return _response(refusal(error))
        serial = await self._worker.call(self._app.begin_stream, asked)
        if isinstance(serial, EstResponse):
            return _response(serial)
        _log.info(event("feed.opened", serial=serial, after=position.seq, address=asked.address))
        response = web.StreamResponse(headers={"Content-Type": directory.MEDIA_TYPE, "Server": SERVER})
        response.enable_chunked_encoding()
        await response.prepare(request)
        try:
            async with contextlib.aclosing(self._feed.follow(serial, position)) as chunks:
                async for chunk in chunks:
                    async with asyncio.timeout(self._limits.feed):
                        await response.write(chunk)
        except TimeoutError:
            _log.warning(event("feed.stuck", serial=serial))  # a broker that does not read begins anew
        except ConnectionResetError:
            pass  # it went away between two chunks: what `feed.closed` says anyway
        finally:
            _log.info(event("feed.closed", serial=serial))
        return _closing(response)


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
    listener.setblocking(False)
    return listener


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _connection(request: web.BaseRequest) -> Connection:
    """What the request came over."""
    return cast("Connection", request.protocol)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _request_of(request: web.BaseRequest) -> EstRequest:
    labelled = _LABELLED.fullmatch(request.path)
    return EstRequest(
        request.method,
        est.BASE + labelled[1] if labelled else request.path,
        {name.lower(): value for name, value in request.headers.items()},
        b"",
        request.query if request.query_string else {},
        _connection(request).certificate,
        request.remote or "",
    )


def _response(answer: EstResponse) -> web.Response:
    return web.Response(status=answer.status, body=answer.body, headers={"Server": SERVER, **answer.headers})


def _closing(response: _Response) -> _Response:
    response.force_close()
    return response
