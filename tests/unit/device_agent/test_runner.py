"""The supervisor with everything it runs, where only clock and name server are the test's."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from device_agent.clock import Moment
from device_agent.core.events import StopRequested, Tick
from device_agent.runner import MAX_ABANDONED, EventQueue, Runner, World
from device_agent.store import PosixDisk
from fleet.identity import Role
from fleet.layout import AgentHome, Credential
from tests.deadlines import within
from tests.unit.device_agent.authority import new_authority
from tests.unit.device_agent.story import SETTINGS, START


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
        nonlocal seconds
        seconds += 61.0
        return Moment(seconds, START + timedelta(seconds=seconds), 0.5)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    heard, events = Heard("the last attempts hang"), EventQueue()
    logger = logging.getLogger("device_agent")
    logger.addHandler(heard)
    world = World(moment, lambda: seconds, PosixDisk())
    life, url = SETTINGS.life, "https://enroll.acme.example:8443"
    credential = Credential(SETTINGS.device, Role.DEVICE, life.serial, life.not_before, life.not_after, url)
    runner = Runner(new_home(tmp_path), SETTINGS, credential, world, events)
    thread = threading.Thread(target=runner.run)
    thread.start()
    try:
        for _ in range(60):
            events.post_now(Tick())
        assert heard.seen.wait(within(20))
        assert MAX_ABANDONED == len([each for each in threading.enumerate() if each.name.startswith("mqtt-")])
        began = time.monotonic()
        events.post_now(StopRequested())
        thread.join(within(20))
        assert not thread.is_alive()
        assert time.monotonic() - began < within(5)
    finally:
        release.set()
        logger.removeHandler(heard)
