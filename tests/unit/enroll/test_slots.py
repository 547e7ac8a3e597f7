"""Whose connection ends when there are too many."""

from __future__ import annotations

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
