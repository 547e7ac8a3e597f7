"""Follows the enrollment service's directory over mutual TLS, and asks it for a serial that is not listed yet."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final, Protocol

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from broker.directory import Position
from broker.trust import ClientTrust
from fleet import directory, layout
from fleet.directory import Entry, FeedLine
from fleet.errors import FleetError, InvalidInput, Unreachable
from fleet.identity import Serial
from fleet.logs import event

_log = logging.getLogger(__name__)
_FIRST_BACKOFF_SECONDS: Final = 0.2
_MAX_BACKOFF_SECONDS: Final = 2.0  # brokers are few, and a revocation may be waiting
_SILENCE_SECONDS: Final = 2.5 * directory.HEARTBEAT_SECONDS
_CONNECT_SECONDS: Final = 10.0
_LOOK_UP_SECONDS: Final = 3.0
_MAX_LOOK_UPS: Final = 64
_LOOK_UPS_AT_ONCE: Final = 8


class Follower(Protocol):
    """Who is told what the feed says."""

    def take(self, line: FeedLine) -> None: ...

    def take_found(self, entry: Entry) -> None: ...

    def stream_ended(self) -> None: ...

    async def wait_in_step(self) -> None: ...


class Feed:
    """The client of `/v1/directory`. `run_file` says where the service is, and is read at every connection."""

    def __init__(
        self,
        run_file: Path,
        trust: ClientTrust,
        follower: Follower,
        position: Callable[[], Position | None],
        random: Random,
    ) -> None:
        self._run_file = run_file
        self._trust = trust
        self._follower = follower
        self._position = position
        self._random = random
        self._look_ups: dict[Serial, asyncio.Task[None]] = {}
        self._look_up_slots = asyncio.Semaphore(_LOOK_UPS_AT_ONCE)
        self._http: aiohttp.ClientSession | None = None
        self._failed = asyncio.Event()  # the next attempt to follow; then there is another for the one after it

    async def run(self) -> None:
        """Follow for ever, as a task: reconnect with full jitter, tell each new trouble once."""
        async with self._session() as self._http:
            failures, told = 0, ""
            while True:
                try:
                    await self._follow(self._http)
                    failures, trouble = 0, "the stream ended"
                except (aiohttp.ClientError, OSError, TimeoutError, ValueError, FleetError) as error:
                    failures += 1
                    trouble = _in_words(error)
                finally:
                    self._follower.stream_ended()
                    failed, self._failed = self._failed, asyncio.Event()
                    failed.set()
                if trouble != told:
                    _log.warning(event("directory.not_followed", reason=trouble))
                    told = trouble
                limit = min(_MAX_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2 ** min(failures, 10))
                await asyncio.sleep(self._random.uniform(0, limit))

    def _session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(resolver=_LocalResolver(), limit=0)
        timeout = aiohttp.ClientTimeout(total=None, connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS)
        return aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)

    def _url(self) -> str:
        try:
            return layout.decode_run_file(self._run_file.read_bytes()).url + directory.PATH
        except FileNotFoundError as error:
            raise Unreachable(
                f"{self._run_file} is not there: the enrollment service has not run here", hint="enroll serve"
            ) from error

    def replace_trust(self, trust: ClientTrust) -> None:
        """Connect with `trust` from now on; the stream that is open is followed anew at its next line."""
        self._trust = trust

    async def _follow(self, http: aiohttp.ClientSession) -> None:
        at, trust = self._position(), self._trust
        query = {} if at is None else {"after": str(at.seq), "feed": at.feed, "log": at.mark}
        async with http.get(self._url(), params=query, allow_redirects=False, ssl=trust.context) as answer:
            await _check_status(answer)
            _log.info(event("directory.following", url=answer.url, after=query.get("after", "snapshot")))
            async for line in answer.content:
                if not line.endswith(b"\n") or len(line) > directory.MAX_LINE_BYTES:
                    raise InvalidInput("the directory feed sent a line that is cut off or too long")
                self._follower.take(directory.decode(line))
                if self._trust is not trust:
                    return

    async def look_up(self, serial: Serial) -> None:
        """Ask the service for the holder of `serial`, once for all who ask at the same time.

        What is found goes to the follower. A failure is forgotten: the next connection asks again.
        """
        task = self._look_ups.get(serial)
        if task is None:
            if self._http is None or len(self._look_ups) >= _MAX_LOOK_UPS:
                return
            task = asyncio.create_task(self._look_up(self._http, serial))
            self._look_ups[serial] = task
            task.add_done_callback(lambda _: self._look_ups.pop(serial, None))
        await asyncio.wait([task])  # whoever stops waiting does not stop the others' look-up

    async def _look_up(self, http: aiohttp.ClientSession, serial: Serial) -> None:
        try:
            await self._wait_in_step()
            async with self._look_up_slots, asyncio.timeout(_LOOK_UP_SECONDS):
                entry = await self._ask(http, serial)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, FleetError) as error:
            _log.warning(event("directory.look_up_failed", serial=serial, reason=_in_words(error)))
            return
        if entry is not None:
            self._follower.take_found(entry)

    async def _wait_in_step(self) -> None:
        """Raises: Unreachable where the next attempt to follow fails: nobody is to wait for a service that is away."""
        waits = [asyncio.ensure_future(each) for each in (self._follower.wait_in_step(), self._failed.wait())]
        try:
            await asyncio.wait(waits, timeout=_LOOK_UP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not waits[0].done():
                raise Unreachable("the directory is not followed")
        finally:
            for each in waits:
                each.cancel()

    async def _ask(self, http: aiohttp.ClientSession, serial: Serial) -> Entry | None:
        query, context = {"serial": serial}, self._trust.context
        async with http.get(self._url(), params=query, allow_redirects=False, ssl=context) as answer:
            if answer.status == 404:
                return None
            await _check_status(answer)
            line = directory.decode(await answer.content.read(directory.MAX_LINE_BYTES))
            if not isinstance(line, Entry):
                raise InvalidInput("the answer to a look-up is not an entry")
            return line


async def _check_status(answer: aiohttp.ClientResponse) -> None:
    if answer.status != 200:
        text = (await answer.content.read(200)).decode("utf-8", "replace").partition("\n")[0]
        raise Unreachable(f"the enrollment service answered {answer.status}: {text.strip()}")


def _in_words(error: Exception) -> str:
    return str(error) or type(error).__name__


class _LocalResolver(AbstractResolver):
    """Names as usual; one that nobody knows is this host, for the run file was written on it.

    The certificate is checked against the name all the same.
    """

    def __init__(self) -> None:
        self._usual = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        try:
            return await self._usual.resolve(host, port, family)
        except OSError:
            return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0)]

    async def close(self) -> None:
        await self._usual.close()
