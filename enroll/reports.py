"""What dispatch is told, read from one message (pure). Of devices, who speaks is decided by the topic alone.

Of sessions the broker tells (`enroll.roll`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from fleet import messages, state, topics
from fleet.catalogue import Catalogue, decode_catalogue
from fleet.errors import InvalidInput
from fleet.identity import DeviceId
from fleet.messages import HelloMessage, ResultMessage, StatusMessage
from fleet.sessions import Ending
from fleet.state import Marks, ReportedMessage


@dataclass(frozen=True, slots=True)
class StatusSeen:
    """Online or offline. `is_retained`: not news, but what the broker had kept."""

    device: DeviceId
    status: StatusMessage
    is_retained: bool


@dataclass(frozen=True, slots=True)
class SessionSeen:
    """The broker has a session of it, which `boot` of the broker and `number` name."""

    device: DeviceId
    boot: str
    number: int
    since: datetime
    address: str
    broker: str


@dataclass(frozen=True, slots=True)
class SessionOver:
    """The broker has no session of it any more."""

    device: DeviceId
    boot: str
    number: int
    ending: Ending
    at: datetime
    broker: str


@dataclass(frozen=True, slots=True)
class HelloSeen:
    """The device is connected, and wants what is due. `boot` and `seq` say which start of its agent speaks.

    `state`: what it has of its state; None from an agent that keeps none.
    """

    device: DeviceId
    agent_version: str
    boot: str = ""
    seq: int = 0
    serial: str = ""
    hardware: str = ""
    state: Marks | None = None


@dataclass(frozen=True, slots=True)
class ResultSeen:
    """How a command went. That it is the device's own command is for the registry to say."""

    device: DeviceId
    command_id: str
    result: ResultMessage


@dataclass(frozen=True, slots=True)
class StateSeen:
    """What the device is, and which desired state it has."""

    device: DeviceId
    message: ReportedMessage


@dataclass(frozen=True, slots=True)
class CatalogueSeen:
    """Which commands the device takes."""

    device: DeviceId
    catalogue: Catalogue


Report = StatusSeen | HelloSeen | ResultSeen | StateSeen | CatalogueSeen | SessionSeen | SessionOver


def read_report(topic: str, payload: bytes, *, is_retained: bool) -> Report:
    """The report in a message. Raises: InvalidInput for any that dispatch has no use for."""
    match topics.parse(topic):
        case topics.Status(device):
            return StatusSeen(device, messages.decode_status(payload, device), is_retained)
        case topics.Hello(device):
            return _hello(device, messages.decode_hello(payload, device))
        case topics.Result(device, command_id):
            return ResultSeen(device, command_id, messages.decode_result(payload, device))
        case topics.DeclaredCommands(device):
            return CatalogueSeen(device, decode_catalogue(payload, device).catalogue)
        case topics.ReportedState(device):
            return StateSeen(device, state.decode_reported(payload, device))
        case _:
            raise InvalidInput(f"{topic[:120]!r} is not for dispatch")


def _hello(device: DeviceId, hello: HelloMessage) -> HelloSeen:
    said, marks = hello.envelope, state.read_marks(hello.state) if hello.state else None
    return HelloSeen(device, hello.agent_version, said.boot, said.seq, hello.serial, hello.hardware, marks)
