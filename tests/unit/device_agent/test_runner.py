"""The supervisor with everything it runs, where only clock and name server are the test's."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import pytest

from device_agent import application
from device_agent.clock import Moment
from device_agent.core.events import AppLeft, StopRequested, Tick
from device_agent.journal import decode_journal
from device_agent.mqtt import Connection
from device_agent.runner import MAX_ABANDONED, EventQueue, Runner, World
from device_agent.store import PosixDisk
from fleet.errors import FleetError
from fleet.identity import Role, Serial
from fleet.layout import AgentHome, Credential
from tests.deadlines import within
from tests.unit.device_agent.authority import new_authority
from tests.unit.device_agent.clocks import still_clock
from tests.unit.device_agent.servers import server_context, tls_server
from tests.unit.device_agent.story import PUMP, SETTINGS, START
from tests.unit.device_agent.test_mqtt import Broker, polite

AUTHORITY = new_authority()
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
    AUTHORITY.client("pump-07").write(home.generation(1))
    home.current.symlink_to("gen-1")
    home.trust.write_text(AUTHORITY.roots_pem)
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


class Run:
    """One run of the agent in a thread of its own, whose seconds the test counts."""

    def __init__(self, home: AgentHome) -> None:
        self.seconds = 0.0
        self.raised: list[FleetError] = []
        self.events = EventQueue()
        clock = still_clock(lambda: self.seconds)
        world = World(lambda: Moment(self.seconds, START + timedelta(seconds=self.seconds), 0.5), clock, PosixDisk())
        self._runner = Runner(home, SETTINGS, CREDENTIAL, world, self.events)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self._runner.run()
        except FleetError as error:
            self.raised.append(error)

    def __enter__(self) -> Run:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.events.post_now(StopRequested())
        self._thread.join(within(20))
        assert not self._thread.is_alive()

    def until(self, is_so: Callable[[float], bool]) -> None:
        """Let a minute pass after the other until it is so."""
        while not is_so(0.02):
            assert self.seconds < 61 * 1_000
            self.seconds += 61.0
            self.events.post_now(Tick())

    def has_ended(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()


@contextmanager
def hearing(text: str) -> Iterator[Heard]:
    heard, logger = Heard(text), logging.getLogger("device_agent")
    logger.addHandler(heard)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield heard
    finally:
        logger.setLevel(level)
        logger.removeHandler(heard)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_agent_whose_thread_for_applications_died_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would look alive while no firmware reaches it, until somebody pulls the plug."""

    def fail(line: bytes) -> NoReturn:
        raise RuntimeError("a mistake of ours")

    def nothing_found(*_: Any, **__: Any) -> NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(application, "parse_request", fail)
    monkeypatch.setattr(socket, "getaddrinfo", nothing_found)
    home = new_home(tmp_path)
    with hearing("retry_seconds=") as heard, Run(home) as run, socket.socket(socket.AF_UNIX) as firmware:
        assert heard.seen.wait(within(20))  # the socket is there before the first attempt
        with application.short_path(application.socket_path(home)) as name:
            firmware.connect(name)
        firmware.sendall(b"{}\n")
        run.until(run.has_ended)
    assert ["the thread that serves applications has died"] == [error.message for error in run.raised]


def test_a_connection_whose_thread_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device would be online by its own account, and hear and say nothing."""
    turn, hangs, release = Connection._turn, threading.Event(), threading.Event()

    def hanging_turn(self: Connection, client: Any, connection: Any) -> bool:
        if hangs.is_set():
            release.wait(within(60))
        return turn(self, client, connection)

    monkeypatch.setattr(Connection, "_turn", hanging_turn)
    home = new_home(tmp_path / "home")
    context = server_context(AUTHORITY.server("broker"), tmp_path / "server", AUTHORITY.roots_pem)
    with tls_server(context, Broker(polite)) as server:
        (home.path / "config.json").write_text(json.dumps({"v": 1, "brokers": [f"mqtts://127.0.0.1:{server.port}"]}))
        with hearing("connection.ready") as ready, hearing("thread hangs") as heard, Run(home) as run:
            try:
                assert ready.seen.wait(within(20))
                hangs.set()
                run.until(heard.seen.wait)
            finally:
                release.set()


def test_a_damaged_list_of_commands_is_not_an_empty_one(tmp_path: Path) -> None:
    """What is sent again, or a broker repeats, would run a second time after a power cut that tore the file."""
    home = new_home(tmp_path)
    file = tmp_path / "commands.json"
    file.write_bytes(b'{"v":1}\n{"id":"c1","na')
    world = World(lambda: Moment(5.0, START, 0.5), still_clock(lambda: 5.0), PosixDisk())
    for _ in range(2):  # a start that ended before anything else was written, and the next
        assert Runner(home, SETTINGS, CREDENTIAL, world)._load_journal().is_lost
    assert decode_journal(file.read_bytes()).is_lost
    assert b'{"v":1}\n{"id":"c1","na' == file.with_suffix(".damaged").read_bytes()


def test_neither_timers_nor_events_starve(tmp_path: Path) -> None:
    """Under a flood of a firmware the pause before the next attempt would never end, or the firmware never be heard."""
    events = EventQueue()
    world = World(lambda: Moment(5.0, START, 0.5), still_clock(lambda: 5.0), PosixDisk())
    runner = Runner(AgentHome(tmp_path), SETTINGS, CREDENTIAL, world, events)
    for app in (1, 2):
        events.post_now(AppLeft(app))
    overdue = 4.0
    assert [Tick(), AppLeft(1), Tick(), AppLeft(2), Tick()] == [runner._next_event(overdue) for _ in range(5)]
