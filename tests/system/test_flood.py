"""One certified device that floods: what others do arrives all the same."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from enroll.registry.records import CommandState
from fleet.identity import DeviceId
from fleet.layout import AdminHome
from fleet.messages import ResultState
from fleet.topics import Hello, Status
from tests import mqtt
from tests.fleets import new_home
from tests.system.brokers import enrol, peer, start_broker, start_service, wait_ready
from tests.system.test_dispatch import PUMP, command, connected, heard, send


@pytest.fixture
def home(tmp_path: Path) -> AdminHome:
    return new_home(tmp_path / "fleet")


@pytest.mark.parametrize("topic", [Status(DeviceId("flooder")).format(), Hello(DeviceId("flooder")).format()])
def test_a_flood_of_one_device_loses_no_result_of_another(home: AdminHome, topic: str) -> None:
    """Results that the broker acknowledged would be dropped, and their commands end as expired."""
    with start_service(home) as service, start_broker(home) as broker:
        port = wait_ready(broker)
        heard(service, "dispatch.online")
        flooder, stop = peer(home, enrol(home, "flooder"), port), threading.Event()
        with flooder, connected(home, broker, PUMP, enrol(home, PUMP)) as pump:
            pump.is_online()
            heard(service, "device.online device=pump-07")
            assert mqtt.ACCEPTED == flooder.ask(mqtt.connect("flooder"))
            flood = threading.Thread(target=_flood, args=(flooder, mqtt.publish(topic, b"{}"), stop))
            flood.start()
            broker.wait_for_line("client.slowed client=flooder", stream="stderr")
            given = [send(home) for _ in range(5)]
            told = [pump.is_told()[0].rpartition("/")[2] for _ in given]
            for each in told:
                pump.answers(each, ResultState.DONE)
            for each in given:
                heard(service, f"command.done .*command={each}")
            stop.set()
            flooder.socket.shutdown(2)
            flood.join()
        assert {CommandState.DONE} == {command(home, each).state for each in given}


def _flood(flooder: mqtt.Peer, frame: bytes, stop: threading.Event) -> None:
    try:
        while not stop.is_set():
            flooder.send(frame * 50)
    except OSError:
        return
