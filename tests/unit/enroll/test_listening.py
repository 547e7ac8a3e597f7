"""Which topics an admin listens to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enroll.listening import topic_filters
from fleet import topics
from fleet.errors import InvalidInput
from fleet.identity import DeviceId

PUMP = DeviceId("pump-07")


def test_without_a_channel_all_is_heard() -> None:
    """An admin would miss what he did not think of."""
    assert ("devices/+/up/#",) == topic_filters(None, ())
    assert ("devices/pump-07/up/#",) == topic_filters(PUMP, ())


def test_a_channel_is_its_topic_and_what_is_below() -> None:
    """`status`, which has no level below it, would be missed, or another channel heard."""
    (status,) = topic_filters(PUMP, ["status"])
    assert topics.matches(status, topics.Status(PUMP).format())
    assert not topics.matches(status, topics.Hello(PUMP).format())
    load, results = topic_filters(None, ["telemetry/load", "results"])
    assert topics.matches(load, topics.Telemetry(PUMP, "load").format())
    assert not topics.matches(load, topics.Telemetry(PUMP, "pressure").format())
    assert topics.matches(results, topics.Result(PUMP, "abc").format())


@given(st.lists(st.sampled_from(("telemetry", "telemetry/load", "telemetry/raw", "events", "status"))))
def test_no_filter_covers_another(channels: list[str]) -> None:
    """A broker may send a message once for each filter that it fits (MQTT 3.1.1, 3.3.5)."""
    found = topic_filters(PUMP, channels)
    assert not [(a, b) for a in found for b in found if a != b and topics.covers(a, b)]
    for each in topic_filters(PUMP, channels[:1]):
        assert any(topics.covers(other, each) for other in found)


@pytest.mark.parametrize("channel", ["", "/", "#", "+", "telemetri", "telemetry/", "telemetry/+", "status/a/b", "up"])
def test_what_is_no_channel_is_refused(channel: str) -> None:
    """An admin would wait for ever for what is mistyped, or subscribe to more than is shown."""
    with pytest.raises(InvalidInput):
        topic_filters(None, [channel])


@pytest.mark.parametrize(
    "topic",
    [
        topics.Telemetry(PUMP, "a"),
        topics.Event(PUMP, "a"),
        topics.Status(PUMP),
        topics.Hello(PUMP),
        topics.ReportedState(PUMP),
        topics.Result(PUMP, "a"),
        topics.JobProgress(PUMP, "a"),
        topics.DeclaredCommands(PUMP),
    ],
)
def test_every_channel_can_be_named(topic: topics.Topic) -> None:
    """A channel of the contract could not be listened to alone."""
    (found,) = topic_filters(None, [topic.format().split("/")[3]])
    assert topics.matches(found, topic.format())
