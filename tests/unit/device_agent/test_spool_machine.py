"""The spool under any order of events, kills and restarts, with the real file: what must hold after every one."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from device_agent.core.connection import GOODBYE_SECONDS
from device_agent.core.effects import Effect, Publish
from device_agent.core.events import (
    AppJoined,
    AppSaid,
    ConfigFetched,
    Connected,
    Disconnected,
    Sent,
    Started,
    StopRequested,
    Subscribed,
    Tick,
)
from device_agent.core.spooling import CONFIRMED_SECONDS, FLUSH_SECONDS
from device_agent.core.state import Stopped, Stopping, Waiting
from device_agent.core.step import next_deadline
from device_agent.failures import Cause, Failure
from device_agent.outbox import MAX_MESSAGES, WINDOW
from device_agent.requests import PublishEvent, PublishTelemetry
from tests.unit.device_agent.story import GATEWAY, SETTINGS, Story

_LOST = Failure(Cause.LOST)


@dataclass
class Accepted:
    """One message as the firmware gave it. `is_safe`: it must outlive a power cut."""

    stream: str
    number: int
    at: float
    is_safe: bool = False
    confirmed_at: float | None = None
    is_recorded: bool = False
    deliveries: int = 0


class Device(RuleBasedStateMachine):
    """A device whose network and power come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.story = Story()
        self.boots = 0
        self.messages: list[Accepted] = []
        self.last_in_epoch: dict[tuple[int, str], int] = {}
        self.check(self.story.feed(Started(), AppJoined(1)))

    def teardown(self) -> None:
        """Whatever happened: online and confirmed, everything that is safe has arrived, in its order."""
        self.the_power_goes()
        self.the_network_comes()
        for _ in range(len(self.messages) + 100):
            if not self.story.state.outbox.in_flight:
                break
            self.the_broker_confirms(0)
        arrived = [each for each in self.messages if each.deliveries]
        assert [] == [each for each in self.messages if each.is_safe and not each.deliveries]
        assert all(each.confirmed_at is not None for each in arrived if each.is_safe)
        assert 0 == self.story.state.spool.unloaded
        self.story.spool.close()

    def check(self, effects: list[Effect]) -> None:
        """What is published is in order, within a connection and a stream, and never what is known to have arrived."""
        for effect in effects:
            if isinstance(effect, Publish) and (found := self.find(effect.message.payload)):
                key = (effect.epoch, found.stream)
                assert found.number > self.last_in_epoch.get(key, -1), "a stream was published out of order"
                assert not found.is_recorded, "what was confirmed before the restart was sent again"
                self.last_in_epoch[key] = found.number
                found.deliveries += 1

    def find(self, payload: bytes) -> Accepted | None:
        data = json.loads(payload).get("data")
        return self.messages[data["n"]] if isinstance(data, dict) and "n" in data else None

    def settle(self) -> None:
        """The timers that are due have fired; what follows from it for a power cut."""
        for _ in range(10):
            deadline = next_deadline(self.story.state)
            if deadline is None or deadline > self.story.seconds:
                break
            self.check(self.story.feed(Tick()))
        else:
            raise AssertionError("a timer fires for ever")
        for each in self.messages:
            each.is_safe |= self.story.seconds - each.at >= FLUSH_SECONDS and each.confirmed_at is None
            if each.confirmed_at is not None and self.story.seconds - each.confirmed_at >= CONFIRMED_SECONDS:
                each.is_recorded = True

    @rule(stream=st.sampled_from(["a", "b", "door"]), count=st.sampled_from([1, 3, 60]), qos=st.integers(0, 1))
    def the_firmware_measures(self, stream: str, count: int, qos: int) -> None:
        for _ in range(count):
            number = len(self.messages)
            self.messages.append(Accepted(stream, number, self.story.seconds))
            data = {"n": number}
            request = PublishEvent(stream, data) if stream == "door" else PublishTelemetry(stream, data, qos)
            self.check(self.story.feed(AppSaid(1, request)))
        self.settle()

    @rule(seconds=st.sampled_from([0.3, 1.0, 2.0, 5.0, 200.0]))
    def time_passes(self, seconds: float) -> None:
        self.story.seconds += seconds
        self.settle()

    @precondition(lambda self: not self.story.state.is_online)
    @rule()
    def the_network_comes(self) -> None:
        if isinstance(self.story.state.link, Waiting):
            self.story.seconds += 200
            self.settle()
        self.check(self.story.feed(ConfigFetched((GATEWAY,))))
        state = self.story.state
        self.check(self.story.feed(Connected(state.epoch, True), Subscribed(state.epoch)))
        assert self.story.state.is_online

    @precondition(lambda self: self.story.state.is_online)
    @rule()
    def the_network_goes(self) -> None:
        self.check(self.story.feed(Disconnected(self.story.state.epoch, _LOST)))
        self.settle()

    @precondition(lambda self: self.story.state.is_online)
    @rule(at=st.integers(0, WINDOW - 1))
    def the_broker_confirms(self, at: int) -> None:
        """In any order, as a careless broker would."""
        in_flight = self.story.state.outbox.in_flight
        if in_flight:
            message = in_flight[at % len(in_flight)]
            if found := self.find(message.payload):
                found.confirmed_at = self.story.seconds
            self.check(self.story.feed(Sent(self.story.state.epoch, message.handle)))
        self.settle()

    @precondition(lambda self: self.story.state.is_online)
    @rule(count=st.integers(1, 40))
    def the_broker_confirms_many(self, count: int) -> None:
        for _ in range(count):
            self.the_broker_confirms(0)

    @rule()
    def the_power_goes(self) -> None:
        """What is in memory is gone: firmware that was not on disk is no loss that anybody promised to prevent."""
        for each in self.messages:
            if not (each.is_safe if each.confirmed_at is None else each.is_recorded):
                # It may come, or come again; it need not.
                each.at, each.confirmed_at, each.is_safe = float("inf"), None, False
        self.start(kill=True)

    @rule()
    def somebody_restarts_it(self) -> None:
        self.check(self.story.feed(StopRequested()))
        if isinstance(self.story.state.link, Stopping):
            self.story.seconds += GOODBYE_SECONDS
            self.check(self.story.feed(Tick()))
        assert isinstance(self.story.state.link, Stopped)
        for each in self.messages:
            each.is_recorded |= each.confirmed_at is not None
            each.is_safe |= each.confirmed_at is None and each.at != float("inf")
        self.start(kill=False)

    def start(self, *, kill: bool) -> None:
        self.boots += 1
        old, seconds = self.story, self.story.seconds
        fresh = Story(settings=replace(SETTINGS, boot=f"boot-{self.boots + 1}"))
        for path in Path(old.folder).iterdir():  # what a killed process leaves: the files, and no goodbye
            shutil.copy2(path, fresh.folder)
        old.spool.close()
        fresh.seconds = seconds
        fresh.effects = []
        self.story, self.last_in_epoch = fresh, {}
        self.check(self.story.feed(Started(), AppJoined(1)))
        self.settle()

    @invariant()
    def memory_is_bounded(self) -> None:
        assert len(self.story.state.outbox.waiting) <= MAX_MESSAGES
        assert len(self.story.state.outbox.in_flight) <= WINDOW
        assert 0 == self.story.state.spool.dropped.total

    @invariant()
    def the_count_of_what_is_not_on_disk_is_right(self) -> None:
        """A wrong count would leave messages in memory for ever, or write for ever."""
        outbox = self.story.state.outbox
        assert len(outbox.unspooled_messages()) == outbox.unspooled

    @invariant()
    def ids_are_unique(self) -> None:
        ids = [(f["boot"], f["seq"]) for f in (json.loads(m.payload) for m in self.story.state.outbox.in_flight)]
        assert len(set(ids)) == len(ids)


TestDevice = Device.TestCase
TestDevice.settings = settings(stateful_step_count=30, max_examples=40)
