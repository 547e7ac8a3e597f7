"""How many refusals a stranger may collect."""

from __future__ import annotations

import pytest

from enroll.rate_limit import (
    ALL_OF_THE_FIRST,
    FORGET_SECONDS,
    MAX_KEYS,
    WINDOW_SECONDS,
    RateLimit,
    Sparsely,
    network_of,
)


def test_the_limit_holds_for_a_window_and_then_ends() -> None:
    """A limit never ends, or never begins."""
    limit = RateLimit(2)
    assert 0 == limit.retry_after("a", 0.0)
    limit.count("a", 0.0)
    limit.count("a", 10.0)
    assert WINDOW_SECONDS - 20.0 == limit.retry_after("a", 20.0)
    assert 0 == limit.retry_after("b", 20.0)
    assert 0 == limit.retry_after("a", WINDOW_SECONDS)
    limit.count("a", WINDOW_SECONDS)
    assert 0 == limit.retry_after("a", WINDOW_SECONDS)


def test_memory_is_bounded_and_the_latest_offender_is_kept() -> None:
    """A stranger with many addresses fills the memory."""
    limit = RateLimit(1)
    for number in range(MAX_KEYS + 10):
        limit.count(str(number), 0.0)
    assert 0 == limit.retry_after("0", 1.0)
    assert 0 < limit.retry_after(str(MAX_KEYS + 9), 1.0)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("", ""),
    ],
)
def test_what_counts_as_one_address(address: str, network: str) -> None:
    """Whoever has a /64 has 2**64 attempts."""
    assert network == network_of(address)


def test_what_is_repeated_is_told_less_and_less_and_anew_after_an_hour() -> None:
    """A flood fills the log, or what happens a week later is not in it."""
    told = Sparsely()
    counts = [told.count("guess", 0.0) for _ in range(100)]
    assert [*range(1, ALL_OF_THE_FIRST + 1), 16, 32, 64] == [count for count in counts if count]
    assert 1 == told.count("another", 0.0)
    assert 0 == told.count("guess", FORGET_SECONDS - 1)
    assert 1 == told.count("guess", 2 * FORGET_SECONDS)


def test_how_many_are_told_and_for_how_long_is_for_who_tells() -> None:
    """A device that comes and goes in its own time is not in the log, or every repetition of a command is."""
    told = Sparsely(first=1, forget_seconds=60.0)
    assert [1, 2, 0, 4] == [told.count("a", 0.0) for _ in range(4)]
    assert 1 == told.count("a", 60.0)


def test_what_was_told_is_kept_in_bounded_memory() -> None:
    """Strangers from everywhere fill it."""
    told = Sparsely()
    for number in range(MAX_KEYS + 10):
        told.count(str(number), 0.0)
    assert 1 == told.count("0", 0.0)
    assert 2 == told.count("100", 0.0)
