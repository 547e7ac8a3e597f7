"""What the broker tells: the table of figures, and the delay of its event loop."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from broker.engine import Reason, Stats
from broker.figures import BY_REASON, DELAY_BOUNDS_SECONDS, FIGURES, LoopDelay, Readings, topics

START = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)


def readings(stats: Stats, delay: LoopDelay | None = None) -> Readings:
    return Readings("0.1.0", START, START + timedelta(seconds=90), stats, delay or LoopDelay(), 1.5, 7, 3)


def test_every_counter_of_the_engine_is_told_once() -> None:
    """Something would be counted that nobody can see."""
    for number, field in enumerate(fields(Stats), 1):
        stats = Stats()
        if field.name in ("refused", "ended"):
            getattr(stats, field.name)[Reason.LOST] += number
            moved = [figure.metric for figure in BY_REASON if figure.read(stats)]
        else:
            setattr(stats, field.name, number)
            before, after = readings(Stats()), readings(stats)
            moved = [f.metric for f in FIGURES if f.read(before) != f.read(after) and f.metric != "sessions_absent"]
        assert 1 == len(moved), f"{field.name}: {moved}"


def test_no_name_is_used_twice() -> None:
    """One figure would hide another."""
    metrics = [figure.metric for figure in (*FIGURES, *BY_REASON)]
    named = [figure.topic for figure in (*FIGURES, *BY_REASON) if figure.topic]
    assert (len(set(metrics)), len(set(named))) == (len(metrics), len(named))


def test_numbers_are_told_in_full() -> None:
    """A counter above a million would stand still in the eyes of whoever reads the topic."""
    told = topics(readings(Stats(bytes_received=12_345_678_901_234_567)))
    assert "12345678901234567" == told["$SYS/broker/bytes/received"]
    assert ("mqtt-fleet 0.1.0", "90 seconds") == (told["$SYS/broker/version"], told["$SYS/broker/uptime"])


def test_a_copy_stays_as_it_was() -> None:
    """The thread that answers Prometheus would read what the event loop is writing."""
    stats, delay = Stats(), LoopDelay()
    stats_then, delay_then = stats.copy(), delay.copy()
    stats.refused[Reason.LOST] += 1
    delay.record(1.0, 0.0)
    assert (Stats(), [0] * (len(DELAY_BOUNDS_SECONDS) + 1)) == (stats_then, delay_then.counts)


@given(st.lists(st.floats(-1, 10)))
def test_every_delay_is_in_the_bucket_it_belongs_in(delays: list[float]) -> None:
    """A percentile would be wrong; a timer that came early is no negative delay."""
    measured = LoopDelay()
    for delay in delays:
        measured.record(delay, 0.0)
    late = [max(0.0, delay) for delay in delays]
    bounds = (*DELAY_BOUNDS_SECONDS, float("inf"))
    for at, bound in enumerate(bounds):
        assert sum(delay <= bound for delay in late) == sum(measured.counts[: at + 1])
    assert (sum(late), max(late, default=0.0)) == (measured.sum_seconds, measured.longest_seconds)


def test_the_longest_delay_is_remembered_for_a_minute_and_not_for_three() -> None:
    """Whoever looks once a minute would miss it, or see it for ever."""
    measured = LoopDelay()
    measured.record(3.0, 0.0)
    measured.record(0.0, 61.0)
    assert 3.0 == measured.longest_seconds
    measured.record(0.5, 122.0)
    assert 0.5 == measured.longest_seconds
