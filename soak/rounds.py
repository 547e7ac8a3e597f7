"""One soak: the fleet, its programs, a round to warm up, the round itself, and the verdict."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import ssl
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks import _fleet
from enroll.registry import Registry
from fleet.identity import Role
from fleet.layout import AdminHome, IdentityFiles
from soak import actors
from soak.actors import Load
from soak.client import Client, Gone
from soak.gauges import Gauges, read_gauges, read_statuses
from soak.ledger import Key, Kind, Ledger
from soak.office import Office
from soak.programs import Running, serving

_LEAST_WARM_UP_SECONDS: Final = 20.0
_WARM_UP_SHARE: Final = 0.2  # of the load: the heap keeps of its peaks, and a longer load has higher ones
_VICTIM_SECONDS: Final = 5.0  # on average one is shut out so often
_SUSPENDED_SHARE: Final = 0.4
_HOSTILES: Final = 10
_DRAIN_SECONDS: Final = 60.0
_SETTLE_SECONDS: Final = 3.0
# What Python's allocator and OpenSSL keep in pieces that are partly used; a leak of a session or a message a second
# is past this within minutes.
_RSS_SHARE: Final = 0.05
_RSS_BYTES: Final = 24 * 2**20  # the heap keeps some of each peak


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for. `rate` is messages a second of all honest devices."""

    folder: Path
    seconds: float
    seed: int
    devices: int
    rate: float


@dataclass(frozen=True, slots=True)
class Settled:
    """The broker when everybody has left."""

    rss_bytes: int
    gauges: Gauges


@dataclass(slots=True)
class Fleet:
    """Everybody that there is. A victim is used once."""

    home: AdminHome
    devices: list[str]
    hostiles: list[str]
    victims: list[str]
    contexts: dict[str, ssl.SSLContext] = field(default_factory=dict)
    statuses: dict[str, Key | None] = field(default_factory=dict)  # the retained one of each; None: the broker's own

    def context(self, name: str) -> ssl.SSLContext:
        """The TLS context of a principal, loaded once."""
        if name not in self.contexts:
            folder = self.home.path / "bench" / name
            files = IdentityFiles(folder / "cert.pem", folder / "key.pem")
            self.contexts[name] = _fleet.client_context(self.home, files)
        return self.contexts[name]


OPERATOR: Final = "soak-operator"
ARCHIVE: Final = "soak-archive"


def new_fleet(options: Options) -> Fleet:
    """A home with everybody enrolled."""
    home = _fleet.new_home(options.folder / "fleet")
    needed = int(3 * (options.seconds + warm_up_seconds(options)) / _VICTIM_SECONDS) + 20
    devices = [f"device-{number}" for number in range(options.devices)]
    hostiles = [f"hostile-{number}" for number in range(_HOSTILES)]
    victims = [f"victim-{number}" for number in range(needed)]
    _fleet.add_clients(home, [*devices, *hostiles, *victims])
    _fleet.add_clients(home, [OPERATOR], Role.OPERATOR)
    _fleet.add_clients(home, [ARCHIVE], Role.SERVICE)
    return Fleet(home, devices, hostiles, victims)


def warm_up_seconds(options: Options) -> float:
    """How long there is load before memory is looked at first."""
    return max(_LEAST_WARM_UP_SECONDS, _WARM_UP_SHARE * options.seconds)


async def soak(options: Options) -> bool:
    """Run all of it and print the figures; whether nothing was wrong."""
    print(f"soak: seed {options.seed}, {options.devices} devices, {options.rate:.0f} messages a second", flush=True)
    fleet = await asyncio.to_thread(new_fleet, options)
    faults: list[str] = []
    with serving("enroll", fleet.home) as enroll, serving("broker", fleet.home) as broker:
        with Registry.open(fleet.home.registry) as registry:
            office = Office(registry)
            warm = await Round(options, fleet, office, broker, "warm-up").run(warm_up_seconds(options))
            main = await Round(options, fleet, office, broker, "soak").run(options.seconds)
        faults += warm.faults + main.faults
        faults += check_memory(warm.settled, main.settled)
    for program in (enroll, broker):
        faults += program.complaints()
    for fault in faults:
        print(f"soak: wrong: {fault}", flush=True)
    print(f"soak: {'FAILED, ' + str(len(faults)) + ' things were wrong' if faults else 'nothing was wrong'}")
    return not faults


def check_memory(before: Settled, after: Settled) -> list[str]:
    """What the broker holds of memory and of everything that it counts, compared."""
    mib = 2**20
    print(f"  broker's memory      {before.rss_bytes / mib:8.1f} MiB, then {after.rss_bytes / mib:.1f} MiB")
    for name, value in after.gauges.items():
        print(f"  {name:20} {before.gauges.get(name, 0):8.0f}, then {value:.0f}")
    faults = []
    if after.rss_bytes > before.rss_bytes * (1 + _RSS_SHARE) + _RSS_BYTES:
        faults.append(f"the broker's memory grew from {before.rss_bytes} to {after.rss_bytes} bytes")
    for name, value in after.gauges.items():
        if value > before.gauges.get(name, 0):
            faults.append(f"the broker's {name} grew from {before.gauges.get(name, 0):.0f} to {value:.0f}")
    return faults


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a round."""

    faults: list[str]
    settled: Settled


class Round:
    """Load for a while, then the account."""

    def __init__(self, options: Options, fleet: Fleet, office: Office, broker: Running, name: str) -> None:
        self._options = options
        self._fleet = fleet
        self._office = office
        self._broker = broker
        self._name = name
        draw = random.Random(f"{options.seed} {name}")
        self._ledger = Ledger(f"{OPERATOR}:screen", frozenset(fleet.hostiles))
        self._load = Load(self._ledger, draw, options.rate / options.devices)
        self._devices = [self._client(name, is_persistent=draw.random() < 0.6) for name in fleet.devices]
        self._archive = self._client(f"{ARCHIVE}:all", is_persistent=True)
        self._screen = self._client(f"{OPERATOR}:screen", is_persistent=False)
        self._commander = self._client(f"{OPERATOR}:commander", is_persistent=True)
        self._victims: list[Client] = []
        self._owed = self._came = 0
        self._attacks: Counter[str] = Counter()

    def _client(self, name: str, *, is_persistent: bool) -> Client:
        context = self._fleet.context(name.partition(":")[0])
        return Client(name, context, self._broker.port, self._ledger, is_persistent)

    @property
    def _present(self) -> list[Client]:
        """All who are to be in at the end."""
        back = [client for client in self._victims if not client.may_be_cut]
        return [*self._devices, *back, self._archive, self._screen, self._commander]

    async def run(self, seconds: float) -> Outcome:
        began, cpu, own = time.monotonic(), self._broker.cpu_seconds, time.process_time()
        async with self._attacked(seconds):
            await self._act(seconds)
        await self._drain()
        loaded, cpu, own = time.monotonic() - began, self._broker.cpu_seconds - cpu, time.process_time() - own
        await self._leave()
        settled = await self._settle()
        self._print(loaded, cpu, own)
        hidden = self._ledger.fault_count - len(self._ledger.faults)
        more = [f"and {hidden} more in the {self._name}"] if hidden else []
        return Outcome(self._ledger.faults + more, settled)

    # Load

    async def _act(self, seconds: float) -> None:
        """All honest clients, until the time is over."""
        load = self._load
        readers = [actors.archive(load, self._archive), actors.screen(load, self._screen)]
        talkers = [actors.device(load, client) for client in self._devices]
        orders = actors.commander(load, self._commander, self._fleet.devices)
        async with asyncio.TaskGroup() as group:
            for actor in (*readers, orders, *talkers, self._shut_out_some()):
                group.create_task(actor)
            await load.wait(seconds)
            load.stop.set()

    async def _shut_out_some(self) -> None:
        """Again and again somebody is revoked or suspended."""
        load = self._load
        async with asyncio.TaskGroup() as group:
            while not load.stop.is_set() and self._fleet.victims:
                client = self._client(self._fleet.victims.pop(), is_persistent=load.draw.random() < 0.5)
                comes_back = load.draw.random() < _SUSPENDED_SHARE
                self._victims.append(client)
                self._ledger.shut_out.add(client.name)
                group.create_task(actors.victim(load, client, self._office, comes_back=comes_back))
                await load.pause(_VICTIM_SECONDS)

    @asynccontextmanager
    async def _attacked(self, seconds: float) -> AsyncIterator[None]:
        """With hostile clients about, who are suspended before the end."""
        fleet, seed = self._fleet, f"{self._options.seed} {self._name}"
        arguments = (str(fleet.home.path), str(self._broker.port), seed, str(seconds), ",".join(fleet.devices))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "soak.hostile", *arguments, *fleet.hostiles),
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            yield
            await self._office.suspend(*fleet.hostiles)
            async with asyncio.timeout(_DRAIN_SECONDS):
                said, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
                await process.wait()
        told = json.loads(said)
        self._attacks.update(told["attacks"])
        for leak in told["leaks"]:
            self._ledger.fault(leak)

    # The account

    async def _drain(self) -> None:
        """Everybody is in, everything is acknowledged, and what is owed comes."""
        for client in self._present:
            if client.link is None:
                await actors.come(client, will=client in self._devices)
        await _each(self._present, Client.settle)
        deadline = time.monotonic() + _DRAIN_SECONDS
        while self._ledger.missing() and time.monotonic() < deadline:
            await asyncio.sleep(0.5)
        await _each(self._present, Client.sync)
        owed = list(self._ledger.owed())
        self._owed, self._came = len(owed), sum(came for *_, came in owed)
        for subscriber, key, came in owed:
            if not came:
                self._ledger.fault(f"{subscriber} never got {key}")
        names = {client.name for client in self._present}
        for _key in self._ledger.unacknowledged(names.__contains__):
            self._ledger.counts["forgotten with a clean session"] += 1

    async def _leave(self) -> None:
        """The last status of everybody, a goodbye, and no session left behind."""
        for client in self._present:
            if client.owner not in (OPERATOR, ARCHIVE):
                topic = f"devices/{client.owner}/up/status"
                self._fleet.statuses[client.owner] = await client.publish(topic, 1, Kind.STATUS, retain=True)
        await _each(self._present, Client.settle)
        await _each(self._present, Client.sync)
        for client in self._victims:
            if client.may_be_cut:
                self._fleet.statuses[client.owner] = None
        await self._check_statuses()
        for client in self._present:
            await client.leave()
            if client.is_persistent:
                client.is_persistent, client.has_session = False, False
                await actors.come(client)
                await client.leave()

    async def _check_statuses(self) -> None:
        """What is retained is each one's last word, and of the revoked the broker's."""
        found = await read_statuses(self._broker.port, self._fleet.context(OPERATOR), OPERATOR)
        for device, key in self._fleet.statuses.items():
            said = found.get(device, {})
            expected = ("online", f"{key.kind}{key.qos}", key.number) if key else ("offline", "broker", 0)
            if expected != (said.get("status"), said.get("boot"), said.get("seq")):
                self._ledger.fault(f"the status of {device} is {said}, not {expected}")

    async def _settle(self) -> Settled:
        """The broker alone. Its hostile clients may come again afterwards."""
        await asyncio.sleep(_SETTLE_SECONDS)
        context = self._fleet.context(OPERATOR)
        gauges = await read_gauges(self._broker.port, context, OPERATOR)
        settled = Settled(self._broker.rss_bytes, gauges)
        await self._office.resume(*self._fleet.hostiles)
        return settled

    def _print(self, seconds: float, cpu: float, own: float) -> None:
        ledger = self._ledger
        print(f"{self._name}: {seconds:.0f} s")
        print(f"  owed {self._owed}, of these delivered {self._came}")
        for name, count in sorted(ledger.counts.items()):
            print(f"  {name:34}{count:10}")
        _print_spread("on the screen after", ledger.delays)
        shut_out = [client.may_be_cut for client in self._victims]
        print(f"  revoked {sum(shut_out)}, suspended and resumed {len(shut_out) - sum(shut_out)}")
        _print_spread("cut after", self._load.cut_seconds)
        print(f"  attacks {self._attacks.total()}: {', '.join(f'{n} {c}' for n, c in sorted(self._attacks.items()))}")
        print(f"  CPU: broker {100 * cpu / seconds:.0f} %, honest clients {100 * own / seconds:.0f} %", flush=True)


def _print_spread(name: str, seconds: Sequence[float]) -> None:
    if len(seconds) > 1:
        cuts = statistics.quantiles(seconds, n=100, method="inclusive")
        figures = f"p50 {1000 * cuts[49]:.1f} ms, p99 {1000 * cuts[98]:.1f} ms, max {1000 * max(seconds):.1f} ms"
        print(f"  {name:20} {figures}")


async def _each(clients: Sequence[Client], act: Any) -> None:
    """Let all do one thing at once; who cannot has a fault."""

    async def one(client: Client) -> None:
        try:
            await act(client)
        except Gone:
            client.ledger.fault(f"{client.name}: its connection ended before the end")

    await asyncio.gather(*map(one, clients))
