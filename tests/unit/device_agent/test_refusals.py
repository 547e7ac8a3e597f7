"""Why the service refuses whoever shows a certificate."""

from __future__ import annotations

import pytest

from device_agent.failures import Cause
from device_agent.https import Answer
from device_agent.refusals import PROBLEM_HEADER, refusal_of
from fleet import est


@pytest.mark.parametrize(
    ("status", "told", "cause"),
    [
        (200, None, None),
        (200, "identity-used-twice", None),
        (401, None, Cause.REFUSED),
        (403, None, Cause.REFUSED),
        (403, "something-new", Cause.REFUSED),
        (403, "identity-used-twice", Cause.USED_TWICE),
    ],
)
def test_a_copy_is_told_from_a_revocation(status: int, told: str | None, cause: Cause | None) -> None:
    """A person would look for a revocation, and never for the second device."""
    headers = {} if told is None else {PROBLEM_HEADER: told}
    assert cause is refusal_of(Answer(status, headers, b""))


def test_the_words_are_the_services() -> None:
    """`run` may not load what the service and the agent share here, and would not understand it any more."""
    assert (PROBLEM_HEADER, Cause.USED_TWICE.value) == (est.PROBLEM_HEADER.lower(), est.IDENTITY_USED_TWICE)
