"""What the agent does about what the device is to be, and is."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from device_agent.core import shadowing
from device_agent.core.effects import Acknowledge, Effect, Publish, SaveShadow, Tell
from device_agent.core.events import AppJoined, AppSaid, Arrived, Disconnected, Tick
from device_agent.core.shelf import NEVER
from device_agent.core.state import Connecting, initial
from device_agent.core.step import next_deadline
from device_agent.failures import Cause, Failure
from device_agent.requests import AskState, ReportState
from device_agent.shadow import Shadow, decode_shadow
from fleet import state as rules
from fleet.errors import InvalidInput
from fleet.identity import DeviceId
from fleet.state import MAX_DOCUMENT_BYTES, NONE_YET, Delta, DesiredMessage, Mark, Part, ReportedMessage, Whole
from tests.unit.device_agent.story import FETCHED, GATEWAY, PUMP, SETTINGS, START, Story, of_kind, published

TOPIC = f"devices/{PUMP}/down/state"
LARGE = rules.owned({"a": 1, "b": "a text that is longer than what changes"}, 3)


def online(shadow: Shadow | None = None) -> Story:
    """A device that has said hello, with an application."""
    story = Story()
    story.state = initial(SETTINGS, (GATEWAY,), story.journal, shadow=shadow)
    story.application()
    story.go_online()
    return story


def hears(story: Story, desired: Part = NONE_YET, reported: Mark = NONE_YET) -> list[Effect]:
    payload = DesiredMessage(PUMP, START, desired, reported).encode()
    return story.feed(Arrived(story.state.epoch, 7, TOPIC, payload))


def reports(story: Story, **patch: Any) -> list[Effect]:
    return story.feed(AppSaid(1, ReportState(patch)))


def passes(story: Story, seconds: float) -> list[Effect]:
    """Time goes by, and the broker takes what is said."""
    story.seconds += seconds
    effects = story.feed(Tick())
    story.confirm_all()
    return effects


def said(effects: list[Effect]) -> list[ReportedMessage]:
    return [rules.decode_reported(payload, PUMP) for topic, payload in published(effects) if topic == "state"]


def hello(effects: list[Effect]) -> rules.Marks:
    [payload] = [payload for topic, payload in published(effects) if topic == "hello"]
    return rules.read_marks(json.loads(payload)["state"])


def test_hello_says_what_is_here() -> None:
    """The fleet cannot tell who lacks what, and sends everything to everybody, or nothing."""
    reported = rules.owned({"t": 1}, 4)
    story = Story()
    story.state = initial(SETTINGS, (GATEWAY,), story.journal, shadow=Shadow(LARGE, reported))
    assert rules.Marks(LARGE.mark, reported.mark) == hello(story.go_online())


def test_what_is_wanted_is_on_disk_before_it_is_acknowledged_and_told() -> None:
    """After a power cut a device is what it was, and the fleet believes otherwise."""
    story = online()
    effects = [
        e for e in hears(story, Whole(LARGE.mark, LARGE.value)) if isinstance(e, SaveShadow | Acknowledge | Tell)
    ]
    line = {"type": "state", "version": 3, "desired": LARGE.value}
    assert [SaveShadow(story.state.shadowing.shadow), Acknowledge(1, 7, 1), Tell(1, line)] == effects
    assert LARGE == story.state.shadowing.shadow.desired
    [answer] = said(passes(story, shadowing.GATHER_SECONDS))
    assert (LARGE.mark, NONE_YET) == (answer.desired, answer.reported)


def test_a_change_is_told_as_one() -> None:
    """Firmware has to find out by itself what is new."""
    story = online(Shadow(LARGE))
    after = LARGE.changed(LARGE.value | {"a": 2})
    effects = hears(story, Delta(after.mark, LARGE.mark, {"a": 2}))
    assert {"type": "state", "version": 4, "desired": after.value, "patch": {"a": 2}} in [
        tell.line for tell in of_kind(effects, Tell)
    ]


def test_who_comes_is_told_what_is_wanted_and_who_asks_also_what_is() -> None:
    """Firmware that was started again does not know what to be."""
    assert "state" not in [tell.line["type"] for tell in of_kind(Story().application(), Tell)]
    story = online(Shadow(LARGE, rules.owned({"t": 1}, 1)))
    assert {"type": "state", "version": 3, "desired": LARGE.value} in [e.line for e in of_kind(story.effects, Tell)]
    [tell] = of_kind(story.feed(AppJoined(2), AppSaid(2, AskState())), Tell)[1:]
    assert ({"t": 1}, LARGE.value) == (tell.line["reported"], tell.line["desired"])


def test_what_is_repeated_or_late_is_acknowledged_and_changes_nothing() -> None:
    """The broker sends it for ever, or what was newer is undone."""
    story = online(Shadow(LARGE))
    old = Whole(Mark(2, "old"), {"a": 0})
    effects = hears(story, old)
    assert [Acknowledge(1, 7, 1)] == effects
    [answer] = said(passes(story, 5))
    assert LARGE.mark == answer.desired, "a registry that was restored would never know"
    assert [Acknowledge(1, 7, 1)] == hears(story, LARGE.mark)
    assert [] == said(passes(story, 600))


def test_a_difference_to_something_else_makes_it_say_what_it_has() -> None:
    """A device that has lost its card never gets what it lacks."""
    story = online()
    assert [Acknowledge(1, 7, 1)] == hears(story, Delta(Mark(4, "d"), LARGE.mark, {"a": 2}))
    [answer] = said(passes(story, 5))
    assert NONE_YET == answer.desired


def test_of_what_is_reported_in_a_burst_the_last_is_said() -> None:
    """Firmware that reports all the time wears out the card, and floods the fleet."""
    story = online()
    hears(story)
    effects = []
    for number in range(500):
        effects += reports(story, t=number)
        effects += passes(story, 0.01)
    messages = said(effects)
    assert len(messages) <= 1 + 5 / shadowing.PACE_SECONDS
    assert len(of_kind(effects, SaveShadow)) <= len(messages) + 1
    last = said(passes(story, shadowing.PACE_SECONDS))
    assert Whole(rules.owned({"t": 499}, 500).mark, {"t": 499}) == last[-1].reported
    assert [] == of_kind(reports(story, t=499), SaveShadow), "nothing has changed"


def test_once_the_registry_has_something_only_the_difference_is_said() -> None:
    """Each small change costs the whole."""
    story = online(Shadow(reported=LARGE))
    hears(story, reported=LARGE.mark)
    reports(story, a=2)
    [message] = said(passes(story, 5))
    after = LARGE.changed(LARGE.value | {"a": 2})
    assert Delta(after.mark, LARGE.mark, {"a": 2}) == message.reported
    reports(story, a=3)
    hears(story, reported=after.mark)
    [message] = said(passes(story, 5))
    assert Delta(rules.owned(LARGE.value | {"a": 3}, 5).mark, after.mark, {"a": 3}) == message.reported


def test_what_got_no_answer_is_said_again_ever_more_rarely() -> None:
    """A message lost with the broker is lost for ever, or a fleet hammers a registry that is slow."""
    story = online()
    reports(story, t=1)
    times = []
    while story.seconds < 7200:
        if said(passes(story, 1)):
            times.append(story.seconds)
    pauses = [after - before for before, after in pairwise(times)]
    assert 10 <= len(times) <= 20
    assert pauses == sorted(pauses)
    hears(story, reported=story.state.shadowing.shadow.reported.mark)
    assert [] == said(passes(story, 3600))
    assert 1 == len(said(passes(story, 86_400))), "a registry restored meanwhile is never noticed"


def test_nothing_is_said_while_offline_and_all_that_is_true_after_a_hello() -> None:
    """A week without a broker fills the disk with patches, or is lost."""
    story = online()
    story.feed(Disconnected(story.state.epoch, Failure(Cause.LOST)))
    queued = len(story.state.outbox.waiting)
    for number in range(50):
        reports(story, t=number)
        story.seconds += 60
        story.feed(Tick())
    assert queued == len(story.state.outbox.waiting)
    assert 50 == decode_shadow(of_kind(story.effects, SaveShadow)[-1].shadow.encode(PUMP), PUMP).reported.version
    while not isinstance(story.state.link, Connecting):
        story.seconds += 1
        story.feed(Tick(), FETCHED)
    before = len(story.effects)
    story.go_online()
    assert 50 == hello(story.effects[before:]).reported.version
    hears(story, reported=Mark(7, "old"))
    [message] = said(passes(story, 5))
    assert isinstance(message.reported, Whole)


def test_a_state_in_flight_is_not_sent_again_by_the_next_connection() -> None:
    """What was true a week ago overtakes the hello that says what is."""
    story = online()
    reports(story, t=1)
    story.seconds += 5
    story.feed(Tick())
    assert story.state.outbox.in_flight
    story.feed(Disconnected(story.state.epoch, Failure(Cause.LOST)))
    assert not [each for each in story.state.outbox.waiting if each.topic.endswith("up/state")]


def test_a_state_that_is_too_large_is_refused_to_the_applications_face() -> None:
    """It would never arrive, and nobody would know."""
    story = online()
    [tell] = of_kind(reports(story, t="x" * MAX_DOCUMENT_BYTES), Tell)
    assert "error" == tell.line["type"]
    assert NONE_YET == story.state.shadowing.shadow.reported.mark


def test_a_disk_that_fails_is_tried_again_and_stops_nothing() -> None:
    """A full disk keeps a device from being what it should, or what it is from being known."""
    story = online()
    story.disk_error = "No space left on device"
    hears(story, Whole(LARGE.mark, LARGE.value))
    assert LARGE == story.state.shadowing.shadow.desired
    assert 1 == len(said(passes(story, 5)))
    story.disk_error = ""
    assert [] != of_kind(passes(story, shadowing.RETRY_SAVE_SECONDS), SaveShadow)
    assert NEVER == story.state.shadowing.save_at
    assert "" == story.state.shadowing.error


def test_rubbish_is_acknowledged_and_set_aside() -> None:
    """The broker sends it for ever."""
    story = online()
    effects = story.feed(Arrived(1, 7, TOPIC, b'{"v": 1, "id": "pump-07"}'))
    assert [Acknowledge(1, 7, 1)] == of_kind(effects, Acknowledge)
    assert [] == of_kind(effects, Publish)
    assert 1 == story.state.set_aside


def test_a_device_without_a_state_waits_for_nothing() -> None:
    """A fleet that does not use it pays for it."""
    story = online()
    assert NEVER == shadowing.next_time(story.state)
    assert next_deadline(story.state) != 0


def test_the_file_is_of_one_device_and_whole_or_not_there() -> None:
    """A home that is given to another device is what its predecessor was."""
    shadow = Shadow(LARGE, rules.owned({"t": [None, 1.5]}, 9))
    assert shadow == decode_shadow(shadow.encode(PUMP), PUMP)
    assert Shadow() == decode_shadow(shadow.encode(DeviceId("other")), PUMP)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}\n",
        b'{"v": 1, "id": "pump-07"}\n',
        Shadow(LARGE).encode(PUMP)[:-5],
        b"\x00" * 100,
        b'{"v": 2}\n{}\n{}\n',
    ],
    ids=("empty", "no-version", "no-documents", "cut", "zeros", "newer"),
)
def test_a_damaged_file_is_said_to_be_one(data: bytes) -> None:
    """An agent ends with a traceback, for ever."""
    with pytest.raises(InvalidInput, match="damaged"):
        decode_shadow(data, PUMP)


def test_a_device_that_lost_its_file_goes_on_from_what_the_registry_knows() -> None:
    """After a damaged card it would never take a desired state again, once it had reported a million times."""
    story = online()
    hears(story, Whole(Mark(3, "t"), {"interval": 5}), Mark(5_000_000, "lost"))
    shadow = story.state.shadowing.shadow
    assert ({"interval": 5}, 5_000_001) == (shadow.desired.value, shadow.reported.mark.version)
