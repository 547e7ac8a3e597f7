"""Many simulated devices in one process: each is the agent's own core over a real connection of its own.

    python -m benchmarks._agents HOME BROKER_PORT     the devices, one a line, on stdin

What the core decides is what `device-agent run` would do: reconnects, pauses, presence, hello, commands answered once.
In place of threads and files there is one event loop, which looks at signatures itself; whatever firmware there is says
`done` to each command at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import uvloop
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from benchmarks import _fleet
from benchmarks.brokers.frames import text
from device_agent.clock import Moment
from device_agent.core.effects import (
    Acknowledge,
    Connect,
    Disconnect,
    Effect,
    FetchConfig,
    OpenSpool,
    Publish,
    ReadSpool,
    SaveJournal,
    SaveShadow,
    Subscribe,
    Tell,
    Verify,
    WriteSpool,
)
from device_agent.core.events import (
    AppJoined,
    AppSaid,
    Arrived,
    ConfigFetched,
    Connected,
    Disconnected,
    Event,
    Journalled,
    Sent,
    ShadowSaved,
    Started,
    Subscribed,
    Tick,
    Verified,
)
from device_agent.core.state import Downlink, Settings, initial
from device_agent.core.step import next_deadline, step
from device_agent.failures import Cause, Failure
from device_agent.journal import Journal
from device_agent.outbox import Outgoing
from device_agent.requests import Register, ReportResult
from device_agent.spool import SpoolFile
from device_agent.verdicts import Trust
from device_agent.verifying import Verifier
from fleet import pki
from fleet.address import Address
from fleet.identity import DeviceId
from fleet.layout import AdminHome, AgentHome, IdentityFiles
from fleet.messages import ResultState
from fleet.signers import Chain, key_id_of
from soak.link import Link

COMMAND = "ping"
"""What the simulated firmware takes."""
_AT_ONCE = 20  # handshakes under way
_APP = 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where the devices of this process are: their fleet, its broker, whose signature they believe."""

    home: AdminHome
    broker: Address
    signer: Chain
    verifier: Verifier
    handshakes: asyncio.Semaphore

    @classmethod
    def of(cls, home: AdminHome, broker: Address) -> Self:
        """The fleet of this host."""
        found = x509.load_pem_x509_certificates(home.dispatch_signing.certificate.read_bytes())
        signer = tuple(each.public_bytes(Encoding.DER) for each in found)
        roots = x509.load_pem_x509_certificates(home.root.certificate.read_bytes())
        return cls(home, broker, signer, Verifier(roots, [signer]), asyncio.Semaphore(_AT_ONCE))


class Agent:
    """One device."""

    def __init__(self, place: Place, device: DeviceId) -> None:
        home, broker = place.home, place.broker
        files = IdentityFiles(*(home.path / "bench" / device / name for name in ("cert.pem", "key.pem")))
        leaf = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        life = pki.serial_of(leaf), leaf.not_valid_before_utc, leaf.not_valid_after_utc
        self._settings = Settings(device, *life, secrets.token_hex(8), "bench")
        self._context = _fleet.client_context(home, files)
        self._broker = broker
        self._place = place
        self._state = initial(self._settings, (broker,), Journal(), downlink=Downlink(Trust.SIGNED, self._key_ids))
        self._folder = Path(tempfile.gettempdir()) / "nothing-is-here"
        self._spool = SpoolFile(AgentHome(self._folder / device), device)
        self._link: Link | None = None
        self._epoch = 0
        self._sent: dict[int, int] = {}  # packet id -> handle
        self._last_id = 1
        self._timer: asyncio.TimerHandle | None = None
        self._opening: set[asyncio.Task[None]] = set()

    @property
    def _key_ids(self) -> tuple[str, ...]:
        return (key_id_of(self._place.signer),)

    def start(self) -> None:
        self._feed(Started(), AppJoined(_APP), AppSaid(_APP, Register("bench", (COMMAND,))))

    def _feed(self, *events: Event) -> None:
        pending = deque(events)
        while pending:
            self._state, effects = step(self._state, pending.popleft(), self._now())
            for effect in effects:
                if (follow_up := self._perform(effect)) is not None:
                    pending.append(follow_up)
        self._set_timer()

    def _now(self) -> Moment:
        return Moment(time.monotonic(), datetime.now(UTC), random.random())

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due = next_deadline(self._state)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, due - time.monotonic()), self._feed, Tick()) if due is not None else None

    def _perform(self, effect: Effect) -> Event | None:
        match effect:
            case FetchConfig():
                return ConfigFetched((self._broker,), Trust.SIGNED, self._key_ids)
            case Verify(number, topic, payload, now):
                return Verified(number, self._place.verifier.judge(topic, payload, now))
            case SaveJournal():
                return Journalled("")
            case SaveShadow():
                return ShadowSaved()
            case OpenSpool() | WriteSpool() | ReadSpool():
                return self._spool.perform(effect)
            case Connect(epoch, _, will, keepalive):
                self._connect(epoch, will, keepalive)
            case Disconnect():
                self._drop()
            case Subscribe(_, filters):
                self._send(b"\x82", b"\0\1" + b"".join(text(each) + b"\1" for each in filters))
            case Publish(_, message):
                return self._publish(message)
            case Acknowledge(_, mid, qos) if qos:
                self._send(b"\x40", mid.to_bytes(2, "big"))
            case Tell(app, line) if line.get("type") == "command":
                return AppSaid(app, ReportResult(str(line["command_id"]), ResultState.DONE, None, ""))
        return None

    def _connect(self, epoch: int, will: Outgoing, keepalive: int) -> None:
        self._drop()
        self._epoch = epoch
        opening = asyncio.create_task(self._open(epoch, will, keepalive))
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)

    async def _open(self, epoch: int, will: Outgoing, keepalive: int) -> None:
        try:
            async with self._place.handshakes:
                if epoch != self._epoch:  # it gave up while it waited here
                    return
                link = await Link.open(self._broker.port, self._context, self._on_frame, self._on_end)
        except (OSError, TimeoutError) as error:
            cause = Cause.TIMED_OUT if isinstance(error, TimeoutError) else Cause.UNREACHABLE
            self._feed(Disconnected(epoch, Failure(cause, str(self._broker), str(error))))
            return
        if epoch != self._epoch:
            link.abort()
            return
        self._link = link
        flags = 0x04 | will.qos << 3 | 0x20 * will.retain
        head = text("MQTT") + bytes((4, flags)) + keepalive.to_bytes(2, "big")
        self._send(b"\x10", head + text(self._settings.device) + text(will.topic) + _data(will.payload))

    def _publish(self, message: Outgoing) -> Event | None:
        if not message.qos:
            self._send(b"\x30", text(message.topic) + message.payload)
            return Sent(self._epoch, message.handle)
        self._last_id = self._last_id % 65_535 + 1
        self._sent[self._last_id] = message.handle
        first = bytes((0x32 | message.retain,))
        self._send(first, text(message.topic) + self._last_id.to_bytes(2, "big") + message.payload)
        return None

    def _on_frame(self, link: Link, first: int, body: bytes) -> None:
        if link is not self._link:
            return
        match first >> 4:
            case 2:
                self._feed(Connected(self._epoch, bool(body[0] & 1)))
            case 9:
                self._feed(Subscribed(self._epoch))
            case 4:
                if (handle := self._sent.pop(int.from_bytes(body, "big"), None)) is not None:
                    self._feed(Sent(self._epoch, handle))
            case 3:
                self._feed(self._arrived(first >> 1 & 3, body))

    def _arrived(self, qos: int, body: bytes) -> Arrived:
        end = 2 + int.from_bytes(body[:2], "big")
        mid = int.from_bytes(body[end : end + 2], "big") if qos else 0
        return Arrived(self._epoch, mid, body[2:end].decode(), body[end + 2 * bool(qos) :], qos)

    def _on_end(self, link: Link) -> None:
        if link is self._link:
            self._link = None
            self._sent.clear()
            self._feed(Disconnected(self._epoch, Failure(Cause.LOST, str(self._broker), "")))

    def _drop(self) -> None:
        self._epoch = 0
        link, self._link = self._link, None
        self._sent.clear()
        if link is not None:
            link.close()

    def _send(self, first: bytes, body: bytes) -> None:
        if self._link is not None:
            self._link.send(first + _length(len(body)) + body)


def _length(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*encoded, value))


def _data(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value


async def live(place: Place, devices: Sequence[DeviceId]) -> None:
    """Until this process is ended."""
    agents = [Agent(place, device) for device in devices]
    for agent in agents:
        agent.start()
        await asyncio.sleep(0)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        place = Place.of(AdminHome(Path(sys.argv[1])), Address("localhost", int(sys.argv[2])))
        uvloop.run(live(place, [DeviceId(each) for each in sys.stdin.read().split()]))
