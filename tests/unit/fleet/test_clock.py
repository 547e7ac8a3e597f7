"""What is known of the time where a clock is wrong: floors, dates of certificates and of answers."""

from __future__ import annotations

import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fleet.clock
from fleet.clock import (
    BUILT,
    SEEN,
    SLACK,
    Floor,
    FlooredClock,
    Ticking,
    Validity,
    decode_seen,
    encode_seen,
    format_http_date,
    parse_asn1_time,
    parse_http_date,
    validity_of,
)
from fleet.errors import InvalidInput


def _naive(year: int) -> datetime:
    """Hypothesis adds the time zone itself."""
    return datetime(year, 1, 1, tzinfo=UTC).replace(tzinfo=None)


TIMES = st.datetimes(_naive(1970), _naive(9999), timezones=st.just(UTC))
SECONDS = TIMES.map(lambda time: time.replace(microsecond=0))
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def asn1(time: datetime) -> str:
    """As OpenSSL prints it."""
    return f"{time:%b} {time.day:2} {time:%H:%M:%S} {time.year} GMT"


def dated(begin: datetime, end: datetime) -> dict[str, Any]:
    return {"notBefore": asn1(begin), "notAfter": asn1(end)}


class World:
    """A clock and a stopwatch that the test moves."""

    def __init__(self, system: datetime = NOON) -> None:
        self.system, self.seconds = system, 100.0
        self.clock = FlooredClock(lambda: self.system, lambda: self.seconds)

    def wait(self, span: timedelta) -> None:
        self.system += span
        self.seconds += span.total_seconds()


@given(SECONDS)
def test_dates_of_answers_are_written_and_read_alike(time: datetime) -> None:
    """A service would tell devices another time than it means."""
    assert time == parse_http_date(format_http_date(time))
    assert time == parsedate_to_datetime(format_http_date(time))


@given(SECONDS)
def test_dates_of_certificates_are_read_as_pythons_ssl_does(time: datetime) -> None:
    """The agent has a reader of its own, which loads nothing: it may not mean something else."""
    assert time.timestamp() == ssl.cert_time_to_seconds(asn1(time))
    assert time == parse_asn1_time(asn1(time))


@given(st.text(max_size=40) | st.none() | st.integers())
def test_whatever_else_is_no_date(text: object) -> None:
    """A date that cannot be read would raise what nobody expects, or pass for one."""
    for parse in (parse_asn1_time, lambda each: parse_http_date(str(each))):
        with pytest.raises(InvalidInput):
            parse(text)


@pytest.mark.parametrize("text", ["Feb 30 00:00:00 2026 GMT", "Foo  1 00:00:00 2026 GMT", "Jan  1 24:00:00 2026 GMT"])
def test_a_day_that_is_none_is_refused(text: str) -> None:
    """Such a date would be taken for another one."""
    with pytest.raises(InvalidInput):
        parse_asn1_time(text)


@given(SECONDS)
def test_the_remembered_time_is_read_back(time: datetime) -> None:
    """A restart would not know what was known before."""
    assert time == decode_seen(encode_seen(time))


def test_a_chain_is_valid_only_while_all_of_it_is() -> None:
    """An intermediate that has ended would not count."""
    leaf, issuer, root = (
        dated(NOON - DAY, NOON + DAY),
        dated(NOON - 9 * DAY, NOON + HOUR),
        dated(NOON - HOUR, NOON + 9 * DAY),
    )
    assert Validity(NOON - HOUR, NOON + HOUR) == validity_of([leaf, issuer, root])


def test_no_chain_is_never_good() -> None:
    """A peer whose chain nobody has seen would pass."""
    with pytest.raises(InvalidInput):
        validity_of([])
    assert World().clock.refusal([])


@given(SECONDS, st.timedeltas(timedelta(0), timedelta(days=900)), TIMES)
def test_a_validity_has_begun_or_ended_or_covers(begin: datetime, life: timedelta, now: datetime) -> None:
    """A moment could be neither in it nor outside."""
    validity = Validity(begin, begin + life)
    assert validity.covers(now) is (validity.has_begun(now) and not validity.has_ended(now))
    assert validity.has_begun(now) is (now >= begin)


def test_the_last_second_counts_whole() -> None:
    """RFC 5280, 4.1.2.5: `not_after` is inclusive."""
    validity = Validity(NOON - DAY, NOON)
    assert [False, True] == [validity.has_ended(NOON + timedelta(milliseconds=n)) for n in (999, 1000)]


def test_openssl_knows_the_flag() -> None:
    """The name that Python lacks: another number would switch off another check."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= fleet.clock.NO_CHECK_TIME
    assert fleet.clock.NO_CHECK_TIME & context.verify_flags
    assert "-no_check_time" in subprocess.run(["openssl", "verify", "-help"], capture_output=True, text=True).stderr


def test_the_program_was_not_made_in_the_future() -> None:
    """Its own floor would be above every clock that is right."""
    assert datetime.now(UTC) > BUILT


@given(TIMES, st.lists(st.tuples(TIMES, st.sampled_from(["certificate", SEEN])), max_size=4))
def test_a_floored_clock_is_never_below_its_floors(system: datetime, floors: list[tuple[datetime, str]]) -> None:
    """A gateway in 1970 would date certificates 1970, and judge by it."""
    world = World(system)
    for time, why in floors:
        world.clock.raise_to(Floor(time, why))
    hard = max([BUILT, *(time - SLACK if why == SEEN else time for time, why in floors)])
    assert world.clock.now() >= hard
    assert world.clock.is_floored is (system < hard)
    assert world.clock.now() == system or world.clock.is_floored


def test_a_clock_that_is_right_is_left_alone() -> None:
    """Every certificate would be dated by a stopwatch."""
    world = World()
    world.clock.raise_to(Floor(NOON - HOUR, SEEN))
    assert (NOON, False, "") == (world.clock.now(), world.clock.is_floored, world.clock.words)
    assert "ok" == world.clock.fields()["code"]


def test_a_floor_goes_on_while_the_clock_stays_wrong() -> None:
    """A gateway without a battery would live in one moment for ever: nothing would expire, nothing be renewed."""
    world = World(EPOCH)
    world.clock.raise_to(Floor(NOON, SEEN))
    world.wait(3 * DAY)
    assert NOON + 3 * DAY == world.clock.now()
    assert "clock-wrong" == world.clock.fields()["code"]
    assert "1970-01-04" in world.clock.words
    assert "when the time was known last" in world.clock.words


def test_a_clock_that_arrives_is_believed() -> None:
    """NTP comes minutes after the start."""
    world = World(EPOCH)
    world.clock.raise_to(Floor(NOON, SEEN))
    world.system = NOON + 90 * DAY
    assert (NOON + 90 * DAY, False) == (world.clock.now(), world.clock.is_floored)


def test_a_clock_that_was_a_day_ahead_may_be_put_right() -> None:
    """The service would go on a day ahead, for a day, after it was mended."""
    world = World()
    world.clock.raise_to(Floor(NOON + DAY, SEEN))
    assert (NOON, False) == (world.clock.now(), world.clock.is_floored)


@pytest.mark.parametrize(
    ("begin", "end", "system", "refusal"),
    [
        (NOON - DAY, NOON + DAY, NOON, ""),
        (NOON - 2 * DAY, NOON - DAY, NOON, "certificate has expired"),
        (NOON + DAY, NOON + 2 * DAY, NOON, "certificate is not yet valid"),
        (NOON - DAY, NOON + DAY, EPOCH, ""),
        (NOON - 2 * DAY, NOON - DAY, EPOCH, "certificate has expired"),
        (NOON + DAY, NOON + 2 * DAY, EPOCH, ""),
    ],
)
def test_what_has_ended_by_the_floor_is_refused(begin: datetime, end: datetime, system: datetime, refusal: str) -> None:
    """An expired client would get in while the clock is wrong; or one that was made after the floor would not."""
    world = World(system)
    world.clock.raise_to(Floor(NOON, "certificate"))
    assert refusal == world.clock.refusal([dated(begin, end)])


def test_a_ticking_time_ends_with_the_calendar() -> None:
    """A floor in the year 9999 would end the process."""
    assert datetime.max.replace(tzinfo=UTC) == Ticking(NOON, 0.0).at(1e12)
