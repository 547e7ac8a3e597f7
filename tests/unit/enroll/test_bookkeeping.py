"""Messages that dispatch cannot handle."""

from __future__ import annotations

import logging

import pytest

from enroll.bookkeeping import SetAside


def test_a_device_that_sends_garbage_fast_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """One certified device fills the gateway's disk with log lines, and hides what others do."""
    aside = SetAside()
    with caplog.at_level(logging.WARNING):
        for _ in range(1000):
            aside.add("pump-07", "devices/pump-07/up/status", ValueError("not I-JSON"))
        aside.add("pump-08", "devices/pump-08/up/status", ValueError("not I-JSON"))
    assert {"pump-07": 1000, "pump-08": 1} == aside.counts
    lines = [record.getMessage() for record in caplog.records]
    assert 11 == len(lines)
    assert lines[-2].endswith("count=512")
