"""Topics: format and parse, filters against a naive oracle."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet import topics
from fleet.errors import InvalidInput
from tests.unit.fleet.strategies import device_ids, names, topic_filters, topic_names

_channels = st.one_of(
    st.builds(topics.Telemetry, device_ids, names),
    st.builds(topics.Event, device_ids, names),
    st.builds(topics.Status, device_ids),
    st.builds(topics.Hello, device_ids),
    st.builds(topics.ReportedState, device_ids),
    st.builds(topics.Result, device_ids, names),
    st.builds(topics.JobProgress, device_ids, names),
    st.builds(topics.DeclaredCommands, device_ids),
    st.builds(topics.Command, device_ids, names, names),
    st.builds(topics.DesiredState, device_ids),
    st.builds(topics.Job, device_ids, names),
    st.builds(topics.Control, device_ids),
    st.builds(topics.Notice, names),
)


@given(_channels)
def test_parse_is_the_inverse_of_format(channel: topics.Topic) -> None:
    """A channel does not survive its topic."""
    assert topics.parse(channel.format()) == channel
    assert topics.is_topic_name(channel.format())


@given(st.text(max_size=60))
def test_parse_raises_only_for_bad_input(text: str) -> None:
    """A topic from a peer raises something that nobody catches."""
    try:
        channel = topics.parse(text)
    except InvalidInput:
        return
    assert channel.format() == text


@pytest.mark.parametrize(
    "topic",
    ["devices/a/up", "devices/a/up/status/", "devices//up/status", "devices/A/up/status", "devices/a/up/results/",
     "devices/a/down/commands/x", "fleet/notices/", "fleet/notices/a/b", "/devices/a/up/status",
     "devices/a/side/status"],
)  # fmt: skip
def test_parse_refuses_look_alikes(topic: str) -> None:
    """A topic that only looks like one of ours is taken for it."""
    with pytest.raises(InvalidInput):
        topics.parse(topic)


def _oracle(topic_filter: str, topic: str) -> bool:
    """MQTT 3.1.1, section 4.7, as one regular expression."""
    if topic.startswith("$") and not topic_filter.startswith("$"):
        return False
    pattern = "/".join("[^/]*" if level == "+" else re.escape(level) for level in topic_filter.split("/"))
    pattern = re.sub(r"(^|/)\\#$", lambda found: "(/.*)?" if found[1] else ".*", pattern)
    return re.fullmatch(pattern, topic) is not None


@given(topic_filters, topic_names)
def test_matches_agrees_with_a_regular_expression(topic_filter: str, topic: str) -> None:
    """The matcher and the standard disagree."""
    assert topics.matches(topic_filter, topic) == _oracle(topic_filter, topic)


@given(topic_filters, topic_filters, topic_names)
def test_what_is_covered_matches_no_more(allowed: str, requested: str, topic: str) -> None:
    """A covered filter reaches a topic that the covering one does not."""
    if topics.covers(allowed, requested) and topics.matches(requested, topic):
        assert topics.matches(allowed, topic)


@given(topic_filters, topic_names)
def test_covers_of_a_topic_is_matching(allowed: str, topic: str) -> None:
    """A filter without wildcards is decided otherwise than the topic that it is."""
    assert topics.covers(allowed, topic) == topics.matches(allowed, topic)


@pytest.mark.parametrize(
    ("allowed", "requested", "expected"),
    [
        ("devices/a/up/#", "devices/a/up/#", True),
        ("devices/a/up/#", "devices/a/up/+/x", True),
        ("devices/a/up/#", "devices/a/up", True),
        ("devices/a/up/#", "devices/a/#", False),
        ("devices/a/up/#", "devices/+/up/#", False),
        ("devices/+/up/#", "devices/a/up/#", True),
        ("devices/+/up/#", "devices/#", False),
        ("devices/+/up", "devices/+/up/#", False),
        ("#", "$SYS/#", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/broker", True),
        ("a/+", "a/#", False),
        ("a/+/#", "a/#", False),
    ],
)
def test_covers(allowed: str, requested: str, expected: bool) -> None:
    """A wider subscription is let through, or a narrower one refused."""
    assert topics.covers(allowed, requested) == expected


@pytest.mark.parametrize("bad", ["", "a/#/b", "a#", "a/b+", "+a", "\0", "#/", "a" * 65_536])
def test_filters_that_are_none(bad: str) -> None:
    """A malformed filter is taken for a valid one (MQTT 3.1.1, 4.7.1)."""
    assert not topics.is_topic_filter(bad)
    assert not topics.is_topic_name(bad)


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "a\n", ".", "-a", "x" * 65, "ä"])
def test_a_level_that_a_peer_chooses_cannot_leave_its_level(name: str) -> None:
    """A stream or command name reaches into the next level."""
    with pytest.raises(topics.InvalidTopic):
        topics.check_name(name)
