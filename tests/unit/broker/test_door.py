"""When what is written goes out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from broker.directory import Directory
from broker.engine import Reason, Rules
from broker.engines.amqtt.door import Door
from broker.engines.amqtt.hub import Hub
from broker.trust import load_trust
from fleet.identity import Serial, Server
from fleet.limits import Limits
from fleet.policy import DEFAULT_POLICY
from tests.certificates import TestFleet


class Written:
    """A connection that counts how often it is written to."""

    def __init__(self) -> None:
        self.times = 0

    def flush(self) -> None:
        self.times += 1

    def give_way(self) -> None:
        """Nobody else comes."""

    def end(self, reason: Reason, detail: str = "") -> None:
        """Nothing to close."""


async def nobody(_serial: Serial) -> None:
    """There is no service to ask."""


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    found = asyncio.new_event_loop()
    yield found
    found.close()


@pytest.fixture
def door(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> Door:
    fleet, now = TestFleet(tmp_path), datetime.now(UTC)
    trust = load_trust(fleet.trust_file, fleet.server(Server.BROKER).files, now)
    hub = Hub(Rules(DEFAULT_POLICY, Directory(), nobody, lambda: True), Limits(), lambda: now, lambda _event: None)
    return Door(hub, trust, loop)


def read(door: Door, leads_to: Callable[[], None]) -> None:
    """As a connection does with what came."""
    door.is_reading = True
    leads_to()
    door.end_read()


def turn(loop: asyncio.AbstractEventLoop) -> None:
    """The end of a turn of the loop."""
    loop.run_until_complete(asyncio.sleep(0))


def test_what_one_read_led_to_goes_out_with_it(door: Door) -> None:
    """Each message would wait for another turn of the loop, and cost one."""
    peer = Written()
    read(door, lambda: door.flush_soon(peer))
    assert 1 == peer.times


def test_what_no_read_led_to_goes_out_with_the_turn(door: Door, loop: asyncio.AbstractEventLoop) -> None:
    """What a directory change or a timer writes would lie until somebody else sends something."""
    peer = Written()
    door.flush_soon(peer)
    assert 0 == peer.times
    turn(loop)
    assert 1 == peer.times


def test_many_reads_in_a_turn_are_written_for_together_until_they_are_few(
    door: Door, loop: asyncio.AbstractEventLoop
) -> None:
    """Under load each message would be a TLS record of its own; or what is written would lie when the load ends."""
    peer = Written()
    for _ in range(30):
        read(door, lambda: None)
    turn(loop)  # from here on it is known to be busy
    for _ in range(30):
        read(door, lambda: None)
    read(door, lambda: door.flush_soon(peer))
    assert 0 == peer.times
    turn(loop)
    assert 1 == peer.times
    read(door, lambda: door.flush_soon(peer))
    turn(loop)  # one read in this turn: not busy any more
    assert 2 == peer.times
    read(door, lambda: door.flush_soon(peer))
    assert 3 == peer.times
