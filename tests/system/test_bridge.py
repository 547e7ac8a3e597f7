"""Devices in Home Assistant: the bridge as a process, between a running fleet and a real Mosquitto."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from tests.processes import Program
from tests.system.agents import LiveFleet, live_fleet
from tests.system.exports import connected, joined_service
from tests.system.houses import Second
from tests.unit.device_agent.authority import new_authority
from tests.unit.enroll.bridge.home_assistant import DISCOVERY

ROOT = "homeassistant/mqtt-fleet"


def bridge_to(second: Second, fleet: LiveFleet, password: Path | None = None, ca: Path | None = None) -> Program:
    options = second.options(password or second.password, ca)
    return Program("enroll", "bridge", "home-assistant", *options, "--home", fleet.home.path)


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
    with connected(fleet, "pump-1") as first, connected(fleet, "pump-2") as other, bridge_to(second, fleet) as bridge:
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
            with bridge_to(second, fleet) as again:
                wait_for_nothing_left(listener, "pump-2")
                again.wait_for_line("^bridge: ready")
                seen = listener.line_count()
                assert fleet.broker is not None
                fleet.broker.stop()  # what it shows is not known to be true any more
                listener.wait_for_line(rf"^got 0 {ROOT}/bridge/availability offline$", after=seen)
                assert 0 == again.stop()
            assert "pump-1/config {" not in listener.stdout
    fleet.start_broker()


def test_over_mutual_tls_and_a_broker_that_is_lost_holds_up_nobody(fleet: LiveFleet, tmp_path: Path) -> None:
    """What leaves the gateway goes to whoever answers, or a house that is switched off stops the fleet's telemetry."""
    second = Second(tmp_path, new_authority("house"))
    with connected(fleet, "pump-3") as device, bridge_to(second, fleet) as bridge:
        with second.running() as listener:
            bridge.wait_for_line(rf"^bridge: ready mqtts://127.0.0.1:{second.port}$")
            device.publish(1)
            listener.wait_for_line(rf"^got 0 {ROOT}/devices/pump-3/load/n/sensor 1$")
        bridge.wait_for_line("bridge.offline .*the connection has ended", stream="stderr")
        device.publish(298)
        seen = bridge.line_count("stderr")
        with second.running() as listener:
            bridge.wait_for_line("bridge.online", stream="stderr", after=seen)
            device.publish(1)
            listener.wait_for_line(rf"^got 0 {ROOT}/devices/pump-3/load/n/sensor 300$")
            for start in range(0, 320, 64):
                data = {f"made_up_{number}": 1 for number in range(start, start + 64)}
                device.say("raw", json.dumps(device.envelope(900 + start) | {"data": data}).encode())
            bridge.wait_for_line("sensor.ignored device=pump-3 count=1$", stream="stderr")
        assert "correct horse" not in bridge.stderr


def test_another_broker_than_the_houses_is_said_at_once(fleet: LiveFleet, tmp_path: Path) -> None:
    """The password goes to whoever answers in its place, or the bridge tries for ever and says nothing of use."""
    second = Second(tmp_path, new_authority("house"))
    other = tmp_path / "other.pem"
    other.write_text(new_authority("other").roots_pem)
    with second.running(), bridge_to(second, fleet, ca=other) as bridge:
        assert 5 == bridge.wait()
    error, hint = bridge.stderr.splitlines()
    assert error.startswith(f"error: mqtts://127.0.0.1:{second.port}: its certificate is not good by {other}: ")
    assert "hint: --ca FILE: who has issued it" == hint


def test_a_wrong_password_is_said_at_once(fleet: LiveFleet, tmp_path: Path) -> None:
    """The bridge would try for ever, and nobody know why the house is empty."""
    second, wrong = Second(tmp_path), tmp_path / "wrong"
    wrong.write_text("battery staple")
    with second.running(), bridge_to(second, fleet, wrong) as bridge:
        assert 4 == bridge.wait()
    assert f"error: mqtt://127.0.0.1:{second.port} refuses: not authorized" == bridge.stderr.splitlines()[0]
    assert "battery" not in bridge.stderr


def test_who_begins_last_under_a_name_has_it(fleet: LiveFleet, tmp_path: Path) -> None:
    """Two bridges end each other's connection for ever, and the house flickers; nobody is told why."""
    second = Second(tmp_path)
    with second.running() as listener, bridge_to(second, fleet) as first, connected(fleet, "pump-4") as device:
        first.wait_for_line("^bridge: ready")
        with bridge_to(second, fleet) as last:
            last.wait_for_line("^bridge: ready")
            assert 1 == first.wait()
            words = f"another bridge has begun as mqtt-fleet at mqtt://127.0.0.1:{second.port}, and has its place"
            assert f"error: {words}" in first.stderr.splitlines()
            last.wait_for_line("bridge.offline", stream="stderr")  # by the other's last connection
            lines = last.stderr.splitlines()
            ended = next(at for at, line in enumerate(lines) if "bridge.offline" in line)
            last.wait_for_line("bridge.online", stream="stderr", after=ended)
            device.publish(1)
            listener.wait_for_line(rf"^got 0 {ROOT}/devices/pump-4/load/n/sensor 1$")
            assert 0 == last.stop()
