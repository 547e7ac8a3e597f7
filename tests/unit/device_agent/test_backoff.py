"""The pause between two attempts."""

from hypothesis import given
from hypothesis import strategies as st

from device_agent.backoff import BASE_SECONDS, CAP_SECONDS, ceiling_seconds, delay_seconds


def test_the_ceiling_doubles_up_to_its_cap() -> None:
    """A broker that is down for an hour would be asked at the pace of the first second, or never again."""
    assert [1.0, 2.0, 4.0, 8.0] == [ceiling_seconds(failures) for failures in (1, 2, 3, 4)]
    assert ceiling_seconds(1_000_000) == CAP_SECONDS


@given(
    failures=st.integers(min_value=0, max_value=10_000), chance=st.floats(min_value=0, max_value=1, exclude_max=True)
)
def test_the_pause_is_spread_over_all_of_the_ceiling(failures: int, chance: float) -> None:
    """Ten thousand devices that lost one broker would come back in the same second."""
    assert delay_seconds(failures, chance) == chance * ceiling_seconds(failures)
    assert 0 <= delay_seconds(failures, chance) < CAP_SECONDS
    assert ceiling_seconds(failures) >= BASE_SECONDS
