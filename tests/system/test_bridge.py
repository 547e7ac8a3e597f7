"""Devices in Home Assistant: the bridge as a process, between a running fleet and a real Mosquitto."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from tests.processes import Program, run
from tests.system.agents import LiveFleet, live_fleet
from tests.system.exports import connected, joined_service
from tests.unit.enroll.bridge.home_assistant import DISCOVERY

ROOT = "homeassistant/mqtt-fleet"


class Second:
    """The broker that Home Assistant uses: with a user, and with what it keeps in memory alone."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.password = folder / "password"
        self.password.write_text("correct horse\n")
        users, self._config = folder / "users", folder / "mosquitto.conf"
        run("mosquitto_passwd", "-b", "-c", users, "ha", "correct horse").check()
        self._config.write_text(f"listener {self.port} 127.0.0.1\nuser root\npassword_file {users}\n")

    @contextmanager
    def running(self) -> Iterator[Program]:
        """The broker, and who hears all that is said there: lines of retained (0, 1), topic and payload."""
        with Program("mosquitto", "-c", self._config) as broker:
            broker.wait_for_line(r"mosquitto version \S+ running", stream="stderr")
            login = ("-h", "127.0.0.1", "-p", self.port, "-u", "ha", "-P", "correct horse")
            listen = ("mosquitto_sub", *login, "-d", "-q", 1, "-t", "#", "-F", "got %r %t %p")
            with Program("stdbuf", "-oL", *listen) as listener:
                listener.wait_for_line("^Subscribed")
                yield listener

    def bridge(self, fleet: LiveFleet, password: Path | None = None) -> Program:
        login = ("--user", "ha", "--password-file", password or self.password)
        return Program(
            *("enroll", "bridge", "home-assistant", f"127.0.0.1:{self.port}"), *login, "--home", fleet.home.path
        )


def config_of(listener: Program, device: str) -> dict[str, object]:
    topic = f"homeassistant/device/mqtt-fleet/{device}/config"
    found: dict[str, object] = json.loads(listener.wait_for_line(rf"^got \d {topic} (\{{.*)$")[1])
    Draft202012Validator(DISCOVERY).validate(found)
    return found


def wait_for_nothing_left(listener: Program, device: str) -> None:
    """All of its retained topics are emptied, the last of them its configuration."""
    listener.wait_for_line(rf"^got 0 {ROOT}/devices/{device}/load/n/sensor $")
    listener.wait_for_line(rf"^got 0 {ROOT}/devices/{device}/availability $")
    listener.wait_for_line(rf"^got 0 homeassistant/device/mqtt-fleet/{device}/config $")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path_factory.mktemp("fleet"), with_broker=True) as running:
        joined_service(running, "bridge", running.home.path / "bridge")
        yield running


def test_a_house_sees_who_is_there_and_nobody_else(fleet: LiveFleet, tmp_path: Path) -> None:
    """A device would be missing in Home Assistant, or be shown after it was revoked, or after a broker forgot all."""
    second = Second(tmp_path)
    with connected(fleet, "pump-1") as first, connected(fleet, "pump-2") as other, second.bridge(fleet) as bridge:
        bridge.wait_for_line("bridge.offline", stream="stderr")  # Home Assistant's broker starts later
        with second.running() as listener:
            bridge.wait_for_line(rf"^bridge: ready mqtt://127.0.0.1:{second.port}$")
            for device in (first, other):
                device.publish(1)
                config = config_of(listener, device.id)
                assert ["load:n:sensor"] == list(config["components"])  # type: ignore[call-overload]
                listener.wait_for_line(rf"^got 0 {ROOT}/devices/{device.id}/availability online$")
                listener.wait_for_line(rf"^got 0 {ROOT}/devices/{device.id}/load/n/sensor 1$")
            fleet.enroll("device", "revoke", "pump-1", "--yes")
            wait_for_nothing_left(listener, "pump-1")
        with second.running() as listener:
            config_of(listener, "pump-2")
            listener.wait_for_line(rf"^got \d {ROOT}/devices/pump-2/load/n/sensor 1$")
            listener.wait_for_line(rf"^got \d {ROOT}/bridge/availability online$")
            bridge.kill()
            listener.wait_for_line(rf"^got 0 {ROOT}/bridge/availability offline$")
            fleet.enroll("device", "revoke", "pump-2", "--yes")
            with second.bridge(fleet) as again:
                wait_for_nothing_left(listener, "pump-2")
                again.wait_for_line("^bridge: ready")
                seen = listener.line_count()
                assert fleet.broker is not None
                fleet.broker.stop()  # what it shows is not known to be true any more
                listener.wait_for_line(rf"^got 0 {ROOT}/bridge/availability offline$", after=seen)
                assert 0 == again.stop()
            assert "pump-1/config {" not in listener.stdout


def test_a_wrong_password_is_said_at_once(fleet: LiveFleet, tmp_path: Path) -> None:
    """The bridge would try for ever, and nobody know why the house is empty."""
    second, wrong = Second(tmp_path), tmp_path / "wrong"
    wrong.write_text("battery staple")
    with second.running(), second.bridge(fleet, wrong) as bridge:
        assert 4 == bridge.wait()
    assert f"error: mqtt://127.0.0.1:{second.port} refuses: not authorized" == bridge.stderr.splitlines()[0]
    assert "battery" not in bridge.stderr
