"""What happens to the agent. An event of one connection carries its epoch; of an earlier one it changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from device_agent.core.shelf import EMPTY, Shelf
from device_agent.failures import Failure
from device_agent.outbox import NO_LOSSES, Class, Losses
from device_agent.renewal import Life, Problem
from device_agent.requests import Request
from device_agent.verdicts import Trust, Verdict
from fleet.address import Address
from fleet.messages import JsonObject


@dataclass(frozen=True, slots=True)
class Started:
    """The agent begins."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The time that `next_deadline` named has come, or any other."""


@dataclass(frozen=True, slots=True)
class ConfigFetched:
    """The enrollment service named the brokers, and who signs: `trust` is None where nobody looked."""

    brokers: tuple[Address, ...]
    trust: Trust | None = None
    key_ids: tuple[str, ...] = ()


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
class Verified:
    """Somebody has looked at the signature of a message, or could not: then `detail` says why."""

    number: int
    verdict: Verdict
    detail: str = ""


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
class ShadowSaved:
    """The state of the device is on disk, or could not be written: then `error` says why."""

    error: str = ""


@dataclass(frozen=True, slots=True)
class StorageChanged:
    """The file system of the home takes no more writing, or takes it again."""

    is_read_only: bool


@dataclass(frozen=True, slots=True)
class SpoolOpened:
    """What is on disk. `problem`: the spool that was there was damaged and is kept aside; this one is new."""

    telemetry: Shelf = EMPTY
    alarms: Shelf = EMPTY
    second: int = 0
    losses: Losses = NO_LOSSES
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Trimmed:
    """So many of the oldest of a class were dropped, up to row `upto`."""

    kind: Class
    upto: int
    count: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SpoolWritten:
    """All that was ordered is on disk, and what had to be dropped is not."""

    trimmed: tuple[Trimmed, ...] = ()


@dataclass(frozen=True, slots=True)
class Stored:
    """One message as it was read."""

    row: int
    topic: str
    payload: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SpoolRead:
    """A page of messages: they reach up to row `upto`, and `damaged` rows among them could not be read."""

    kind: Class
    messages: tuple[Stored, ...]
    upto: int
    damaged: int = 0


@dataclass(frozen=True, slots=True)
class SpoolFailed:
    """The disk did not do what was ordered, and may later."""

    error: str


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
class SuccessorReady:
    """There is a certificate that service and broker take; the present one is in use still."""

    life: Life


@dataclass(frozen=True, slots=True)
class RenewalPutOff:
    """It is not this device's turn to renew."""

    wait_seconds: float


@dataclass(frozen=True, slots=True)
class RenewalFailed:
    """There is no successor, or it is not taken."""

    problem: Problem


@dataclass(frozen=True, slots=True)
class IdentityChanged:
    """From now on connections are made with this certificate; with `error` they are not."""

    life: Life
    error: str = ""


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The service knows that the certificate is in use."""


@dataclass(frozen=True, slots=True)
class ConfirmationFailed:
    """It could not be told."""

    problem: Problem


@dataclass(frozen=True, slots=True)
class UploadEnded:
    """The service has it; or, with `error`, it will not be sent."""

    command_id: str
    output: JsonObject | None = None
    error: str = ""


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
    | Verified
    | Sent
    | Journalled
    | ShadowSaved
    | StorageChanged
    | SpoolOpened
    | SpoolWritten
    | SpoolRead
    | SpoolFailed
    | AppJoined
    | AppSaid
    | AppLeft
    | SuccessorReady
    | RenewalPutOff
    | RenewalFailed
    | IdentityChanged
    | Confirmed
    | ConfirmationFailed
    | UploadEnded
    | StopRequested
)

RenewalEvent = SuccessorReady | RenewalPutOff | RenewalFailed | IdentityChanged | Confirmed | ConfirmationFailed
