"""What every engine does, whatever moves the packets: `broker.cli` drives it, one contract suite tests it.

An engine interprets or compiles the rules of `fleet.policy`; one that cannot express a rule refuses to start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from broker.directory import Change, Directory
from broker.trust import ClientTrust, Trust
from fleet.config import Address
from fleet.identity import Principal, Serial
from fleet.limits import Limits
from fleet.policy import Action, Policy


@dataclass(frozen=True, slots=True)
class Listener:
    """Where clients connect (port 0: any free one), and what they may take."""

    address: Address
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class Client:
    """One live connection that was let in."""

    client_id: str
    principal: Principal
    serial: Serial
    peer: str


class Reason(StrEnum):
    """Why a connection was refused or ended."""

    HANDSHAKE = "handshake"
    TOO_SLOW = "too-slow"
    TOO_MANY_CONNECTIONS = "too-many-connections"
    TOO_MANY_CONNECTS = "too-many-connects"
    RESUMED = "resumed-tls-session"
    WRONG_ISSUER = "wrong-issuer"
    BAD_NAME = "bad-common-name"
    NOT_ADMITTED = "not-in-directory"
    STALE_DIRECTORY = "directory-too-old"
    FOREIGN_CLIENT_ID = "foreign-client-id"
    NO_CLIENT_ID = "no-client-id"
    WILL_DENIED = "will-denied"
    WRONG_VERSION = "wrong-protocol-version"
    PROTOCOL = "protocol-violation"
    PUBLISH_DENIED = "publish-denied"
    TOO_MANY_DENIALS = "too-many-denials"
    TOO_MANY_RETAINED = "too-many-retained"
    TOO_FAST = "too-fast"
    DISCONNECTED = "disconnected"
    LOST = "connection-lost"
    KEEPALIVE = "keepalive"
    TAKEN_OVER = "taken-over"
    EXPIRED = "certificate-expired"
    NOT_READING = "not-reading"
    STOPPED = "broker-stopped"
    NOT_STORED = "not-stored"
    REVOKED = "revoked"
    SUSPENDED = "suspended"
    REMOVED = "removed"
    SUPERSEDED = "superseded"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Connected:
    """A client was let in."""

    client: Client
    session_present: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """A connection ended before its client was let in. `name` is the certificate's common name, where one was shown."""

    peer: str
    reason: Reason
    name: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """A client that was let in is gone."""

    client: Client
    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Denied:
    """A client tried what the rules do not allow; `count` is how often it has in this connection."""

    client: Client
    action: Action
    topic: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Slowed:
    """A client sends faster than it may: from now on it is read as fast as it may."""

    client: Client


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """What has to be on disk cannot be put there: nobody is promised anything until it can."""

    reason: str


@dataclass(frozen=True, slots=True)
class StoreRecovered:
    """The disk takes what it is given again."""


@dataclass(frozen=True, slots=True)
class StoreDamaged:
    """The file of sessions was damaged and is kept aside; a new one was begun with what is in memory."""

    kept_at: str
    reason: str


@dataclass(frozen=True, slots=True)
class Restored:
    """What was found on disk: taken over, and what the directory and the rules no longer allow."""

    sessions: int
    messages: int
    retained: int
    refused_sessions: int
    refused_subscriptions: int
    refused_retained: int


@dataclass(frozen=True, slots=True)
class MessagesLost:
    """Messages of one session, or retained ones, that were kept and were not what was written: they are dropped."""

    client_id: str
    count: int


@dataclass(frozen=True, slots=True)
class SessionsExpired:
    """Sessions whose clients were away for too long."""

    count: int


StoreEvent = StoreFailed | StoreRecovered | StoreDamaged | Restored | MessagesLost | SessionsExpired
Event = Connected | Refused | Disconnected | Denied | Slowed | StoreEvent


@dataclass(slots=True)
class Stats:
    """What is there now, and what was counted since the start. Messages are PUBLISH, packets are of any type."""

    pending: int = 0  # connections that were not let in yet
    connections: int = 0
    sessions: int = 0
    subscriptions: int = 0
    retained: int = 0
    retained_bytes: int = 0
    queued: int = 0
    queued_bytes: int = 0
    deepest_queue: int = 0
    inflight: int = 0

    accepted: int = 0
    packets_received: int = 0
    packets_sent: int = 0
    bytes_received: int = 0  # of MQTT: without TLS
    bytes_sent: int = 0
    messages_received: int = 0
    messages_sent: int = 0
    messages_dropped: int = 0
    sessions_expired: int = 0
    store_commits: int = 0
    store_failures: int = 0
    store_failing: int = 0  # 1 while what has to be on disk cannot be put there
    denied: int = 0
    slowed: int = 0
    refused: Counter[Reason] = field(default_factory=Counter)
    ended: Counter[Reason] = field(default_factory=Counter)

    def copy(self) -> Stats:
        """As it is now, whatever is counted later."""
        return replace(self, refused=self.refused.copy(), ended=self.ended.copy())


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do beyond the least."""

    cuts_by_serial: bool
    sessions_outlive_restart: bool


@dataclass(frozen=True, slots=True)
class Rules:
    """By what an engine decides: who may connect, and then what.

    `look_up` asks the service for a serial that the directory does not list, and puts what it finds into `directory`.
    While `is_fresh` says no, only roles that command nobody may connect (DESIGN section 11).
    """

    policy: Policy
    directory: Directory
    look_up: Callable[[Serial], Awaitable[None]]
    is_fresh: Callable[[], bool]


class Engine(Protocol):
    """One broker. Methods are called from its event loop."""

    @property
    def capabilities(self) -> Capabilities: ...

    async def start(self, listener: Listener, trust: Trust, rules: Rules, observe: Callable[[Event], None]) -> Address:
        """Accept connections; the address with its real port. Raises: FleetError."""

    async def wait_ready(self, good: ClientTrust, revoked: ClientTrust | None) -> None:
        """Return once a client of ours got in by mutual TLS and CONNECT, and one of ours that is revoked did not.

        Raises: FleetError.
        """

    async def stop(self) -> None:
        """End every connection and accept no more."""

    async def replace_trust(self, trust: Trust) -> None:
        """Take `trust`, verified already, for every connection from now on; live ones go on."""

    def apply(self, change: Change) -> None:
        """Follow a change of the directory: cut whom it no longer admits, fire no will, say that it is offline."""

    async def disconnect(self, target: Principal | Serial, reason: Reason) -> int:
        """End every connection of a principal or a serial; how many there were. Again is no error."""

    def clients(self) -> tuple[Client, ...]:
        """Who is connected."""

    def show(self, read_counters: Callable[[], Mapping[str, str]]) -> None:
        """From now on, whoever subscribes to topics under `$SYS/` gets what `read_counters` gives by topic.

        At once, and every 10 s what has changed. An engine that has such topics of its own may leave it at that.
        """

    def announce(self, boot: str) -> None:
        """From now on, whoever subscribes to `$SYS/sessions/#` hears of sessions (`fleet.sessions`).

        `boot` names this start. An engine that cannot leaves it: then what devices say of themselves is all there is.
        """

    def stats(self) -> Stats:
        """The counters now."""


Clock = Callable[[], datetime]
"""The time, in UTC."""
