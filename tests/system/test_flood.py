"""Certified devices that flood: what others do arrives all the same."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from enroll.registry.records import CommandState
from fleet.identity import DeviceId
from fleet.layout import AdminHome
from fleet.messages import ResultState
from fleet.topics import Hello, Result, Status
from tests import mqtt
from tests.deadlines import within
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
            heard(service, "device.agent device=pump-07")
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


_FLOODERS = [f"flooder-{number}" for number in range(20)]
_Flood = Callable[[mqtt.Peer, str, threading.Event], None]


def _flips(device: str) -> list[bytes]:
    """Status messages that are news each time."""
    common = {"v": 1, "id": device, "ts": "2026-11-21T08:00:00Z", "boot": "b"}
    flips = [{"seq": at, "status": ("online", "offline")[at % 2], "agent": str(at)} for at in range(50)]
    return [json.dumps(common | flip).encode() for flip in flips]


def _flip_unheard(flooder: mqtt.Peer, device: str, stop: threading.Event) -> None:
    topic = Status(DeviceId(device)).format()
    frames = b"".join(mqtt.publish(topic, payload, retain=True) for payload in _flips(device))
    while not stop.is_set():
        flooder.send(frames)


def _flip_acknowledged(flooder: mqtt.Peer, device: str, stop: threading.Event) -> None:
    topic = Status(DeviceId(device)).format()
    frames = [mqtt.publish(topic, payload, 1, at + 1, retain=True) for at, payload in enumerate(_flips(device))]
    while not stop.is_set():
        flooder.send(*frames)
        for _ in frames:
            flooder.receive()


def _answer_strangely(flooder: mqtt.Peer, device: str, stop: threading.Event) -> None:
    """Results of 64 KB for commands that nobody gave."""
    common = {"v": 1, "id": device, "ts": "2026-11-21T08:00:00Z", "boot": "b", "seq": 1, "state": "done"}
    payload = json.dumps(common | {"output": [{"k": "v"}] * 5300}).encode()
    number = 0
    while not stop.is_set():
        number = number % 60_000 + 1
        flooder.ask(mqtt.publish(Result(DeviceId(device), f"{number:032x}").format(), payload, 1, number))


@contextmanager
def _flooding(home: AdminHome, port: int, flood: _Flood, flooders: list[str]) -> Iterator[None]:
    """All of them flood, from before to after."""
    stop = threading.Event()

    def run(peer: mqtt.Peer, device: str) -> None:
        try:
            flood(peer, device, stop)
        except OSError:  # cut, or closed at the end
            return

    with ExitStack() as peers:
        threads = []
        for device in flooders:
            flooder = peers.enter_context(peer(home, enrol(home, device), port))
            assert mqtt.ACCEPTED == flooder.ask(mqtt.connect(device))
            threads.append(threading.Thread(target=run, args=(flooder, device)))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()


@pytest.mark.parametrize(
    ("flood", "flooders", "sign"),
    [
        (_flip_unheard, _FLOODERS, "device.agent device=flooder-19"),
        (_flip_acknowledged, _FLOODERS, "device.agent device=flooder-19"),
        (_answer_strangely, _FLOODERS[:5], "message.set_aside device=flooder-4"),
    ],
    ids=("qos-0", "qos-1", "results"),
)
def test_what_one_device_says_is_recorded_at_once_while_others_flood_within_the_limits(
    home: AdminHome, flood: _Flood, flooders: list[str], sign: str
) -> None:
    """Twenty devices, each within its rate, have the service deaf to all others for a minute."""
    with start_service(home) as service, start_broker(home) as broker:
        port = wait_ready(broker)
        heard(service, "dispatch.online")
        with connected(home, broker, PUMP, enrol(home, PUMP)) as pump, _flooding(home, port, flood, flooders):
            heard(service, sign)
            began = time.monotonic()
            pump.is_online()
            heard(service, "device.agent device=pump-07")
            status_seconds = time.monotonic() - began
            given = send(home)
            assert given == pump.is_told()[0].rpartition("/")[2]
            began = time.monotonic()
            pump.answers(given, ResultState.DONE)
            heard(service, f"command.done .*command={given}")
            result_seconds = time.monotonic() - began
    assert CommandState.DONE is command(home, given).state
    assert max(status_seconds, result_seconds) < within(2), (status_seconds, result_seconds)
