"""Why the enrollment service refuses whoever shows this device's certificate, as its answer tells."""

from __future__ import annotations

from typing import Final

from device_agent.failures import Cause
from device_agent.https import Answer

PROBLEM_HEADER: Final = "enroll-problem"  # fleet.est.PROBLEM_HEADER, which `run` may not load: a test compares them


def refusal_of(answer: Answer) -> Cause | None:
    """The cause; None where nobody is refused."""
    if answer.status not in (401, 403):
        return None
    return Cause.USED_TWICE if answer.headers.get(PROBLEM_HEADER) == Cause.USED_TWICE else Cause.REFUSED
