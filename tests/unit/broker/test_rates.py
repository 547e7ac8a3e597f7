"""What a principal may send, whatever connections it uses."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.engines.amqtt.rates import Bucket, Usage
from fleet.identity import Role
from fleet.limits import Limits

LIMITS = Limits(messages_per_second=10, bytes_per_second=1000, burst_seconds=2, connects_per_minute=60)


def test_a_burst_is_free_and_what_is_more_waits() -> None:
    """A device that was quiet could not say what it has to, or one that is not would never be slowed."""
    usage = Usage(LIMITS, Role.DEVICE, 0.0)
    assert 0.0 == usage.send(20, 0, 0.0)
    assert 1.0 == usage.send(10, 0, 0.0)
    assert 0.0 == usage.send(10, 0, 2.0)
    assert 0.5 == usage.send(0, 2500, 2.0)


def test_who_speaks_for_many_may_send_more() -> None:
    """A command to ten thousand devices would take a minute."""
    usage = Usage(LIMITS, Role.SERVICE, 0.0)
    assert 0.0 == usage.send(1000, 0, 0.0)


def test_how_long_it_is_slowed_counts_until_it_is_not() -> None:
    """A device that was too fast for a moment an hour ago would be cut, or one that always is would not."""
    usage = Usage(LIMITS, Role.DEVICE, 0.0)
    usage.send(100, 0, 10.0)
    assert usage.send(10, 0, 12.0)
    assert 2.0 == usage.slowed_for(12.0)
    usage.send(1, 0, 100.0)
    assert 0.0 == usage.slowed_for(100.0)


def test_connects_wait_their_turn_then_are_refused_and_cost_nothing_then() -> None:
    """A loop of reconnects would keep the broker busy with handshakes, or lock its device out for hours."""
    usage = Usage(LIMITS, Role.DEVICE, 0.0)
    assert [0.0] * 60 == [usage.connect(0.0) for _ in range(60)]
    assert [1.0, 2.0, 3.0, 4.0, 5.0] == [usage.connect(0.0) for _ in range(5)]
    assert {None} == {usage.connect(0.0) for _ in range(1000)}
    assert 0.0 == usage.connect(6.0)


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 100)), max_size=30))
def test_no_one_gets_more_than_burst_and_rate(steps: list[tuple[float, float]]) -> None:
    """A pattern of bursts would get around the limit."""
    bucket, now, used = Bucket(5.0, 20.0, 0.0), 0.0, 0.0
    for pause, amount in steps:
        now += pause
        now += bucket.take(amount, now)  # as whoever is slowed does: it waits
        used += amount
        assert used <= 20.0 + 5.0 * now + 1e-6
