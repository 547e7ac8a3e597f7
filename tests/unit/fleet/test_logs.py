"""Log lines."""

import logging

from hypothesis import given
from hypothesis import strategies as st

from fleet.logs import LineFormatter, event


@given(st.text())
def test_a_value_cannot_forge_a_line_or_a_field(text: str) -> None:
    """A peer writes into the log what did not happen."""
    line = event("connection.refused", reason=text)
    assert line.isprintable()
    if " " in line.removeprefix("connection.refused "):
        assert line.endswith('"')
        assert line.startswith('connection.refused reason="')


def test_a_line() -> None:
    """A log line is not what DESIGN and STYLE say."""
    record = logging.LogRecord(
        "x", logging.INFO, "", 0, event("certificate.issued", device="pump-07", note=""), None, None
    )
    record.created = 1_795_248_000.25
    assert LineFormatter().format(record) == "2026-11-21T08:00:00.250Z INFO certificate.issued device=pump-07"
