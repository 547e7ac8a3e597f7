"""The socket of the applications, over real Unix sockets."""

from __future__ import annotations

import json
import queue
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from device_agent.application import MAX_APPLICATIONS, MAX_UNREAD_BYTES, ApplicationServer, short_path, socket_path
from device_agent.core.events import AppJoined, AppLeft, AppSaid, Event
from device_agent.requests import MAX_LINE_BYTES, AskStatus, PublishTelemetry
from fleet.layout import AgentHome
from tests.deadlines import within


class Served:
    """A server, and the events that it posts."""

    def __init__(self, home: AgentHome) -> None:
        self.home = home
        self.events: queue.Queue[Event] = queue.Queue()
        self.server = ApplicationServer(home, self.events.put)
        self.server.start()

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(within(10))
        with short_path(socket_path(self.home)) as name:
            connection.connect(name)
        return connection

    def next_event(self) -> Event:
        return self.events.get(timeout=within(10))


@pytest.fixture(name="served")
def _served(tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "run").mkdir(mode=0o700)
    served = Served(AgentHome(tmp_path))
    yield served
    served.server.close()


def lines(connection: socket.socket) -> Iterator[dict[str, Any]]:
    with connection.makefile("rb") as file:
        for line in file:
            yield json.loads(line)


def is_closed(connection: socket.socket) -> bool:
    """Whether the server ends the connection, whatever it says before."""
    try:
        while connection.recv(65_536):
            pass
    except ConnectionResetError:
        pass
    return True


def test_lines_go_in_and_out_and_the_end_is_noticed(served: Served) -> None:
    """No application could talk to the agent."""
    with served.connect() as connection:
        assert served.next_event() == AppJoined(1)
        connection.sendall(b'{"type":"sta')
        connection.sendall(b'tus"}\n\n{"type":"telemetry","stream":"load","data":1}\n')
        assert served.next_event() == AppSaid(1, AskStatus())
        assert served.next_event() == AppSaid(1, PublishTelemetry("load", 1, 0))
        served.server.tell(1, {"type": "welcome", "v": 1})
        assert {"type": "welcome", "v": 1} == next(lines(connection))
    assert served.next_event() == AppLeft(1)


@pytest.mark.parametrize(
    "line", [b"not json", b"[]", b'{"type":"reboot"}', b"\xff\xfe", b'{"type":"status","type":"x"}']
)
def test_garbage_is_refused_and_the_connection_stays(line: bytes, served: Served) -> None:
    """One mistake in a firmware would cost it its commands, or end the agent."""
    with served.connect() as connection:
        connection.sendall(line + b'\n{"type":"status"}\n')
        assert "error" == next(lines(connection))["type"]
        assert [AppJoined(1), AppSaid(1, AskStatus())] == [served.next_event(), served.next_event()]


@pytest.mark.parametrize("end", [b"\n", b""], ids=["with-its-end", "without-end"])
def test_a_line_that_is_too_long_ends_its_connection_and_no_other(end: bytes, served: Served) -> None:
    """An application could fill the memory of the device with one line."""
    with served.connect() as other, served.connect() as connection:
        connection.sendall(b"x" * MAX_LINE_BYTES + end)
        assert is_closed(connection)
        other.sendall(b'{"type":"status"}\n')
        seen = [served.next_event() for _ in range(4)]
        assert AppSaid(1, AskStatus()) in seen
        assert AppLeft(2) in seen


def test_the_longest_line_that_is_allowed_is_taken(served: Served) -> None:
    """Telemetry of the documented size would be lost."""
    frame = b'{"type":"telemetry","stream":"load","data":"%s"}'
    with served.connect() as connection:
        connection.sendall(frame % (b"x" * (MAX_LINE_BYTES - 1 - len(frame % b""))) + b"\n")
        assert served.next_event() == AppJoined(1)
        assert isinstance(served.next_event(), AppSaid)


def test_an_application_that_does_not_read_is_dropped(served: Served) -> None:
    """Its unread lines would fill the memory of the device."""
    with served.connect() as connection:
        assert served.next_event() == AppJoined(1)
        line = {"type": "online", "text": "x" * 1000}
        for _ in range(2 * MAX_UNREAD_BYTES // 1000):
            served.server.tell(1, line)
        assert served.next_event() == AppLeft(1)
        assert is_closed(connection)


def test_the_number_of_applications_is_bounded(served: Served) -> None:
    """A firmware that leaks connections would use up the file descriptors of the agent."""
    connections = [served.connect() for _ in range(MAX_APPLICATIONS)]
    try:
        for _ in connections:
            served.next_event()
        with served.connect() as one_more:
            assert "error" == next(lines(one_more))["type"]
            assert is_closed(one_more)
    finally:
        for connection in connections:
            connection.close()


def test_a_flood_is_read_in_its_order_to_its_end(served: Served) -> None:
    """Lines would be torn or lost where two reads meet."""
    with served.connect() as connection:
        flood = [b'{"type":"telemetry","stream":"load","data":%d}\n' % number for number in range(3_000)]
        connection.sendall(b"".join(flood))
        assert served.next_event() == AppJoined(1)
        expected: list[Event] = [AppSaid(1, PublishTelemetry("load", number, 0)) for number in range(3_000)]
        assert expected == [served.next_event() for _ in flood]


def test_nobody_else_can_connect(served: Served) -> None:
    """Another user of the machine could publish as this device."""
    assert 0o600 == socket_path(served.home).stat().st_mode & 0o777


def test_the_socket_of_a_killed_agent_is_replaced(tmp_path: Path) -> None:
    """After a power cut the agent would not start again."""
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as left, short_path(tmp_path / "run" / "app.sock") as name:
        left.bind(name)
    served = Served(AgentHome(tmp_path))
    served.connect().close()
    assert served.next_event() == AppJoined(1)
    served.server.close()
    assert not socket_path(served.home).exists()


def test_a_home_with_a_long_path_has_a_socket_too(tmp_path: Path) -> None:
    """A socket address holds 107 bytes: `--home` in a deep folder would fail."""
    home = AgentHome(tmp_path.joinpath(*["a-rather-long-name"] * 8))
    (home.path / "run").mkdir(parents=True)
    served = Served(home)
    with served.connect():
        assert served.next_event() == AppJoined(1)
    served.server.close()
