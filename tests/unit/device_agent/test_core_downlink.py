"""What the agent does with what comes down: acts on it, asks, waits, refuses."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from device_agent.core.downlink import MAX_ATTEMPTS, MAX_HELD
from device_agent.core.effects import Acknowledge, Effect, FetchConfig, Log, SaveJournal, Verify
from device_agent.core.events import Arrived, ConfigFailed, ConfigFetched, Disconnected, Tick, Verified
from device_agent.core.report import status_line
from device_agent.core.state import Downlink
from device_agent.core.step import next_deadline
from device_agent.failures import Cause, Failure
from device_agent.journal import REMEMBERED, decode_journal
from device_agent.verdicts import Trust, Verdict
from fleet import downlink
from fleet.messages import MAX_MESSAGE_BYTES, MAX_SIGNATURE_BYTES, CommandMessage, ControlMessage, ResultState
from tests.unit.device_agent.story import GATEWAY, PUMP, START, Story, of_kind, published

OURS, NEXT = "a" * 43, "b" * 43
SIGNED = Downlink(Trust.SIGNED, (OURS,))
AWAY = ConfigFailed(Failure(Cause.UNREACHABLE, "gateway"))
CONTROL = "devices/pump-07/down/control"


@dataclass
class Downward(Story):
    """A story that begins online, with this belief."""

    believes: Downlink = SIGNED
    mids: int = field(default=100)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.state = replace(self.state, downlink=self.believes)
        self.go_online()

    def arrive(self, topic: str, payload: bytes) -> list[Effect]:
        self.mids += 1
        return self.feed(Arrived(self.state.epoch, self.mids, topic, payload))

    def told(self, *key_ids: str) -> list[Effect]:
        """The service answers."""
        trust = Trust.SIGNED if key_ids else Trust.UNSIGNED
        return self.feed(ConfigFetched((GATEWAY,), trust, key_ids))

    def after(self, seconds: float) -> list[Effect]:
        self.seconds += seconds
        return self.feed(Tick())

    @property
    def refused(self) -> tuple[int, str | None]:
        fields = status_line(self.state, self.now())["downlink"]
        return fields["refused_count"], fields.get("refused", {}).get("code")


def topic_of(command_id: str = "c1") -> str:
    return f"devices/pump-07/down/commands/echo/{command_id}"


def command(key_id: str = OURS, seconds_left: float = 60) -> bytes:
    body = CommandMessage(PUMP, START, START + timedelta(seconds=seconds_left), {"say": "hi"}).encode()
    return with_signature(body, key_id)


def with_signature(body: bytes, key_id: str = OURS, until: datetime = START + timedelta(hours=1)) -> bytes:
    return downlink.join(body, downlink.encode_header(key_id, until), bytes(64))


def logged(effects: list[Effect], name: str) -> list[dict[str, Any]]:
    return [dict(each.fields) for each in of_kind(effects, Log) if each.name == name]


def verify(effects: list[Effect]) -> Verify:
    (order,) = of_kind(effects, Verify)
    return order


def test_nothing_is_acted_on_before_it_was_looked_at() -> None:
    """A command would run first, and be found forged afterwards."""
    story = Downward()
    effects = story.arrive(topic_of(), command())
    order = verify(effects)
    assert (topic_of(), command()) == (order.topic, order.payload)
    assert [] == of_kind(effects, SaveJournal)
    assert [] == of_kind(effects, Acknowledge)
    effects = story.feed(Verified(order.number, Verdict.GOOD))
    assert [Acknowledge(1, 101, 1)] == of_kind(effects, Acknowledge)
    found = story.state.journal.find("c1")
    assert found is not None
    assert "echo" == found.name


@pytest.mark.parametrize("verdict", [each for each in Verdict if each not in (Verdict.GOOD, Verdict.FAILED)])
def test_what_is_not_good_is_acknowledged_counted_and_nothing_else(verdict: Verdict) -> None:
    """It would be acted on; or come for ever; or nobody would know of it."""
    story = Downward()
    order = verify(story.arrive(topic_of(), command()))
    effects = story.feed(Verified(order.number, verdict))
    assert [Acknowledge(1, 101, 1)] == of_kind(effects, Acknowledge)
    assert [] == of_kind(effects, SaveJournal)
    assert (1, verdict.value) == story.refused
    assert [verdict.value] == [each["code"] for each in logged(effects, "message.refused")]
    assert [] == story.feed(Verified(order.number, Verdict.GOOD)), "a word comes too late, or twice"
    assert story.state.journal.find("c1") is None


def test_unsigned_is_refused_without_a_look() -> None:
    """A broker that floods a device would have it start processes."""
    story = Downward()
    effects = story.arrive(topic_of(), CommandMessage(PUMP, START, START, {}).encode())
    assert [] == of_kind(effects, Verify)
    assert [Acknowledge(1, 101, 1)] == of_kind(effects, Acknowledge)
    assert (1, "unsigned") == story.refused


def test_a_flood_of_inventions_does_not_fill_the_log() -> None:
    """A broker could fill the disk of a device."""
    story, lines = Downward(), 0
    for _ in range(100):
        lines += len(logged(story.arrive(topic_of(), b"{}"), "message.refused"))
    assert 7 == lines
    assert (100, "unsigned") == story.refused


def test_a_service_that_is_older_commands_as_before() -> None:
    """An agent could not be updated before its service."""
    story = Downward(believes=Downlink())
    body = CommandMessage(PUMP, START, START + timedelta(minutes=1), {}).encode()
    effects = story.arrive(topic_of(), body)
    assert [] == of_kind(effects, Verify)
    assert story.state.journal.find("c1") is not None


def test_a_service_that_signs_at_last_is_asked_for_its_key_and_unsigned_is_over() -> None:
    """Updating the service would change nothing until every agent is restarted; or a broker could go on without."""
    story = Downward(believes=Downlink())
    effects = story.arrive(topic_of(), command())
    assert 1 == len(of_kind(effects, FetchConfig))
    order = verify(story.told(OURS))
    story.feed(Verified(order.number, Verdict.GOOD))
    assert story.state.journal.find("c1") is not None
    story.arrive(topic_of("c2"), CommandMessage(PUMP, START, START, {}).encode())
    assert (1, "unsigned") == story.refused


def test_whatever_a_service_says_later_unsigned_stays_over() -> None:
    """A service that was restored from before signatures would open every device."""
    story = Downward()
    story.feed(ConfigFetched((GATEWAY,), Trust.SIGNED, ()))  # what `signers` makes of an answer without any
    story.arrive(topic_of(), CommandMessage(PUMP, START, START, {}).encode())
    assert (1, "unsigned") == story.refused


def test_before_the_service_was_ever_asked_everything_waits() -> None:
    """The first command after an update of the agent could be a broker's own."""
    story = Downward(believes=Downlink(Trust.UNKNOWN))
    body = CommandMessage(PUMP, START, START + timedelta(hours=1), {}).encode()
    effects = story.arrive(topic_of(), body)
    assert 1 == len(of_kind(effects, FetchConfig))
    assert [] == of_kind(story.arrive(topic_of("c2"), command()), FetchConfig), "one question at a time"
    story.feed(AWAY)
    assert 1 == len(of_kind(story.after(60), FetchConfig)), "it is asked until it answers"
    effects = story.told(OURS)
    assert topic_of("c2") == verify(effects).topic
    assert (1, "unsigned") == story.refused


def test_a_new_key_is_asked_for_and_its_message_not_lost() -> None:
    """A device would have to be restarted when the key is renewed, or lose the first command."""
    story = Downward()
    assert 1 == len(of_kind(story.arrive(topic_of(), command(NEXT)), FetchConfig))
    order = verify(story.told(OURS, NEXT))
    story.feed(Verified(order.number, Verdict.GOOD))
    assert story.state.journal.find("c1") is not None
    assert topic_of("c2") == verify(story.arrive(topic_of("c2"), command(OURS))).topic, "the one before is still good"


def test_an_answer_that_does_not_come_is_not_waited_for_for_ever() -> None:
    """A thread that hangs in a name look-up would keep every command away."""
    story = Downward()
    story.arrive(topic_of(), command(NEXT))
    assert next_deadline(story.state) is not None
    story.after(61)
    assert 1 == len(of_kind(story.after(120), FetchConfig))


def test_invented_keys_have_the_service_asked_ever_more_rarely() -> None:
    """A broker could have ten thousand devices ask the service without end."""
    story, asked = Downward(), 0
    for number in range(360):
        story.seconds += 10
        effects = story.arrive(topic_of(f"c{number}"), command(f"{number:x}".rjust(43, "x")))
        if of_kind(effects, FetchConfig):
            asked += 1
            story.told(OURS)
    assert 5 <= asked <= 9
    assert (360, "unknown-signer") == story.refused
    assert topic_of() == verify(story.arrive(topic_of(), command())).topic


def test_who_cannot_look_tries_again_and_says_so() -> None:
    """A process that dies once would lose a command, or would have it taken unseen."""
    story = Downward()
    order = verify(story.arrive(topic_of(), command(seconds_left=3600)))
    story.feed(Verified(order.number, Verdict.FAILED, "no memory"))
    fields = status_line(story.state, story.now())["downlink"]
    assert ("no memory", 0, 1) == (fields["problem"], fields["refused_count"], fields["waiting"])
    assert story.state.journal.find("c1") is None
    again = verify(story.after(1))
    story.feed(Verified(again.number, Verdict.GOOD))
    assert story.state.journal.find("c1") is not None
    assert "" == status_line(story.state, story.now())["downlink"]["problem"]


def test_a_message_that_nobody_survives_is_given_up() -> None:
    """A poison message would keep the others from being looked at, for ever."""
    story = Downward()
    number = verify(story.arrive(topic_of(), command())).number
    for _ in range(MAX_ATTEMPTS - 1):
        story.feed(Verified(number, Verdict.FAILED, "gone"))
        number = verify(story.after(60)).number
    story.feed(Verified(number, Verdict.FAILED, "gone"))
    assert (1, "verifier-failed") == story.refused
    assert [] == of_kind(story.after(3600), Verify)


def overrun(story: Downward) -> int:
    """More comes than can wait, and is looked at: how many hellos the next two hours have."""
    orders = [
        order
        for number in range(MAX_HELD + 2)
        for order in of_kind(story.arrive(topic_of(f"c{number}"), command()), Verify)
    ]
    for order in orders:
        story.feed(Verified(order.number, Verdict.BAD_SIGNATURE))
    return sum(hellos(story.after(60)) for _ in range(120))


def hellos(effects: list[Effect]) -> int:
    return [topic for topic, _ in published(effects)].count("hello")


def test_what_nobody_could_look_at_is_asked_for_again() -> None:
    """Dispatch takes what was acknowledged for received: a command would end by its deadline, and nobody know why."""
    story = Downward()
    assert 1 == overrun(story), "one for both that were refused"
    story = Downward()
    number = verify(story.arrive(topic_of(), command())).number
    for _ in range(MAX_ATTEMPTS - 1):
        story.feed(Verified(number, Verdict.FAILED, "gone"))
        number = verify(story.after(20)).number
    assert 0 == hellos(story.feed(Verified(number, Verdict.FAILED, "gone")))
    deadline = next_deadline(story.state)
    assert deadline is not None
    assert 60 <= deadline - story.seconds <= 75
    assert 1 == hellos(story.after(75))


def test_what_is_not_the_fleets_is_not_asked_for_again() -> None:
    """Whoever publishes rubbish on a broker would have every device say hello."""
    story = Downward()
    story.arrive(topic_of(), b"{}")
    order = verify(story.arrive(topic_of(), command()))
    story.feed(Verified(order.number, Verdict.BAD_SIGNATURE))
    assert 0 == sum(hellos(story.after(60)) for _ in range(60))


def test_a_flood_has_hello_said_ever_more_rarely() -> None:
    """A broker that floods devices would have them flood dispatch."""
    story, said = Downward(), 0
    for number in range(MAX_HELD):
        story.arrive(topic_of(f"c{number}"), command())
    for _ in range(24 * 60):
        story.arrive(topic_of("more"), command())
        said += hellos(story.after(60))
        story.confirm_all()
    assert 20 <= said <= 30


def test_a_new_connection_says_hello_anyway() -> None:
    """It would be said twice; or never again where the connection ends before it is due."""
    story = Downward()
    for number in range(MAX_HELD + 1):
        story.arrive(topic_of(f"c{number}"), command())
    story.feed(Disconnected(story.state.epoch, Failure(Cause.LOST, "broker")))
    story.after(61)
    assert 1 == hellos(story.go_online())
    assert 0 == sum(hellos(story.after(60)) for _ in range(60))


def test_what_waits_is_bounded() -> None:
    """A broker could fill the memory of a device."""
    story = Downward()
    for number in range(MAX_HELD + 1):
        story.arrive(topic_of(f"c{number}"), command())
    assert (1, "too-many-at-once") == story.refused
    story = Downward()
    for number in range(MAX_HELD):
        story.arrive(topic_of(f"c{number}"), with_signature(b'{"v":1,"pad":"' + b"x" * 65_000 + b'"}'))
    assert story.refused[0] > 0
    assert sum(len(each.arrived.payload) for each in story.state.downlink.held) <= 2 << 20


def test_what_is_too_large_is_not_even_looked_at() -> None:
    """A broker could fill the memory of a device with one message."""
    story = Downward()
    size = MAX_MESSAGE_BYTES + MAX_SIGNATURE_BYTES
    assert [] == of_kind(story.arrive(topic_of(), with_signature(b'{"p":"' + b"x" * size + b'"}')), Verify)
    assert (1, "unsigned") == story.refused


def test_what_came_on_a_connection_that_is_over_comes_again() -> None:
    """It would be acknowledged to a broker that never sent it, or run twice."""
    story = Downward()
    order = verify(story.arrive(topic_of(), command()))
    story.feed(Disconnected(story.state.epoch, Failure(Cause.LOST, "broker")))
    assert () == story.state.downlink.held
    assert [] == story.feed(Verified(order.number, Verdict.GOOD))


def test_a_control_that_is_late_is_not_obeyed_and_a_command_says_itself_that_it_is() -> None:
    """A broker could keep a word of the fleet, and say it when it suits; or a command would end without a word."""
    story = Downward()
    body = ControlMessage(PUMP, START, 600).encode()
    order = verify(story.arrive(CONTROL, with_signature(body, until=START + timedelta(seconds=30))))
    story.seconds = 31
    effects = story.feed(Verified(order.number, Verdict.GOOD))
    assert 0 == story.state.spread_seconds
    assert 1 == len(logged(effects, "message.set_aside"))
    order = verify(story.arrive(topic_of(), command(seconds_left=30)))
    story.feed(Verified(order.number, Verdict.GOOD))
    found = story.state.journal.find("c1")
    assert found is not None
    assert found.state is not None
    assert "expired" == found.state.value


def test_a_control_that_is_signed_is_obeyed() -> None:
    """A fleet could not be spread after a restart of its broker."""
    story = Downward()
    order = verify(story.arrive(CONTROL, with_signature(ControlMessage(PUMP, START, 600).encode())))
    effects = story.feed(Verified(order.number, Verdict.GOOD))
    assert 600 == story.state.spread_seconds
    assert [Acknowledge(1, 101, 1)] == of_kind(effects, Acknowledge)


def test_a_command_whose_id_was_forgotten_is_not_run_again() -> None:
    """A broker could wait for 256 others, and then repeat a genuine command that has a week."""
    story = Downward()
    first = CommandMessage(PUMP, START, START + timedelta(days=7), {}).encode()
    story.feed(Verified(verify(story.arrive(topic_of("first"), with_signature(first))).number, Verdict.GOOD))
    for number in range(REMEMBERED):
        story.seconds += 1
        order = verify(story.arrive(topic_of(f"c{number}"), command_now(story)))
        story.feed(Verified(order.number, Verdict.GOOD))
        story.after(60)  # nobody takes it
    assert story.state.journal.find("first") is None
    story.state = replace(story.state, journal=decode_journal(story.state.journal.encode()))  # a restart
    order = verify(story.arrive(topic_of("first"), with_signature(first)))
    story.feed(Verified(order.number, Verdict.GOOD))
    again = story.state.journal.find("first")
    assert again is not None
    assert (ResultState.FAILED, "may have run it before") == (
        again.state,
        again.error[-len("may have run it before") :],
    )
    order = verify(story.arrive(topic_of("newer"), command_now(story)))
    story.feed(Verified(order.number, Verdict.GOOD))
    newer = story.state.journal.find("newer")
    assert newer is not None
    assert "before" not in newer.error


def command_now(story: Story) -> bytes:
    now = story.now().utc
    return with_signature(CommandMessage(PUMP, now, now + timedelta(minutes=1), {}).encode())


def test_a_command_that_is_known_is_not_run_again() -> None:
    """A broker could repeat a genuine command."""
    story = Downward()
    for _ in range(2):
        story.feed(Verified(verify(story.arrive(topic_of(), command())).number, Verdict.GOOD))
    assert 1 == len(logged(story.effects, "command.received"))
