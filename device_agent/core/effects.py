"""What the core wants done; `runner` performs it, in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from device_agent.journal import Journal
from device_agent.outbox import Class, Losses, Outgoing
from device_agent.shadow import Shadow
from fleet.address import Address
from fleet.uploads import Order


@dataclass(frozen=True, slots=True)
class FetchConfig:
    """Ask the enrollment service where the brokers are."""


@dataclass(frozen=True, slots=True)
class Connect:
    """Begin a connection; the one before is over, or is abandoned."""

    epoch: int
    broker: Address
    will: Outgoing
    keepalive_seconds: int = 60


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Ask for these, with QoS 1."""

    epoch: int
    topic_filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Publish:
    """Send it on that connection."""

    epoch: int
    message: Outgoing


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Tell the broker that a message need not come again."""

    epoch: int
    mid: int
    qos: int


@dataclass(frozen=True, slots=True)
class Verify:
    """Look at the signature of a message that came on `topic`; `Verified` with that number comes of it.

    Unless a message of a later connection than `epoch` comes to be looked at before.
    """

    number: int
    topic: str
    payload: bytes = field(repr=False)
    now: datetime
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Send DISCONNECT and close, if that connection is still there."""

    epoch: int


@dataclass(frozen=True, slots=True)
class SaveJournal:
    """Write it, durably; `Journalled` is the next event."""

    journal: Journal


@dataclass(frozen=True, slots=True)
class SaveShadow:
    """Write it, durably, before anything that is ordered later; `ShadowSaved` is the next event."""

    shadow: Shadow


@dataclass(frozen=True, slots=True)
class OpenSpool:
    """Find out what is on disk; `SpoolOpened` or `SpoolFailed` is the next event."""


@dataclass(frozen=True, slots=True)
class Row:
    """One message for the disk. `upto_bytes` counts what its class has ever written, this row included.

    `at_second` is by the spool's own clock, which runs while the agent does: an age cannot jump with the clock on the
    wall.
    """

    kind: Class
    number: int
    at_second: int
    upto_bytes: int
    message: Outgoing


@dataclass(frozen=True, slots=True)
class Removal:
    """The broker has all of that class up to row `upto`, and these rows after it."""

    kind: Class
    upto: int
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Trim:
    """Drop the oldest after row `after`: all that were written before `before_second`, and `excess_bytes` at least."""

    kind: Class
    after: int
    before_second: int
    excess_bytes: int


@dataclass(frozen=True, slots=True)
class WriteSpool:
    """All of this in one transaction, durably; `SpoolWritten`, `SpoolOpened` or `SpoolFailed` is the next event.

    `losses`: what the fleet has not been told of yet; what is trimmed is added.
    """

    rows: tuple[Row, ...]
    removals: tuple[Removal, ...]
    trims: tuple[Trim, ...]
    losses: Losses


@dataclass(frozen=True, slots=True)
class ReadSpool:
    """The oldest of that class after row `after`; `SpoolRead`, `SpoolOpened` or `SpoolFailed` is the next event."""

    kind: Class
    after: int
    max_messages: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Renew:
    """Make a successor of the certificate in use.

    `is_paced`: do not ask whether it is this device's turn. `is_fresh`: not one that was made before.
    `SuccessorReady`, `RenewalPutOff` or `RenewalFailed` comes of it.
    """

    is_paced: bool
    is_fresh: bool


@dataclass(frozen=True, slots=True)
class UseSuccessor:
    """Make connections with it from now on; `IdentityChanged` is the next event."""


@dataclass(frozen=True, slots=True)
class UsePredecessor:
    """Go back to the certificate before; `IdentityChanged` is the next event."""


@dataclass(frozen=True, slots=True)
class Confirm:
    """Tell the service that the certificate is in use; `Confirmed` or `ConfirmationFailed` comes of it."""


@dataclass(frozen=True, slots=True)
class ForgetPredecessor:
    """Remove what came before the certificate in use."""


@dataclass(frozen=True, slots=True)
class Upload:
    """Send the fleet what it has asked for, till `until` (monotonic); `UploadEnded` comes of it."""

    command_id: str
    order: Order
    until: float


@dataclass(frozen=True, slots=True)
class Tell:
    """One line to one application."""

    app: int
    line: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class AnnounceReady:
    """Print the ready line."""


@dataclass(frozen=True, slots=True)
class Log:
    """One line for the log: a constant name and fields."""

    level: int
    name: str
    fields: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True, slots=True)
class Exit:
    """All is done."""


Effect = (
    FetchConfig
    | Connect
    | Subscribe
    | Publish
    | Acknowledge
    | Verify
    | Disconnect
    | SaveJournal
    | SaveShadow
    | OpenSpool
    | WriteSpool
    | ReadSpool
    | Renew
    | UseSuccessor
    | UsePredecessor
    | Confirm
    | ForgetPredecessor
    | Upload
    | Tell
    | AnnounceReady
    | Log
    | Exit
)

SpoolOrder = OpenSpool | WriteSpool | ReadSpool
RenewalOrder = Renew | UseSuccessor | UsePredecessor | Confirm | ForgetPredecessor
