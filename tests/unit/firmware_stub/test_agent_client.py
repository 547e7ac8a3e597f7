"""The client for firmware authors, against a socket that behaves as an agent does, and as one that dies."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from firmware_stub.agent_client import MAX_LINE_BYTES, MAX_UNSENT, Agent, Refused
from tests.deadlines import within


class Listening:
    """The agent's end of the socket."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(within(10))

    def accept(self) -> socket.socket:
        connection, _ = self._listener.accept()
        connection.settimeout(within(10))
        return connection

    def close(self) -> None:
        self._listener.close()


def lines(connection: socket.socket, count: int) -> list[dict[str, object]]:
    data = b""
    while data.count(b"\n") < count:
        data += connection.recv(65_536)
    return [json.loads(line) for line in data.splitlines()]


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    return tmp_path / "app.sock"


@pytest.fixture(name="agent")
def _agent(path: Path) -> Iterator[Agent]:
    said: list[str] = []
    handlers = {"echo": lambda args: args, "break": _break, "refuse": _refuse}
    agent = Agent("control", handlers, path, said.append, {"break": {"type": "object"}})
    yield agent
    agent.close()


def _break(args: dict[str, object]) -> object:
    raise KeyError("valve")


def _refuse(args: dict[str, object]) -> object:
    raise Refused("the tank is empty")


def test_it_registers_and_sends_what_was_said_before(agent: Agent, path: Path) -> None:
    """What is measured before the agent is up would be lost."""
    agent.telemetry("load", 1, qos=1)
    agent.poll(0)
    assert not agent.is_connected
    with closing(Listening(path)) as listening:
        agent.poll(0)
        with listening.accept() as connection:
            register = {"type": "register", "app": "control", "commands": ["echo", "break", "refuse"]}
            assert [
                register | {"schemas": {"break": {"type": "object"}}},
                {"type": "telemetry", "stream": "load", "data": 1, "qos": 1},
            ] == lines(connection, 2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("echo", {"state": "done", "output": {"a": 1}}),
        ("break", {"state": "failed", "error": "KeyError: 'valve'"}),
        ("refuse", {"state": "failed", "error": "the tank is empty"}),
        ("unknown", {"state": "failed", "error": "unknown command 'unknown'"}),
    ],
)
def test_every_command_gets_an_answer(name: str, expected: dict[str, object], agent: Agent, path: Path) -> None:
    """An exception in a handler would end the firmware, and the fleet would wait for the deadline."""
    with closing(Listening(path)) as listening:
        agent.poll(0)
        with listening.accept() as connection:
            lines(connection, 1)
            command = {"type": "command", "command_id": "c1", "name": name, "args": {"a": 1}}
            connection.sendall(json.dumps(command).encode() + b"\n")
            agent.poll(0.05)
            assert [{"type": "result", "command_id": "c1"} | expected] == lines(connection, 1)


def test_an_agent_that_goes_and_comes_back_is_found_again(agent: Agent, path: Path) -> None:
    """An update of the agent would need a restart of every firmware."""
    with closing(Listening(path)) as listening:
        agent.poll(0)
        listening.accept().close()
        agent.poll(0)
        assert not agent.is_connected
    agent.event("door", 1)
    with closing(Listening(path)) as listening:
        agent.poll(0)
        with listening.accept() as connection:
            assert ["register", "event"] == [line["type"] for line in lines(connection, 2)]
            connection.sendall(b'{"type":"welcome","v":1,"device":"pump-07","onl')
            connection.sendall(b'ine":true}\n')
            agent.poll(0.05)
            assert agent.is_online


def test_an_agent_that_does_not_read_fills_no_memory(agent: Agent) -> None:
    """A firmware would be killed for its memory when the agent is away for a day."""
    for number in range(MAX_UNSENT + 10):
        agent.telemetry("load", number)
    assert MAX_UNSENT == len(agent._unsent)
    assert b'"data":10,' in agent._unsent[0]


def test_a_line_that_the_agent_would_not_take_is_refused_here(agent: Agent) -> None:
    """The agent would end the connection, and nobody would know why."""
    with pytest.raises(ValueError, match="bytes"):
        agent.telemetry("load", "x" * MAX_LINE_BYTES)


def test_poll_returns_in_time_while_lines_come_in(agent: Agent, path: Path) -> None:
    """An agent that talks without end would stop the measurements."""
    with closing(Listening(path)) as listening:
        agent.poll(0)
        with listening.accept() as connection:
            stop = threading.Event()

            def talk() -> None:
                with suppress(OSError):
                    while not stop.is_set():
                        connection.sendall(b'{"type":"online","online":true}\n' * 100)

            thread = threading.Thread(target=talk)
            thread.start()
            agent.poll(0.2)
            stop.set()
            agent.poll(0.05)
            agent.close()
            thread.join(within(5))
            assert not thread.is_alive()


def test_a_desired_state_is_taken_and_answered_with_what_is(path: Path) -> None:
    """Firmware does not hear what it is to be, or one mistake in it ends the firmware."""
    told: list[str] = []
    wanted: list[dict[str, object]] = []

    def take(desired: dict[str, object]) -> dict[str, object]:
        wanted.append(desired)
        return {"interval": 10 // int(str(desired["interval"]))}

    agent = Agent("control", {}, path, told.append, on_desired=take)
    with closing(agent), closing(Listening(path)) as listening:
        agent.reported({"boot": 1})
        agent.poll(0)
        with listening.accept() as connection:
            assert {"type": "reported", "patch": {"boot": 1}} == lines(connection, 2)[1]
            for interval in (0, 5):
                state = {"type": "state", "version": 1, "desired": {"interval": interval}}
                connection.sendall(json.dumps(state).encode() + b"\n")
            agent.poll(0.05)
            assert [{"type": "reported", "patch": {"interval": 2}}] == lines(connection, 1)
    assert [{"interval": 0}, {"interval": 5}] == wanted
    assert {"interval": 5} == agent.desired
    assert any("ZeroDivisionError" in text for text in told)
