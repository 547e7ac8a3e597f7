"""Several firmwares on one device, one of them at its worst: the agent and the others do not notice."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from fleet.layout import AgentHome
from tests.processes import Program
from tests.system.agents import Agent, Application, LiveFleet, Operator, live_fleet, status_of


@pytest.fixture(scope="module", name="fleet")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path_factory.mktemp("applications"), with_broker=True) as fleet:
        yield fleet


def plain(home: AgentHome) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(home.path / "run" / "app.sock"))
    return connection


def flood(connection: socket.socket, line: bytes, stop: threading.Event) -> None:
    with suppress(OSError):
        while not stop.is_set():
            connection.sendall(line * 100)


def test_a_command_is_obeyed_beside_a_flood(fleet: LiveFleet) -> None:
    """One firmware in a loop would take the device from its owner."""
    home, stop = fleet.joined("pump-01"), threading.Event()
    line = b'{"type":"telemetry","stream":"noise","data":"%s"}\n' % (b"x" * 500)
    with (
        Operator(fleet) as operator,
        Agent(home).wait_ready(),
        plain(home) as wild,
        Application(home, ("echo",)) as app,
    ):
        thread = threading.Thread(target=flood, args=(wild, line, stop))
        thread.start()
        try:
            operator.next("devices/pump-01/up/telemetry/noise")
            for number in range(5):
                operator.send("pump-01", "echo", f"c{number}")
                app.next("command")
                app.say(type="result", command_id=f"c{number}", state="done")
                operator.result("pump-01", f"c{number}", "done")
        finally:
            stop.set()
            wild.close()
            thread.join()
        assert "online" == status_of(home)["state"]


def test_garbage_and_a_death_in_mid_line_hurt_nobody(fleet: LiveFleet) -> None:
    """A firmware that crashes would take the agent with it, or another firmware's commands."""
    home, chance = fleet.joined("pump-02"), random.Random(3)
    with Operator(fleet) as operator, Agent(home).wait_ready() as agent, Application(home, ("echo",)) as app:
        for number in range(40):
            with plain(home) as wild:
                wild.sendall(b'{"type":"register","app":"wild","commands":["echo-%d"]}\n' % number)
                wild.sendall(chance.randbytes(chance.randrange(1, 3_000)))
                wild.sendall(b'\n{"type":"telemetry","stream":"half","data":')
        app.say(type="telemetry", stream="whole", data=1, qos=1)
        operator.next("devices/pump-02/up/telemetry/whole")
        operator.send("pump-02", "echo", "c1")
        app.next("command")
        app.say(type="result", command_id="c1", state="done")
        operator.result("pump-02", "c1", "done")
        assert agent.returncode is None
        assert [] == [topic for topic, _ in operator.heard if topic.endswith("/half")]


def test_each_application_gets_its_own_commands(fleet: LiveFleet) -> None:
    """Two firmwares on one device would have to be one program."""
    home = fleet.joined("pump-03")
    with ExitStack() as stack:
        operator = stack.enter_context(Operator(fleet))
        stack.enter_context(Agent(home).wait_ready())
        valve = stack.enter_context(Application(home, ("open-valve",)))
        lamp = stack.enter_context(Application(home, ("blink",)))
        stub = stack.enter_context(Program("firmware-stub", "--socket", home.path / "run" / "app.sock"))
        stub.wait_for_line("ready")
        for app, name in ((lamp, "blink"), (valve, "open-valve")):
            operator.send("pump-03", name, f"c-{name}")
            assert name == app.next("command")["name"]
            app.say(type="result", command_id=f"c-{name}", state="done")
            operator.result("pump-03", f"c-{name}", "done")
        operator.send("pump-03", "echo", "c-echo", text="hi")
        assert {"text": "hi"} == operator.result("pump-03", "c-echo", "done")["output"]
        names = [each["app"] for each in status_of(home)["applications"]]
        assert ["firmware-stub", "test", "test"] == sorted(names)


def test_the_stub_outlives_the_agent(fleet: LiveFleet) -> None:
    """Every update of the agent would need a restart of the firmware."""
    home = fleet.joined("pump-04")
    path: Path = home.path / "run" / "app.sock"
    with Program("firmware-stub", "--socket", path, "--interval", "0.1") as stub:
        stub.wait_for_line("waiting for the agent", stream="stderr")
        for _ in range(2):
            mark = stub.line_count()
            with Agent(home).wait_ready():
                stub.wait_for_line("ready", after=mark)
