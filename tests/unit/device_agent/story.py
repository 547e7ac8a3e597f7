"""What the core's tests share: literal settings and moments, and a driver that applies events one after the other."""

from __future__ import annotations

import shutil
import weakref
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import mkdtemp
from typing import TypeVar

from device_agent.clock import Moment
from device_agent.core.effects import Effect, OpenSpool, Publish, ReadSpool, SaveJournal, SaveShadow, WriteSpool
from device_agent.core.events import (
    AppJoined,
    AppSaid,
    Arrived,
    ConfigFetched,
    Connected,
    Event,
    Journalled,
    Sent,
    ShadowSaved,
    SpoolFailed,
    Started,
    Subscribed,
)
from device_agent.core.state import Settings, State, initial
from device_agent.core.step import step
from device_agent.journal import Journal
from device_agent.requests import Register
from device_agent.spool import SpoolFile
from fleet.config import Address
from fleet.identity import DeviceId, Serial
from fleet.layout import AgentHome
from fleet.messages import CommandMessage
from fleet.topics import Command

PUMP = DeviceId("pump-07")
START = datetime(2026, 11, 21, 8, tzinfo=UTC)
SETTINGS = Settings(PUMP, Serial("5f"), START, START + timedelta(days=90), "boot-1", "0.1.0")
GATEWAY = Address("gateway.local", 8883)
SPARE = Address("spare.local", 8883)

_E = TypeVar("_E")


@dataclass
class Story:
    """One run of the core. Every effect is kept; the journal is 'written' as the runner would write it."""

    brokers: tuple[Address, ...] = (GATEWAY,)
    journal: Journal = field(default_factory=Journal)
    seconds: float = 0.0
    chance: float = 0.5
    disk_error: str = ""
    effects: list[Effect] = field(default_factory=list)
    state: State = field(init=False)
    settings: Settings = SETTINGS
    folder: str = field(default_factory=mkdtemp)
    spool: SpoolFile = field(init=False)

    def __post_init__(self) -> None:
        self.spool = SpoolFile(AgentHome(Path(self.folder)), PUMP)
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.state = initial(self.settings, self.brokers, self.journal)

    def now(self) -> Moment:
        return Moment(self.seconds, START + timedelta(seconds=self.seconds), self.chance)

    def feed(self, *events: Event) -> list[Effect]:
        """The effects of these events, in their order."""
        before = len(self.effects)
        for event in events:
            self._feed_one(event)
        return self.effects[before:]

    def _feed_one(self, event: Event) -> None:
        self.state, effects = step(self.state, event, self.now())
        self.effects += effects
        for effect in effects:
            match effect:
                case SaveJournal():
                    self._feed_one(Journalled(self.disk_error))
                case SaveShadow():
                    self._feed_one(ShadowSaved(self.disk_error))
                case OpenSpool() | WriteSpool() | ReadSpool():
                    self._feed_one(self.spool.perform(effect) if not self.disk_error else SpoolFailed(self.disk_error))

    def go_online(self) -> list[Effect]:
        """From the beginning, or from a pause, to a connection that is ready; everything sent is confirmed."""
        effects = self.feed(Started()) if self.state.epoch == 0 else []
        effects += self.feed(Connected(self.state.epoch, False), Subscribed(self.state.epoch))
        self.confirm_all()
        return effects

    def confirm_all(self) -> None:
        """The broker acknowledges whatever is in flight."""
        while self.state.outbox.in_flight:
            self.feed(Sent(self.state.epoch, self.state.outbox.in_flight[0].handle))

    def application(self, *commands: str, number: int = 1) -> list[Effect]:
        """An application connects and registers."""
        return self.feed(AppJoined(number), AppSaid(number, Register("control", commands)))

    def command(self, command_id: str, name: str = "echo", seconds_left: float = 60.0, mid: int = 7) -> list[Effect]:
        """A command arrives."""
        now = self.now().utc
        message = CommandMessage(PUMP, now, now + timedelta(seconds=seconds_left), {"say": "hi"})
        topic = Command(PUMP, name, command_id).format()
        return self.feed(Arrived(self.state.epoch, mid, topic, message.encode()))


def of_kind(effects: list[Effect], kind: type[_E]) -> list[_E]:
    """The effects of one kind."""
    return [effect for effect in effects if isinstance(effect, kind)]


def published(effects: list[Effect]) -> list[tuple[str, bytes]]:
    """Topic below the device's own, and payload, of all that was published."""
    prefix = f"devices/{PUMP}/up/"
    return [(e.message.topic.removeprefix(prefix), e.message.payload) for e in of_kind(effects, Publish)]


FETCHED = ConfigFetched((GATEWAY,))
