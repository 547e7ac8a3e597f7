"""Whose connection ends when there are too many."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from enroll.slots import PER_CERTIFICATE, Holder, Slot, Slots


def nothing() -> None:
    """These connections are not there."""


def opened(slots: Slots, holder: Holder, at: float = 0.0, *, waits: bool = True) -> Slot:
    slot = Slot(holder, at, nothing, waits)
    slots.open(slot)
    return slot


def test_nobody_ends_while_there_is_room() -> None:
    """Honest devices lose connections that nobody else needs."""
    slots = Slots(10)
    for _ in range(4):
        opened(slots, "192.0.2.1")
    assert slots.in_the_way("192.0.2.1", 100.0) is None


def test_an_address_with_its_share_gives_up_its_own_oldest() -> None:
    """One address holds every connection, or another pays for it."""
    slots = Slots(4, grace=1.0)
    opened(slots, "192.0.2.9")
    oldest, _ = opened(slots, "192.0.2.1"), opened(slots, "192.0.2.1", 5.0)
    assert oldest is slots.in_the_way("192.0.2.1", 100.0)
    assert slots.in_the_way("192.0.2.2", 100.0) is None


def test_when_none_is_left_the_oldest_of_whoever_has_most_ends() -> None:
    """A site with a single silent device is shut out by a flood from elsewhere."""
    slots = Slots(4, grace=1.0)
    opened(slots, "192.0.2.9")
    oldest = opened(slots, "192.0.2.1", 1.0)
    opened(slots, "192.0.2.1", 2.0)
    opened(slots, b"a certificate")
    assert oldest is slots.in_the_way("192.0.2.2", 100.0)


def test_a_request_that_is_worked_on_and_a_feed_are_left_alone() -> None:
    """A flood cuts a broker's feed, or takes an enrolment's answer away after it was committed."""
    slots = Slots(2, grace=1.0)
    opened(slots, "192.0.2.1", waits=False)
    waiting = opened(slots, "192.0.2.1")
    assert waiting is slots.in_the_way("192.0.2.1", 100.0)
    slots.close(waiting)
    opened(slots, "192.0.2.1", waits=False)
    assert slots.in_the_way("192.0.2.1", 100.0) is None
    assert slots.is_full


def test_a_connection_has_a_first_moment_in_which_it_stays() -> None:
    """Whoever connects fastest ends every handshake of the others."""
    slots = Slots(1, grace=1.0)
    slot = opened(slots, "192.0.2.1", 10.0)
    assert slots.in_the_way("192.0.2.2", 10.9) is None
    assert slot is slots.in_the_way("192.0.2.2", 11.0)


def test_strangers_end_before_those_with_a_certificate() -> None:
    """Strangers from many addresses put out a fleet's own."""
    slots = Slots(3, grace=1.0)
    opened(slots, b"a certificate"), opened(slots, b"a certificate")
    stranger = opened(slots, "192.0.2.1", 5.0)
    assert stranger is slots.in_the_way("192.0.2.2", 100.0)


def test_a_certificate_counts_for_itself_and_not_for_its_address() -> None:
    """A gateway's own broker pays for the strangers behind its address, or one stolen certificate takes every slot."""
    slots = Slots(200, grace=1.0)
    for _ in range(PER_CERTIFICATE):
        slot = opened(slots, "192.0.2.1")
        slots.recognise(slot, b"a certificate")
    assert slots.over_share("192.0.2.1", 100.0) is None
    first = slots.over_share(b"a certificate", 100.0)
    assert first is not None
    assert first.holder == b"a certificate"
    assert not first.is_strangers


def test_so_many_with_a_certificate_end_for_no_newcomer() -> None:
    """A flood of strangers that is fast enough to be always in its first moment puts out devices that renew."""
    slots = Slots(20, grace=1.0)
    devices = [opened(slots, b"%d" % number) for number in range(2)]
    for number in range(18):
        opened(slots, f"192.0.2.{number}", 99.5)
    assert slots.is_full
    assert slots.in_the_way("192.0.2.99", 100.0) is None
    assert slots.in_the_way("192.0.2.99", 100.6) is not None
    opened(slots, b"one more than that")
    assert devices[0] is slots.in_the_way("192.0.2.99", 100.0)


class Watched(Slot):
    """Counts how often anybody looks at one."""

    looks = 0

    def __getattribute__(self, name: str) -> object:
        Watched.looks += name == "opened"
        return super().__getattribute__(name)


def test_a_thousand_networks_with_one_connection_each_cost_no_more_than_one() -> None:
    """To look through all of them for each newcomer took so long that devices waited in front of the door."""
    slots = Slots(1000, grace=1.0)
    for number in range(1000):
        slots.open(Watched(f"network {number}", float(number), nothing))
    Watched.looks = 0
    for number in range(100):
        found = slots.in_the_way("another", 2_000.0 + number)
        assert found is not None
        assert f"network {number}" == found.holder
        slots.close(found)
        slots.open(Watched(f"newcomer {number}", 2_000.0 + number, nothing))
    assert Watched.looks <= 200


HOLDERS = st.sampled_from(["192.0.2.1", "192.0.2.2", "192.0.2.3", b"one", b"two"])


@given(st.lists(st.tuples(HOLDERS, st.booleans(), st.booleans()), min_size=5, max_size=40))
def test_who_ends_is_of_whoever_has_most(steps: list[tuple[Holder, bool, bool]]) -> None:
    """A holder with few connections pays for one with many, or one with a certificate for a stranger."""
    slots, held = Slots(5, grace=1.0), list[Slot]()
    for at, (holder, waits, is_over) in enumerate(steps):
        if is_over and held:
            slots.close(held.pop(at % len(held)))
        held.append(opened(slots, holder, float(at), waits=waits))
        found = slots.oldest_of_most(1_000.0)
        counts = Counter(slot.holder for slot in held)
        ranks = {slot: (slot.is_strangers, counts[slot.holder]) for slot in held if slot.waits_for_peer}
        has_known = sum(not slot.is_strangers for slot in held) > 0
        best = max((rank for rank in ranks.values() if rank[0] or has_known), default=None)
        assert best == (None if found is None else ranks[found])
        if found is not None:
            assert found.opened == min(slot.opened for slot in ranks if slot.holder == found.holder)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=60))
def test_the_count_is_that_of_the_open_ones(steps: list[tuple[bool, int]]) -> None:
    """Slots leak, until the service takes nobody any more."""
    slots, held = Slots(20), list[Slot]()
    for is_open, number in steps:
        if is_open or not held:
            held.append(opened(slots, f"192.0.2.{number}"))
        else:
            slot = held.pop(number % len(held))
            slots.recognise(slot, b"x")
            slots.close(slot)
            slots.close(slot)
        assert slots.is_full == (len(held) >= 20)
        assert len(held) == sum(map(len, slots._by_holder.values()))
