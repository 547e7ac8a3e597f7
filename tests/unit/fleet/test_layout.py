"""The small JSON files."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import InvalidInput, TimedOut, printable, report
from fleet.identity import DeviceId, Role, Serial
from fleet.layout import Credential, RunFile, decode_credential, decode_run_file

_MOMENT = datetime(2026, 11, 21, 8, tzinfo=UTC)


def test_files_survive() -> None:
    """A file is not read as it was written."""
    credential = Credential(DeviceId("a"), Role.DEVICE, Serial("ab"), _MOMENT, _MOMENT, "https://a:1")
    assert decode_credential(credential.encode()) == credential
    assert decode_run_file(RunFile("mqtts://a:1").encode()) == RunFile("mqtts://a:1")


@given(st.binary(max_size=60))
def test_damaged_files_are_named(data: bytes) -> None:
    """A torn file ends a program with a traceback."""
    for decode in (decode_credential, decode_run_file):
        with pytest.raises(InvalidInput):
            decode(data)


@given(st.text())
def test_nothing_printable_drives_a_terminal(text: str) -> None:
    """A peer's words clear the admin's screen."""
    assert printable(text).isprintable()


def test_report_is_two_lines() -> None:
    """An error does not say what to do next."""
    assert report(TimedOut("2 of 3 failed\x1b[2J", hint="try again")) == "error: 2 of 3 failed\\x1b[2J\nhint: try again"
