"""`enroll` as a process, beside a running service and broker, a real agent and the reference firmware."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.identity import Server
from fleet.layout import AdminHome, IdentityFiles, decode_run_file
from tests import mqtt
from tests.deadlines import within
from tests.fleets import new_home
from tests.processes import Program, command_line, environment, run
from tests.system.agents import LiveFleet, live_fleet
from tests.system.brokers import enrol, peer, start_service, wait_ready

LONG, SHORT = (f"{within(seconds):.0f}s" for seconds in (20, 3))
"""Times that a device which is there may take to answer, and that one which is not is waited for."""


@pytest.fixture
def home(tmp_path: Path) -> AdminHome:
    return new_home(tmp_path / "fleet")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    """A service and a broker for all tests of this file that ask."""
    with live_fleet(tmp_path_factory.mktemp("fleet"), with_broker=True) as running:
        running.service.wait_for_line("dispatch.online", stream="stderr")
        yield running


def test_serve_says_where_it_is_while_it_is_there(home: AdminHome) -> None:
    """Broker and token create would go to a service that is gone, or miss one that is there."""
    run_file = home.run_file(Server.ENROLL)
    with start_service(home) as service:
        port = wait_ready(service)
        assert f"https://localhost:{port}" == decode_run_file(run_file.read_bytes()).url
        assert 0o600 == run_file.stat().st_mode & 0o777
        assert [run_file.name] == [path.name for path in run_file.parent.iterdir()]
    assert 0 == service.returncode
    assert not run_file.exists()


def test_the_public_url_is_what_devices_are_told(home: AdminHome) -> None:
    """Behind a forwarded port no device could enrol."""
    url = "https://fleet.example:443"
    with Program("enroll", "serve", "--home", home.path, "--listen", "127.0.0.1:0", "--public-url", url) as service:
        wait_ready(service)
        assert url == decode_run_file(home.run_file(Server.ENROLL).read_bytes()).url


def test_ctrl_c_ends_serve_cleanly(home: AdminHome) -> None:
    """Whoever tries it at a terminal would get a traceback."""
    with start_service(home) as service:
        wait_ready(service)
        service.send_signal(signal.SIGINT)
        assert 0 == service.wait()
    assert "Traceback" not in service.stderr


def test_a_port_that_is_taken_is_said_to_be(home: AdminHome) -> None:
    """An admin would see a traceback, or a service that serves nobody."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("enroll", "serve", "--home", home.path, "--listen", address)
    assert (1, "") == (done.returncode, done.stdout)
    assert done.stderr.splitlines()[-2:] == [
        f"error: cannot listen on {address}: address already in use",
        "hint: give another address: --listen HOST:PORT",
    ]


_HEAVY = {"aiohttp", "alembic", "cryptography", "paho", "rich"}


@pytest.mark.parametrize(
    ("args", "unwanted"),
    [
        (["--version"], {"typer", "enroll.cli", "sqlalchemy"}),
        (["--help"], _HEAVY | {"sqlalchemy", "asyncio", "ssl", "enroll.cli.device", "enroll.cli.export"}),
        (["device", "nonsense"], _HEAVY | {"sqlalchemy", "asyncio", "ssl", "enroll.cli.export"}),
        (["device", "list"], _HEAVY),
        (["log", "list", "--output", "json", "--limit", "3"], _HEAVY),
        (["token", "create", "--device", "pump-07"], _HEAVY - {"cryptography"}),
        (["send", "pump-07", "echo"], _HEAVY),
    ],
)
def test_a_command_loads_only_what_it_needs(home: AdminHome, args: list[str], unwanted: set[str]) -> None:
    """Every command would take as long as the slowest."""
    code = f"import sys; sys.argv = ['enroll', *{args!r}]; from enroll.entry import main; main(); print(*sys.modules)"
    done = run(sys.executable, "-c", code, env={"FLEET_HOME": str(home.path)}).check()
    assert set() == unwanted & set(done.stdout.split())


def test_send_waits_for_the_firmwares_answer(fleet: LiveFleet) -> None:
    """The one thing that an admin sends commands for."""
    agent = fleet.joined("pump-10")
    with (
        Program("device-agent", "run", "--home", agent.path) as device,
        Program("firmware-stub", "--socket", agent.path / "run" / "app.sock", "--interval", 1),
    ):
        device.wait_for_line("device-agent: ready pump-10")
        done = fleet.enroll("send", "pump-10", "echo", '{"text": "\\u2028"}', "--wait", "--timeout", LONG)
        assert {"text": "\u2028"} == json.loads(done.stdout)
        shown = json.loads(fleet.enroll("device", "show", "pump-10", "-o", "json").stdout)
        assert (True, "active") == (shown["online"], shown["state"])
        wrong = ("send", "pump-10", "set-interval", "{}", "--wait", "--timeout", LONG, "--no-check")
        refused = run("enroll", *wrong, "--home", fleet.home.path)
        assert (1, "") == (refused.returncode, refused.stdout)
        words = "error: pump-10 failed: the arguments do not fit: seconds is missing"
        assert words == refused.stderr.splitlines()[-1]
        fleet.service.wait_for_line("device.commands device=pump-10", stream="stderr")
        refused = run("enroll", *wrong[:-1], "--home", fleet.home.path)
        assert (2, "") == (refused.returncode, refused.stdout)
        assert "error: pump-10: seconds is missing" == refused.stderr.splitlines()[0]
        shown = fleet.enroll("device", "show", "pump-10").stdout
        assert "echo, identify, set-interval" in shown


def test_send_ends_at_the_deadline_of_a_device_that_is_away(fleet: LiveFleet) -> None:
    """A script would hang for ever, or believe that it was done."""
    fleet.joined("pump-11")
    done = run("enroll", "send", "pump-11", "echo", "--wait", "--timeout", "1s", "--home", fleet.home.path)
    assert (7, "") == (done.returncode, done.stdout)
    assert "error: pump-11 did not take the command in time" in done.stderr


def test_send_to_a_group_shows_what_each_answered(fleet: LiveFleet) -> None:
    """An admin would not know which of the devices did it, or believe that all did."""
    agent = fleet.joined("pump-20")
    fleet.joined("pump-21")  # which is away
    fleet.enroll("device", "group", "pump-20", "pump-21", "--add", "twenties")
    fleet.enroll("device", "label", "pump-20", "--set", "site=berlin")
    with (
        Program("device-agent", "run", "--home", agent.path) as device,
        Program("firmware-stub", "--socket", agent.path / "run" / "app.sock", "--interval", 1),
    ):
        device.wait_for_line("device-agent: ready pump-20")
        to_all = ("send", "--group", "twenties", "echo", '{"n": 1}', "--wait", "--timeout", SHORT, "-o", "json")
        done = run("enroll", *to_all, "--home", fleet.home.path)
        answers = {answer["device"]: (answer["state"], answer["output"]) for answer in json.loads(done.stdout)}
        assert {"pump-20": ("done", {"n": 1}), "pump-21": ("expired", None)} == answers
        assert (6, "error: 1 of 2 did it") == (done.returncode, done.stderr.splitlines()[-2])
        to_some = ("--group", "twenties", "--where", "site=berlin and online")
        table = fleet.enroll("send", *to_some, "echo", '{"n": 2}', "--wait", "--timeout", LONG).stdout.splitlines()
        assert ["DEVICE", "COMMAND", "STATE", "ANSWER"] == table[0].split()
        assert ["pump-20", "done", '{"n":', "2}"] == table[1].split()[:1] + table[1].split()[2:]


def test_tail_prints_what_devices_say_and_escapes_it(fleet: LiveFleet) -> None:
    """A device could drive the admin's terminal, or a message be missed."""
    port, files = fleet.broker_address[1], enrol(fleet.home, "pump-12")
    with (
        Program("enroll", "tail", "pump-12", "-n", 3, "-o", "json", "--home", fleet.home.path) as as_json,
        Program("enroll", "tail", "--home", fleet.home.path) as as_text,  # with what others in this file had retained
        peer(fleet.home, files, port) as device,
    ):
        for each in (as_json, as_text):
            each.wait_for_line("listening", stream="stderr")
        assert mqtt.ACCEPTED == device.ask(mqtt.connect("pump-12"))
        for payload in (b'{"a": [1]}', b"\x1b[2J\n", b"\xff\x00"):
            assert mqtt.puback(1) == device.ask(mqtt.publish("devices/pump-12/up/telemetry/raw", payload, 1))
        assert 0 == as_json.wait()
        shown = [json.loads(line) for line in as_json.stdout.splitlines()]
        assert [{"a": [1]}, "\x1b[2J\n", "ff00"] == [
            line.get("payload", line.get("text", line.get("hex"))) for line in shown
        ]
        for words in (r'pump-12 telemetry/raw \{"a": \[1\]\}', r"telemetry/raw \\x1b\[2J\\n$", "telemetry/raw ff00"):
            as_text.wait_for_line(words)


def test_ctrl_c_ends_tail_quietly(fleet: LiveFleet) -> None:
    """The usual way to end it would look like a failure."""
    with Program("enroll", "tail", "--home", fleet.home.path) as tail:
        tail.wait_for_line("listening", stream="stderr")
        tail.send_signal(signal.SIGINT)
        assert 130 == tail.wait()
    assert ["listening to devices/+/up/#"] == tail.stderr.splitlines()


def test_tail_whose_reader_has_gone_ends(fleet: LiveFleet) -> None:
    """`enroll tail | head` would stay behind for ever, or complain."""
    with peer(fleet.home, enrol(fleet.home, "pump-13"), fleet.broker_address[1]) as device:
        assert mqtt.ACCEPTED == device.ask(mqtt.connect("pump-13"))
        with subprocess.Popen(
            command_line("enroll", "tail", "pump-13", "--home", fleet.home.path),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as tail:
            assert tail.stdout is not None
            assert tail.stderr is not None
            assert tail.stderr.readline().startswith("listening")
            tail.stdout.close()
            assert mqtt.puback(1) == device.ask(mqtt.publish("devices/pump-13/up/telemetry/raw", b"x", 1))
            assert 141 == tail.wait(within(20))
            assert "" == tail.stderr.read()


def test_status_tells_what_is_there(fleet: LiveFleet) -> None:
    """A monitor would cry wolf, or sleep."""
    shown = json.loads(fleet.enroll("status", "-o", "json").stdout)
    assert (True, True) == (shown["service"]["answers"], shown["broker"]["answers"])


def test_a_suspended_device_is_cut_and_comes_back(fleet: LiveFleet) -> None:
    """Suspending would last until the next reconnect only, or for good."""
    port, files = fleet.broker_address[1], enrol(fleet.home, "pump-14")
    with peer(fleet.home, files, port) as device:
        assert mqtt.ACCEPTED == device.ask(mqtt.connect("pump-14"))
        fleet.enroll("device", "suspend", "pump-14")
        assert device.is_closed()
    assert mqtt.ACCEPTED != connack(fleet, files)
    fleet.enroll("device", "resume", "pump-14")
    until = time.monotonic() + within(5)
    while mqtt.ACCEPTED != connack(fleet, files):
        assert time.monotonic() < until


def connack(fleet: LiveFleet, files: IdentityFiles) -> bytes:
    """What the broker says to one more connection."""
    with peer(fleet.home, files, fleet.broker_address[1]) as device:
        return device.ask(mqtt.connect("pump-14"))
