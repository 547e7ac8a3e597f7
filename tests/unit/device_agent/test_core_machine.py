"""The core under any order of events: what must hold after every single one."""

from __future__ import annotations

import json

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from device_agent.core.effects import Acknowledge, Connect, Effect, Exit, Publish, SaveJournal, Tell
from device_agent.core.events import (
    AppJoined,
    AppLeft,
    AppSaid,
    ConfigFailed,
    ConfigFetched,
    Connected,
    Disconnected,
    Sent,
    Started,
    StopRequested,
    Subscribed,
    Tick,
)
from device_agent.core.report import status_line
from device_agent.core.state import Online, Stopped, Stopping, Waiting
from device_agent.core.step import next_deadline
from device_agent.failures import Cause, Failure
from device_agent.journal import Journal, Phase, decode_journal
from device_agent.outbox import WINDOW
from device_agent.requests import AskStatus, PublishEvent, PublishTelemetry, Register, ReportResult
from fleet import messages
from fleet.messages import ResultState
from tests.unit.device_agent.story import GATEWAY, SPARE, Story, of_kind

_IDS = st.sampled_from([f"c{number}" for number in range(5)])
_NAMES = st.sampled_from(["echo", "open-valve"])
_APPS = st.integers(1, 2)
_CAUSES = st.sampled_from(list(Cause))


class Agent(RuleBasedStateMachine):
    """One device with a flaky network, flaky firmware, a flaky disk and power cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.story = Story()
        self.told: set[str] = set()
        self.disk = Journal()
        self.sequence: list[int] = []
        self.mids = 0

    @initialize(has_broker=st.booleans())
    def begin(self, has_broker: bool) -> None:
        self.start((GATEWAY,) if has_broker else ())

    def start(self, brokers: tuple[object, ...]) -> None:
        """A process starts: all it knows is on the disk."""
        seconds = self.story.seconds
        self.story = Story(brokers=(GATEWAY,) if brokers else (), journal=decode_journal(self.disk.encode()))
        self.story.seconds = seconds
        self.sequence = []
        self.check(self.story.feed(Started()))

    def check(self, effects: list[Effect]) -> None:
        """What one event has caused, in its order."""
        for effect in effects:
            match effect:
                case SaveJournal(journal) if not self.story.disk_error:
                    self.disk = journal
                case Tell(app, line) if line["type"] == "command":
                    self.check_told(app, str(line["command_id"]))
                case Acknowledge(epoch, _, _) | Publish(epoch, _):
                    assert epoch == self.story.state.epoch
            match effect:
                case Publish(_, message):
                    self.note(message.payload)
                case Connect(_, _, will):
                    self.note(will.payload)

    def check_told(self, app: int, command_id: str) -> None:
        assert command_id not in self.told, "a command was begun twice"
        assert self.disk.find(command_id) is not None, "a command was begun before it was on disk"
        assert app in [each.number for each in self.story.state.apps], "a command went to nobody"
        self.told.add(command_id)

    def note(self, payload: bytes) -> None:
        """Every message but a repeated one has a number of its own."""
        fields = messages.decode_object(payload)
        self.sequence.append(fields["seq"])

    @precondition(lambda self: not self.story.state.is_online)
    @rule()
    def all_goes_well(self) -> None:
        """Without this few walks would come as far as a connection."""
        if isinstance(self.story.state.link, Waiting):
            self.story.seconds += 200
            self.check(self.story.feed(Tick()))
        self.check(self.story.feed(ConfigFetched((GATEWAY,))))
        self.check(self.story.feed(Connected(self.story.state.epoch, True), Subscribed(self.story.state.epoch)))
        assert self.story.state.is_online

    @precondition(lambda self: self.story.state.journal.of(Phase.OPEN))
    @rule(state=st.sampled_from(["running", "done", "failed"]))
    def the_firmware_works(self, state: str) -> None:
        entry = self.story.state.journal.of(Phase.OPEN)[0]
        assert entry.app is not None
        self.check(self.story.feed(AppSaid(entry.app, ReportResult(entry.id, ResultState(state), {"x": 1}, ""))))

    @precondition(lambda self: self.story.state.is_online)
    @rule()
    def the_broker_takes_it_all(self) -> None:
        self.story.confirm_all()

    @rule(seconds=st.sampled_from([0.0, 0.5, 3.0, 15.0, 70.0, 200.0]))
    def time_passes(self, seconds: float) -> None:
        self.story.seconds += seconds
        self.check(self.story.feed(Tick()))

    @precondition(lambda self: not self.story.state.is_online)
    @rule(brokers=st.sampled_from([(), (GATEWAY,), (GATEWAY, SPARE)]))
    def the_service_answers(self, brokers: tuple[object, ...]) -> None:
        known = tuple(each for each in (GATEWAY, SPARE) if each in brokers)
        self.check(self.story.feed(ConfigFetched(known)))

    @precondition(lambda self: not self.story.state.is_online)
    @rule(cause=_CAUSES)
    def the_service_fails(self, cause: Cause) -> None:
        self.check(self.story.feed(ConfigFailed(Failure(cause))))

    @precondition(lambda self: not self.story.state.is_online)
    @rule(back=st.integers(0, 1), session_present=st.booleans())
    def connack(self, back: int, session_present: bool) -> None:
        self.check(self.story.feed(Connected(self.story.state.epoch - back, session_present)))

    @precondition(lambda self: not self.story.state.is_online)
    @rule(back=st.integers(0, 1))
    def suback(self, back: int) -> None:
        self.check(self.story.feed(Subscribed(self.story.state.epoch - back)))

    @rule(back=st.integers(0, 1), cause=_CAUSES)
    def the_connection_ends(self, back: int, cause: Cause) -> None:
        self.check(self.story.feed(Disconnected(self.story.state.epoch - back, Failure(cause))))

    @rule(back=st.integers(0, 1), at=st.integers(0, WINDOW - 1))
    def puback(self, back: int, at: int) -> None:
        in_flight = self.story.state.outbox.in_flight
        handle = in_flight[at % len(in_flight)].handle if in_flight else at
        before = self.story.state
        self.check(self.story.feed(Sent(self.story.state.epoch - back, handle)))
        assert back == 0 or before == self.story.state, "a word of an earlier connection changed something"

    @precondition(lambda self: self.story.state.is_online)
    @rule(command_id=_IDS, name=_NAMES, seconds_left=st.sampled_from([-5.0, 2.0, 60.0]))
    def a_command_arrives(self, command_id: str, name: str, seconds_left: float) -> None:
        self.mids += 1
        self.check(self.story.command(command_id, name, seconds_left, self.mids))

    @rule(app=_APPS, name=_NAMES)
    def an_application_comes(self, app: int, name: str) -> None:
        if app not in [each.number for each in self.story.state.apps]:
            self.check(self.story.feed(AppJoined(app)))
        self.check(self.story.feed(AppSaid(app, Register("control", (name,)))))

    @rule(app=_APPS)
    def an_application_goes(self, app: int) -> None:
        self.check(self.story.feed(AppLeft(app)))

    @rule(app=_APPS, command_id=_IDS, state=st.sampled_from(["running", "done", "failed"]))
    def an_application_answers(self, app: int, command_id: str, state: str) -> None:
        self.check(self.story.feed(AppSaid(app, ReportResult(command_id, ResultState(state), {"x": 1}, ""))))

    @rule(app=_APPS, qos=st.integers(0, 1))
    def an_application_measures(self, app: int, qos: int) -> None:
        said = (PublishTelemetry("load", 1, qos), PublishEvent("door", None), AskStatus())
        self.check(self.story.feed(*[AppSaid(app, request) for request in said]))

    @rule(error=st.sampled_from(["", "No space left on device"]))
    def the_disk_changes(self, error: str) -> None:
        self.story.disk_error = error

    @rule()
    def the_power_goes(self) -> None:
        self.start(self.story.state.brokers)

    @precondition(lambda self: self.story.seconds > 500)
    @rule()
    def somebody_stops_it(self) -> None:
        effects = self.story.feed(StopRequested())
        self.check(effects)
        if isinstance(self.story.state.link, Stopping):
            self.story.seconds += 10
            effects += self.story.feed(Tick())
        assert isinstance(self.story.state.link, Stopped)
        assert len(of_kind(self.story.effects, Exit)) >= 1
        self.start(self.story.state.brokers)

    @invariant()
    def something_always_comes_next(self) -> None:
        """An agent that waits for nothing would be offline for ever."""
        if not isinstance(self.story.state.link, Online | Stopped):
            assert next_deadline(self.story.state) is not None

    @invariant()
    def everything_is_bounded(self) -> None:
        state = self.story.state
        assert len(state.outbox.in_flight) <= WINDOW
        assert not state.outbox.in_flight or isinstance(state.link, Online | Stopping)
        assert len({message.handle for message in state.outbox.waiting + state.outbox.in_flight}) == len(
            state.outbox.waiting + state.outbox.in_flight
        )

    @invariant()
    def no_answer_is_forgotten(self) -> None:
        """A final result is on its way until the broker has it."""
        for entry in self.story.state.journal.of(Phase.FINAL):
            assert entry.is_confirmed or self.story.state.outbox.holds_result(entry.id)

    @invariant()
    def no_command_hangs_with_an_application_that_is_gone(self) -> None:
        present = {app.number for app in self.story.state.apps}
        assert {entry.app for entry in self.story.state.journal.of(Phase.OPEN)} <= present
        assert not self.story.state.journal.of(Phase.RECEIVED)

    @invariant()
    def the_status_can_be_told(self) -> None:
        messages.decode_object(json.dumps(status_line(self.story.state, self.story.now())).encode())

    @invariant()
    def the_journal_can_be_read_again(self) -> None:
        journal = self.story.state.journal
        assert [entry.id for entry in journal.entries] == [e.id for e in decode_journal(journal.encode()).entries]


TestAgent = Agent.TestCase
TestAgent.settings = settings(stateful_step_count=60)
