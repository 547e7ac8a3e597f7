"""The TLS listener of the enrollment service: bytes of HTTP to `EstRequest`, `EstResponse` to bytes.

Every connection has a slot from before its handshake to its end, and a deadline for each step: handshake, the head of a
request, its body, each write. What may block runs in one worker thread, so the loop stays free for handshakes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from enroll.directory import DirectoryFeed, position_of
from enroll.est_app import EstApp, refusal, too_large
from enroll.registry import RegistryUnavailable
from fleet import directory, est
from fleet.config import Address
from fleet.errors import FleetError, InvalidInput
from fleet.est import EstRequest, EstResponse
from fleet.logs import event

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one stranger, or all of them, may take up. Times are in seconds."""

    connections: int = 1000
    waiting_requests: int = 256
    handshake: float = 10.0
    head: float = 10.0  # of the first and of every later request, so also how long a kept-alive connection idles
    body: float = 10.0
    write: float = 30.0
    shutdown: float = 10.0


_BACKLOG: Final = 512
_LINGER_SECONDS: Final = 2.0  # what was on its way to a refusal is read, so that the client gets to see the refusal
_Response = TypeVar("_Response", bound=web.StreamResponse)
_BATCH: Final = 16
_Asked = tuple[EstRequest, asyncio.Future[EstResponse]]
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class _Connection(RequestHandler):
    """One connection; gives back its slot when it ends."""

    __slots__ = ("_release",)

    def __init__(
        self, server: web.Server, loop: asyncio.AbstractEventLoop, limits: Limits, release: Callable[[], None]
    ):
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=limits.head,  # runs from the end of the handshake too
            lingering_time=_LINGER_SECONDS,
            access_log=None,  # type: ignore[arg-type] # how aiohttp is told to have none
            auto_decompress=False,  # nothing here is sent compressed, and a bomb stays small
        )
        self._release = release

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """What is no HTTP is the peer's mistake and one line; anything else is ours, and keeps its traceback."""
        error = kw.get("exc_info")
        if isinstance(error, HttpProcessingError):
            _log.info(event("request.malformed", address=args[-1], reason=error.message[:200]))
        else:
            super().log_exception(*args, **kw)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._release()


class EnrollServer:
    """Serves `app` and `feed` over TLS."""

    def __init__(self, app: EstApp, feed: DirectoryFeed, context: ssl.SSLContext, limits: Limits) -> None:
        self._app = app
        self._feed = feed
        self._context = context
        self._limits = limits
        self._slots = asyncio.Semaphore(limits.connections)
        self._worker = ThreadPoolExecutor(1, "enroll")
        self._asked: deque[_Asked] = deque()
        self._is_working = False
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
        self._worker.shutdown()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._slots.acquire()
            try:
                connection, peer = await loop.sock_accept(listener)
            except OSError as error:  # out of descriptors, or the peer was gone at once
                self._slots.release()
                _log.warning(event("connection.not_accepted", reason=error.strerror))
                await asyncio.sleep(0.1)
                continue
            except asyncio.CancelledError:
                self._slots.release()
                raise
            handshake = loop.create_task(self._shake_hands(connection, peer[0]))
            self._handshakes.add(handshake)
            handshake.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, connection: socket.socket, address: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                lambda: _Connection(self._http, loop, self._limits, self._slots.release),
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._limits.handshake,
                ssl_shutdown_timeout=self._limits.write,
            )
        except (OSError, asyncio.CancelledError) as error:
            self._slots.release()
            connection.close()
            if isinstance(error, asyncio.CancelledError):
                raise
            _log.info(event("handshake.failed", address=address, reason=error))

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; once the service stops, the last one of its connection."""
        self._open_requests += 1
        self._is_idle.clear()
        try:
            response = await self._answer(request)
            return _closing(response) if self._is_stopping else response
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
            body = await self._body(request)
        except FleetError as error:
            return _closing(_response(refusal(error)))
        except TimeoutError:
            return _closing(web.Response(status=408))
        return _response(await self._work(replace(asked, body=body)))

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

    async def _work(self, request: EstRequest) -> EstResponse:
        """The worker's answer. What comes while it works is its next batch."""
        if len(self._asked) >= self._limits.waiting_requests:
            return refusal(RegistryUnavailable("the service is busy", hint="try again in a moment"))
        answer: asyncio.Future[EstResponse] = asyncio.get_running_loop().create_future()
        self._asked.append((request, answer))
        if not self._is_working:
            self._is_working = True
            self._begin_batch()
        return await answer

    def _begin_batch(self) -> None:
        batch = [self._asked.popleft() for _ in range(min(len(self._asked), _BATCH))]
        requests = [request for request, _ in batch]
        working = asyncio.get_running_loop().run_in_executor(self._worker, self._app.handle_all, requests)
        working.add_done_callback(lambda done: self._end_batch(batch, done))

    def _end_batch(self, batch: list[_Asked], done: asyncio.Future[list[EstResponse]]) -> None:
        error = done.exception()
        for number, (_, answer) in enumerate(batch):
            if answer.done():
                continue  # its connection is gone
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(done.result()[number])
        self._is_working = bool(self._asked)
        if self._asked:
            self._begin_batch()

    async def _stream(self, request: web.BaseRequest, asked: EstRequest) -> web.StreamResponse:
        """The directory's feed, for as long as the broker is admitted and reads."""
        try:
            position = position_of(asked.query)
        except InvalidInput as error:
            return _response(refusal(error))
        serial = await asyncio.get_running_loop().run_in_executor(self._worker, self._app.begin_stream, asked)
        if isinstance(serial, EstResponse):
            return _response(serial)
        _log.info(event("feed.opened", serial=serial, after=position.seq, address=asked.address))
        response = web.StreamResponse(headers={"Content-Type": directory.MEDIA_TYPE, "Server": "enroll"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        try:
            async with contextlib.aclosing(self._feed.follow(serial, position)) as chunks:
                async for chunk in chunks:
                    async with asyncio.timeout(self._limits.write):
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


def _request_of(request: web.BaseRequest) -> EstRequest:
    transport = request.transport
    tls = None if transport is None else transport.get_extra_info("ssl_object")
    return EstRequest(
        request.method,
        request.path,
        {name.lower(): value for name, value in request.headers.items()},
        b"",
        request.query if request.query_string else {},
        None if tls is None else tls.getpeercert(binary_form=True),
        request.remote or "",
    )


def _response(answer: EstResponse) -> web.Response:
    return web.Response(status=answer.status, body=answer.body, headers={"Server": "enroll", **answer.headers})


def _closing(response: _Response) -> _Response:
    response.force_close()
    return response
