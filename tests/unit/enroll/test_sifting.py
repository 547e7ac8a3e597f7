"""What is read of one turn's messages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from enroll.mqtt_client import Incoming
from enroll.registry.records import CommandState
from enroll.reports import HelloSeen, Report, ResultSeen, StatusSeen
from enroll.sifting import Given, sift
from fleet.identity import DeviceId
from fleet.messages import Envelope, HelloMessage, Presence, ResultMessage, ResultState, StatusMessage
from fleet.topics import Hello, Result, Status
from tests.fleets import NOW

PUMP, VALVE = DeviceId("pump-07"), DeviceId("valve-1")


class Aside:
    """What was set aside: the devices, and why."""

    def __init__(self) -> None:
        self.devices: list[str] = []
        self.reasons: list[str] = []

    def add(self, device: str, what: str, error: Exception) -> None:
        self.devices.append(device)
        self.reasons.append(str(error))


def _incoming(topic: str, payload: bytes) -> Incoming:
    return Incoming(topic, payload, 1, retain=False, packet_id=1)


def _envelope(device: DeviceId) -> Envelope:
    return Envelope(device, NOW, "boot", 1)


def status(device: DeviceId, reason: str, presence: Presence = Presence.ONLINE) -> Incoming:
    return _incoming(Status(device).format(), StatusMessage(_envelope(device), presence, reason).encode())


def hello(device: DeviceId, version: str = "1") -> Incoming:
    return _incoming(Hello(device).format(), HelloMessage(_envelope(device), version).encode())


def result(device: DeviceId, command_id: str, state: ResultState, output: object = None) -> Incoming:
    return _incoming(Result(device, command_id).format(), ResultMessage(_envelope(device), state, output).encode())


def read(*arrived: Incoming, given: Given | None = None, aside: Aside | None = None) -> list[Report]:
    aside = aside or Aside()
    return sift(arrived, aside).reports(given or {}, aside)


def test_of_each_device_the_last_status_and_hello_count_in_their_order() -> None:
    """One device's pile is written line by line while the others wait, or a device that left is online."""
    reports = read(
        status(PUMP, "1"), hello(PUMP, "1"), status(VALVE, "2"), hello(PUMP, "2"), status(PUMP, "3", Presence.OFFLINE)
    )
    assert [(VALVE, "2"), (PUMP, "2"), (PUMP, "3")] == [
        (report.device, report.agent_version if isinstance(report, HelloSeen) else report.status.reason)
        for report in reports
        if isinstance(report, HelloSeen | StatusSeen)
    ]


def test_a_status_that_cannot_be_read_hides_none_that_can() -> None:
    """A device that ends with garbage stays what it was before."""
    aside = Aside()
    reports = read(status(PUMP, "good"), _incoming(Status(PUMP).format(), b"{"), aside=aside)
    assert ["good"] == [report.status.reason for report in reports if isinstance(report, StatusSeen)]
    assert [PUMP] == aside.devices


def test_a_result_for_no_command_of_the_device_is_not_read() -> None:
    """64 KB of nested JSON, 16 times a second, are decoded for nothing."""
    aside = Aside()
    others = {"a": (VALVE, CommandState.SENT)}
    garbage = [_incoming(Result(PUMP, command_id).format(), b"not JSON") for command_id in ("a", "b")]
    assert [] == read(*garbage, given=others, aside=aside)
    assert ["pump-07 has no command a", "pump-07 has no command b"] == aside.reasons


def test_a_result_is_read_once_per_state_and_not_after_the_end() -> None:
    """A device that repeats itself is heard out each time, or one state hides another."""
    said = [
        result(PUMP, "a", ResultState.ACCEPTED),
        result(PUMP, "a", ResultState.RUNNING),
        result(PUMP, "a", ResultState.RUNNING),
        result(PUMP, "a", ResultState.DONE, "first"),
        result(PUMP, "a", ResultState.FAILED, "second"),
        _incoming(Result(PUMP, "a").format(), b"not JSON"),
    ]
    aside = Aside()
    reports = read(*said, given={"a": (PUMP, CommandState.SENT)}, aside=aside)
    assert [ResultState.ACCEPTED, ResultState.RUNNING, ResultState.DONE] == [
        report.result.state for report in reports if isinstance(report, ResultSeen)
    ]
    assert [] == aside.devices


def test_of_a_finished_command_one_more_result_is_read() -> None:
    """A device that answers again looks dead, or costs as much as it likes."""
    said = [result(PUMP, "a", ResultState.DONE, number) for number in range(10)]
    assert 1 == len(read(*said, given={"a": (PUMP, CommandState.DONE)}))


@given(
    st.lists(
        st.sampled_from(["", "x", "devices", "devices/", "devices/a/up/status", "devices/a/up/telemetry/t", "a//b"])
        | st.text(max_size=20),
        max_size=5,
    )
)
def test_what_is_not_for_dispatch_is_set_aside(topics: list[str]) -> None:
    """A topic that nobody expected ends dispatch."""
    aside = Aside()
    assert [] == read(*(_incoming(topic, b"{}") for topic in topics), aside=aside)
    assert len(topics) == len(aside.devices)
