"""Who is online, over the real broker and service: by the broker's word, whatever devices say or do not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fleet.identity import DeviceId
from fleet.layout import AdminHome
from tests import mqtt
from tests.fleets import new_home
from tests.processes import run
from tests.system.brokers import enrol, start_broker, start_service, wait_ready
from tests.system.test_dispatch import connected, heard

PUMP, VALVE = DeviceId("pump-07"), DeviceId("valve-1")


@pytest.fixture
def home(tmp_path: Path) -> AdminHome:
    """A fleet whose devices have three seconds to come back to a broker."""
    home = new_home(tmp_path / "fleet")
    text = home.config.read_text()
    home.config.write_text(text.replace("[enroll]\n", '[enroll]\npresence_grace = "3s"\n'))
    assert text != home.config.read_text()
    return home


def online(home: AdminHome) -> list[str]:
    """The devices that `enroll device list` shows as online."""
    args = ("device", "list", "--online", "-o", "name", "--home", home.path)
    return run("enroll", *args).check().stdout.split()


def history(home: AdminHome, device: DeviceId) -> list[dict[str, Any]]:
    """How a device came and went, the oldest first."""
    found: list[dict[str, Any]] = json.loads(
        run("enroll", "device", "history", device, "-o", "json", "--home", home.path).check().stdout
    )
    return found


def words(changes: list[dict[str, Any]]) -> list[str]:
    return ["online" if change["online"] else change["reason"] for change in changes]


def test_after_a_broker_was_killed_the_list_is_right_and_the_history_says_why(home: AdminHome) -> None:
    """A device that is gone with its broker stays online for ever."""
    files = {device: enrol(home, device) for device in (PUMP, VALVE)}
    with start_service(home) as service:
        with start_broker(home) as first:
            wait_ready(first)
            heard(service, "dispatch.online")
            with connected(home, first, PUMP, files[PUMP]), connected(home, first, VALVE, files[VALVE]):
                heard(service, "device.online device=pump-07")
                mark = heard(service, "device.online device=valve-1")
                first.kill()
        with start_broker(home) as second:
            port = wait_ready(second)
            service.wait_for_line("dispatch.online", stream="stderr", after=mark)
            with connected(home, second, PUMP, files[PUMP]):
                heard(service, "device.online device=pump-07", mark)
                heard(service, "device.offline device=valve-1 reason=broker-restarted", mark)
                assert [PUMP] == online(home)
                assert ["online", "broker-restarted", "online"] == words(history(home, PUMP))
                gone = history(home, VALVE)
                assert ["online", "broker-restarted"] == words(gone)
                assert f"localhost:{port}" == gone[-1]["broker"]
                assert gone[0]["at"] == gone[-1]["before"] < gone[-1]["at"]


def test_a_device_that_says_nothing_is_online_while_it_is_connected(home: AdminHome) -> None:
    """`mosquitto_sub` with a device's identity is never seen, or a status that lies is believed."""
    with start_service(home) as service, start_broker(home) as broker:
        wait_ready(broker)
        heard(service, "dispatch.online")
        with connected(home, broker, PUMP, enrol(home, PUMP)) as pump:
            heard(service, r"device.online device=pump-07 address=127.0.0.1:\d+")
            assert [PUMP] == online(home)
            pump.is_online()
            mark = heard(service, "device.agent device=pump-07 version=test")
            pump.peer.send(mqtt.DISCONNECT)  # and its retained status says that it is online
            heard(service, "device.offline device=pump-07 reason=disconnected", mark)
        assert [] == online(home)
        shown = run("enroll", "device", "show", PUMP, "--home", home.path).check().stdout
        assert "reason        disconnected\n" in shown
    assert ["online", "disconnected"] == words(history(home, PUMP))
