"""A stage for races: an engine, one device that is raced for, the strike, and what must hold after it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from broker.engine import Clock, Connected, Disconnected, Engine, Event, Listener, Reason, Rules
from broker.trust import load_trust
from fleet.config import Address
from fleet.directory import Entry
from fleet.identity import Role, Server, State
from fleet.limits import Limits
from fleet.policy import DEFAULT_POLICY
from tests import mqtt
from tests.certificates import Identity, TestFleet, client_context
from tests.contract.engines import now
from tests.contract.stepping import SteppedLoop, Truth, Way, turns
from tests.deadlines import within

ID: Final = "pump-07"
STATUS: Final = f"devices/{ID}/up/status"
DOWN: Final = f"devices/{ID}/down/#"
WILL: Final = b"the will"
ONLINE: Final = b"online"
_OPERATOR_FILTERS: Final = 1


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
    limits: Limits
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
            listener = Listener(Address("127.0.0.1", 0), self.limits)
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
    """What is prepared, and what is then raced against. Connecting often is fine, unless that is what it is about."""

    name: str
    prepare: Callable[[Stage], Awaitable[None]]
    run: Callable[[Stage], Awaitable[None]]
    limits: Limits = Limits(connects_per_minute=1_000_000)  # noqa: RUF009 - it is frozen


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
        assert (1, _OPERATOR_FILTERS) == (stats.sessions, stats.subscriptions), "something waits for the device"
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


def new_stage(
    loop: SteppedLoop, make_engine: Callable[[Clock], Engine], fleet: TestFleet, way: Way, limits: Limits
) -> Stage:
    """A stage with a device and the one that replaces it."""
    return Stage(loop, make_engine(now), way, fleet, fleet.client(ID), fleet.client(ID), limits)
