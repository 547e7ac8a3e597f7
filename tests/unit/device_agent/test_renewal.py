"""When a certificate is renewed: pure, over all times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from device_agent.failures import Cause, Failure
from device_agent.renewal import Life, problem_of
from fleet.identity import DeviceId, Serial

START = datetime(2026, 11, 21, 8, tzinfo=UTC)
chances = st.floats(0, 1, exclude_max=True)
lives = st.builds(
    lambda number, seconds: Life(Serial(f"{number:x}"), START, START + timedelta(seconds=seconds)),
    st.integers(1, 2**159 - 1),
    st.integers(30, 397 * 86_400),
)
moments = st.integers(-(10**9), 10**9).map(lambda seconds: START + timedelta(seconds=seconds))


@given(lives)
def test_it_is_due_between_60_and_75_percent(life: Life) -> None:
    """A certificate would be renewed for nothing, or too late to try again for long."""
    share = (life.due - life.not_before) / life.span
    assert 0.6 - 1e-6 <= share <= 0.75 + 1e-6


def test_a_fleet_that_was_made_in_one_moment_is_spread_evenly() -> None:
    """All devices of a factory's day would renew in one second."""
    import random

    draw = random.Random(1)
    due = [Life(Serial.from_int(draw.getrandbits(159)), START, START + timedelta(days=90)).due for _ in range(10_000)]
    tenths = [0] * 10
    for at in due:
        tenths[min(9, int(((at - START) / timedelta(days=90) - 0.6) / 0.015))] += 1
    assert all(850 < count < 1_150 for count in tenths), tenths


@given(lives, moments, st.floats(-1e12, 1e12))
def test_no_wish_of_the_service_goes_past_an_hour_or_80_percent(life: Life, now: datetime, asked: float) -> None:
    """A service that was taken over, or is wrong, would let a fleet run out."""
    seconds = life.paced_seconds(now, asked)
    assert 0 <= seconds <= 3_600
    assert seconds == 0 or now + timedelta(seconds=seconds) <= life.at(0.80) + timedelta(seconds=1)


@given(lives, st.integers(0, 10_000), chances, st.floats(-1e9, 1e9))
def test_a_retry_comes_always_and_leaves_time_for_more(life: Life, failures: int, chance: float, asked: float) -> None:
    """A device would give up, or have one attempt left when the service is back."""
    seconds = life.retry_seconds(failures, chance, asked)
    assert 0 <= seconds <= 7_200
    assert seconds <= life.span.total_seconds() / 10


@given(lives, chances)
def test_retries_spread_wider_with_each_failure(life: Life, chance: float) -> None:
    """A service that has just come back would fall again."""
    waits = [life.retry_seconds(failures, chance) for failures in range(1, 30)]
    assert waits == sorted(waits)


@given(lives, chances)
def test_an_overdue_start_is_soon_and_not_at_once(life: Life, chance: float) -> None:
    """A site whose power comes back would ask in one moment, or wait until it is too late."""
    assert 0 <= life.spread_seconds(chance) <= min(600, life.span.total_seconds() / 100)


def test_the_alarm_is_given_below_15_percent() -> None:
    """Nobody would look in time, or everybody too often."""
    life = Life(Serial("5f"), START, START + timedelta(days=100))
    assert not life.is_alarming(START + timedelta(days=85))
    assert life.is_alarming(START + timedelta(days=85, seconds=1))
    assert life.is_alarming(START + timedelta(days=101))
    assert not life.is_alarming(datetime(1970, 1, 1, tzinfo=UTC))


def test_a_failed_connection_keeps_its_code() -> None:
    """A program that watches `status -o json` would have to read sentences."""
    problem = problem_of(Failure(Cause.NO_NAME, "gateway.local:8443"), DeviceId("pump-07"))
    assert "no-name" == problem.code
    assert "gateway.local:8443" in problem.message
