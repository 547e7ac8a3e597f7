"""A device whose power goes, in short: `./dev soak power-cut` cuts at every single system call."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.power_cut import Cuts, cut_joins, cut_outages, cut_returns
from tests.system.agents import LiveFleet, live_fleet


@pytest.fixture(scope="module", name="fleet")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path_factory.mktemp("cuts"), with_broker=True) as fleet:
        yield fleet


@pytest.fixture(name="cuts")
def _cuts(fleet: LiveFleet, tmp_path: Path) -> Cuts:
    return Cuts(fleet, tmp_path, random.Random(7))


def test_a_device_whose_power_goes_while_it_enrols_is_not_lost(cuts: Cuts) -> None:
    """Somebody would have to travel to it, with a new token."""
    cut_joins(cuts, step=12)
    assert cuts.count >= 5


def test_a_device_whose_power_goes_in_an_outage_keeps_what_was_on_disk(cuts: Cuts) -> None:
    """Its measurements would be lost, or mixed up, or its spool damaged."""
    cut_outages(cuts, step=16)
    assert cuts.count >= 4
    assert cuts.torn >= 10


def test_a_device_whose_power_goes_when_it_is_back_loses_nothing_and_repeats_no_command(cuts: Cuts) -> None:
    """A valve would open twice, or the end of the outage would cost what the outage did not."""
    cut_returns(cuts, step=16)
    assert cuts.count >= 3
