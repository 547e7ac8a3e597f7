"""What the command line shows of a device's words, on any terminal, and what it says when they are missing."""

from __future__ import annotations

import fcntl
import json
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fleet.identity import DeviceId
from fleet.messages import Envelope, HelloMessage, ResultMessage, ResultState
from fleet.topics import Hello, Result
from tests import mqtt
from tests.deadlines import within
from tests.mqtt import Peer
from tests.processes import Program, command_line, environment, run
from tests.system import exports
from tests.system.agents import LiveFleet, live_fleet
from tests.system.brokers import enrol, peer
from tests.system.exports import until

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


def test_ctrl_c_says_what_goes_on_without_us(fleet: LiveFleet) -> None:
    """An admin thinks that Ctrl-C took the command back; or is told that a service that runs does not."""
    enrol(fleet.home, "pump-9")
    with Program("enroll", "send", "pump-9", "echo", "--wait", "--timeout", "5m", "--home", fleet.home.path) as waiting:
        waiting.wait_for_line("until", stream="stderr")
        waiting.send_signal(signal.SIGINT)
        assert 130 == waiting.wait(), waiting.describe()
        assert "enroll command show" in waiting.stderr.splitlines()[-1]
        assert "run" not in waiting.stderr, "both do"


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
        hello = mqtt.publish(Hello(device).format(), HelloMessage(envelope, "test").encode(), 1)
        assert mqtt.puback(1) == connection.ask(hello)
        with Program("enroll", "send", device, "dump", "--wait", "--home", fleet.home.path) as send:
            given = send.wait_for_line("command (\\S+) to", stream="stderr")[1]
            result = ResultMessage(envelope, ResultState.DONE, None, "the output was too large to be kept")
            connection.send(mqtt.publish(Result(device, given).format(), result.encode(), 1, 2))
            assert 1 == send.wait()
    assert "" == send.stdout
    assert send.stderr.splitlines()[-2:] == [
        "error: pump-2 did it, but the output was too large to be kept",
        "hint: have it answer with less",
    ]


def test_tail_of_a_group_follows_who_joins_it(fleet: LiveFleet) -> None:
    """An admin who watches a group would miss its newest device, or see those of others."""
    with (
        exports.connected(fleet, "fan-1") as first,
        exports.connected(fleet, "fan-2") as second,
        exports.connected(fleet, "lamp-1") as other,
    ):
        fleet.enroll("device", "group", "fan-1", "--add", "fans")
        tail = ("tail", "--home", fleet.home.path, "-o", "json", "--channel", "telemetry/load")
        with (
            Program("enroll", *tail, "--group", "fans", "-n", 2) as of_group,
            Program("enroll", *tail, "--where", "group=fans and not id=fan-1", "-n", 1) as of_others,
        ):
            of_others.wait_for_line("nobody fits yet", stream="stderr")
            for each in (of_group, of_others):
                each.wait_for_line("listening to devices/\\+/up/telemetry/load/#$", stream="stderr")
            for device in (other, second, first):
                device.publish(1)
                device.publish(1, "another")
            of_group.wait_for_line("fan-1")
            fleet.enroll("device", "group", "fan-2", "--add", "fans")
            for device in (other, second):
                device.publish(1)
            assert (0, 0) == (of_group.wait(), of_others.wait())
    said = [(line["topic"], line["payload"]["data"]) for line in map(json.loads, of_group.stdout.splitlines())]
    assert [("devices/fan-1/up/telemetry/load", {"n": 1}), ("devices/fan-2/up/telemetry/load", {"n": 3})] == said
    assert ["devices/fan-2/up/telemetry/load"] == [json.loads(line)["topic"] for line in of_others.stdout.splitlines()]


def test_tail_waits_for_a_terminal_that_does_not_keep_up(fleet: LiveFleet) -> None:
    """A paused terminal would lose messages, fill the memory, or could not be left with Ctrl-C."""
    with (
        exports.connected(fleet, "pump-3") as device,
        subprocess.Popen(
            command_line("enroll", "tail", "pump-3", "-o", "json", "--home", fleet.home.path),
            env=environment({"PYTHONUNBUFFERED": ""}),  # as at a terminal
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as tail,
    ):
        assert tail.stdout is not None
        assert tail.stderr is not None
        fcntl.fcntl(tail.stdout, fcntl.F_SETPIPE_SZ, 4096)

        pipe = tail.stdout.fileno()

        def has_more_than_fits() -> bool:
            (waiting,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
            return bool(waiting)

        assert tail.stderr.readline().startswith("listening")
        device.publish(200)
        until(has_more_than_fits, tail.poll)
        shown = [json.loads(tail.stdout.readline())["payload"]["data"]["n"] for _ in range(200)]
        assert [*range(1, 201)] == shown
        device.publish(200)
        until(has_more_than_fits, tail.poll)
        tail.send_signal(signal.SIGINT)
        assert 130 == tail.wait(within(20))
        assert "" == tail.stderr.read()


def test_tail_of_a_group_of_nobody_says_so(fleet: LiveFleet) -> None:
    """An admin would wait for ever for a group that is mistyped."""
    done = run("enroll", "tail", "--group", "pmups", "--home", fleet.home.path)
    assert (3, "error: nobody is in pmups") == (done.returncode, done.stderr.splitlines()[0])


def test_an_output_that_cannot_be_written_is_said(fleet: LiveFleet) -> None:
    """A script that fills its disk gets a traceback, or takes half a list for all of it."""
    command = command_line("enroll", "device", "list", "--home", fleet.home.path)
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=within(30))
    assert (1, "error: standard output: no space left on device\n") == (ended.returncode, ended.stderr)
    ended = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True, check=False, timeout=within(30)
    )
    assert (1, "error: standard output is closed") == (ended.returncode, ended.stderr.splitlines()[0])
