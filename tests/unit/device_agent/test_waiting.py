"""How a device waits for an admin."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.est_client import Asked, refused
from device_agent.hardware import Hardware
from device_agent.https import Answer
from device_agent.store import PosixDisk
from device_agent.waiting import LONGEST_SECONDS, SHORTEST_SECONDS, Note, delay_seconds, read_note, write_note
from fleet import est
from fleet.errors import Denied
from fleet.identity import DeviceId
from fleet.join import new_token
from fleet.layout import AgentHome
from tests.fleets import NOW

PUMP = DeviceId("pump-07")
NOTE = Note(PUMP, "https://gateway.local:8443", "abcd2345", "0011 2233", NOW)


@given(st.none() | st.floats(0, 1e6), st.floats(0, 1, exclude_max=True))
def test_it_comes_again_as_told_within_bounds(retry_after: float | None, chance: float) -> None:
    """A service can make a fleet ask a thousand times a second, or never again."""
    delay = delay_seconds(retry_after, chance)
    assert SHORTEST_SECONDS <= delay <= 1.2 * LONGEST_SECONDS
    assert delay >= min(retry_after or 0, LONGEST_SECONDS), "it comes before it was told to"


def test_devices_do_not_come_all_at_once() -> None:
    """A site of a thousand devices asks in the same second, again and again."""
    assert delay_seconds(60, 0) < delay_seconds(60, 0.5) < delay_seconds(60, 0.99)


def test_a_note_outlives_a_restart(tmp_path: Path) -> None:
    """After a restart nobody is told what the device waits for."""
    home = AgentHome(tmp_path)
    assert read_note(home) is None
    write_note(home, PosixDisk(), NOTE)
    assert NOTE == read_note(home)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"v":1,"device":"Pump 07"}', b"\xff"])
def test_a_damaged_note_is_none(data: bytes, tmp_path: Path) -> None:
    """A file that a power cut tore keeps the device from joining."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "waiting.json").write_bytes(data)
    assert read_note(AgentHome(tmp_path)) is None


def test_a_denial_is_told_with_its_reason() -> None:
    """A person is sent after a wrong token although an admin has said no."""
    answer = Answer(403, {est.REQUEST_HEADER.lower(): "denied"}, b"an admin denied request abcd2345: wrong site\n")
    with pytest.raises(Denied, match="wrong site"):
        refused(answer, PUMP, "gateway.local:8443")


def test_where_pairing_is_off_the_token_is_asked_for() -> None:
    """A person who has no token is told that it is wrong."""
    with pytest.raises(Denied, match="pairs no device") as raised:
        refused(Answer(401, {}, b"this needs a token"), PUMP, "gateway.local:8443", is_pairing=True)
    assert "enroll token create" in raised.value.hint


@given(st.text(), st.text())
def test_what_the_hardware_says_cannot_leave_its_header(serial: str, model: str) -> None:
    """A serial with a line break adds headers of its own to the request that carries the token."""
    headers = Asked(new_token(bytes(21)), b"", PUMP, Hardware(serial, model)).headers()
    for text in (headers[est.SERIAL_HEADER], headers[est.MODEL_HEADER]):
        assert text.isascii()
        assert text.isprintable()
        assert len(text) <= 64


def test_a_pairing_sends_no_token_and_says_so() -> None:
    """The service takes a pairing for a token that is damaged."""
    headers = Asked(None, b"", PUMP, Hardware()).headers()
    assert "Basic cGFpcmluZzo=" == headers["Authorization"]
