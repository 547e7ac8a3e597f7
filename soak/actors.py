"""What honest clients do until they are told to stop: devices that talk and reconnect, readers, victims."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from fleet.topics import NOTICES
from soak.client import Client, Gone, Refused, asks_for
from soak.ledger import ALL_UP, Kind, Ledger
from soak.office import Office

_SIZES: Final = (20, 60, 200, 200, 1_000, 4_000, 30_000)
_CUT_SECONDS: Final = 5.0  # an order of magnitude over the bar: this is a loaded machine
_RESUME_SECONDS: Final = 10.0


@dataclass(slots=True)
class Load:
    """What all actors of a round share. `pace` is messages a second of one device."""

    ledger: Ledger
    draw: random.Random
    pace: float
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    cut_seconds: list[float] = field(default_factory=list)

    async def pause(self, mean_seconds: float) -> None:
        """A random while, or less if it is time to stop."""
        await self.wait(self.draw.expovariate(1 / mean_seconds))

    async def wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.stop.wait()
        except TimeoutError:
            return

    def padding(self) -> bytes:
        return self.draw.randbytes(self.draw.choice(_SIZES))


async def come(client: Client, *, will: bool = False) -> bool:
    """Connect; whether it was let in. Not to be is a fault."""
    try:
        await client.connect(will=will)
    except (Refused, OSError, TimeoutError) as error:
        client.ledger.fault(f"{client.name} was refused: {error!r}")
        return False
    return True


# Devices


async def device(load: Load, client: Client) -> None:
    """Talk, and come back in every way that there is."""
    qos = load.draw.choice((1, 2))
    while not load.stop.is_set():
        if not await come(client, will=True):
            return
        try:
            await _greet(client, qos)
            await _talk(load, client)
        except Gone:
            client.ledger.fault(f"{client.name}: its connection ended under it")
            return
        match load.draw.choice(("leave", "lose", "take over")):
            case "leave" if not load.stop.is_set():
                await client.leave()
                await load.pause(1.0)
            case "lose" if not load.stop.is_set():
                client.lose()
                await load.pause(1.0)


async def _greet(client: Client, qos: int) -> None:
    if not client.subscriptions:
        await client.subscribe(*asks_for(client.owner, qos))
    await client.publish(f"devices/{client.owner}/up/status", 1, Kind.STATUS, retain=True)


async def _talk(load: Load, client: Client) -> None:
    """Telemetry, and notices now and then wanted or not, for a random while."""
    draw, until = load.draw, time.monotonic() + load.draw.expovariate(1 / 10)
    while not load.stop.is_set() and time.monotonic() < until:
        stream = draw.choice(("motor", "water", "air"))
        topic = f"devices/{client.owner}/up/telemetry/{stream}"
        for _ in range(draw.choice((1, 1, 1, 5))):
            await client.publish(topic, draw.choice((0, 1, 1, 2)), padding=load.padding())
        if draw.random() < 0.02:
            await _change_mind(client)
        await load.pause(2.0 / load.pace)  # two messages at a time on average


async def _change_mind(client: Client) -> None:
    if NOTICES in client.subscriptions:
        await client.unsubscribe(NOTICES)
    else:
        await client.subscribe((NOTICES, 1))


# Readers and the commander


async def archive(load: Load, client: Client) -> None:
    """Read everything at QoS 2 in a persistent session, away for a moment now and then."""
    while not load.stop.is_set():
        if not await come(client):
            return
        if not client.subscriptions:
            await client.subscribe((ALL_UP, 2))
        await load.pause(15.0)
        if load.draw.random() < 0.5 and not load.stop.is_set():
            client.lose()
            await load.wait(load.draw.uniform(0.2, 1.5))


async def screen(load: Load, client: Client) -> None:
    """Read everything at QoS 1, connected throughout."""
    if await come(client):
        await client.subscribe((ALL_UP, 1), (NOTICES, 0))
        await load.stop.wait()


async def commander(load: Load, client: Client, devices: Sequence[str]) -> None:
    """Commands to devices, whether they are there or not, and notices to all."""
    if not await come(client):
        return
    draw = load.draw
    try:
        while not load.stop.is_set():
            to = f"devices/{draw.choice(devices)}/down/commands/blink/{draw.randrange(10**9)}"
            await client.publish(to, draw.choice((0, 1, 1, 2)), padding=draw.randbytes(100))
            if draw.random() < 0.1:
                await client.publish("fleet/notices/weather", draw.choice((1, 2)), padding=draw.randbytes(50))
            await load.pause(10 / (load.pace * len(devices)))
    except Gone:
        client.ledger.fault(f"{client.name}: its connection ended under it")


# Victims


async def victim(load: Load, client: Client, office: Office, *, comes_back: bool) -> None:
    """Talk until it is revoked, or suspended and resumed; it must be out at once, and stay out."""
    if not await come(client, will=True):
        return
    chatting = asyncio.create_task(_chat(load, client))
    await load.wait(load.draw.uniform(0.5, 3.0))
    await _shut_out(load, client, office, comes_back=comes_back)
    await chatting
    if comes_back:
        await office.resume(client.owner)
        await _return(client)


async def _chat(load: Load, client: Client) -> None:
    try:
        await _greet(client, 1)
        while client.link is not None and client.link.is_open:
            topic = f"devices/{client.owner}/up/telemetry/last"
            await client.publish(topic, load.draw.choice((0, 1, 2)), padding=load.padding())
            await asyncio.sleep(load.draw.expovariate(4.0))
    except Gone:
        if not client.may_be_cut:
            client.ledger.fault(f"{client.name}: its connection ended under it")


async def _shut_out(load: Load, client: Client, office: Office, *, comes_back: bool) -> None:
    link, began = client.link, time.monotonic()
    if link is None:
        return
    client.expect_cut()
    await (office.suspend(client.owner) if comes_back else office.revoke(client.owner))
    if not await link.wait_ended(_CUT_SECONDS):
        client.ledger.fault(f"{client.name} was still in {_CUT_SECONDS:.0f} s after it was shut out")
        link.abort()
    load.cut_seconds.append(time.monotonic() - began)
    client.link = None
    try:
        await client.connect()
    except Refused as error:
        if "return code 5" not in str(error):
            client.ledger.fault(f"{client.name}, which is shut out, was answered {error}")
    except (OSError, TimeoutError) as error:
        client.ledger.fault(f"{client.name}, which is shut out, was not answered: {error!r}")
    else:
        client.ledger.fault(f"{client.name}, which is shut out, was let in")


async def _return(client: Client) -> None:
    """Once the broker has heard of it, it is let in, to a new session."""
    until = time.monotonic() + _RESUME_SECONDS
    client.may_be_cut = False
    while True:
        try:
            await client.connect(will=True)
        except Refused as error:
            if time.monotonic() > until:
                client.ledger.fault(f"{client.name}, which was resumed, was refused: {error}")
                return
            await asyncio.sleep(0.2)
        else:
            await _greet(client, 1)
            return
