"""What the core wants done; `runner` performs it, in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from device_agent.journal import Journal
from device_agent.outbox import Outgoing
from fleet.config import Address


@dataclass(frozen=True, slots=True)
class FetchConfig:
    """Ask the enrollment service where the brokers are."""


@dataclass(frozen=True, slots=True)
class Connect:
    """Begin a connection; the one before is over, or is abandoned."""

    epoch: int
    broker: Address
    will: Outgoing


@dataclass(frozen=True, slots=True)
class Subscribe:
    epoch: int
    topic_filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Publish:
    epoch: int
    message: Outgoing


@dataclass(frozen=True, slots=True)
class Acknowledge:
    epoch: int
    mid: int
    qos: int


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Send DISCONNECT and close, if that connection is still there."""

    epoch: int


@dataclass(frozen=True, slots=True)
class SaveJournal:
    """Write it, durably; `Journalled` is the next event."""

    journal: Journal


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
    | Disconnect
    | SaveJournal
    | Tell
    | AnnounceReady
    | Log
    | Exit
)
