"""An engine on an event loop that stops where a test wants it to, and the ways in which a change comes to it.

Engine, clients and service all run on one loop, over real sockets and TLS. What happens between two waits is one
callback of that loop, a step; a strike comes after a step of the test's choosing, so it falls into every wait in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, Final, Protocol, Self

from aiohttp import web

from broker.directory import Directory, Journal
from broker.engine import Clock, Connected, Disconnected, Engine, Event, Listener, Reason, Rules
from broker.feed import Feed
from broker.membership import Membership
from broker.trust import load_client_trust, load_trust
from fleet import directory
from fleet.config import Address
from fleet.directory import Current, Entry, SnapshotStart
from fleet.identity import Role, Serial, Server, State
from fleet.layout import RunFile
from fleet.limits import Limits
from fleet.policy import DEFAULT_POLICY
from tests import mqtt
from tests.certificates import Identity, TestFleet, client_context
from tests.contract.engines import now
from tests.deadlines import within

ID: Final = "pump-07"
STATUS: Final = f"devices/{ID}/up/status"
DOWN: Final = f"devices/{ID}/down/#"
WILL: Final = b"the will"
ONLINE: Final = b"online"
_OPERATOR_FILTERS: Final = 2
_FEED: Final = "race"


def _nothing() -> None:
    """Before anybody wants to know."""


class SteppedLoop(asyncio.SelectorEventLoop):
    """Calls `strike` once, after as many more callbacks as `strike_after` was told."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.complaints: list[str] = []
        self._left: int | None = None
        self._strike = _nothing
        self._ready = _Ready(self._step)  # asyncio's own list of callbacks that are due
        self.set_exception_handler(lambda _, context: self.complaints.append(f"{context}"))

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
            while self._truth.told != self._truth.entry:
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
        for line in (SnapshotStart(_FEED, 0), Current(_FEED, 0)):
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


# Clients


class Peer:
    """One client on the loop; what it does ends, without an error, where the broker ends the connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, address: Address, context: ssl.SSLContext) -> Self:
        return cls(*await asyncio.open_connection(address.host, address.port, ssl=context))

    async def send(self, *frames: bytes) -> None:
        self._writer.write(b"".join(frames))
        await self._writer.drain()

    async def receive(self) -> bytes:
        """The next frame. Raises: OSError, EOFError."""
        head = await self._reader.readexactly(2)
        length, shift = head[1] & 0x7F, 7
        while head[-1] & 0x80:
            head += await self._reader.readexactly(1)
            length |= (head[-1] & 0x7F) << shift
            shift += 7
        return head + await self._reader.readexactly(length)

    async def frames_until(self, last: bytes) -> list[bytes]:
        """What comes, up to `last`."""
        found = [await self.receive()]
        while found[-1] != last:
            found.append(await self.receive())
        return found[:-1]

    async def end(self) -> None:
        """Wait until the broker has closed the connection. Raises: TimeoutError."""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            async with asyncio.timeout(within(10)):
                while await self._reader.read(65_536):
                    pass
        await self.close()

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


# What must hold


@dataclass(slots=True)
class Stage:
    """An engine, one device that is raced for, and an operator who reads all that devices say."""

    loop: SteppedLoop
    engine: Engine
    way: Way
    fleet: TestFleet
    device: Identity
    successor: Identity
    truth: Truth = field(default_factory=Truth)
    address: Address = field(default_factory=lambda: Address("", 0))
    events: list[Event] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)
    struck_at: int = 0
    _seq: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _context: ssl.SSLContext = field(init=False)
    _operator: Peer = field(init=False)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """The engine started, the operator reading."""
        self._context = client_context(self.fleet.root_file, self.device)
        trust = load_trust(self.fleet.trust_file, self.fleet.server(Server.BROKER).files, now())
        rules = Rules(DEFAULT_POLICY, self.way.directory, self.way.look_up, lambda: True)
        async with AsyncExitStack() as stack:
            listener = Listener(Address("127.0.0.1", 0), Limits(connects_per_minute=1_000_000))
            self.address = await self.engine.start(listener, trust, rules, self.events.append)
            stack.push_async_callback(turns)
            stack.push_async_callback(self.engine.stop)
            await stack.enter_async_context(self.way.running(self.engine, self.truth))
            self._operator = await self._join_operator()
            stack.push_async_callback(self._operator.close)
            yield self

    async def _join_operator(self) -> Peer:
        identity = self.fleet.client("admin", Role.OPERATOR)
        self.way.directory.apply_found(Entry(1, identity.principal, State.ACTIVE, 1, frozenset({identity.serial})))
        peer = await Peer.open(self.address, client_context(self.fleet.root_file, identity))
        await peer.send(mqtt.connect("admin", keep_alive=0), mqtt.subscribe((f"devices/{ID}/up/#", 0)))
        assert mqtt.ACCEPTED == await peer.receive()
        await peer.frames_until(mqtt.suback(0))
        return peer

    async def operator_reads(self, *frames: bytes) -> list[bytes]:
        """What the operator received up to now, and then in answer to `frames`."""
        await self._operator.send(*frames, mqtt.PINGREQ)
        return await self._operator.frames_until(mqtt.PINGRESP)

    async def open(self) -> Peer:
        """A connection of the device."""
        peer = await Peer.open(self.address, self._context)
        self.peers.append(peer)
        return peer

    def entry(self, state: State = State.ACTIVE, **changes: Any) -> Entry:
        """The device's entry, newer than any."""
        known = self.truth.entry
        epoch = known.epoch if known is not None else 1
        return replace(
            Entry(next(self._seq) + 1, self.device.principal, state, epoch, frozenset({self.device.serial})), **changes
        )

    def strike(self, change: Change) -> None:
        """The change happens in the service, and comes."""
        stale, known = self.truth.entry, self.way.directory.entry(self.device.id)
        self.truth.entry = change.of(self)
        self.way.bring(self.truth.entry)
        if stale is not None and stale == known:
            self.way.bring(stale)  # an older line that comes twice


@dataclass(frozen=True, slots=True)
class Change:
    """A change after which the device's certificate may not connect; under which names it is given as the reason."""

    name: str
    of: Callable[[Stage], Entry]
    reasons: frozenset[Reason]
    keeps_session: bool = False


CHANGES: Final = {
    change.name: change
    for change in (
        Change("revoked", lambda stage: stage.entry(State.REVOKED), frozenset({Reason.REVOKED})),
        Change("suspended", lambda stage: stage.entry(State.SUSPENDED), frozenset({Reason.SUSPENDED})),
        Change("removed", lambda stage: stage.entry(State.REMOVED), frozenset({Reason.REMOVED})),
        Change("certificate-revoked", lambda stage: stage.entry(serials=frozenset()), frozenset({Reason.REVOKED})),
        Change(
            "superseded",
            lambda stage: stage.entry(serials=frozenset({stage.successor.serial})),
            frozenset({Reason.SUPERSEDED}),
            keeps_session=True,
        ),
        Change(
            "enrolled-anew",
            lambda stage: stage.entry(
                epoch=(stage.truth.entry.epoch if stage.truth.entry else 0) + 1,
                serials=frozenset({stage.successor.serial}),
            ),
            frozenset({Reason.SUPERSEDED}),
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is prepared, and what is then raced against."""

    name: str
    prepare: Callable[[Stage], Awaitable[None]]
    run: Callable[[Stage], Awaitable[None]]


async def race_all(stage: Stage, scenario: Scenario, change: Change) -> int:
    """Strike after each step of the scenario, and after its end; how many steps it had.

    Raises: AssertionError where something of the device was left.
    """
    async with stage.running():
        for step in itertools.count():
            if not await race(stage, scenario, change, step):
                return step
    raise AssertionError("not reached")


async def race(stage: Stage, scenario: Scenario, change: Change, step: int) -> bool:
    """Run the scenario once, the strike after `step` steps; whether it had so many."""
    await scenario.prepare(stage)
    await stage.operator_reads()
    stage.events.clear()
    stage.struck_at = -1

    def told() -> None:
        if stage.truth.told is not None and not stage.truth.told.admits(stage.device.serial):
            stage.struck_at = len(stage.events)

    stage.truth.tell = told
    stage.loop.strike_after(step, lambda: stage.strike(change))
    with contextlib.suppress(OSError, EOFError):
        await scenario.run(stage)
    is_within = stage.loop.is_struck()
    if not is_within:
        stage.strike(change)
    await stage.way.is_told()
    try:
        await check(stage, change)
    except (AssertionError, TimeoutError) as error:
        what = str(error) or "a connection is open"
        raise AssertionError(f"{scenario.name}, {change.name} after step {step}: {what}\n{stage.events}") from error
    return is_within


async def check(stage: Stage, change: Change) -> None:
    """Nothing of the device is left, and nobody was told a lie about it."""
    _check_nobody_is_in(stage)
    for peer in stage.peers:
        await peer.end()
    stage.peers.clear()
    await turns()
    _check_nobody_is_in(stage)
    late = [event for event in stage.events[stage.struck_at :] if isinstance(event, Connected)]
    assert not late, "a session was registered later"
    stats = stage.engine.stats()
    if not change.keeps_session:
        assert (1, _OPERATOR_FILTERS - 1) == (stats.sessions, stats.subscriptions), "something waits for the device"
    received = await stage.operator_reads(mqtt.subscribe((STATUS, 0)), mqtt.unsubscribe(STATUS))
    assert _fair_wills(stage) >= sum(WILL in frame for frame in received), "a will was fired"
    _check_status(stage, change, received)
    assert not stage.loop.complaints, stage.loop.complaints


def _check_nobody_is_in(stage: Stage) -> None:
    assert ["admin"] == [client.client_id for client in stage.engine.clients()], "a session is live"


def _fair_wills(stage: Stage) -> int:
    """How many connections ended before the strike in a way that publishes a will."""
    before = stage.events[: stage.struck_at]
    ended = [event for event in before if isinstance(event, Disconnected)]
    return sum(event.reason in (Reason.TAKEN_OVER, Reason.LOST) for event in ended)


def _check_status(stage: Stage, change: Change, received: list[bytes]) -> None:
    """The status that is kept is the broker's own, and right, wherever the device was in."""
    kept = [frame for frame in received if frame[0] & 1]
    assert len(kept) <= 1
    was_in = any(isinstance(event, Connected | Disconnected) for event in stage.events)
    if not was_in:
        assert not kept or ONLINE not in kept[0], "it seems online and never was in"
        return
    assert kept, "there is no status"
    assert kept[0].endswith(b"}"), "it seems online"
    said = json.loads(kept[0][kept[0].index(b"{") :])
    assert "offline" == said["status"]
    assert said["reason"] in {reason.value for reason in change.reasons}, said


def stepped(work: Callable[[SteppedLoop], Awaitable[int]]) -> int:
    """Run `work` on a loop of its own."""
    with contextlib.closing(SteppedLoop()) as loop:
        try:
            return loop.run_until_complete(_settled(work(loop)))
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())


async def _settled(work: Awaitable[int]) -> int:
    try:
        return await work
    finally:
        await turns()


def new_stage(loop: SteppedLoop, make_engine: Callable[[Clock], Engine], fleet: TestFleet, way: Way) -> Stage:
    """A stage with a device and the one that replaces it."""
    return Stage(loop, make_engine(now), way, fleet, fleet.client(ID), fleet.client(ID))
