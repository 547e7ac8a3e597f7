"""What one message of QoS 0 costs our broker, stage by stage: in memory, with warm caches, without kernel and loop.

The least of many short runs counts, so that a busy machine disturbs little. What the whole is more than the stages
together joins them. `bench broker` has what a message costs in earnest, where it finds the caches cold.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import ssl
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from cryptography import x509

from benchmarks import _fleet
from benchmarks.brokers.frames import Frames, subscribe, text
from benchmarks.brokers.load import PAYLOAD
from broker.directory import Directory
from broker.engine import Rules
from broker.engines.amqtt.door import Door
from broker.engines.amqtt.hub import Hub
from broker.engines.amqtt.listener import Connection
from broker.engines.amqtt.packets import Publish
from broker.engines.amqtt.parser import Parser
from broker.engines.amqtt.rates import Usage
from broker.trust import load_trust
from fleet.directory import Entry
from fleet.identity import DeviceId, Principal, Role, Serial, State
from fleet.layout import AdminHome, IdentityFiles
from fleet.limits import Limits
from fleet.pki import serial_of
from fleet.policy import DEFAULT_POLICY

_RUN, _RUNS = 200, 60
_LIMITS = Limits(messages_per_second=10**6, bytes_per_second=10**9)


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    argparse.ArgumentParser(prog="bench broker_stages", description=__doc__).parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        home = _fleet.new_home(Path(folder) / "fleet")
        asyncio.run(measure(home))
    return 0


async def measure(home: AdminHome) -> None:
    """Print each stage's microseconds."""
    world = World(home)
    writer, reader = world.client("bench-device", Role.DEVICE), world.client("bench-operator", Role.OPERATOR)
    reader.say(subscribe("devices/+/up/telemetry/#", 0))
    await asyncio.sleep(0)
    frame = Frames("devices/bench-device/up/telemetry/climate", 0, len(PAYLOAD)).frame(0, PAYLOAD)
    gc.freeze()
    found = stages(world.door, writer, reader, frame)
    for name, micros in found.items():
        print(f"{name:50}{micros:7.2f} us")
    whole = "the whole"
    print(f"{'what joins them':50}{found[whole] - sum(us for name, us in found.items() if name != whole):7.2f} us")


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.written: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(cast("bytes", data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """There is no limit."""


class World:
    """A hub and its door, without a listener."""

    def __init__(self, home: AdminHome) -> None:
        self.home, self.directory, self._seq = home, Directory(), 0
        rules = Rules(DEFAULT_POLICY, self.directory, _nobody, lambda: True)
        hub = Hub(rules, _LIMITS, _now, lambda _event: None)
        trust = load_trust(home.broker_trust, home.broker_server, _now())
        self.door = Door(hub, trust, asyncio.get_running_loop())

    def client(self, name: str, role: Role) -> Client:
        """A principal that is enrolled, admitted and connected."""
        (files,) = _fleet.add_clients(self.home, [name], role).values()
        self._seq += 1
        serial = serial_of(x509.load_pem_x509_certificate(files.certificate.read_bytes()))
        principal = Principal(role, DeviceId(name))
        self.directory.apply_found(Entry(self._seq, principal, State.ACTIVE, 1, frozenset({Serial(serial)})))
        return Client(self, name, files)


class Client:
    """The other side of a connection."""

    def __init__(self, world: World, name: str, files: IdentityFiles) -> None:
        self.wire, self.connection = Wire(), Connection(world.door)
        self.connection.connection_made(self.wire)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = _fleet.client_context(world.home, files)
        self._tls = context.wrap_bio(self._in, self._out, server_hostname="localhost")
        while not self._is_shaken():
            self.connection.data_received(self._out.read())
        body = b"\x00\x04MQTT\x04\x02\x00\x00" + text(name)
        self.say(b"\x10" + bytes((len(body),)) + body)

    def _is_shaken(self) -> bool:
        self.hear()
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def hear(self) -> None:
        """Take in what was written to it."""
        for data in self.wire.written:
            self._in.write(data)
        self.wire.written.clear()

    def record(self, data: bytes) -> bytes:
        """What goes over the wire for `data`."""
        self._tls.write(data)
        return self._out.read()

    def say(self, data: bytes) -> None:
        """Have it arrive."""
        self.connection.data_received(self.record(data))


def stages(door: Door, writer: Client, reader: Client, frame: bytes) -> dict[str, float]:
    """The microseconds of each stage, and of the whole."""
    wire_in, wire_out = writer.connection._tls, reader.connection._tls
    parser = Parser(_LIMITS.max_packet_bytes, door.topic_names)
    usage = Usage(_LIMITS, Role.DEVICE, 0.0)
    session = writer.connection._session
    assert session is not None
    packet = cast("Publish", next(parser.feed(frame)))

    def decrypt(record: bytes) -> None:
        wire_in.feed(record)
        wire_in.read(len(record))

    def publish(_: bytes) -> None:
        door.is_reading = True
        door.hub.publish(session, packet)

    def encrypt(_: bytes) -> None:
        wire_out.encrypt(frame)

    records = lambda: [writer.record(frame) for _ in range(_RUN)]  # noqa: E731
    frames = lambda: [frame] * _RUN  # noqa: E731
    return {
        "TLS: decrypt a record of one message": least(decrypt, records),
        "parse": least(lambda data: next(parser.feed(data)), frames),
        "authorise, route, hand to the subscriber's link": least(publish, frames, door.end_read),
        "rates": least(lambda _: usage.send(1, 90, 1.0), frames),
        "the whole": least(writer.connection.data_received, records),
        "TLS: encrypt a record of one message": least(encrypt, frames),
    }


def least(
    step: Callable[[bytes], object], prepare: Callable[[], list[bytes]], after: Callable[[], object] = lambda: None
) -> float:
    """The microseconds that a step takes in the best of many runs."""
    best = float("inf")
    for _ in range(_RUNS):
        prepared = prepare()
        began = time.perf_counter()
        for data in prepared:
            step(data)
        best = min(best, time.perf_counter() - began)
        after()
    return best / _RUN * 1e6


def _now() -> datetime:
    return datetime.now(UTC)


async def _nobody(_serial: Serial) -> None:
    """There is no service to ask."""
