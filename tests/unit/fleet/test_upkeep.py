"""The words in which the fleet asks agents for what is their own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.catalogue import misfit
from fleet.errors import InvalidInput
from fleet.upkeep import LONGEST, NAMES, PACE, RENEW, PaceOrder, RenewOrder, Upkeep, decode_upkeep

_SECONDS = st.floats(0, LONGEST.total_seconds())


@given(st.builds(RenewOrder, _SECONDS) | st.builds(PaceOrder, _SECONDS))
def test_an_agent_reads_what_was_asked(order: Upkeep) -> None:
    """It renews when it was to be paced."""
    assert order == decode_upkeep(RENEW if isinstance(order, RenewOrder) else PACE, order.encode())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [-1, True, "5", None, float("nan"), float("inf"), [1]])
def test_what_is_no_time_is_refused(name: str, value: Any) -> None:
    """An agent ends with a traceback, or waits for ever."""
    key = "within_seconds" if name == RENEW else "reconnect_seconds"
    with pytest.raises(InvalidInput):
        decode_upkeep(name, {key: value})


def test_no_agent_waits_for_more_than_an_hour() -> None:
    """A word that was wrong, or is an attacker's, keeps a fleet away for a year (DESIGN section 7)."""
    assert PaceOrder(3600.0) == decode_upkeep(PACE, {"reconnect_seconds": 1e9})
    assert RenewOrder(3600.0) == decode_upkeep(RENEW, {"within_seconds": 1e300})


def test_a_misspelt_argument_is_no_default() -> None:
    """A fleet that was to renew within an hour does so within a second."""
    assert RenewOrder(0.0) == decode_upkeep(RENEW, {})
    for name in NAMES:
        with pytest.raises(InvalidInput, match="no argument 'within'"):
            decode_upkeep(name, {"within": 5, "reconnect_seconds": 5} if name == PACE else {"within": 5})


def test_no_firmware_has_to_declare_what_is_the_agents_own() -> None:
    """A device with declared commands cannot be asked to renew."""
    assert None is misfit({"echo": None}, RENEW, {})
    assert misfit({"echo": None}, "renew", {})
