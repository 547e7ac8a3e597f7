"""What it costs that nothing acknowledged is lost: CPU, throughput, latency and bytes written, with a disk and without.

50 devices publish at QoS 1 to one reader with a persistent session, paced and saturated; once with the reader there,
once with it away. Then how long a broker takes to start with a million messages that wait for a thousand devices.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil
import uvloop

from broker import directory
from broker.directory import Journal as DirectoryJournal
from broker.engines.amqtt.journal import Batch, Queued, StoredSession
from broker.engines.amqtt.packets import Publish
from broker.engines.amqtt.store import Store
from fleet import directory as lines
from fleet.directory import Entry
from fleet.identity import DeviceId, Principal, Role, Serial, State
from fleet.layout import AdminHome, IdentityFiles
from soak.link import Link
from soak.programs import serving
from tests import mqtt
from tests.fleets import new_home
from tests.system.brokers import connected_once, enrol, operator

_PAYLOAD: Final = bytes(200)
_WINDOW: Final = 20
_QUEUED: Final = 1_000_000
_PER_SESSION: Final = 1000


@dataclass(slots=True)
class Device:
    """Publishes at QoS 1, and notes how long each answer takes."""

    name: str
    context: ssl.SSLContext
    seconds: list[float] = field(default_factory=list)
    acknowledged: int = 0
    _sent: dict[int, float] = field(default_factory=dict)
    _next: int = 0
    _left: int = 0
    _link: Link | None = None
    _done: asyncio.Event = field(default_factory=asyncio.Event)

    async def connect(self, port: int) -> None:
        self._link = await Link.open(port, self.context, self._frame, lambda _: None)
        self._link.send(mqtt.connect(self.name, clean=False))

    def publish(self) -> None:
        assert self._link is not None
        self._next = self._next % 65_535 + 1
        self._sent[self._next] = time.perf_counter()
        self._link.send(mqtt.publish(f"devices/{self.name}/up/telemetry/x", _PAYLOAD, 1, self._next))

    async def saturate(self, count: int) -> None:
        """So many messages, as fast as they are answered."""
        self._left = count
        self._done.clear()
        for _ in range(_WINDOW):
            self._one_more()
        await self._done.wait()

    async def settle(self) -> None:
        """Return when everything is answered."""
        if self._sent:
            self._done.clear()
            await self._done.wait()

    def _one_more(self) -> None:
        if self._left:
            self._left -= 1
            self.publish()
        elif not self._sent:
            self._done.set()

    def _frame(self, _link: Link, first: int, body: bytes) -> None:
        if first == 0x40:
            self.seconds.append(time.perf_counter() - self._sent.pop(int.from_bytes(body)))
            self.acknowledged += 1
            self._one_more()

    def leave(self) -> None:
        assert self._link is not None
        self._link.abort()


class Reader:
    """A persistent session that reads all that devices say."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._link: Link | None = None
        self.received = 0
        self._subscribed = asyncio.Event()

    async def connect(self, port: int) -> None:
        self._link = await Link.open(port, self._context, self._frame, lambda _: None)
        self._link.send(mqtt.connect("admin", clean=False) + mqtt.subscribe(("devices/+/up/#", 1)))
        await self._subscribed.wait()

    def _frame(self, link: Link, first: int, body: bytes) -> None:
        if first >> 4 == 3:
            self.received += 1
            at = 2 + int.from_bytes(body[:2])
            link.send(mqtt.puback(int.from_bytes(body[at : at + 2])))
        elif first == 0x90:
            self._subscribed.set()

    def leave(self) -> None:
        assert self._link is not None
        self._link.abort()


async def _paced(devices: Sequence[Device], rate: float, count: int) -> None:
    loop = asyncio.get_running_loop()
    begin = loop.time()
    for n in range(count):
        if (wait := begin + n / rate - loop.time()) > 0.0005:
            await asyncio.sleep(wait)
        devices[n % len(devices)].publish()
    for device in devices:
        await device.settle()


async def _measure(home: AdminHome, files: Sequence[IdentityFiles], label: str, *, is_read: bool) -> None:
    with serving("broker", home) as broker:
        devices = [Device(f"d-{n}", _context(home, each)) for n, each in enumerate(files)]
        reader = Reader(_context(home, operator(home)))
        await reader.connect(broker.port)
        if not is_read:
            reader.leave()
        for device in devices:
            await device.connect(broker.port)
        for name, count in (("paced 2,000/s", 8000), ("saturated", 20_000)):
            for device in devices:
                device.seconds.clear()
            cpu, began, io = broker.cpu_seconds, time.perf_counter(), broker.process.io_counters()
            if name == "saturated":
                await asyncio.gather(*(device.saturate(count // len(devices)) for device in devices))
            else:
                await _paced(devices, 2000, count)
            wall = time.perf_counter() - began
            cpu, written = broker.cpu_seconds - cpu, broker.process.io_counters().write_bytes - io.write_bytes
            waited = sorted(1000 * second for device in devices for second in device.seconds)
            half, most = statistics.median(waited), waited[len(waited) * 99 // 100]
            print(
                f"{label:24} {name:14} {cpu / count * 1e6:6.0f} us CPU/message {count / wall:8.0f} messages/s"
                f"  PUBACK p50 {half:6.1f} ms p99 {most:6.1f} ms"
                f"  {written / count:6.0f} bytes written/message",
                flush=True,
            )
        for device in devices:
            device.leave()
        if is_read:
            reader.leave()


def _context(home: AdminHome, files: IdentityFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(home.root.certificate)
    context.load_cert_chain(files.certificate, files.key)
    return context


def _queue(home: AdminHome) -> None:
    """Have a million messages wait, of devices that the directory lists."""
    known = directory.load(home.broker_directory)
    message = Publish.of("devices/q-0/down/commands/x/1", _PAYLOAD, 1, retain=False)
    store = Store(home.broker_sessions)
    store.open()
    for number in range(1, _QUEUED // _PER_SESSION + 1):
        principal = Principal(Role.DEVICE, DeviceId(f"q-{number}"))
        known.apply_found(Entry(10_000 + number, principal, State.ACTIVE, 1, frozenset({Serial(f"{number + 1:x}")})))
        batch = Batch()
        batch.sessions[number] = StoredSession(principal.id, principal, 1, time.time())
        batch.filters[number, f"devices/{principal.id}/down/#"] = 1
        for row in range(number * _PER_SESSION, (number + 1) * _PER_SESSION):
            batch.queued[row] = Queued(number, message, 1, DeviceId("admin"), 0, False)
        store.write(batch)
    store.close()
    DirectoryJournal(home.broker_directory).rewrite(map(lines.encode, known.snapshot()))


def _start(home: AdminHome, label: str) -> None:
    began = time.perf_counter()
    with serving("broker", home) as broker:
        seconds = time.perf_counter() - began
        memory = psutil.Process(broker.process.pid).memory_info().rss
        cpu = broker.cpu_seconds
    print(f"{label:24} ready after {seconds:.2f} s, {cpu:.2f} s CPU, {memory / 1e6:.0f} MB", flush=True)


def _fresh(folder: Path) -> tuple[AdminHome, list[IdentityFiles]]:
    home = new_home(folder / "fleet")
    files = [enrol(home, f"d-{n}") for n in range(50)]
    connected_once(home)
    return home, files


def _set(home: AdminHome, *, is_durable: bool) -> None:
    for path in home.broker.glob("sessions.db*"):
        path.unlink()
    text = home.config.read_text()
    limits = (
        "\n[broker.limits]\nqueued_messages_per_session = 100000\nqueued_bytes_per_session = 100000000\n"
        "messages_per_second = 100000\nbytes_per_second = 100000000\n"
    )
    if "[broker.limits]" not in text:
        text = text.rstrip() + "\n" + limits
    text = text.replace("durable = false\n", "")
    if not is_durable:
        text = text.replace("[broker]\n", "[broker]\ndurable = false\n")
    home.config.write_text(text)


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="dev bench durable", description=__doc__)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--only", choices=("price", "start"))
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        home, files = _fresh(Path(name))
        if chosen.only != "start":
            for _ in range(chosen.repeat):
                for is_durable in (False, True):
                    for is_read in (True, False):
                        _set(home, is_durable=is_durable)
                        label = f"{'disk' if is_durable else 'memory'}, {'read' if is_read else 'away'}"
                        uvloop.run(_measure(home, files, label, is_read=is_read))
        if chosen.only != "price":
            _set(home, is_durable=True)
            _start(home, "nothing waits")
            _queue(home)
            size = home.broker_sessions.stat().st_size
            for n in range(chosen.repeat + 1):
                _start(home, f"a million wait ({n + 1})")
            print(f"the file: {size / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
