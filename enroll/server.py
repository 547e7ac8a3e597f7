"""The TLS listener of the enrollment service: bytes of HTTP to `EstRequest`, `EstResponse` to bytes.

Connections are `listener`'s, each with its deadlines (`connection`). Requests are answered by `worker`, which keeps the
loop from waiting for a disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import ssl
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

from aiohttp import web

from enroll.connection import SERVER, Limits, closing, connection_of
from enroll.directory import DirectoryFeed, position_of
from enroll.est_app import EstApp, refusal, too_large
from enroll.listener import Listener
from enroll.registry import RegistryUnavailable
from enroll.slots import Holder
from enroll.upload_app import Incoming, UploadApp
from enroll.worker import Worker
from fleet import directory, est, uploads
from fleet.clock import FlooredClock, format_http_date
from fleet.config import Address
from fleet.errors import FleetError, InvalidInput
from fleet.est import EstRequest, EstResponse
from fleet.logs import event

_log = logging.getLogger(__name__)

# RFC 7030, 3.2.2: it chooses among several CAs, and here is one
_LABELLED = re.compile(re.escape(est.BASE) + r"/[A-Za-z0-9._~-]{1,64}(/[a-z]+)")
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_SWEEP_SECONDS: Final = 60.0
MAX_UPLOADS: Final = 64
MAX_UPLOADS_PER_DEVICE: Final = 4
"""Requests under way, each with a piece in memory."""


class EnrollServer:
    """Serves `app`, `feed` and, where there are any, `files` over TLS."""

    def __init__(
        self,
        app: EstApp,
        feed: DirectoryFeed,
        context: Callable[[], ssl.SSLContext],
        limits: Limits,
        clock: FlooredClock | None = None,
        files: UploadApp | None = None,
    ) -> None:
        self._app = app
        self._files = files
        self._file_worker = ThreadPoolExecutor(1, "uploads")
        self._uploading = Counter[Holder]()
        self._feed = feed
        self._limits = limits
        self._clock = clock
        self._listener = Listener(self._handle, limits, context)
        self._worker = Worker(app, limits.waiting_requests, self._listener.share)
        self._open_requests = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._is_stopping = False

    def start(self, address: Address) -> Address:
        """Accept connections; the address with its real port. Raises: FleetError."""
        return self._listener.start(address)

    async def stop(self) -> None:
        """Accept no more, answer what was asked to the end, end the feeds, close."""
        await self._listener.close()
        self._is_stopping = True
        self._feed.commits.end()
        await self._wait_until_idle(self._limits.last_bodies)
        self._listener.end_unasked()
        await self._wait_until_idle(self._limits.shutdown)
        await self._listener.end_all()
        self._file_worker.shutdown()
        self._worker.close()

    async def keep_swept(self) -> None:
        """Remove uploads that are too old, for ever."""
        while self._files is not None:
            await asyncio.sleep(_SWEEP_SECONDS)
            await asyncio.get_running_loop().run_in_executor(self._file_worker, self._files.sweep)

    async def _wait_until_idle(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._is_idle.wait()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; its connection's last one once the service stops, or if it asks for another protocol."""
        self._open_requests += 1
        self._is_idle.clear()
        try:
            with connection_of(request).at_work():
                response = await self._answer(request)
            if self._clock is not None and self._clock.is_floored and not response.prepared:
                response.headers["Date"] = format_http_date(self._clock.now())  # devices may go by it
            is_last = self._is_stopping or "Upgrade" in request.headers or request.method == "CONNECT"
            return closing(response) if is_last else response
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
        if self._files is not None and asked.path.startswith(f"{uploads.PATH}/"):
            return await self._upload(request, asked, self._files)
        try:
            with connection_of(request).reading():
                body = await self._body(request)
        except FleetError as error:
            return closing(_response(refusal(error)))
        except TimeoutError:
            connection_of(request).expect_no_more()
            return closing(_response(EstResponse(408, b"the body did not come in time\n")))
        return _response(await self._work(replace(asked, body=body), connection_of(request).holder))

    async def _body(self, request: web.BaseRequest) -> bytes:
        """The body. Raises: FleetError as soon as it is too large, TimeoutError."""
        if (request.content_length or 0) > est.MAX_BODY_BYTES:
            raise too_large()
        await _invite(request)
        if request.content.is_eof():  # it came with its head, as most do
            return _checked(request.content.read_nowait())
        body = b""
        async with asyncio.timeout(self._limits.body):
            while chunk := await request.content.readany():
                body = _checked(body + chunk)
        return body

    async def _upload(self, request: web.BaseRequest, asked: EstRequest, files: UploadApp) -> web.StreamResponse:
        """One piece of a file, or what there is of it. What has come of a body that is cut short is kept."""
        holder = connection_of(request).holder
        if self._uploading.total() >= MAX_UPLOADS or self._uploading[holder] >= MAX_UPLOADS_PER_DEVICE:
            return closing(_response(refusal(RegistryUnavailable("too many uploads at once", hint="try again soon"))))
        self._uploading[holder] += 1
        loop = asyncio.get_running_loop()
        try:
            begun = await loop.run_in_executor(self._file_worker, files.begin, asked)
            if not isinstance(begun, Incoming):
                answer = _response(begun)
                return answer if begun.status == 200 else closing(answer)  # its body, if there is one, is not read
            with connection_of(request).reading():
                body = await self._piece(request, begun.piece.length)
            answer = _response(await loop.run_in_executor(self._file_worker, files.put, begun, body))
            return answer if len(body) == begun.piece.length else closing(answer)
        finally:
            self._uploading[holder] -= 1
            if not self._uploading[holder]:
                del self._uploading[holder]

    async def _piece(self, request: web.BaseRequest, length: int) -> bytes:
        """A body of `length` bytes, or what comes of it in time and before the connection ends."""
        body = bytearray()
        await _invite(request)
        with contextlib.suppress(TimeoutError, OSError, web.RequestPayloadError, web.PayloadAccessError):
            async with asyncio.timeout(self._limits.body):
                while len(body) < length and (chunk := await request.content.readany()):
                    body += chunk
        if len(body) < length:
            connection_of(request).expect_no_more()
        return bytes(body)

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
        return closing(response)


async def _invite(request: web.BaseRequest) -> None:
    """Let a client send its body that asked whether it may."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(_CONTINUE)
        request.writer.output_size = 0


def _checked(body: bytes) -> bytes:
    if len(body) > est.MAX_BODY_BYTES:
        raise too_large()
    return body


def _request_of(request: web.BaseRequest) -> EstRequest:
    labelled = _LABELLED.fullmatch(request.path)
    return EstRequest(
        request.method,
        est.BASE + labelled[1] if labelled else request.path,
        {name.lower(): value for name, value in request.headers.items()},
        b"",
        request.query if request.query_string else {},
        connection_of(request).certificate,
        request.remote or "",
        connection_of(request).tls_unique,
    )


def _response(answer: EstResponse) -> web.Response:
    return web.Response(status=answer.status, body=answer.body, headers={"Server": SERVER, **answer.headers})
