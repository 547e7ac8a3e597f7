"""Chains of signing certificates, as JSON carries them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet import signers
from fleet.errors import InvalidInput

chains = st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=3).map(tuple)


@given(st.lists(chains, max_size=signers.MAX_CHAINS))
def test_what_is_told_is_understood(found: list[signers.Chain]) -> None:
    """A device would believe another key than the service named."""
    assert tuple(found) == signers.from_json(signers.to_json(found))


@pytest.mark.parametrize(
    "listed",
    [None, {}, "x", ["x"], [[]], [[1]], [["*"]], [["é"]], [[""]], [["A" * 9000]], [["AAAA"] * 4], [["AAAA"]] * 5],
)
def test_anything_else_is_refused(listed: object) -> None:
    """A service gone mad would fill a device's memory, or end it."""
    with pytest.raises(InvalidInput):
        signers.from_json(listed)
