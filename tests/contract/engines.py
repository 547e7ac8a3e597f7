"""An engine on a loop of its own, with a directory that the test writes."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import uvloop

from broker.directory import Directory
from broker.engine import Client, Clock, Engine, Event, Listener, Rules
from broker.engines.amqtt.engine import AmqttEngine, Durable
from broker.trust import Trust, load_trust
from fleet.config import Address
from fleet.directory import Entry
from fleet.identity import Role, Serial, Server, State
from fleet.limits import Limits
from fleet.policy import DEFAULT_POLICY, Policy
from tests import mqtt
from tests.certificates import Identity, TestFleet, client_context
from tests.deadlines import within
from tests.mqtt import Peer

T = TypeVar("T")
E = TypeVar("E", bound=Event)


def _durable(now: Clock) -> Engine:
    """One whose sessions are in a file that goes with the test."""
    return AmqttEngine(now, Durable(Path(_FILES.name) / f"sessions-{next(_NUMBERS)}.db"))


_FILES: Final = TemporaryDirectory(prefix="mqtt-fleet-sessions-")
_NUMBERS: Final = itertools.count()

ENGINES: dict[str, Callable[[Clock], Engine]] = {"amqtt": AmqttEngine, "amqtt-durable": _durable}
"""Every engine that the suite is run against."""
DURABLE_ENGINES: Final = frozenset({"amqtt-durable"})
"""Those that differ from another in what they keep on disk alone."""


def now() -> datetime:
    return datetime.now(UTC)


class Service:
    """What the enrollment service would answer to a look-up; `gate` holds answers back until it is set."""

    def __init__(self) -> None:
        self.entries: dict[Serial, Entry] = {}
        self.asked: list[Serial] = []
        self.gate = asyncio.Event()
        self.gate.set()


class RunningEngine:
    """A context in which an engine accepts connections."""

    is_as_shipped = False

    def __init__(
        self,
        make: Callable[[Clock], Engine],
        fleet: TestFleet,
        limits: Limits | None = None,
        policy: Policy = DEFAULT_POLICY,
    ) -> None:
        self.fleet = fleet
        self.engine = make(now)
        self.directory = Directory()
        self.service = Service()
        self.is_fresh = True
        self.address = ("", 0)
        self.events: list[Event] = []
        self._changed = threading.Condition()
        self._limits = limits or Limits()
        self._policy = policy
        self._seq = 0
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine")

    def __enter__(self) -> Self:
        self._thread.start()
        self.trust = self._new_trust()
        rules = Rules(self._policy, self.directory, self._look_up, lambda: self.is_fresh)
        listener = Listener(Address("127.0.0.1", 0), self._limits)
        bound = self.await_(self.engine.start(listener, self.trust, rules, self._observe))
        self.address = (bound.host, bound.port)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.await_(self.engine.stop())
        self.await_(self._settle())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(within(10))
        self._loop.close()

    async def _settle(self) -> None:
        """Let transports that were closed say so."""
        for _ in range(3):
            await asyncio.sleep(0)
        await self._loop.shutdown_default_executor()

    def _new_trust(self) -> Trust:
        return load_trust(self.fleet.trust_file, self.fleet.server(Server.BROKER).files, now())

    def new_trust(self, fleet: TestFleet) -> Trust:
        """The trust of a broker of another fleet."""
        return load_trust(fleet.trust_file, fleet.server(Server.BROKER).files, now())

    # On the engine's loop

    def await_(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(within(20))

    def call(self, function: Callable[[], T]) -> T:
        async def called() -> T:
            return function()

        return self.await_(called())

    async def _look_up(self, serial: Serial) -> None:
        self.service.asked.append(serial)
        with self._changed:
            self._changed.notify_all()
        await self.service.gate.wait()
        entry = self.service.entries.get(serial)
        if entry is not None:
            self._apply(entry)

    def _apply(self, entry: Entry) -> None:
        for change in self.directory.apply_found(entry):
            self.engine.apply(change)

    # The directory

    def skip_to(self, seq: int) -> None:
        """Entries from now on are newer than this."""
        self._seq = seq

    def entry(self, identity: Identity, state: State = State.ACTIVE, epoch: int = 1) -> Entry:
        """A new entry for the identity's principal, newer than any before."""
        self._seq += 1
        return Entry(self._seq, identity.principal, state, epoch, frozenset({identity.serial}))

    def apply(self, entry: Entry) -> None:
        """As if the feed had brought it."""
        self.call(lambda: self._apply(entry))

    def admit(self, identity: Identity) -> Identity:
        """List the identity as active."""
        self.apply(self.entry(identity))
        return identity

    def device(self, id: str) -> Identity:
        """A device that is listed as active."""
        return self.admit(self.fleet.client(id))

    def admin(self) -> Identity:
        """The operator `admin`, listed as active."""
        return self.admit(self.fleet.client("admin", Role.OPERATOR))

    def set_state(self, identity: Identity, state: State) -> None:
        known = self.directory.entry(identity.id)
        assert known is not None
        self._seq += 1
        self.apply(replace(known, seq=self._seq, state=state))

    def revoke(self, identity: Identity) -> None:
        self.set_state(identity, State.REVOKED)

    # What happened

    def _observe(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait_event(self, kind: type[E], is_it: Callable[[E], bool] = lambda _: True) -> E:
        """The first such event, past or to come. Raises: AssertionError after the deadline."""

        def found() -> E | None:
            return next((e for e in self.events if isinstance(e, kind) and is_it(e)), None)

        with self._changed:
            self._changed.wait_for(lambda: found() is not None, within(10))
            event = found()
        assert event is not None, f"no {kind.__name__}: {self.events}"
        return event

    def wait_asked(self, serial: Serial) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: serial in self.service.asked, within(10))

    def clients(self) -> Iterable[Client]:
        return self.call(self.engine.clients)

    def session_count(self) -> int:
        """How many sessions the engine holds."""
        return self.call(self.engine.stats).sessions

    def cpu_seconds(self) -> float:
        """What the engine's thread has computed so far."""
        assert self._thread.ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident))

    # Peers

    def peer(self, identity: Identity | None) -> Peer:
        """A TLS connection as that identity, no CONNECT yet."""
        return Peer(self.address, client_context(self.fleet.root_file, identity))

    def join(self, identity: Identity, frame: bytes | None = None) -> Peer:
        """A connection whose CONNECT was accepted."""
        peer = self.peer(identity)
        try:
            answer = peer.ask(frame or mqtt.connect(identity.id))
            assert mqtt.ACCEPTED == answer, answer
        except BaseException:
            peer.socket.close()
            raise
        return peer
