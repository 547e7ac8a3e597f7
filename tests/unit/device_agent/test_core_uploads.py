"""What the agent does when the fleet asks for a file: at once, one at a time, and in its own name."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from device_agent.core.effects import Effect, Upload
from device_agent.core.events import Arrived, Tick, UploadEnded
from device_agent.core.step import next_deadline
from device_agent.journal import decode_journal
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


def test_it_is_never_begun_twice() -> None:
    """After a restart, or when the command comes again, a device sends it a second time."""
    story = online()
    asked(story, "a")
    assert [] == of_kind(asked(story, "a"), Upload)
    again = Story(journal=decode_journal(story.state.journal.encode()))
    effects = again.go_online()
    assert [] == of_kind([*effects, *asked(again, "a")], Upload)
    assert ("a", "failed") in [each[:2] for each in results(again.effects)]


def test_applications_cannot_take_the_agents_names() -> None:
    """Firmware answers for the agent, or an old one takes what a newer agent does itself."""
    for name in (COMMAND, "agent.anything", "agent."):
        with pytest.raises(InvalidMessage):
            parse_request(json.dumps({"type": "register", "app": "x", "commands": ["echo", name]}).encode())
    parse_request(b'{"type": "register", "app": "x", "commands": ["agent", "agents"]}')
