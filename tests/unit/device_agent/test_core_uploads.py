"""What the agent does when the fleet asks for a file: at once, one at a time, and in its own name."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from device_agent.clock import Basis, Moment, Reading
from device_agent.core.effects import Effect, SaveJournal, Upload
from device_agent.core.events import Arrived, Started, Tick, UploadEnded
from device_agent.core.state import Online, Subscribing
from device_agent.core.step import next_deadline
from device_agent.journal import MAX_RUNS, Phase, decode_journal
from device_agent.requests import parse_request
from fleet.messages import CommandMessage, InvalidMessage
from fleet.topics import Command
from fleet.uploads import COMMAND, LogWanted, Order
from tests.unit.device_agent.story import PUMP, Story, of_kind, published

ORDER = Order(LogWanted(20), 1000)


def asked(story: Story, id: str, args: dict[str, Any] | None = None, seconds_left: float = 60.0) -> list[Effect]:
    """The fleet asks for an upload."""
    now = story.now().utc
    message = CommandMessage(PUMP, now, now + timedelta(seconds=seconds_left), ORDER.encode() if args is None else args)
    topic = Command(PUMP, COMMAND, id).format()
    return story.feed(Arrived(story.state.epoch, 7, topic, message.encode()))


def results(effects: list[Effect]) -> list[tuple[str, str, str]]:
    """Command, state and error of what was published."""
    found = [(topic, json.loads(payload)) for topic, payload in published(effects) if topic.startswith("results/")]
    return [(topic.removeprefix("results/"), fields["state"], fields.get("error", "")) for topic, fields in found]


def online() -> Story:
    story = Story()
    story.go_online()
    return story


def test_an_upload_begins_without_an_application() -> None:
    """A device without firmware cannot be looked into, or one whose firmware hangs."""
    story = online()
    effects = asked(story, "a")
    assert [Upload("a", ORDER, 60.0)] == of_kind(effects, Upload)
    assert [("a", "accepted", "")] == results(effects)
    ended = story.feed(UploadEnded("a", {"bytes": 5}))
    assert [("a", "done", "")] == results(ended)
    assert [] == story.feed(UploadEnded("a", {"bytes": 5}))


def test_uploads_wait_for_each_other() -> None:
    """An admin in a loop takes a device's whole link, or its memory."""
    story = online()
    asked(story, "a")
    assert [] == of_kind([*asked(story, "b"), *asked(story, "c", seconds_left=30.0)], Upload)
    ended = story.feed(UploadEnded("a", error="the disk is broken"))
    assert ["b"] == [each.command_id for each in of_kind(ended, Upload)]
    assert ("a", "failed", "the disk is broken") in results(ended)
    story.confirm_all()
    story.seconds = 31.0
    assert 31.0 >= (next_deadline(story.state) or 0.0)
    assert [("c", "expired", "others were sent until its deadline")] == results(story.feed(Tick()))
    assert (next_deadline(story.state) or 99.0) > 31.0


@pytest.mark.parametrize("args", [{}, {"what": "file", "name": "../x", "max_bytes": 5}])
def test_an_order_that_cannot_be_read_fails(args: dict[str, Any]) -> None:
    """The admin waits for the deadline and learns nothing."""
    effects = asked(online(), "a", args)
    assert [] == of_kind(effects, Upload)
    ((command, state, error),) = results(effects)
    assert ("a", "failed") == (command, state)
    assert error


def test_it_is_never_begun_twice_in_one_run() -> None:
    """When the command comes again, a device sends the same twice at once."""
    story = online()
    asked(story, "a")
    assert [] == of_kind(asked(story, "a"), Upload)


def restarted(story: Story, seconds: float = 0.0) -> Story:
    """The next run of the agent, with what is on disk and a clock that nobody has confirmed."""
    again = Unconfirmed(journal=decode_journal(story.state.journal.encode()), seconds=seconds)
    again.feed(Started())
    return again


class Unconfirmed(Story):
    """A run whose clock is ten years ahead until there is a connection."""

    def now(self) -> Moment:
        moment = super().now()
        if isinstance(self.state.link, Subscribing | Online):
            return moment
        wrong = moment.utc + timedelta(days=3650)
        return replace(moment, utc=wrong, reading=Reading(wrong, wrong, Basis.SYSTEM, "", False))


def test_after_a_restart_it_is_gone_on_with_once_the_time_is_known() -> None:
    """A power cut in the middle of a long file, and the admin has to ask again; or a wrong clock ends it."""
    story = online()
    asked(story, "a")
    again = restarted(story, 20.0)
    assert [False] == [each.journal.of(Phase.OPEN) != () for each in of_kind(again.effects, SaveJournal)]
    assert [] == of_kind(again.effects, Upload)
    assert [Upload("a", ORDER, 60.0)] == of_kind(again.go_online(), Upload)
    assert [] == of_kind(asked(again, "a"), Upload)
    assert [("a", "done", "")] == results(again.feed(UploadEnded("a", {"bytes": 5})))
    assert [] == of_kind(restarted(again).go_online(), Upload)


def test_what_is_over_by_then_has_expired() -> None:
    """A device that was off for a week sends what nobody waits for, or the admin is told nothing."""
    story = online()
    asked(story, "a")
    again = restarted(story, 61.0)
    again.go_online()
    assert ("a", "expired", "the agent was not there until its deadline") in results(again.effects)
    assert [] == of_kind(again.effects, Upload)


def test_one_that_ends_the_agent_each_time_is_given_up() -> None:
    """A device that dies of a file dies of it at each start, until the deadline."""
    story = online()
    asked(story, "a")
    for _ in range(MAX_RUNS - 1):
        story = restarted(story)
        assert 1 == len(of_kind(story.go_online(), Upload))
    last = restarted(story)
    assert [] == of_kind([*last.effects, *last.go_online()], Upload)
    assert ("a", "failed", f"the agent was restarted {MAX_RUNS} times while it was sent") in results(last.effects)


def test_a_disk_that_forgets_ends_it() -> None:
    """A device whose disk is read-only counts no run, and begins for ever."""
    story = online()
    asked(story, "a")
    again = Unconfirmed(journal=decode_journal(story.state.journal.encode()), disk_error="Read-only file system")
    again.go_online()
    assert [] == of_kind(again.effects, Upload)
    assert ("a", "failed", "the device cannot remember it: Read-only file system") in results(again.effects)


def test_a_clock_that_is_behind_gives_it_no_more_time_than_it_had() -> None:
    """A device whose clock stands still asks for weeks whether it may send something."""
    story = online()
    now = story.now().utc + timedelta(days=7)
    message = CommandMessage(PUMP, now, now + timedelta(seconds=60), ORDER.encode())
    arrived = Arrived(story.state.epoch, 7, Command(PUMP, COMMAND, "a").format(), message.encode())
    assert [60.0] == [each.until for each in of_kind(story.feed(arrived), Upload)]


def test_applications_cannot_take_the_agents_names() -> None:
    """Firmware answers for the agent, or an old one takes what a newer agent does itself."""
    for name in (COMMAND, "agent.anything", "agent."):
        with pytest.raises(InvalidMessage):
            parse_request(json.dumps({"type": "register", "app": "x", "commands": ["echo", name]}).encode())
    parse_request(b'{"type": "register", "app": "x", "commands": ["agent", "agents"]}')
