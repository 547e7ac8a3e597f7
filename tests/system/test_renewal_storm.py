"""Many renewals due at once, in short: `./dev soak renewal-storm` does it with ten thousand."""

from __future__ import annotations

import random
from pathlib import Path

from enroll.pacing import RENEWALS_PER_SECOND
from tests.faults.renewal_storm import over_tls, simulated


def test_renewals_that_are_due_at_about_the_same_time_are_spread_and_finished(tmp_path: Path) -> None:
    """A fleet that was made in one day would stop its gateway for a day, every quarter of a year."""
    count, due_within = 200, 5.0  # twice as many as the pace lets through meanwhile
    storm = simulated(tmp_path, count, random.Random(3), due_within)
    assert (count, 0) == (len(storm.seconds), storm.refused)
    assert storm.is_spread, storm
    assert storm.seconds[-1] <= count / RENEWALS_PER_SECOND + 1


def test_over_real_tls_all_of_them_come_through(tmp_path: Path) -> None:
    """What was shown without a network would not hold on one."""
    storm = over_tls(tmp_path, 12)
    assert (12, 0) == (len(storm.seconds), storm.refused)
