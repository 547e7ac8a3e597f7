"""Who judges dates on a gateway, and what of the time is written down."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from enroll.home import read_seen
from enroll.timekeeping import Timekeeping, write_seen
from fleet.clock import NO_CHECK_TIME, FlooredClock
from fleet.layout import AdminHome
from tests.fleets import new_home

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


class Gateway:
    """A home that was made at NOW, and a clock that the test sets."""

    def __init__(self, folder: Path, system: datetime) -> None:
        self.home: AdminHome = new_home(folder / "fleet", NOW)
        self.system, self.seconds = system, 100.0
        self.clock = FlooredClock(lambda: self.system, lambda: self.seconds)
        self.timekeeping = Timekeeping(self.home, self.clock)
        self.timekeeping.begin()

    def remembered(self, times: int = 1) -> datetime | None:
        """What is written down after so many rounds of it."""

        async def remember() -> None:
            for _ in range(times):
                await self.timekeeping.remember()

        asyncio.run(remember())
        return read_seen(self.home)


def test_a_context_costs_nothing_while_the_clock_is_right(tmp_path: Path) -> None:
    """Each handshake of a gateway would pay for what a few of them need."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    before = context.verify_flags
    Gateway(tmp_path, NOW).timekeeping.settle(context)
    assert (before, ssl.SSLObject) == (context.verify_flags, context.sslobject_class)


def test_a_context_changes_its_judge_with_the_clock(tmp_path: Path) -> None:
    """After NTP has come dates would still be judged by the floor, or never again."""
    gateway, context = Gateway(tmp_path, EPOCH), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    gateway.timekeeping.settle(context)
    assert context.verify_flags & NO_CHECK_TIME
    assert context.sslobject_class is not ssl.SSLObject
    gateway.system = NOW
    gateway.timekeeping.settle(context)
    assert not context.verify_flags & NO_CHECK_TIME
    assert context.sslobject_class is ssl.SSLObject


def test_the_own_certificate_is_a_floor(tmp_path: Path) -> None:
    """A gateway that never wrote the time down would date certificates when its program was made."""
    gateway = Gateway(tmp_path, EPOCH)
    assert NOW - 2 * DAY < gateway.clock.now() <= NOW


def test_what_was_written_down_is_a_floor(tmp_path: Path) -> None:
    """After a power cut it would be as late as when the gateway was made."""
    home = new_home(tmp_path / "fleet", NOW)
    write_seen(home.clock, NOW + 20 * DAY)
    clock = FlooredClock(lambda: EPOCH, lambda: 0.0)
    Timekeeping(home, clock).begin()
    assert NOW + 20 * DAY == clock.now()


def test_the_time_is_written_down_and_goes_on_without_a_clock(tmp_path: Path) -> None:
    """A gateway that is switched off every night would live through the same day again and again."""
    assert NOW == Gateway(tmp_path / "right", NOW).remembered()
    gateway = Gateway(tmp_path / "wrong", EPOCH)
    first = gateway.remembered()
    gateway.seconds += 600
    second = gateway.remembered()
    assert first is not None
    assert second == first + timedelta(seconds=600)


@pytest.mark.parametrize("ahead", [14 * 365 * DAY, 200 * DAY], ids=["2040", "200-days"])
def test_a_clock_beyond_the_own_certificate_is_never_written_down(ahead: timedelta, tmp_path: Path) -> None:
    """2040 for a minute would be the floor for ever."""
    assert Gateway(tmp_path, NOW + ahead).remembered(times=50) is None


def test_a_leap_is_written_down_only_once_it_lasts(tmp_path: Path) -> None:
    """A clock that is put right after a minute would be above its floor for a month."""
    gateway = Gateway(tmp_path, NOW + 30 * DAY)
    assert gateway.remembered(times=11) is None
    assert NOW + 30 * DAY == gateway.remembered()
