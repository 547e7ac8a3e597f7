"""What the enrollment service's answers mean to whoever types `join`."""

import pytest

from device_agent.est_client import refused, unreachable
from device_agent.failures import Cause, Failure
from device_agent.https import Answer
from fleet.errors import FleetError
from fleet.identity import DeviceId

PUMP = DeviceId("pump-07")


@pytest.mark.parametrize(
    ("status", "exit_code", "hint"),
    [
        (400, 1, "update"),
        (401, 4, "enroll token create --device pump-07"),
        (403, 4, "check the id (pump-07)"),
        (413, 1, "update"),
        (415, 1, "update"),
        (429, 5, "run the same command again in 30 s"),
        (500, 5, "its log says why"),
        (503, 5, "run the same command again in 30 s"),
        (302, 5, "its log says why"),
    ],
)
def test_every_refusal_has_words_a_next_step_and_its_exit_code(status: int, exit_code: int, hint: str) -> None:
    """A script could not tell a used token from a busy server, nor a person what to do."""
    with pytest.raises(FleetError) as caught:
        refused(Answer(status, {"retry-after": "30"}, b"the reason\nhint: x"), PUMP, "gateway.local:8443")
    assert exit_code == caught.value.exit_code
    assert hint in caught.value.hint
    assert "the reason" in caught.value.message


@pytest.mark.parametrize("body", [b"", b"\xff\xfe\x00", b"\x1b[2J" + b"x" * 100_000, "é".encode("latin-1")])
def test_a_reason_cannot_drive_the_terminal(body: bytes) -> None:
    """An escape sequence in an answer would rewrite what the admin reads."""
    with pytest.raises(FleetError) as caught:
        refused(Answer(401, {"retry-after": "soon"}, body), PUMP, "gateway.local:8443")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 500


def test_a_lost_answer_tells_to_try_the_same_again() -> None:
    """Somebody would ask for a new token, which the service would refuse: the device exists already."""
    assert "run the same command again" in unreachable(Failure(Cause.CLOSED, "gateway.local:8443"), PUMP).hint
