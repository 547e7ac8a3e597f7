"""What the command line shows of a device's words, on any terminal, and what it says when they are missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fleet.identity import DeviceId
from fleet.messages import Envelope, HelloMessage, ResultMessage, ResultState
from fleet.topics import Hello, Result
from tests import mqtt
from tests.mqtt import Peer
from tests.processes import Program
from tests.system.agents import LiveFleet, live_fleet
from tests.system.brokers import enrol, peer

ASCII = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    path: Path = tmp_path_factory.mktemp("fleet")
    with live_fleet(path, with_broker=True) as running:
        running.service.wait_for_line("dispatch.online", stream="stderr")
        yield running


@contextmanager
def connected(fleet: LiveFleet, device: str) -> Iterator[Peer]:
    """A new device on a raw connection."""
    with peer(fleet.home, enrol(fleet.home, device), fleet.broker_address[1]) as connection:
        assert mqtt.ACCEPTED == connection.ask(mqtt.connect(device))
        yield connection


def test_tail_escapes_what_the_terminal_cannot_show(fleet: LiveFleet) -> None:
    """The first umlaut of a device ends the admin's view of all others."""
    with (
        Program("enroll", "tail", "pump-1", "-n", 2, "--home", fleet.home.path, env=ASCII) as tail,
        connected(fleet, "pump-1") as device,
    ):
        tail.wait_for_line("listening", stream="stderr")
        for payload in ('{"text": "fünf °C"}', "grün \N{THERMOMETER}"):
            message = mqtt.publish("devices/pump-1/up/telemetry/raw", payload.encode(), 1)
            assert mqtt.puback(1) == device.ask(message)
        tail.wait_for_line(r'\{"text": "f\\xfcnf \\xb0C"\}')
        tail.wait_for_line(r"gr\\xfcn \\U0001f321$")
        assert 0 == tail.wait()
    assert "Traceback" not in tail.stderr


def test_an_error_is_shown_on_any_terminal(fleet: LiveFleet) -> None:
    """A name with an umlaut makes a traceback of a plain mistake."""
    with Program("enroll", "device", "show", "pümp", "--home", fleet.home.path, env=ASCII) as show:
        assert 2 == show.wait()
    assert show.stderr.startswith("error: 'p\\xfcmp' is not a device id")


def test_send_fails_if_the_answer_was_too_large_to_be_kept(fleet: LiveFleet) -> None:
    """A script takes `null` for what the firmware said."""
    device, envelope = DeviceId("pump-2"), Envelope(DeviceId("pump-2"), datetime.now(UTC), "boot", 1)
    with connected(fleet, device) as connection:
        assert mqtt.suback(1) == connection.ask(mqtt.subscribe((f"devices/{device}/down/#", 1)))
        with Program("enroll", "send", device, "dump", "--wait", "--home", fleet.home.path) as send:
            given = send.wait_for_line("command (\\S+) to", stream="stderr")[1]
            hello = mqtt.publish(Hello(device).format(), HelloMessage(envelope, "test").encode(), 1)
            assert mqtt.puback(1) == connection.ask(hello)
            result = ResultMessage(envelope, ResultState.DONE, None, "the output was too large to be kept")
            connection.send(mqtt.publish(Result(device, given).format(), result.encode(), 1, 2))
            assert 1 == send.wait()
    assert "" == send.stdout
    assert send.stderr.splitlines()[-2:] == [
        "error: pump-2 did it, but the output was too large to be kept",
        "hint: have it answer with less",
    ]
