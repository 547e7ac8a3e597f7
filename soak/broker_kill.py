"""A broker that is killed again and again under load: nothing acknowledged is lost, nothing of QoS 2 comes twice.

Devices publish at QoS 1 and 2 and keep a retained status; one reader is there all the time, another now and then; both
have persistent sessions, and each does what the standard asks of it. When so many acknowledgements have come as was
drawn, the broker gets SIGKILL: what is acknowledged and what is on its way is different each time.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import secrets
import signal
import ssl
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from fleet.layout import AdminHome, IdentityFiles
from soak.link import DEADLINE_SECONDS, Link
from tests import mqtt
from tests.fleets import new_home
from tests.system.brokers import connected_once, enrol, operator, start_broker, wait_ready

_DEVICES: Final = 3
_WINDOW: Final = 16  # messages of one device without an answer
_MAX_ACKNOWLEDGED: Final = 250  # of one round
_UP: Final = "devices/+/up/telemetry/#"
_STATUS: Final = "devices/{}/up/status"


class Fault(Exception):
    """The broker broke a promise."""


@dataclass(slots=True)
class Account:
    """What was promised, and what came."""

    acknowledged: dict[str, int] = field(default_factory=dict)  # payload: QoS
    statuses: dict[str, int] = field(default_factory=dict)
    on_promise: Callable[[], None] = lambda: None

    def promise(self, payload: str, qos: int) -> None:
        """A message was acknowledged."""
        if payload.startswith("status "):
            _, device, count = payload.split()
            self.statuses[device] = max(int(count), self.statuses.get(device, 0))
        else:
            self.acknowledged[payload] = qos
        self.on_promise()


@dataclass(slots=True)
class Outgoing:
    """A message that was not acknowledged in full."""

    topic: str
    payload: str
    qos: int
    retain: bool
    is_received: bool = False

    def frame(self, id: int, *, dup: bool) -> bytes:
        if self.is_received:
            return mqtt.pubrel(id)
        return mqtt.publish(self.topic, self.payload.encode(), self.qos, id, retain=self.retain, dup=dup)


@dataclass(slots=True, eq=False)
class Client:
    """One client id with a persistent session on both sides."""

    name: str
    context: ssl.SSLContext
    account: Account
    delivered: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    is_publishing: bool = False
    out: dict[int, Outgoing] = field(default_factory=dict)
    _random: Random = field(default_factory=lambda: Random(0))
    _received: set[int] = field(default_factory=set)
    _has_session: bool = False
    _link: Link | None = None
    _answered: dict[int, asyncio.Future[bytes]] = field(default_factory=dict)
    _ids: itertools.cycle[int] = field(default_factory=lambda: itertools.cycle(range(1, 65_536)))
    _count: int = 0
    _newest: dict[str, int] = field(default_factory=dict)

    async def connect(self, port: int) -> None:
        """Connect, and go on with what was under way. Raises: OSError, Fault, TimeoutError."""
        self._link = link = await Link.open(port, self.context, self._frame, self._ended)
        answer = self._expect(0x20)
        link.send(mqtt.connect(self.name, clean=False, keep_alive=60))
        body = await self._await(answer)
        if body[1]:
            raise Fault(f"{self.name} is refused with {body[1]}")
        if bool(body[0]) != self._has_session:
            raise Fault(f"{self.name}: session present is {body[0]}, and {int(self._has_session)} was promised")
        self._has_session = True
        for number, message in self.out.items():
            link.send(message.frame(number, dup=True))
        self.fill()

    async def subscribe(self, *filters: tuple[str, int]) -> None:
        """Subscribe. Raises: Fault, TimeoutError, ConnectionError."""
        answer = self._expect(0x90)
        assert self._link is not None
        self._link.send(mqtt.subscribe(*filters))
        if 0x80 in (await self._await(answer))[2:]:
            raise Fault(f"{self.name} may not subscribe")

    def leave(self) -> None:
        """Be gone, without a word."""
        if self._link is not None:
            self._link.abort()

    async def gone(self) -> None:
        """Return when there is no connection."""
        if self._link is not None:
            await self._link.wait_ended()

    def _expect(self, kind: int) -> asyncio.Future[bytes]:
        self._answered[kind] = found = asyncio.get_running_loop().create_future()
        return found

    async def _await(self, answer: asyncio.Future[bytes]) -> bytes:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await answer

    def _ended(self, _link: Link) -> None:
        for answer in self._answered.values():
            if not answer.done():
                answer.set_exception(ConnectionError("the broker was killed"))
                answer.exception()  # whoever waited was killed, too

    # Publishing

    def fill(self) -> None:
        """Publish as much as may be without an answer."""
        while self.is_publishing and self._link is not None and len(self.out) < _WINDOW:
            self._count += 1
            if self._count % 10:
                qos = self._random.choice((1, 2))
                message = Outgoing(f"devices/{self.name}/up/telemetry/q{qos}", self._text(qos), qos, False)
            else:
                status = f"status {self.name} {self._count}"
                message = Outgoing(_STATUS.format(self.name), status, 1, True)
            number = next(number for number in self._ids if number not in self.out)
            self.out[number] = message
            self._link.send(message.frame(number, dup=False))

    def _text(self, qos: int) -> str:
        return f"{self.name} {qos} {self._count} " + "x" * self._random.choice((0, 100, 2000))

    # What comes

    def _frame(self, link: Link, first: int, body: bytes) -> None:
        number = int.from_bytes(body[:2])
        match first >> 4:
            case 3:
                self._publish(link, first, body)
            case 4:
                self._acknowledged(number, 1)
            case 5:
                if number in self.out and not self.out[number].is_received:
                    self.account.promise(self.out[number].payload, 2)
                    self.out[number].is_received = True
                link.send(mqtt.pubrel(number))
            case 6:
                self._received.discard(number)
                link.send(mqtt.pubcomp(number))
            case 7:
                self.out.pop(number, None)
                self.fill()
            case _:
                if (answer := self._answered.get(first)) is not None and not answer.done():
                    answer.set_result(body)

    def _acknowledged(self, number: int, qos: int) -> None:
        if number in self.out:
            self.account.promise(self.out.pop(number).payload, qos)
        self.fill()

    def _publish(self, link: Link, first: int, body: bytes) -> None:
        size, qos = int.from_bytes(body[:2]), first >> 1 & 3
        at = 2 + size + 2 * bool(qos)
        number, payload = int.from_bytes(body[2 + size : 4 + size]), body[at:].decode()
        if qos == 1:
            self._deliver(payload)
            link.send(mqtt.puback(number))
            return
        if number not in self._received:
            self._received.add(number)
            self._deliver(payload)
        link.send(mqtt.pubrec(number))

    def _deliver(self, payload: str) -> None:
        self.delivered[payload] += 1
        device, qos, count, *_ = payload.split(" ")
        if qos == "2":
            if self.delivered[payload] > 1:
                self.faults.append(f"{self.name} got twice: {payload[:40]}")
            if int(count) <= self._newest.get(device, 0):
                self.faults.append(f"{self.name} got out of order: {payload[:40]}")
            self._newest[device] = int(count)


@dataclass(slots=True)
class Stage:
    """A fleet, its clients, and what they were promised."""

    home: AdminHome
    random: Random
    account: Account = field(default_factory=Account)
    devices: list[Client] = field(default_factory=list)
    readers: list[Client] = field(default_factory=list)
    kills: int = 0
    log: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, home: AdminHome, seed: int) -> Stage:
        """A home whose broker has a snapshot of the devices `kill-0` and so on, as `prepare` enrols them."""
        stage = cls(home, Random(seed))
        for n in range(_DEVICES):
            files = home.path / "test-devices" / f"kill-{n}"
            context = _context(home, IdentityFiles(files / "cert.pem", files / "key.pem"))
            stage.devices.append(Client(f"kill-{n}", context, stage.account, _random=Random(seed + n)))
        context = _context(home, operator(home))
        stage.readers = [Client(name, context, stage.account) for name in ("admin:always", "admin:late")]
        return stage

    async def run(self, rounds: int, say: Callable[[str], None] = lambda _: None) -> list[str]:
        """Kill it so often, then let all that is owed come; what was wrong."""
        await self._begin()
        for n in range(rounds):
            await self._round()
            say(f"{n + 1} of {rounds}: {len(self.account.acknowledged)} messages acknowledged, {self._faults()}")
            if self._faults():
                break
        await self._settle()
        return self._faults()

    def _faults(self) -> list[str]:
        return [fault for client in self.readers for fault in client.faults] + self.log

    async def _begin(self) -> None:
        """Every reader has subscribed, once: that is to be enough."""
        async with _Broker(self.home) as broker:
            for reader in self.readers:
                await reader.connect(broker.port)
                await reader.subscribe((_UP, 2))
            broker.kill()
            await asyncio.gather(*(reader.gone() for reader in self.readers))

    async def _round(self) -> None:
        async with _Broker(self.home) as broker:
            await self._check_statuses(broker.port)
            left = itertools.count(self.random.randint(0, _MAX_ACKNOWLEDGED), -1)
            killed = asyncio.Event()

            def promised() -> None:
                if not next(left):
                    broker.kill()
                    killed.set()

            self.account.on_promise = promised
            promised()
            late = self.random.random() < 0.3
            coming = [self.readers[0], *self.devices, *self.readers[1:][:late]]
            for device in self.devices:
                device.is_publishing = True
            results = await asyncio.gather(*(each.connect(broker.port) for each in coming), return_exceptions=True)
            self._note(results)
            if late and self.random.random() < 0.5:
                self.readers[1].leave()
            async with asyncio.timeout(DEADLINE_SECONDS):
                await killed.wait()
            await asyncio.gather(*(each.gone() for each in coming))
            self.kills += 1
        self.log.extend(broker.complaints())

    def _note(self, results: list[BaseException | None]) -> None:
        for result in results:
            if result is not None and not isinstance(result, OSError):
                self.log.append(repr(result))

    async def _check_statuses(self, port: int) -> None:
        """The retained status of each device is not older than the last that was acknowledged."""
        found: dict[str, int] = {}
        last: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def frame(_link: Link, first: int, body: bytes) -> None:
            if first >> 4 == 3:
                _, device, count = body[2 + int.from_bytes(body[:2]) :].decode().split()
                found[device] = int(count)
            elif first == mqtt.PINGRESP[0]:
                last.set_result(None)

        link = await Link.open(port, self.readers[0].context, frame, lambda _: None)
        status = mqtt.subscribe((_STATUS.format("+"), 0))
        link.send(mqtt.connect("admin:check") + status + mqtt.PINGREQ)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await last
        link.close()
        await link.wait_ended()
        for device, count in self.account.statuses.items():
            if found.get(device, 0) < count:
                self.log.append(f"the status of {device} is {found.get(device)}, and {count} was acknowledged")

    async def _settle(self) -> None:
        """Everything that is owed comes."""
        self.account.on_promise = lambda: None
        async with _Broker(self.home) as broker:
            await self._check_statuses(broker.port)
            for client in (*self.devices, *self.readers):
                client.is_publishing = False
            self._note(
                await asyncio.gather(
                    *(each.connect(broker.port) for each in (*self.devices, *self.readers)), return_exceptions=True
                )
            )
            try:
                async with asyncio.timeout(DEADLINE_SECONDS):
                    while any(device.out for device in self.devices) or self._missing():
                        await asyncio.sleep(0.02)
            except TimeoutError:
                self.log.extend(f"lost: {each}" for each in self._missing()[:20])
                self.log.extend(f"{d.name} is not answered: {len(d.out)}" for d in self.devices if d.out)
            for client in (*self.devices, *self.readers):
                client.leave()
        self.log.extend(broker.complaints())

    def _missing(self) -> list[str]:
        return [
            f"{payload[:40]} for {reader.name}"
            for reader in self.readers
            for payload in self.account.acknowledged
            if payload not in reader.delivered
        ]


def main(arguments: Sequence[str]) -> int:
    """Kill it so often; 0 if nothing was wrong."""
    parser = argparse.ArgumentParser(prog="dev soak broker-kill", description=__doc__)
    parser.add_argument("--rounds", type=int, default=500, help="how often it is killed (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32), help="of the randomness")
    chosen = parser.parse_args(arguments)
    print(f"soak: seed {chosen.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        home = new_home(Path(folder) / "fleet")
        prepare(home)
        connected_once(home)
        stage = Stage.of(home, chosen.seed)
        wrong = asyncio.run(stage.run(chosen.rounds, lambda line: print(f"soak: {line}", flush=True)))
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    print(f"soak: {stage.kills} kills, {len(stage.account.acknowledged)} messages acknowledged, {len(wrong)} faults")
    return 1 if wrong else 0


def prepare(home: AdminHome) -> None:
    """Enrol the devices, before the broker takes its snapshot."""
    for n in range(_DEVICES):
        enrol(home, f"kill-{n}")


def _context(home: AdminHome, files: IdentityFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(home.root.certificate)
    context.load_cert_chain(files.certificate, files.key)
    return context


class _Broker:
    """One life of the broker."""

    def __init__(self, home: AdminHome) -> None:
        self._home = home
        self._is_killed = False

    async def __aenter__(self) -> _Broker:
        self._program = await asyncio.to_thread(start_broker, self._home)
        self.port = await asyncio.to_thread(wait_ready, self._program)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._program.wait if self._is_killed else self._program.stop)

    def kill(self) -> None:
        """At once, between any two things that it does."""
        self._is_killed = True
        self._program.send_signal(signal.SIGKILL)

    def complaints(self) -> list[str]:
        lines = self._program.stderr.splitlines()
        return [line for line in lines if "Traceback" in line or " ERROR " in line]
