"""The supervisor with everything it runs, where only clock and name server are the test's."""

from __future__ import annotations

import json
import logging
import socket
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from device_agent.clock import Moment
from device_agent.core.events import AppLeft, StopRequested, Tick
from device_agent.runner import MAX_ABANDONED, EventQueue, Runner, World
from device_agent.store import PosixDisk
from fleet.identity import Role, Serial
from fleet.layout import AgentHome, Credential
from tests.deadlines import within
from tests.unit.device_agent.authority import new_authority
from tests.unit.device_agent.clocks import still_clock
from tests.unit.device_agent.story import PUMP, SETTINGS, START

CREDENTIAL = Credential(
    PUMP, Role.DEVICE, Serial("5f"), START, START + timedelta(days=90), "https://enroll.acme.example:8443"
)


class Heard(logging.Handler):
    """Waits for a line of the log."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text
        self.seen = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self.seen.set()


def new_home(path: Path) -> AgentHome:
    """A device that knows the name of its broker."""
    home = AgentHome(path)
    authority = new_authority()
    authority.client("pump-07").write(home.generation(1))
    home.current.symlink_to("gen-1")
    home.trust.write_text(authority.roots_pem)
    (path / "run").mkdir()
    (path / "config.json").write_text(json.dumps({"v": 1, "brokers": ["mqtts://broker.acme.example:8883"]}))
    return home


def test_names_that_are_never_answered_gather_no_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device behind a broken router would run out of memory within days: nothing can end a look-up that hangs."""
    release, seconds = threading.Event(), 0.0

    def hang(*_: Any, **__: Any) -> list[Any]:
        release.wait(within(60))
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    def moment() -> Moment:
        return Moment(seconds, START + timedelta(seconds=seconds), 0.5)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    heard, events = Heard("the last attempts hang"), EventQueue()
    logger = logging.getLogger("device_agent")
    logger.addHandler(heard)
    world = World(moment, still_clock(lambda: seconds), PosixDisk())
    runner = Runner(new_home(tmp_path), SETTINGS, CREDENTIAL, world, events)
    thread = threading.Thread(target=runner.run)
    thread.start()
    try:
        while not heard.seen.wait(0.02):
            assert seconds < 61 * 1_000
            seconds += 61.0
            events.post_now(Tick())
        assert MAX_ABANDONED == len([each for each in threading.enumerate() if each.name.startswith("mqtt-")])
        events.post_now(StopRequested())
        thread.join(within(5))
        assert not thread.is_alive()
    finally:
        events.post_now(StopRequested())
        release.set()
        thread.join(within(20))
        logger.removeHandler(heard)


def test_neither_timers_nor_events_starve(tmp_path: Path) -> None:
    """Under a flood of a firmware the pause before the next attempt would never end, or the firmware never be heard."""
    events = EventQueue()
    world = World(lambda: Moment(5.0, START, 0.5), still_clock(lambda: 5.0), PosixDisk())
    runner = Runner(AgentHome(tmp_path), SETTINGS, CREDENTIAL, world, events)
    for app in (1, 2):
        events.post_now(AppLeft(app))
    overdue = 4.0
    assert [Tick(), AppLeft(1), Tick(), AppLeft(2), Tick()] == [runner._next_event(overdue) for _ in range(5)]
