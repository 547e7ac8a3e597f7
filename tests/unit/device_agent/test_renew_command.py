"""`device-agent renew`: how it ends, for scripts."""

from __future__ import annotations

import pytest

from device_agent.failures import Cause
from device_agent.renew_command import error_of
from device_agent.renewal import Code
from fleet.errors import Denied, FleetError, TimedOut, Unreachable

DENIED = {
    *(Code.NOT_ALLOWED, Code.NOT_ADMITTED, Code.BROKER_REFUSES, Cause.REFUSED, Cause.OWN_EXPIRED),
    *(Code.RECOVERY_REFUSED, Code.DENIED, Cause.USED_TWICE),
}
OURS = {Code.DISK, Code.UNDER_WAY, Code.CRASHED, Code.TOO_SOON, Cause.LOCAL}
LATER = {Code.WAITING}


@pytest.mark.parametrize("code", [*Code, *Cause])
def test_every_failure_has_its_exit_status(code: str) -> None:
    """A script could not tell a device that is revoked from a service that is away."""
    error = error_of(str(code), "the reason", "what to do")
    kind = Denied if code in DENIED else FleetError if code in OURS else TimedOut if code in LATER else Unreachable
    assert kind.exit_code == error.exit_code
    assert f"not renewed ({code}): the reason" == error.message
    assert "what to do" == error.hint
