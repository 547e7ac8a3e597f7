"""A queue that nobody can fill for the others, and in which nobody waits behind all that another said."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from broker.engine import Stats
from broker.engines.amqtt.backlog import Backlog, Sender
from broker.engines.amqtt.packets import Publish
from fleet.identity import DeviceId

FLOODER, PUMP = DeviceId("flooder"), DeviceId("pump-07")


def message(qos: int = 1, payload: bytes = b"") -> Publish:
    return Publish.of("t", payload, qos, retain=False)


def fill(backlog: Backlog, sender: Sender, count: int, qos: int = 1, payload: bytes = b"") -> list[Publish]:
    """Put so many messages of one sender."""
    found = [message(qos, payload) for _ in range(count)]
    for publish in found:
        backlog.put(publish, qos, sender)
    return found


def drained(backlog: Backlog) -> list[Publish]:
    """Everything of QoS 1 and 2, then of QoS 0."""
    found = []
    while backlog.has_others:
        found.append(backlog.pop_other()[0])
    while backlog.has_qos_0:
        found.append(backlog.pop_qos_0()[0])
    return found


def test_a_flood_gives_way_to_who_says_little() -> None:
    """One device would make the results of all others vanish."""
    stats = Stats()
    backlog = Backlog(10, 10_000, stats)
    fill(backlog, FLOODER, 1000)
    others = [fill(backlog, DeviceId(f"pump-{n}"), 1)[0] for n in range(4)]
    assert set(others) <= set(drained(backlog))
    assert 994 == stats.messages_dropped


def test_a_flood_of_few_and_large_messages_gives_way_too() -> None:
    """The bytes would be taken where the messages are counted."""
    backlog = Backlog(1000, 100_000, Stats())
    fill(backlog, FLOODER, 100, payload=bytes(9000))
    (wanted,) = fill(backlog, PUMP, 1, payload=bytes(5000))
    assert wanted in drained(backlog)


def test_nobody_waits_behind_all_that_another_said() -> None:
    """A status would be minutes late because twenty devices flip theirs."""
    backlog = Backlog(1000, 1_000_000, Stats())
    for n in range(5):
        fill(backlog, DeviceId(f"flooder-{n}"), 100)
    (wanted,) = fill(backlog, PUMP, 1)
    assert wanted in [backlog.pop_other()[0] for _ in range(6)]


def test_among_equals_the_last_is_dropped() -> None:
    """What waits already would be thrown out for what comes: nothing would ever arrive."""
    backlog = Backlog(5, 10_000, Stats())
    first = [fill(backlog, DeviceId(f"pump-{n}"), 1)[0] for n in range(5)]
    fill(backlog, PUMP, 1)
    assert first == drained(backlog)


def test_qos_0_gives_way_first_and_fills_only_half() -> None:
    """Telemetry would displace commands."""
    backlog = Backlog(10, 10_000, Stats())
    fill(backlog, PUMP, 10, qos=0)
    assert 5 == len(backlog)
    wanted = fill(backlog, FLOODER, 10)
    assert wanted == drained(backlog)


def test_a_message_larger_than_the_queue_is_dropped_alone() -> None:
    """Everything would be thrown out to make room that there is not."""
    backlog = Backlog(10, 1000, Stats())
    kept = fill(backlog, PUMP, 1, payload=bytes(400))
    fill(backlog, PUMP, 1, payload=bytes(2000))
    assert kept == drained(backlog)


SENDERS = st.sampled_from([None, FLOODER, PUMP])
PUTS = st.lists(st.tuples(SENDERS, st.integers(0, 2), st.integers(0, 300), st.booleans()), max_size=60)


@given(PUTS)
def test_it_is_bounded_in_order_and_loses_nothing_uncounted(puts: list[tuple[Sender, int, int, bool]]) -> None:
    """A message would be lost or doubled, overtake another of its sender, or take memory for ever."""
    stats = Stats()
    backlog = Backlog(8, 1000, stats)
    put: dict[tuple[Sender, bool], list[int]] = defaultdict(list)
    senders: dict[int, Sender] = {}
    everything, taken = [], []
    for sender, qos, size, pops in puts:
        publish = message(qos, bytes(size))
        everything.append(publish)
        senders[id(publish)] = sender
        put[sender, qos > 0].append(id(publish))
        backlog.put(publish, qos, sender)
        assert len(backlog) <= 8
        assert backlog.size_bytes <= 1000
        if pops and backlog.has_others:
            taken.append(backlog.pop_other()[0])
        elif pops and backlog.has_qos_0:
            taken.append(backlog.pop_qos_0()[0])
    taken += drained(backlog)
    assert (0, 0) == (len(backlog), backlog.size_bytes)
    for (sender, is_other), ids in put.items():
        came = [id(each) for each in taken if senders[id(each)] == sender and (each.qos > 0) == is_other]
        assert [each for each in ids if each in set(came)] == came
    assert len(everything) == len(taken) + stats.messages_dropped
