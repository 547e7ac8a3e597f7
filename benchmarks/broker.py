"""CPU that messages cost the broker over mutual TLS, beside Mosquitto on the same machine, with the same certificates.

Saturated: publishers send as fast as they are read, small messages. What a broker used is what the kernel accounted to
its process. Our broker decides every topic; Mosquitto is given no ACL, so the comparison is in its favour.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import psutil
import uvloop

from benchmarks import _fleet
from benchmarks._fleet import Server
from fleet.identity import DeviceId, Role
from fleet.layout import AdminHome, IdentityFiles

_PAYLOAD = b'{"temperature": 21.5, "unit": "C"}'
_BATCH = 10
_WINDOW = 200  # messages that a publisher of QoS 1 may have unacknowledged
# So far are publishers together ahead of the slowest subscriber: what a queue does not hold is dropped.
_AHEAD = 500


@dataclass(frozen=True, slots=True)
class Scenario:
    """So many publishers to so many subscribers; each message reaches `copies` of them."""

    name: str
    publishers: int
    subscribers: int
    qos: int
    copies: int


SCENARIOS = (
    Scenario("50 -> 1, QoS 0", 50, 1, 0, 1),
    Scenario("50 -> 1, QoS 1", 50, 1, 1, 1),
    Scenario("1 -> 200, QoS 0", 1, 200, 0, 200),
)


def main(arguments: Sequence[str]) -> int:
    """Measure and print; 0 unless a broker loses messages of QoS 1."""
    parser = argparse.ArgumentParser(prog="bench broker", description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000, help="delivered per scenario (default: %(default)s)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        home = _fleet.new_home(Path(folder) / "fleet")
        _fleet.lift_rates(home)
        devices = _fleet.add_clients(home, [f"bench-{number}" for number in range(200)])
        operator = _fleet.add_clients(home, ["bench-operator"], Role.OPERATOR)
        print(f"{'CPU s per 100k delivered':28}{'ours':>10}{'mosquitto':>12}{'ratio':>8}")
        with _fleet.running("enroll", home), _fleet.running("broker", home) as ours, mosquitto(home) as theirs:
            for scenario in SCENARIOS:
                costs = [
                    uvloop.run(Load(home, server, devices | operator, scenario).run(options.messages))
                    for server in (ours, theirs)
                ]
                print(f"{scenario.name:28}{costs[0]:10.2f}{costs[1]:12.2f}{costs[0] / costs[1]:8.2f}")
    return 0


@contextmanager
def mosquitto(home: AdminHome) -> Iterator[Server]:
    """Mosquitto with the fleet's certificates."""
    port = _free_port()
    config = home.path / "mosquitto.conf"
    config.write_text(
        f"user root\nlistener {port} 127.0.0.1\ncafile {home.broker_trust}\ncertfile {home.broker_server.certificate}\n"
        f"keyfile {home.broker_server.key}\nrequire_certificate true\nuse_identity_as_username true\n"
        "allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 100\nset_tcp_nodelay true\n"
    )
    with subprocess.Popen(["mosquitto", "-c", str(config)], stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(port)
            yield Server(psutil.Process(process.pid), port)
        finally:
            process.terminate()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


class Client(asyncio.Protocol):
    """One MQTT connection that counts what it receives by frame."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.received = 0
        self.acknowledged = 0
        self._rest = b""
        self._changed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        at, end, answers = 0, len(data), []
        while at + 2 <= end:
            length, here = data[at + 1], at + 2
            if length > 127:
                if here >= end:
                    break
                length, here = length - 128 + (data[here] << 7), here + 1
            if here + length > end:
                break
            first = data[at]
            if first >> 4 == 3:
                self.received += 1
                if first & 6:
                    id_at = here + 2 + (data[here] << 8 | data[here + 1])
                    answers.append(b"\x40\x02" + data[id_at : id_at + 2])
            elif first == 0x40:
                self.acknowledged += 1
            at = here + length
        self._rest = data[at:]
        if answers and self.transport is not None:
            self.transport.write(b"".join(answers))
        self._changed.set()

    async def until(self, is_reached: Callable[[], bool]) -> None:
        """Wait for what arrives."""
        while not is_reached():
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), 60)


@dataclass(slots=True)
class Pace:
    """Keeps publishers from running away from subscribers, which are written in Python too."""

    readers: Sequence[Client]
    sent: int = 0

    async def keep(self, count: int) -> None:
        """Wait, after `count` more were sent, until the slowest subscriber is near."""
        self.sent += count
        await asyncio.sleep(0)
        slowest = min(self.readers, key=lambda reader: reader.received)
        await slowest.until(lambda: self.sent - slowest.received <= _AHEAD)


@dataclass(frozen=True, slots=True)
class Load:
    """One scenario against one broker."""

    home: AdminHome
    server: Server
    clients: dict[DeviceId, IdentityFiles]
    scenario: Scenario

    async def run(self, delivered: int) -> float:
        """The broker's CPU seconds for 100,000 delivered messages."""
        scenario = self.scenario
        async with AsyncExitStack() as stack:
            readers, writers = await self._connect(stack)
            each = delivered // scenario.copies // scenario.publishers
            expected = each * scenario.publishers
            await asyncio.sleep(0.2)
            before = self.server.cpu_seconds
            pace = Pace(readers)
            sending = [self._publish(writer, name, each, pace) for name, writer in writers]
            arriving = [reader.until(lambda r=reader: r.received >= expected) for reader in readers]  # type: ignore[misc]
            await asyncio.gather(*sending, *arriving)
            return (self.server.cpu_seconds - before) / (expected * scenario.copies) * 100_000

    async def _connect(self, stack: AsyncExitStack) -> tuple[list[Client], list[tuple[str, Client]]]:
        operator = DeviceId("bench-operator")
        devices = [device for device in self.clients if device != operator]
        readers: list[Client] = []
        writers: list[tuple[str, Client]] = []
        if self.scenario.subscribers == 1:
            readers.append(await stack.enter_async_context(self._client(operator, "devices/+/up/#")))
            for device in devices[: self.scenario.publishers]:
                topic = f"devices/{device}/up/telemetry/climate"
                writers.append((topic, await stack.enter_async_context(self._client(device, ""))))
        else:
            wanted = [self._client(device, "fleet/notices/#") for device in devices[: self.scenario.subscribers]]
            readers.extend([await stack.enter_async_context(client) for client in wanted])
            writers.append(("fleet/notices/bench", await stack.enter_async_context(self._client(operator, ""))))
        return readers, writers

    @asynccontextmanager
    async def _client(self, device: DeviceId, topic_filter: str) -> AsyncIterator[Client]:
        context = _fleet.client_context(self.home, self.clients[device])
        transport, client = await asyncio.get_running_loop().create_connection(
            Client, "127.0.0.1", self.server.port, ssl=context, server_hostname="localhost"
        )
        body = b"\x00\x04MQTT\x04\x02\x00\x00" + len(device).to_bytes(2, "big") + device.encode()
        transport.write(b"\x10" + bytes((len(body),)) + body)
        if topic_filter:
            body = b"\0\1" + len(topic_filter).to_bytes(2, "big") + topic_filter.encode() + bytes((self.scenario.qos,))
            transport.write(b"\x82" + bytes((len(body),)) + body)
        try:
            yield client
        finally:
            transport.abort()

    async def _publish(self, client: Client, topic: str, count: int, pace: Pace) -> None:
        qos, transport = self.scenario.qos, client.transport
        assert transport is not None
        name = len(topic).to_bytes(2, "big") + topic.encode()
        length = bytes((len(name) + 2 * qos + len(_PAYLOAD),))
        for begin in range(0, count, _BATCH):
            ids = range(begin, min(begin + _BATCH, count))
            frames = (
                bytes((0x30 | qos << 1,)) + length + name + ((n % 65_535 + 1).to_bytes(2, "big") * qos) + _PAYLOAD
                for n in ids
            )
            transport.write(b"".join(frames))
            if qos:
                await client.until(lambda at=begin: client.acknowledged > at - _WINDOW)  # type: ignore[misc]
            await pace.keep(len(ids))
