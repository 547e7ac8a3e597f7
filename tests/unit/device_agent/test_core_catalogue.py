"""What applications declare of their commands: told to the fleet, and kept to."""

from __future__ import annotations

import json
from typing import Any

from device_agent.core import catalogue
from device_agent.core.effects import Tell
from device_agent.core.events import AppJoined, AppLeft, AppSaid, Disconnected, Tick
from device_agent.core.step import next_deadline
from device_agent.failures import Cause, Failure
from device_agent.requests import Register
from fleet.arguments import Schema, parse
from tests.unit.device_agent.story import Story, of_kind, published

SAY_ONE = parse({"properties": {"say": {"type": "integer"}}, "additionalProperties": False})
SAY_TEXT = parse({"required": ["say"]})


def register(story: Story, app: str = "a", number: int = 1, **commands: Schema | None) -> None:
    """An application connects, and says what it takes."""
    schemas = {name: schema for name, schema in commands.items() if schema is not None}
    story.feed(AppJoined(number), AppSaid(number, Register(app, tuple(commands), schemas)))


def told(story: Story) -> list[dict[str, Any]]:
    """All that the fleet was told of commands."""
    return [json.loads(payload)["commands"] for topic, payload in published(story.effects) if topic == "commands"]


def wait(story: Story) -> float:
    """Until the core wants to be woken; how long that was."""
    deadline = next_deadline(story.state)
    assert deadline is not None
    waited, story.seconds = deadline - story.seconds, deadline
    story.feed(Tick())
    story.confirm_all()
    return waited


def test_arguments_that_do_not_fit_never_reach_the_application() -> None:
    """Firmware would have to check again what it has declared, or trust whoever gives commands."""
    story = Story()
    register(story, echo=SAY_ONE)
    story.go_online()
    story.command("c1")
    assert not [tell for tell in of_kind(story.effects, Tell) if tell.line["type"] == "command"]
    results = [json.loads(payload) for topic, payload in published(story.effects) if topic == "results/c1"]
    assert ['the arguments do not fit: say: "hi" is not of type integer'] == [each["error"] for each in results]
    register(story, "b", 2, echo=SAY_TEXT)
    story.command("c2")
    assert [2] == [tell.app for tell in of_kind(story.effects, Tell) if tell.line["type"] == "command"]


def test_the_fleet_is_told_after_each_hello() -> None:
    """A service that was restored from a backup would check by what was true then."""
    story = Story()
    register(story, echo=SAY_ONE, identify=None)
    story.go_online()
    story.feed(Disconnected(1, Failure(Cause.LOST)))
    story.seconds += 200
    story.feed(Tick())
    story.go_online()
    assert [{"echo": SAY_ONE.fields, "identify": None}] * 2 == told(story)
    order = [topic for topic, _ in published(story.effects) if topic in ("hello", "commands")]
    assert ["hello", "commands"] * 2 == order


def test_a_device_without_applications_says_nothing_of_commands() -> None:
    """Firmware that starts after its agent would have its commands refused until then."""
    story = Story()
    story.go_online()
    assert [] == told(story)


def test_a_change_is_told_once_all_have_said_it_and_not_more_often_than_now_and_then() -> None:
    """One application in a loop would have the fleet's registry written without end."""
    story = Story()
    story.go_online()
    register(story, echo=None)
    register(story, "b", 2, set=None)
    assert [] == told(story)
    assert catalogue.GATHER_SECONDS == wait(story)
    assert [{"echo": None, "set": None}] == told(story)
    for _ in range(3):
        register(story, "b", 2, set=SAY_ONE)
        register(story, "b", 2, set=SAY_TEXT)
    assert catalogue.EVERY_SECONDS == wait(story)
    assert [{"echo": None, "set": SAY_TEXT.fields}] == told(story)[1:]
    register(story, "b", 2, set=SAY_TEXT)
    assert next_deadline(story.state) is None or wait(story) > 0
    assert 2 == len(told(story))


def test_an_application_that_starts_again_keeps_what_it_takes() -> None:
    """Whoever gives a command while the firmware is updated would be told that the device does not know it."""
    story = Story()
    register(story, echo=None)
    register(story, "b", 2, set=None)
    story.go_online()
    story.feed(AppLeft(2))
    story.feed(Disconnected(1, Failure(Cause.LOST)))
    story.seconds += 200
    story.feed(Tick())
    story.go_online()
    register(story, "b", 3, reset=None)
    wait(story)
    assert [{"echo": None, "set": None}, {"echo": None, "set": None}, {"echo": None, "reset": None}] == told(story)


def test_more_than_the_fleet_takes_is_refused_to_the_one_who_says_it() -> None:
    """One application could make the device's whole catalogue unreadable to the fleet."""
    story = Story()
    register(story, echo=None)
    long = parse({"description": "x" * 4_000})
    for number in range(2, 12):
        register(story, f"app-{number}", number, **{f"c{number}": long})
    errors = [tell.app for tell in of_kind(story.effects, Tell) if tell.line["type"] == "error"]
    assert [10, 11] == errors
    story.go_online()
    (said,) = told(story)
    assert {"echo", *(f"c{number}" for number in range(2, 10))} == said.keys()
