"""All that the agent knows, as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from device_agent.clock import Moment
from device_agent.core.effects import Acknowledge
from device_agent.core.events import Arrived
from device_agent.core.shelf import DEFAULT_BOUNDS, NEVER, Bounds, Spool
from device_agent.failures import Failure
from device_agent.journal import Journal
from device_agent.outbox import Class, Outbox, Outgoing
from device_agent.renewal import Life, Problem
from device_agent.shadow import Shadow
from device_agent.verdicts import Trust, Verdict
from fleet.address import Address
from fleet.arguments import Schema
from fleet.catalogue import Catalogue
from fleet.identity import DeviceId, Serial
from fleet.messages import Envelope, JsonObject, encode_object
from fleet.topics import Event


@dataclass(frozen=True, slots=True)
class Settings:
    """What does not change while the agent runs, but for the certificate."""

    device: DeviceId
    serial: Serial
    not_before: datetime
    not_after: datetime
    boot: str
    version: str
    keepalive_seconds: int = 60
    bounds: Bounds = DEFAULT_BOUNDS
    hardware: str = ""  # the machine's serial number, where it has one

    @property
    def life(self) -> Life:
        return Life(self.serial, self.not_before, self.not_after)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A pause before the next attempt."""

    until: float


@dataclass(frozen=True, slots=True)
class Fetching:
    """The service is asked where the brokers are."""

    until: float


@dataclass(frozen=True, slots=True)
class Connecting:
    """CONNECT is on its way."""

    epoch: int
    broker: Address
    until: float


@dataclass(frozen=True, slots=True)
class Subscribing:
    """SUBSCRIBE is on its way."""

    epoch: int
    broker: Address
    until: float
    session_present: bool


@dataclass(frozen=True, slots=True)
class Online:
    """Connected and subscribed."""

    epoch: int
    broker: Address
    since: float
    since_utc: datetime
    session_present: bool


@dataclass(frozen=True, slots=True)
class Stopping:
    """The farewell with `handle` is on its way."""

    epoch: int
    handle: int
    until: float


@dataclass(frozen=True, slots=True)
class Stopped:
    """The end."""


Link = Waiting | Fetching | Connecting | Subscribing | Online | Stopping | Stopped


@dataclass(frozen=True, slots=True)
class App:
    """A connected application; `rank` grows with each registration, and the highest that has a name gets it."""

    number: int
    name: str = ""
    commands: tuple[str, ...] = ()
    rank: int = 0
    schemas: Mapping[str, Schema] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Declared:
    """What an application of that name has said that it takes."""

    app: str
    commands: Catalogue


class Stage(StrEnum):
    """How far a renewal is."""

    IDLE = "idle"
    PREPARING = "preparing"  # a successor is being made
    TRYING = "trying"  # it is in use, and no connection has come about with it yet
    FALLING_BACK = "falling-back"  # it is not taken: the one before is put into use again


@dataclass(frozen=True, slots=True)
class Renewal:
    """The certificate's renewal. `look_at`, `confirm_at`: when to see to it (monotonic).

    `is_asked`: somebody wants it now, whatever its time. `problem` is why the last attempt failed, and `failures` how
    many did in a row; `done` and `failed` count for as long as the agent runs.
    """

    stage: Stage = Stage.IDLE
    look_at: float = 0.0
    confirm_at: float = NEVER
    is_asked: bool = False
    is_paced: bool = False
    is_fresh: bool = False
    failures: int = 0
    refusals: int = 0
    problem: Problem | None = None
    failed_at: datetime | None = None
    confirm_failures: int = 0
    is_alarmed: bool = False
    done: int = 0
    failed: int = 0
    askers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Held:
    """A message whose signature is not known to be good. `retry_at`: when to look again (monotonic).

    `is_asking`: the service has to say first who signs.
    """

    number: int
    arrived: Arrived
    is_asking: bool = False
    attempts: int = 0
    retry_at: float = NEVER


@dataclass(frozen=True, slots=True)
class Asking:
    """The service is asked who signs. `until`: an answer comes till then; `again_at`: when to try again (monotonic).

    `fruitless` answers in a row named no new key, so until `refuses_until` it is not asked for another.
    """

    until: float = NEVER
    again_at: float = NEVER
    failures: int = 0
    fruitless: int = 0
    refuses_until: float = 0.0


@dataclass(frozen=True, slots=True)
class Greeting:
    """Hello is said again, for what could not be looked at: at `due_at`; it was at `said_at` (monotonic), so often."""

    due_at: float = NEVER
    said_at: float = -NEVER
    count: int = 0


@dataclass(frozen=True, slots=True)
class Downlink:
    """What is believed of what comes down. `refused`, `verified` count for as long as the agent runs.

    `last`: the topic of what was refused last, why, and when. `problem`: why nobody can look at signatures, if so.
    """

    trust: Trust = Trust.UNSIGNED
    key_ids: tuple[str, ...] = ()
    held: tuple[Held, ...] = ()
    numbers: int = 0
    asking: Asking = Asking()
    greeting: Greeting = Greeting()
    verified: int = 0
    refused: int = 0
    last: tuple[str, Verdict, datetime] | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Shadowing:
    """What the device is to be and is. When it is to be written and said, and was (monotonic).

    `attempts` to tell the fleet had no answer yet; `error` is why it could not be written.
    """

    shadow: Shadow = field(default_factory=Shadow)
    save_at: float = NEVER
    saved_at: float = -NEVER
    say_at: float = NEVER
    said_at: float = -NEVER
    attempts: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """All that the agent knows. `tried`: brokers that failed since their addresses were last asked for.

    `tell_commands_at`, `told_commands_at`: when the fleet is, and was, told what is `declared` (monotonic).

    `ask_again_at`: when what applications asked of renewals will have been one a minute (monotonic).

    `is_read_only`: nothing can be written down.
    """

    settings: Settings
    link: Link = Waiting(0.0)
    epoch: int = 0
    brokers: tuple[Address, ...] = ()
    broker_at: int = 0
    tried: int = 0
    failures: int = 0
    short_lives: int = 0
    spread_seconds: float = 0.0
    failure: Failure | None = None
    failed_at: datetime | None = None
    was_ready: bool = False
    outbox: Outbox = field(default_factory=Outbox)
    spool: Spool = field(default_factory=Spool)
    journal: Journal = field(default_factory=Journal)
    save_journal_at: float = NEVER
    unacknowledged: tuple[Acknowledge, ...] = ()
    apps: tuple[App, ...] = ()
    applications_expected_until: float = 0.0
    declared: tuple[Declared, ...] = ()
    tell_commands_at: float = NEVER
    told_commands_at: float = -NEVER
    registrations: int = 0
    handles: int = 0
    seq: int = 0
    set_aside: int = 0
    ask_again_at: float = 0.0
    renewal: Renewal = field(default_factory=Renewal)
    downlink: Downlink = field(default_factory=Downlink)
    shadowing: Shadowing = field(default_factory=Shadowing)
    is_read_only: bool = False

    @property
    def is_online(self) -> bool:
        return isinstance(self.link, Online)

    def owner_of(self, command: str) -> App | None:
        """The application that registered the command last."""
        takers = [app for app in self.apps if command in app.commands]
        return max(takers, key=lambda app: app.rank, default=None)

    def envelope(self, moment: Moment) -> tuple[State, Envelope]:
        """The envelope of the next up-link message."""
        envelope = Envelope(self.settings.device, moment.utc, self.settings.boot, self.seq)
        return replace(self, seq=self.seq + 1), envelope

    def queue(
        self, kind: Class, topic: str, payload: bytes, qos: int = 1, command_id: str = "", accepted: float = 0.0
    ) -> State:
        """With one more message in the outbox."""
        message = Outgoing(self.handles, kind, topic, payload, qos, kind is Class.PRESENCE, command_id, accepted)
        return replace(self, handles=self.handles + 1, outbox=self.outbox.put(message))

    def tell_fleet(self, kind: str, data: JsonObject, moment: Moment) -> State:
        """With one more event of the agent's own; it outlives an outage as every event does."""
        state, envelope = self.envelope(moment)
        payload = encode_object(envelope.fields() | {"data": data})
        topic = Event(self.settings.device, kind).format()
        return state.queue(Class.ALARM, topic, payload, accepted=moment.monotonic)


def initial(
    settings: Settings,
    brokers: tuple[Address, ...],
    journal: Journal,
    *,
    has_predecessor: bool = False,
    downlink: Downlink | None = None,
    shadow: Shadow | None = None,
) -> State:
    """The state before `Started`. `has_predecessor`: the certificate in use was not confirmed in an earlier run."""
    renewal = Renewal(Stage.TRYING if has_predecessor else Stage.IDLE)
    spool = Spool(bounds=settings.bounds)
    return State(
        settings,
        brokers=brokers,
        journal=journal,
        spool=spool,
        renewal=renewal,
        downlink=downlink or Downlink(),
        shadowing=Shadowing(shadow or Shadow()),
    )
