"""CRLs over plain http, for whoever asks: `GET` and `HEAD` of `/crl/NAME.crl` (DER) and `/crl/NAME.pem`.

Nobody has to show who they are, and nothing is secret: a list is signed, and is fetched by those who do not trust the
fleet's TLS yet (RFC 5280, 8). Connections have slots and deadlines as on the main listener, and are others.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from enroll.authority import DEVICES, SERVERS
from enroll.connection import SERVER, Limits, closing, connection_of
from enroll.crl import BACKDATE
from enroll.crl_publisher import ROOT, Published
from enroll.listener import Listener
from enroll.rate_limit import Sparsely, network_of
from fleet.config import Address
from fleet.logs import event

_log = logging.getLogger(__name__)

PREFIX: Final = "/crl"
LIMITS: Final = Limits(connections=200, head=5.0, answer=10.0, shutdown=2.0)
MAX_AGE_SECONDS: Final = 60
"""For how long a cache on the way may keep a list that has changed here."""
_MEDIA_TYPES: Final = {"crl": "application/pkix-crl", "pem": "application/x-pem-file"}  # RFC 5280, 4.2.1.13
_NAME: Final = re.compile(r"/([a-z]{1,16}|[0-9]{1,9})\.(crl|pem)")
_CHUNK_BYTES: Final = 65_536
Find = Callable[[str, float], Awaitable[Published | None]]
_FIRST_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 5


class CrlServer:
    """Serves what `find` gives, under `/crl` and under the path of the fleet's own `crl_url`.

    `find` is asked for a name, and waits at most so many seconds.
    """

    def __init__(self, find: Find, crl_url: str, limits: Limits = LIMITS) -> None:
        self._find = find
        self._prefixes = {PREFIX, urlsplit(crl_url).path.rstrip("/")}
        self._limits = limits
        self._told = Sparsely()
        self._listener = Listener(self._handle, limits, send_buffer_bytes=_CHUNK_BYTES)

    def start(self, address: Address) -> Address:
        """Accept connections; the address with its real port. Raises: FleetError."""
        return self._listener.start(address)

    async def stop(self) -> None:
        """Accept no more, and end what is left."""
        await self._listener.close()
        await self._listener.end_all()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        with connection_of(request).at_work():
            response = await self._answer(request)
        has_more = request.can_read_body or "Upgrade" in request.headers or request.method not in ("GET", "HEAD")
        return closing(response) if has_more else response

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            return _say(405, "a CRL is fetched with GET", {"Allow": "GET, HEAD"})
        prefix, slash, last = request.path.rpartition("/")
        asked = _NAME.fullmatch(slash + last)
        if asked is None or prefix not in self._prefixes:
            return _say(404, f"the lists are {PREFIX}/N.crl, {PREFIX}/devices.crl and {PREFIX}/servers.crl")
        name, form = asked.groups()
        with connection_of(request).reading():  # it may be ended for another while it waits
            found = await self._find(name, _FIRST_SECONDS)
        if found is None:
            return _missing(name)
        return await self._send(request, found, form)

    async def _send(self, request: web.BaseRequest, found: Published, form: str) -> web.StreamResponse:
        headers = _headers(found, form)
        if _is_known(request, headers["ETag"], _made_at(found)):
            return web.Response(status=304, headers=headers)
        data = memoryview(found.der if form == "crl" else found.pem)
        response = web.StreamResponse(headers={**headers, "Content-Type": _MEDIA_TYPES[form]})
        response.content_length = len(data)
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        try:
            with connection_of(request).reading():
                for begin in range(0, len(data), _CHUNK_BYTES):
                    async with asyncio.timeout(self._limits.answer):
                        await response.write(data[begin : begin + _CHUNK_BYTES])
        except TimeoutError:  # whoever does not read begins anew
            self._cut(request)
        except ConnectionResetError:
            pass  # it went away, and knows that it has half of a list
        return response

    def _cut(self, request: web.BaseRequest) -> None:
        address = request.remote or ""
        if count := self._told.count(network_of(address), asyncio.get_running_loop().time()):
            _log.info(event("crl.not_taken", address=address, count=count))
        connection_of(request).abort()


def _headers(found: Published, form: str) -> dict[str, str]:
    return {
        "Server": SERVER,
        "ETag": f'"{found.etag}-{form}"',
        "Last-Modified": f"{_made_at(found):%a, %d %b %Y %H:%M:%S} GMT",
        "Cache-Control": f"public, max-age={MAX_AGE_SECONDS}",
    }


def _made_at(found: Published) -> datetime:
    return found.issue.this_update + BACKDATE


def _is_known(request: web.BaseRequest, etag: str, made_at: datetime) -> bool:
    """RFC 9110, 13.2.2: the entity tag decides alone if there is one, since two lists may be of one second."""
    if "If-None-Match" in request.headers:
        given = [tag.strip().removeprefix("W/") for tag in request.headers["If-None-Match"].split(",")]
        return etag in given or "*" in given
    since = request.if_modified_since
    return since is not None and made_at < since + timedelta(seconds=1)


def _missing(name: str) -> web.Response:
    if name in (DEVICES, SERVERS):
        return _say(503, "the list cannot be made; the log says why", {"Retry-After": str(_RETRY_SECONDS)})
    return _say(404, "no certificate names this list" if name != ROOT else "it is made by: enroll ca crl root")


def _say(status: int, words: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=status, text=f"{words}\n", headers={"Server": SERVER, **(headers or {})})
