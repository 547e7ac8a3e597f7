"""Hostile clients, in a process of their own: `python -m soak.hostile HOME PORT SEED SECONDS DEVICE...`.

They hold certificates of their own and try everything else. What they did is one line of JSON on stdout: how often, and
what they were given that they should not have been.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import signal
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import uvloop

from benchmarks import _fleet
from fleet.layout import AdminHome, IdentityFiles
from soak.link import HOST, Link
from tests import mqtt

_PATIENCE_SECONDS: Final = 8.0
_BAN: Final = 0x80


class Attacker:
    """One stolen identity, and what can be done with it."""

    def __init__(self, home: AdminHome, port: int, device: str, draw: random.Random, victims: Sequence[str]) -> None:
        files = home.path / "bench" / device
        self.device = device
        self.counts: Counter[str] = Counter()
        self.leaks: list[str] = []
        self._links: list[Link] = []
        self._port = port
        self._draw = draw
        self._victims = victims
        self._context = _fleet.client_context(home, IdentityFiles(files / "cert.pem", files / "key.pem"))
        self._nameless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._nameless.load_verify_locations(home.root.certificate)
        self._may_be_in = True

    async def go_on(self, until: float) -> None:
        """One attack after the other."""
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            attack = self._draw.choice(ATTACKS)
            self.counts[attack.__name__.replace("_", " ")] += 1
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    await attack(self)
            for link in self._links:
                link.abort()
            self._links.clear()
            await asyncio.sleep(self._draw.expovariate(2.0))

    # Means

    async def link(self, context: ssl.SSLContext | None = None) -> Link:
        link = await Link.open(self._port, context or self._context, self._came, lambda _: None)
        self._links.append(link)
        return link

    async def join(self, frame: bytes = b"") -> Link:
        """A connection with a CONNECT that is fine."""
        link = await self.link()
        link.send(frame or mqtt.connect(self.device, clean=self._draw.random() < 0.5))
        return link

    async def end(self, link: Link, seconds: float = 3.0) -> None:
        """Give the broker time to end it, then end it."""
        if not await link.wait_ended(seconds):
            link.abort()

    def victim(self) -> str:
        return self._draw.choice(self._victims)

    def _came(self, link: Link, first: int, body: bytes) -> None:
        """Nothing of anybody else's may come."""
        if first & 0xF0 == 0x30:
            topic = body[2 : 2 + int.from_bytes(body[:2], "big")].decode()
            if not topic.startswith((f"devices/{self.device}/down/", "fleet/notices/")):
                self.leaks.append(f"{self.device} was sent {topic!r}")
        elif first == 0x20 and body[1:] == b"\0" and not self._may_be_in:
            self.leaks.append(f"{self.device} was let in as another")
        elif first == 0x90 and any(code < _BAN for code in body[2:]) and not self._may_be_in:
            self.leaks.append(f"{self.device} was granted what is not its own")

    # Attacks

    async def garbage(self) -> None:
        """Random bytes, before CONNECT or after."""
        link = await (self.join() if self._draw.random() < 0.5 else self.link())
        link.send(self._draw.randbytes(self._draw.choice((1, 100, 10_000))))
        await self.end(link)

    async def no_tls(self) -> None:
        """Plain MQTT, HTTP, or nothing at all."""
        _, writer = await asyncio.open_connection(HOST, self._port)
        writer.write(
            self._draw.choice((mqtt.connect(self.device), b"GET / HTTP/1.1\r\n\r\n", b"", b"\x16\x03\x01\x02"))
        )
        await asyncio.sleep(self._draw.uniform(0, 3))
        writer.transport.abort()

    async def slow_handshake(self) -> None:
        """A ClientHello, byte by byte."""
        out = ssl.MemoryBIO()
        hello = self._context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost")
        with suppress(ssl.SSLWantReadError):
            hello.do_handshake()
        _, writer = await asyncio.open_connection(HOST, self._port)
        try:
            for byte in out.read()[: self._draw.randrange(300)]:
                writer.write(bytes((byte,)))
                await asyncio.sleep(0.01)
        finally:
            writer.transport.abort()

    async def no_certificate(self) -> None:
        """A client that shows none."""
        self._may_be_in = False
        try:
            link = await self.link(self._nameless)
            link.send(mqtt.connect(self.device) + mqtt.subscribe(("#", 0)))
            await self.end(link)
        finally:
            self._may_be_in = True

    async def half_packet(self) -> None:
        """The beginning of a packet, and no end."""
        link = await self.join()
        frame = mqtt.publish(f"devices/{self.device}/up/x", self._draw.randbytes(1000), 1)
        link.send(frame[: self._draw.randrange(1, len(frame))])
        await self.end(link, self._draw.uniform(0, _PATIENCE_SECONDS))

    async def half_connect(self) -> None:
        """Half of a CONNECT, and no end."""
        link = await self.link()
        link.send(mqtt.connect(self.device)[: self._draw.randrange(1, 12)])
        await self.end(link, self._draw.uniform(0, _PATIENCE_SECONDS))

    async def flood(self) -> None:
        """As many messages as can be written, of any QoS, and no answer read."""
        link, qos = await self.join(), self._draw.randrange(3)
        topic = f"devices/{self.device}/up/telemetry/flood"
        payload, until = self._draw.randbytes(self._draw.choice((10, 200, 5000))), _deadline(4)
        if self._draw.random() < 0.5:
            link.pause()
        number = 0
        while link.is_open and not _is_past(until):
            for _ in range(50 if link.unsent_bytes < 100_000 else 0):
                number = number % 65_535 + 1
                link.send(mqtt.publish(topic, payload, qos, number, retain=self._draw.random() < 0.01))
            await asyncio.sleep(0.01 if link.unsent_bytes > 100_000 else 0)
        link.abort()

    async def too_many_kept(self) -> None:
        """Retained messages without end."""
        link = await self.join()
        for number in range(300):
            link.send(mqtt.publish(f"devices/{self.device}/up/kept/{number}", b"x" * 100, 1, number + 1, retain=True))
        await self.end(link, 1.0)

    async def too_many_subscriptions(self) -> None:
        """More filters of its own than are good."""
        link = await self.join(mqtt.connect(self.device, clean=False))
        for number in range(50):
            filters = [(f"devices/{self.device}/down/{number}/{at}", 1) for at in range(20)]
            link.send(mqtt.subscribe(*filters, id=number + 1))
        await self.end(link, 1.0)

    async def not_reading(self) -> None:
        """Ask for everything it may, and read nothing; ping without end."""
        link = await self.join()
        link.send(mqtt.subscribe(("fleet/notices/#", 2), (f"devices/{self.device}/down/#", 2)))
        link.pause()
        until = _deadline(6)
        while link.is_open and not _is_past(until):
            link.send(mqtt.PINGREQ * 1000)
            await asyncio.sleep(0.05)
        link.abort()

    async def another_name(self) -> None:
        """The client id of somebody else."""
        await self._forbidden(mqtt.connect(self.victim(), clean=self._draw.random() < 0.5))

    async def anothers_will(self) -> None:
        """A last word in somebody else's name."""
        will = f"devices/{self.victim()}/up/status", b"hijacked", 1, True
        await self._forbidden(mqtt.connect(self.device, will=will))

    async def _forbidden(self, connect: bytes) -> None:
        self._may_be_in = False
        try:
            link = await self.link()
            link.send(connect)
            await self.end(link)
        finally:
            self._may_be_in = True

    async def anothers_topic(self) -> None:
        """To publish as somebody else, or command it."""
        link, to = await self.join(), self._draw.choice(("up/status", "up/telemetry/x", "down/commands/x/1"))
        retain = self._draw.random() < 0.5
        link.send(mqtt.publish(f"devices/{self.victim()}/{to}", b"forged", self._draw.randrange(3), retain=retain))
        link.send(mqtt.publish("fleet/notices/forged", b"forged", 0))
        await self.end(link, 1.0)

    async def eavesdrop(self) -> None:
        """Filters that match what others say and hear."""
        other = self.victim()
        filters = (
            "#",
            "+/+/up/#",
            "devices/+/up/#",
            "$SYS/#",
            f"devices/{other}/down/#",
            f"$share/g/devices/{other}/#",
        )
        link = await self.join()
        link.send(mqtt.subscribe(*((topic_filter, 1) for topic_filter in filters)))
        await self.end(link, 2.0)

    async def connect_storm(self) -> None:
        """Connections by the dozen, most of them left half open."""
        loop = asyncio.get_running_loop()
        tries = [loop.create_task(self.join()) for _ in range(40)]
        done, late = await asyncio.wait(tries, timeout=4)
        for task in late:
            task.cancel()
        for task in done:
            if task.exception() is None:
                task.result().abort()

    async def wrong_order(self) -> None:
        """Packets that are fine, where they may not be."""
        link = await self.link()
        first = self._draw.choice((mqtt.PINGREQ, mqtt.publish("x", b"x"), mqtt.connect(self.device, level=5)))
        again = self._draw.choice((mqtt.connect(self.device), mqtt.pubrel(7), mqtt.packet(0x20, b"\0\0")))
        link.send(self._draw.choice((first, mqtt.connect(self.device) + again)))
        await self.end(link)

    async def never_released(self) -> None:
        """QoS 2 without PUBREL, more than may be open."""
        link = await self.join(mqtt.connect(self.device, clean=False))
        for number in range(1, 400):
            link.send(mqtt.publish(f"devices/{self.device}/up/open", b"x", 2, number))
        await self.end(link, 1.0)


def _deadline(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


def _is_past(moment: float) -> bool:
    return asyncio.get_running_loop().time() > moment


ATTACKS: Final[Sequence[Callable[[Attacker], Awaitable[None]]]] = (
    Attacker.garbage,
    Attacker.no_tls,
    Attacker.slow_handshake,
    Attacker.no_certificate,
    Attacker.half_packet,
    Attacker.half_connect,
    Attacker.flood,
    Attacker.too_many_kept,
    Attacker.too_many_subscriptions,
    Attacker.not_reading,
    Attacker.another_name,
    Attacker.anothers_will,
    Attacker.anothers_topic,
    Attacker.eavesdrop,
    Attacker.connect_storm,
    Attacker.wrong_order,
    Attacker.never_released,
)


async def attack_all(attackers: Sequence[Attacker], seconds: float) -> None:
    """All at once."""
    until = asyncio.get_running_loop().time() + seconds
    await asyncio.gather(*(attacker.go_on(until) for attacker in attackers))


def main(arguments: Sequence[str]) -> int:
    """Attack, then say what was done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # that it was cut is what it is for
    home, port, seed, seconds, victims, *devices = arguments
    attackers = [
        Attacker(AdminHome(Path(home)), int(port), device, random.Random(f"{seed} {device}"), victims.split(","))
        for device in devices
    ]
    uvloop.run(attack_all(attackers, float(seconds)))
    counts = sum((attacker.counts for attacker in attackers), Counter[str]())
    print(json.dumps({"attacks": counts, "leaks": [leak for attacker in attackers for leak in attacker.leaks]}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
