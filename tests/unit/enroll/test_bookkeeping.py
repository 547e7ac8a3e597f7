"""Messages that dispatch cannot handle."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from enroll.bookkeeping import Books, SetAside
from enroll.commands import Order, send
from enroll.registry import Registry
from enroll.registry.records import CommandState
from fleet.identity import DeviceId
from tests.unit.enroll.jobbing import MINUTE, Site


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


def test_what_cannot_be_marked_as_sent_keeps_nothing_else_from_it(tmp_path: Path) -> None:
    """One id that the registry cannot take, and dispatch begins a thousand transactions, and ends its connection."""
    with Registry.open(tmp_path / "registry.db") as registry:
        site = Site(registry)
        site.add(1)
        device = DeviceId("pump-000")
        given = [send(registry, device, Order("echo", {}, site.now + MINUTE), site.giver).id for _ in range(2)]
        books = Books(registry)
        assert [] == books.enter((), [given[0], "\ud800", given[1]], site.now)
        assert {(device, CommandState.SENT)} == set(books.given(given).values())
    assert {"\ud800": 1} == books.aside.counts
