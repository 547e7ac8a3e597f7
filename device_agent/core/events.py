"""What happens to the agent. An event of one connection carries its epoch; of an earlier one it changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from device_agent.failures import Failure
from device_agent.requests import Request
from fleet.config import Address


@dataclass(frozen=True, slots=True)
class Started:
    """The agent begins."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The time that `next_deadline` named has come, or any other."""


@dataclass(frozen=True, slots=True)
class ConfigFetched:
    """The enrollment service named the brokers."""

    brokers: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class ConfigFailed:
    """The enrollment service did not."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Connected:
    """CONNACK with return code 0."""

    epoch: int
    session_present: bool


@dataclass(frozen=True, slots=True)
class Subscribed:
    """SUBACK that grants what was asked for."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Disconnected:
    """A connection, or the attempt at one, is over."""

    epoch: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class Arrived:
    """A PUBLISH from the broker; with QoS 1 it is acknowledged by an effect."""

    epoch: int
    mid: int
    topic: str
    payload: bytes = field(repr=False)
    qos: int = 1


@dataclass(frozen=True, slots=True)
class Sent:
    """The broker has the message (QoS 1), or it has left (QoS 0)."""

    epoch: int
    handle: int


@dataclass(frozen=True, slots=True)
class Journalled:
    """The journal is on disk, or could not be written: then `error` says why."""

    error: str = ""


@dataclass(frozen=True, slots=True)
class AppJoined:
    """An application has connected."""

    app: int


@dataclass(frozen=True, slots=True)
class AppSaid:
    """An application asks for something."""

    app: int
    request: Request


@dataclass(frozen=True, slots=True)
class AppLeft:
    """An application is gone."""

    app: int


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Somebody wants the agent to end."""


Event = (
    Started
    | Tick
    | ConfigFetched
    | ConfigFailed
    | Connected
    | Subscribed
    | Disconnected
    | Arrived
    | Sent
    | Journalled
    | AppJoined
    | AppSaid
    | AppLeft
    | StopRequested
)
