"""A queue that nobody can fill for the others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.engine import Stats
from broker.engines.amqtt.backlog import Backlog, Waiting
from broker.engines.amqtt.packets import Publish
from fleet.identity import DeviceId

FLOODER, PUMP = DeviceId("flooder"), DeviceId("pump-07")


def message(owner: DeviceId | None, qos: int = 1, payload: bytes = b"", topic: str = "t") -> Waiting:
    return Waiting(Publish.of(topic, payload, qos, retain=False), qos, owner)


def drained(backlog: Backlog) -> list[Waiting]:
    return [backlog.pop() for _ in range(len(backlog))]


def test_a_flood_gives_way_to_who_says_little() -> None:
    """One device would make the results of all others vanish."""
    stats = Stats()
    backlog = Backlog(10, 10_000, stats)
    for _ in range(1000):
        backlog.put(message(FLOODER))
    others = [message(DeviceId(f"pump-{n}")) for n in range(5)]
    assert all(backlog.put(other) for other in others)
    assert others == [waiting for waiting in drained(backlog) if waiting.owner != FLOODER]
    assert 995 == stats.messages_dropped


def test_a_flood_of_few_and_large_messages_gives_way_too() -> None:
    """The bytes would be taken where the messages are counted."""
    backlog = Backlog(1000, 100_000, Stats())
    for _ in range(100):
        backlog.put(message(FLOODER, payload=bytes(9000)))
    assert backlog.put(message(PUMP, payload=bytes(5000)))


def test_among_equals_the_last_is_dropped() -> None:
    """What waits already would be thrown out for what comes: nothing would ever arrive."""
    backlog = Backlog(5, 10_000, Stats())
    first = [message(DeviceId(f"pump-{n}")) for n in range(5)]
    assert all(backlog.put(waiting) for waiting in first)
    assert not backlog.put(message(PUMP))
    assert first == drained(backlog)


def test_qos_0_gives_way_first_and_fills_only_half() -> None:
    """Telemetry would displace commands."""
    backlog = Backlog(10, 10_000, Stats())
    assert 5 == sum(backlog.put(message(PUMP, 0)) for _ in range(10))
    assert all(backlog.put(message(FLOODER)) for _ in range(10))
    assert [1] * 10 == [waiting.qos for waiting in drained(backlog)]


def test_a_message_larger_than_the_queue_is_dropped_alone() -> None:
    """Everything would be thrown out to make room that there is not."""
    backlog = Backlog(10, 1000, Stats())
    assert backlog.put(message(FLOODER, payload=bytes(400)))
    assert not backlog.put(message(PUMP, payload=bytes(2000)))
    assert 1 == len(backlog)


OWNERS = st.sampled_from([None, FLOODER, PUMP])
PUTS = st.lists(st.tuples(OWNERS, st.integers(0, 2), st.integers(0, 300), st.booleans()), max_size=60)


@given(PUTS)
def test_it_is_bounded_in_order_and_loses_nothing_uncounted(puts: list[tuple[DeviceId | None, int, int, bool]]) -> None:
    """A message would be lost or doubled, overtake another of its sender, or take memory for ever."""
    stats = Stats()
    backlog = Backlog(8, 1000, stats)
    put, taken = list[Waiting](), list[Waiting]()
    for owner, qos, size, pops in puts:
        put.append(message(owner, qos, bytes(size)))
        backlog.put(put[-1])
        assert len(backlog) <= 8
        assert backlog.size_bytes <= 1000
        if pops and backlog:
            taken.append(backlog.pop())
    rest = drained(backlog)
    assert 0 == backlog.size_bytes
    kept = [id(waiting) for waiting in taken + rest]
    assert [n for n in map(id, put) if n in set(kept)] == kept
    assert len(put) == len(kept) + stats.messages_dropped
