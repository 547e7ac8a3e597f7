"""How long clients of the fleet wait before they connect again."""

import random

from hypothesis import given
from hypothesis import strategies as st

from enroll.backoff import Backoff


@given(st.lists(st.floats(0, 1000), min_size=1), st.integers())
def test_the_delay_is_bounded_and_drawn(held: list[float], seed: int) -> None:
    """Clients would come back all at once, or never."""
    backoff = Backoff(random.Random(seed))
    assert all(0 <= backoff.after(seconds) <= 30 for seconds in held)


def test_a_connection_that_held_long_was_a_good_one() -> None:
    """After a night of failures a client waits half a minute for every blink of the broker."""

    class Longest(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return b

    backoff = Backoff(Longest())
    assert [1.0, 2.0, 4.0] == [backoff.after(0.1) for _ in range(3)]
    assert [30.0] * 3 == [backoff.after(0.1) for _ in range(9)][-3:]
    assert [0.5, 1.0] == [backoff.after(31.0), backoff.after(1.0)]
