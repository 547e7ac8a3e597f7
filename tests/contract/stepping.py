"""An event loop that stops where a test wants it to, and the ways in which a change of the directory comes on it.

Engine, clients and service all run on one loop, over real sockets and TLS. What happens between two waits is one
callback of that loop, a step; a strike comes after a step of the test's choosing, so it falls into every wait in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final, Protocol

from aiohttp import web

from broker.directory import Directory, Journal
from broker.engine import Engine
from broker.feed import Feed
from broker.membership import Membership
from broker.trust import load_client_trust
from fleet import directory
from fleet.directory import Current, Entry, SnapshotStart
from fleet.identity import Role, Serial, Server
from fleet.layout import RunFile
from tests.certificates import TestFleet
from tests.contract.engines import now
from tests.deadlines import within

_FEED: Final = "race"


def _nothing() -> None:
    """Before anybody wants to know."""


class SteppedLoop(asyncio.SelectorEventLoop):
    """Calls `strike` once, after as many more callbacks as `strike_after` was told. Its clock can be put forward."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.skipped_seconds = 0.0
        self.complaints: list[str] = []
        self._left: int | None = None
        self._strike = _nothing
        self._scheduled: list[
            asyncio.TimerHandle
        ] = []  # asyncio's own, as is the next: what is to come, and what is due
        self._ready = _Ready(self._step)
        self.set_exception_handler(lambda _, context: self.complaints.append(f"{context}"))

    def time(self) -> float:
        return super().time() + self.skipped_seconds

    def timers(self) -> int:
        """How many callbacks are to come at a later time."""
        return sum(not handle.cancelled() for handle in self._scheduled)  # asyncio's own heap

    def strike_after(self, steps: int, strike: Callable[[], None]) -> None:
        self._left, self._strike = steps, strike

    def is_struck(self) -> bool:
        """Whether it was called since; if it was not, it will not be."""
        is_struck, self._left = self._left is None, None
        return is_struck

    def _step(self) -> None:
        self.steps += 1
        if self._left is None:
            return
        self._left -= 1
        if self._left < 0:
            self._left = None
            self._strike()


class _Ready(deque[asyncio.Handle]):
    """Tells before each callback that it is about to run."""

    def __init__(self, step: Callable[[], None]) -> None:
        super().__init__()
        self._tell = step

    def popleft(self) -> asyncio.Handle:
        self._tell()
        return super().popleft()


async def turns(count: int = 3) -> None:
    """Let everything else go on for some turns of the loop."""
    for _ in range(count):
        await asyncio.sleep(0)


# How a change reaches the engine


class Way(Protocol):
    """One way from the service's truth to the engine."""

    directory: Directory

    def running(self, engine: Engine, truth: Truth) -> contextlib.AbstractAsyncContextManager[Any]:
        """A context in which changes come."""

    async def look_up(self, serial: Serial) -> None:
        """`Rules.look_up`."""

    def bring(self, entry: Entry) -> None:
        """As the stream of the feed brings a line. The engine may hear of it later."""

    async def is_told(self) -> None:
        """Return when the engine has heard of all that was brought."""


@dataclass(slots=True)
class Truth:
    """What the service knows of the one device, and what the engine was told of it at last."""

    entry: Entry | None = None
    told: Entry | None = None
    tell: Callable[[], None] = _nothing

    def of(self, serial: Serial) -> Entry | None:
        """The answer to a look-up."""
        return self.entry if self.entry is not None and serial in self.entry.serials else None

    def is_told(self) -> bool:
        """Whether the engine knows the newest; what a broker notes for itself beside it is its own (`Entry.ended`)."""
        return self.entry is None or (self.told is not None and self.told.seq == self.entry.seq)


class Direct:
    """The directory and the engine, with nothing between."""

    def __init__(self, known: Directory | None = None) -> None:
        self.directory = known or Directory()

    @asynccontextmanager
    async def running(self, engine: Engine, truth: Truth) -> AsyncIterator[None]:
        self._engine, self._truth = engine, truth
        yield

    async def look_up(self, serial: Serial) -> None:
        await turns()
        found = self._truth.of(serial)
        await turns()  # what was found may be old by now
        if found is not None:
            self.bring(found)

    def bring(self, entry: Entry) -> None:
        for change in self.directory.apply_found(entry):
            self._engine.apply(change)
            self._truth.told = change.after
            self._truth.tell()

    async def is_told(self) -> None:
        """It was at once."""


class Kept(Direct):
    """Through a Membership, whose journal is on disk before the engine is told."""

    def __init__(self, path: Path) -> None:
        self.membership = Membership(Directory(), Journal(path), time.monotonic)
        super().__init__(self.membership.directory)

    @asynccontextmanager
    async def running(self, engine: Engine, truth: Truth) -> AsyncIterator[None]:
        self._truth, self._told = truth, asyncio.Event()

        def tell(change: Any) -> None:
            engine.apply(change)
            truth.told = change.after
            truth.tell()
            self._told.set()

        self.membership.on_change = tell
        for line in (SnapshotStart(_FEED, 0), Current(_FEED, 0)):
            self.membership.take(line)
        async with _in_background(self.membership.keep()):
            yield

    def bring(self, entry: Entry) -> None:
        self.membership.take(entry)

    async def look_up(self, serial: Serial) -> None:
        await turns()
        found = self._truth.of(serial)
        await turns()
        if found is not None:
            self.membership.take_found(found)

    async def is_told(self) -> None:
        async with asyncio.timeout(within(10)):
            while not self._truth.is_told():
                await self._told.wait()
                self._told.clear()


class Followed(Kept):
    """Through a Feed and its Membership, from a service over mutual TLS."""

    def __init__(self, path: Path, fleet: TestFleet) -> None:
        super().__init__(path)
        self._fleet = fleet
        files = fleet.client("broker", Role.BROKER).files
        trust = load_client_trust(fleet.trust_file, files, Server.ENROLL, now())
        self._run_file = path.with_name("enroll.json")
        self._feed = Feed(self._run_file, trust, self.membership, lambda: self.directory.position, Random(1))

    @asynccontextmanager
    async def running(self, engine: Engine, truth: Truth) -> AsyncIterator[None]:
        self._service = DirectoryService(truth, self._fleet)
        async with self._service.running() as port, super().running(engine, truth):
            self._run_file.write_bytes(RunFile(f"https://127.0.0.1:{port}").encode())
            async with _in_background(self._feed.run()):
                await self._service.followed.wait()
                yield

    def bring(self, entry: Entry) -> None:
        self._service.send(entry)

    async def look_up(self, serial: Serial) -> None:
        await self._feed.look_up(serial)


class DirectoryService:
    """`/v1/directory` of one device, as `enroll serve` gives it: a stream that stays open, and answers by serial."""

    def __init__(self, truth: Truth, fleet: TestFleet) -> None:
        self._truth = truth
        self._lines: asyncio.Queue[Entry | None] = asyncio.Queue()
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=fleet.trust_file)
        self._context.verify_mode = ssl.CERT_REQUIRED
        files = fleet.server(Server.ENROLL).files
        self._context.load_cert_chain(files.certificate, files.key)
        self.followed = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[int]:
        """Its port."""
        http = web.Server(self._handle)
        listener = await asyncio.get_running_loop().create_server(http, "127.0.0.1", 0, ssl=self._context)
        try:
            yield listener.sockets[0].getsockname()[1]
        finally:
            self._lines.put_nowait(None)
            listener.close()
            await http.shutdown(within(5))

    def send(self, entry: Entry) -> None:
        self._lines.put_nowait(entry)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if "serial" in request.query:
            found = self._truth.of(Serial(request.query["serial"]))
            return web.Response(status=404) if found is None else web.Response(body=directory.encode(found))
        stream = web.StreamResponse()
        await stream.prepare(request)
        begin = () if "after" in request.query else (SnapshotStart(_FEED, 0),)
        for line in (*begin, Current(_FEED, 0)):
            await stream.write(directory.encode(line))
        self.followed.set()
        while (entry := await self._lines.get()) is not None:
            await stream.write(directory.encode(entry))
        return stream


@asynccontextmanager
async def _in_background(work: Any) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
