"""Tries against the naive matcher of fleet.topics."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.engines.amqtt.packets import Publish
from broker.engines.amqtt.routing import Retained, Subscriptions
from fleet import topics
from fleet.identity import DeviceId
from fleet.limits import Limits

LEVELS = st.sampled_from(["a", "b", "", "$SYS", "$x"])
TOPICS = st.lists(LEVELS, min_size=1, max_size=4).map("/".join).filter(topics.is_topic_name)
FILTERS = (
    st.lists(LEVELS | st.just("+"), min_size=1, max_size=4)
    .flatmap(lambda levels: st.sampled_from(["/".join(levels), "/".join([*levels, "#"]), "#"]))
    .filter(topics.is_topic_filter)
)
CHANGES = st.lists(st.tuples(st.booleans(), FILTERS, st.sampled_from("xyz"), st.integers(0, 2)), max_size=20)


@given(CHANGES, st.lists(TOPICS, min_size=1, max_size=5))
def test_the_trie_routes_as_the_naive_matcher(changes: list[tuple[bool, str, str, int]], published: list[str]) -> None:
    """A message would reach whom no filter of theirs matches, or miss whom one does."""
    trie: Subscriptions[str] = Subscriptions()
    naive: dict[tuple[str, str], int] = {}
    for is_add, topic_filter, who, qos in changes:
        if is_add:
            trie.add(topic_filter, who, qos)
            naive[topic_filter, who] = qos
        else:
            trie.remove(topic_filter, who)
            naive.pop((topic_filter, who), None)
        for topic in published:  # after every change: the cache of routes must not outlive it
            expected: dict[str, int] = {}
            for (known, subscriber), known_qos in naive.items():
                if topics.matches(known, topic):
                    expected[subscriber] = max(known_qos, expected.get(subscriber, 0))
            assert expected == dict(trie.route(topic))
        assert len(naive) == trie.count


def test_remembered_routes_are_bounded() -> None:
    """Notices to all with a topic each would have all subscribers remembered for each of them."""
    trie: Subscriptions[int] = Subscriptions()
    for who in range(1000):
        trie.add("fleet/notices/#", who, 0)
    for n in range(500):
        assert 1000 == len(trie.route(f"fleet/notices/{n}"))
    assert sum(1 + len(found) for found in trie._routes.found.values()) == trie._routes._weight <= 131_072
    trie.remove("fleet/notices/#", 0)
    assert 0 == trie._routes._weight
    assert {} == trie._routes.found


def test_a_subscription_leaves_the_routes_of_others_remembered() -> None:
    """A fleet that comes and goes would have every message's subscribers looked up again."""
    trie: Subscriptions[str] = Subscriptions()
    trie.add("devices/+/up/#", "x", 1)
    remembered = trie.route("devices/pump-07/up/status")
    trie.add("devices/valve-1/down/#", "y", 1)
    trie.add("fleet/notices/#", "y", 1)
    assert remembered is trie.route("devices/pump-07/up/status")


@given(CHANGES)
def test_a_trie_that_lost_its_last_subscription_is_empty(changes: list[tuple[bool, str, str, int]]) -> None:
    """Whoever subscribes and unsubscribes in a loop would fill the memory."""
    trie: Subscriptions[str] = Subscriptions()
    for _, topic_filter, who, qos in changes:
        trie.add(topic_filter, who, qos)
    for _, topic_filter, who, _ in changes:
        trie.remove(topic_filter, who)
        trie.remove(topic_filter, who)
    assert 0 == trie.count
    assert trie._root.is_bare()


@given(st.lists(st.tuples(TOPICS, st.binary(max_size=1), st.sampled_from("xy")), max_size=12), FILTERS)
def test_retained_messages_are_found_as_the_naive_matcher_would(
    kept: list[tuple[str, bytes, str]], topic_filter: str
) -> None:
    """A subscriber would be given a message of a topic that its filter does not match, or one that was deleted."""
    trie = Retained(Limits())
    naive: dict[str, bytes] = {}
    for topic, payload, owner in kept:
        trie.set(Publish.of(topic, payload, 0, retain=True), None if owner == "y" else _id(owner))
        naive.pop(topic, None)
        if payload:
            naive[topic] = payload
    expected = {topic: payload for topic, payload in naive.items() if topics.matches(topic_filter, topic)}
    assert expected == {message.topic: message.payload for message in trie.matching(topic_filter)}
    assert len(naive) == len(trie)


def test_an_owner_may_replace_what_it_has_when_it_is_full() -> None:
    """A device at its limit could not change its status any more."""
    trie = Retained(Limits(retained_per_principal=1))
    trie.set(_message("a"), _PUMP)
    assert not trie.has_room(_message("b"), _PUMP)
    assert trie.has_room(_message("a", b"2"), _PUMP)
    assert trie.has_room(_message("a", b""), _PUMP)
    trie.set(_message("a", b""), _PUMP)
    assert trie.has_room(_message("b"), _PUMP)


def test_what_an_owner_retains_is_bounded_in_bytes() -> None:
    """A hundred messages of the greatest size from each of ten thousand devices are more memory than there is."""
    trie = Retained(Limits(retained_bytes_per_principal=1000))
    trie.set(_message("a", bytes(900)), _PUMP)
    assert not trie.has_room(_message("b", bytes(100)), _PUMP)
    assert trie.has_room(_message("a", bytes(990)), _PUMP)
    assert trie.has_room(_message("b", bytes(100)), DeviceId("valve-1"))


def test_a_topic_that_changes_hands_counts_for_its_new_owner() -> None:
    """What the broker says of a device would count as the device's, or what a device said as the broker's."""
    trie = Retained(Limits(retained_per_principal=1))
    trie.set(_message("a"), _PUMP)
    trie.set(_message("a"), None)
    trie.set(_message("b"), None)
    assert 2 == len(trie)
    assert trie.has_room(_message("c"), _PUMP)


def test_all_of_an_owner_is_forgotten_and_nothing_else() -> None:
    """A successor would find its predecessor's messages under its name."""
    trie = Retained(Limits())
    for topic, owner in (("a/b", _PUMP), ("a/c", _PUMP), ("a/d", None), ("a", DeviceId("valve-1"))):
        trie.set(_message(topic), owner)
    trie.forget_all_of(_PUMP)
    assert {"a", "a/d"} == {message.topic for message in trie.matching("#")}
    assert 2 == len(trie)


_PUMP = DeviceId("pump-07")


def _message(topic: str, payload: bytes = b"1") -> Publish:
    return Publish.of(topic, payload, 0, retain=True)


def _id(text: str) -> DeviceId:
    return DeviceId(text)
