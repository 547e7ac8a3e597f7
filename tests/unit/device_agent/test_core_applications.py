"""What applications are told, as the core decides it."""

import json

from device_agent.core.effects import Tell
from device_agent.core.events import AppJoined, AppLeft, AppSaid, Disconnected
from device_agent.failures import Cause, Failure
from device_agent.requests import AskStatus, PublishEvent, PublishTelemetry
from fleet import messages
from tests.unit.device_agent.story import PUMP, Story, of_kind, published


def test_an_application_is_welcomed_with_who_we_are() -> None:
    """Firmware would not know its own device id."""
    [tell] = Story().feed(AppJoined(1))
    assert tell == Tell(1, {"type": "welcome", "v": 1, "device": "pump-07", "online": False})


def test_every_application_learns_that_the_connection_came_and_went() -> None:
    """A lamp on the device would show a connection that is not there."""
    story = Story()
    story.application()
    story.application(number=2)
    story.go_online()
    story.feed(Disconnected(1, Failure(Cause.LOST)))
    lines = [(e.app, e.line["online"]) for e in of_kind(story.effects, Tell) if e.line["type"] == "online"]
    assert [(1, True), (2, True), (1, False), (2, False)] == lines


def test_data_is_published_in_our_envelope_under_our_own_topic() -> None:
    """Receivers could not tell one message from its repetition, nor when it was measured."""
    story = Story()
    story.application()
    story.go_online()
    effects = story.feed(
        AppSaid(1, PublishTelemetry("load", {"l1": 0.5}, 1)), AppSaid(1, PublishEvent("door-opened", None))
    )
    (topic, payload), (event_topic, event) = published(effects)
    assert ("telemetry/load", "events/door-opened") == (topic, event_topic)
    fields = json.loads(payload)
    assert {"v", "id", "ts", "boot", "seq", "data"} == set(fields) == set(json.loads(event))
    assert (PUMP, {"l1": 0.5}) == (fields["id"], fields["data"])


def test_data_that_does_not_fit_into_a_message_is_refused_to_its_face() -> None:
    """It would vanish without a word, or end the agent."""
    story = Story()
    story.application()
    story.go_online()
    [tell] = story.feed(AppSaid(1, PublishTelemetry("load", "x" * 65_500, 0)))
    assert isinstance(tell, Tell)
    assert "error" == tell.line["type"]


def test_the_status_is_one_object_that_anybody_can_read() -> None:
    """`device-agent status` would fail on the very agent it asks."""
    story = Story()
    story.application("echo")
    story.go_online()
    [tell] = story.feed(AppSaid(1, AskStatus()))
    assert isinstance(tell, Tell)
    line = messages.decode_object(json.dumps(tell.line).encode())
    assert ("online", "pump-07", "gateway.local:8883") == (line["state"], line["device"], line["broker"])
    assert [{"app": "control", "commands": ["echo"]}] == line["applications"]


def test_the_end_of_an_application_that_nobody_knows_changes_nothing() -> None:
    """One that was turned away at the door would end the agent."""
    story = Story()
    assert [] == story.feed(AppLeft(99))
