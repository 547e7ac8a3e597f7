"""Whenever a change of the directory comes, nothing is left of whoever it shuts out.

The change is made to come after every step of the loop in turn: between any two things that the engine, its clients and
the service do.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.directory import Change as Changed
from broker.directory import Directory
from broker.engine import Clock, Engine
from fleet.directory import Entry
from fleet.identity import DeviceId
from fleet.limits import Limits
from tests import mqtt
from tests.certificates import TestFleet
from tests.contract.races import (
    CHANGES,
    DOWN,
    ID,
    ONLINE,
    STATUS,
    WILL,
    Peer,
    Scenario,
    Stage,
    new_stage,
    race_all,
    stepped,
)
from tests.contract.stepping import Direct, Followed, Kept, SteppedLoop, Way, turns

EngineMaker = Callable[[Clock], Engine]


def connect() -> bytes:
    return mqtt.connect(ID, clean=False, keep_alive=0, will=(f"devices/{ID}/up/will", WILL, 0, False))


async def talk(peer: Peer) -> None:
    """CONNECT in two pieces, and what a device says at once; up to the last answer."""
    frame = connect()
    await peer.send(frame[:9])
    await turns()
    await peer.send(frame[9:], mqtt.publish(STATUS, ONLINE, 1, retain=True))
    await peer.receive()
    await peer.send(mqtt.subscribe((DOWN, 1), id=2))
    await peer.frames_until(mqtt.suback(1, id=2))


async def come(stage: Stage) -> None:
    """One connection from its first byte on."""
    await talk(await stage.open())


async def come_twice(stage: Stage) -> None:
    """Two connections at once, with one client id."""
    await asyncio.gather(come(stage), come(stage), return_exceptions=True)


async def come_too_soon(stage: Stage) -> None:
    """A CONNECT that has to wait a minute for its turn."""
    peer = await stage.open()
    await peer.send(connect(), mqtt.publish(STATUS, ONLINE, 1, retain=True))
    answer, began = asyncio.ensure_future(peer.receive()), stage.loop.skipped_seconds
    while not answer.done():
        await turns()
        stage.loop.skipped_seconds += 20
    if (await answer)[3] == 0:
        assert stage.loop.skipped_seconds - began > 50, "it did not have to wait"


async def be_listed(stage: Stage) -> None:
    """The broker knows the device, as of a new enrolment."""
    stage.truth.entry = stage.entry(epoch=(stage.truth.entry.epoch if stage.truth.entry else 0) + 1)
    stage.way.bring(stage.truth.entry)
    await stage.way.is_told()


async def be_unlisted(stage: Stage) -> None:
    """The service knows the device, as of a new enrolment, and the broker has yet to ask."""
    stage.truth.entry = stage.entry(epoch=(stage.truth.entry.epoch if stage.truth.entry else 0) + 1)


async def be_in(stage: Stage) -> None:
    """The device is connected, a command is on its way, and it does not read."""
    await be_listed(stage)
    await come(stage)
    await stage.operator_reads(mqtt.publish(f"devices/{ID}/down/x", b"waits", 1))


CONNECT = Scenario("connect", be_listed, come)
READ_THROUGH = Scenario("read-through", be_unlisted, come)
TAKE_OVER = Scenario("take-over", be_in, come)
TWO_AT_ONCE = Scenario("two at once", be_listed, come_twice)
TWO_UNLISTED = Scenario("two at once, unlisted", be_unlisted, come_twice)
# One connection a minute, and the patience to wait for it.
HELD = Scenario("held", be_in, come_too_soon, Limits(connects_per_minute=1, connect_seconds=1000.0))
SCENARIOS = {scenario.name: scenario for scenario in (CONNECT, READ_THROUGH, TAKE_OVER, TWO_AT_ONCE, TWO_UNLISTED)}


def run(make_engine: EngineMaker, fleet: TestFleet, way: Way, scenario: Scenario, change: str) -> int:
    async def work(loop: SteppedLoop) -> int:
        stage = new_stage(loop, make_engine, fleet, way, scenario.limits)
        return await race_all(stage, scenario, CHANGES[change])

    return stepped(work)


# Two at once differ from one by who is cut, not by why.
CASES = [(name, change) for name in ("connect", "read-through", "take-over") for change in CHANGES] + [
    (name, change) for name in ("two at once", "two at once, unlisted") for change in ("revoked", "superseded")
]


@pytest.mark.parametrize(("scenario", "change"), CASES)
def test_a_change_may_come_at_any_step(make_engine: EngineMaker, fleet: TestFleet, scenario: str, change: str) -> None:
    """Whoever connects at the moment of a revocation would stay in for ever."""
    assert run(make_engine, fleet, Direct(), SCENARIOS[scenario], change) > 20


@pytest.mark.parametrize("change", ["revoked", "superseded"])
def test_it_may_come_while_a_connect_waits_its_turn(make_engine: EngineMaker, fleet: TestFleet, change: str) -> None:
    """Whoever connects too often would be let in by what was known a minute ago."""
    assert run(make_engine, fleet, Direct(), HELD, change) > 20


@pytest.mark.parametrize("change", ["revoked", "superseded"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_it_may_come_through_the_journal(
    make_engine: EngineMaker, fleet: TestFleet, tmp_path: Path, scenario: str, change: str
) -> None:
    """While the line is put on disk, somebody would get in who is not looked at again."""
    assert run(make_engine, fleet, Kept(tmp_path / "directory"), SCENARIOS[scenario], change) > 20


@pytest.mark.parametrize("scenario", ["read-through", "take-over", "two at once, unlisted"])
def test_it_may_come_through_the_feed(
    make_engine: EngineMaker, fleet: TestFleet, tmp_path: Path, scenario: str
) -> None:
    """What the service answered to a look-up, and what its stream says, would win in the wrong order."""
    assert run(make_engine, fleet, Followed(tmp_path / "directory", fleet), SCENARIOS[scenario], "revoked") > 20


def test_a_cut_leaves_no_timer_behind(make_engine: EngineMaker, fleet: TestFleet) -> None:
    """Whoever was slowed for minutes would stay in memory for as long, once for each time that it came back."""

    async def work(loop: SteppedLoop) -> int:
        limits = Limits(messages_per_second=1, burst_seconds=1.0)
        stage = new_stage(loop, make_engine, fleet, Direct(), limits)
        async with stage.running():
            await be_listed(stage)
            before = loop.timers()
            peer = await stage.open()
            await peer.send(connect(), mqtt.publish(f"devices/{ID}/up/x") * 1000, mqtt.PINGREQ)
            await peer.receive()
            await stage.operator_reads()
            stage.strike(CHANGES["revoked"])
            await peer.end()
            await turns()
            return loop.timers() - before

    assert 0 == stepped(work)


# That these tests would find it


class OneStepLate(Directory):
    """Decides by what the directory was a step ago: as code does that looks, waits once, and then lets in."""

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[DeviceId, tuple[int, Entry | None]] = {}

    def apply_found(self, entry: Entry) -> tuple[Changed, ...]:
        device = entry.principal.id
        before = super().entry(device)
        if changes := super().apply_found(entry):
            self._before[device] = _step(), before
        return changes

    def entry(self, device: DeviceId) -> Entry | None:
        step, before = self._before.get(device, (-2, None))
        return before if _step() <= step + 1 else super().entry(device)


def _step() -> int:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SteppedLoop)
    return loop.steps


class LastAnswerWins(Directory):
    """Takes what was looked up for the truth, although it may be older than what the stream has brought since."""

    def apply_found(self, entry: Entry) -> tuple[Changed, ...]:
        before = self._entries.get(entry.principal.id)
        self._entries[entry.principal.id] = entry
        return (Changed(before, entry),) if before != entry else ()


def is_found(
    make_engine: EngineMaker, fleet: TestFleet, directory: Callable[[], Directory], scenario: Scenario
) -> bool:
    """Whether one run of a few ends with it: which steps there are depends on when the kernel brings what was sent."""
    for _ in range(5):
        try:
            run(make_engine, fleet, Direct(directory()), scenario, "revoked")
        except AssertionError as error:
            if re.search(r"a session is live|registered later|deadline", str(error)):
                return True
            raise
    return False


@pytest.mark.parametrize("scenario", [CONNECT, TAKE_OVER, TWO_AT_ONCE], ids=lambda s: s.name)
def test_a_decision_before_a_wait_is_found(make_engine: EngineMaker, fleet: TestFleet, scenario: Scenario) -> None:
    """These tests would pass whatever the engine does."""
    assert is_found(make_engine, fleet, OneStepLate, scenario)


def test_an_old_answer_that_wins_is_found(make_engine: EngineMaker, fleet: TestFleet) -> None:
    """These tests would pass whatever the directory does."""
    assert is_found(make_engine, fleet, LastAnswerWins, READ_THROUGH)
