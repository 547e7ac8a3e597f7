"""Two agents with one identity, by what each says: which starts take turns, and on which machine."""

from __future__ import annotations

import random

from enroll.bookkeeping import Books
from enroll.registry import boots, lineage
from enroll.registry.lineage import AlarmRecord
from enroll.reports import HelloSeen
from enroll.service.starts import REMEMBERED, WITHIN
from fleet.identity import DeviceId
from tests.fleets import Office

PUMP = DeviceId("pump-07")


def hello(office: Office, boot: str, seq: int, hardware: str = "") -> None:
    """As dispatch enters it."""
    Books(office.registry).enter([HelloSeen(PUMP, "0.1.0", boot, seq, "12ab", hardware)], [], office.now)


def said(office: Office, *starts: str) -> None:
    """Each letter is a hello of that start, whose messages are numbered."""
    for seq, boot in enumerate("".join(starts)):
        hello(office, boot, seq)


def alarms(office: Office) -> list[AlarmRecord]:
    with office.registry.read() as transaction:
        return lineage.alarms_of(transaction, PUMP, 1)


def test_starts_that_take_turns_are_an_alarm(office: Office) -> None:
    """Two devices throw each other out for weeks, and nobody is told why."""
    office.enrolled(PUMP)
    said(office, "aba")
    assert [] == alarms(office)  # once could be a message that was long on its way
    hello(office, "b", 9)
    (alarm,) = alarms(office)
    assert ("two-agents", "starts b and a take turns", None) == (alarm.kind, alarm.detail, alarm.serial)
    hello(office, "a", 10)
    assert [2] == [each.count for each in alarms(office)]


def test_an_agent_that_restarts_is_one(office: Office) -> None:
    """A device whose power fails each hour would be taken for two."""
    office.enrolled(PUMP)
    said(office, "abcdefgh", "hhh")
    assert [] == alarms(office)


def test_a_message_that_comes_again_says_nothing(office: Office) -> None:
    """Dispatch gets what it had not acknowledged again, after the next start has spoken."""
    office.enrolled(PUMP)
    for boot in "abababab":
        hello(office, boot, 1)
    assert [] == alarms(office)


def test_turns_that_are_far_apart_are_none(office: Office) -> None:
    """What was odd once, a year ago, would be an alarm with the next odd thing."""
    office.enrolled(PUMP)
    for seq, boot in enumerate("abab"):
        hello(office, boot, seq)
        office.wait(WITHIN)
    assert [] == alarms(office)


def test_other_hardware_is_an_alarm(office: Office) -> None:
    """A copy on another board would look as a restart."""
    office.enrolled(PUMP)
    hello(office, "a", 0, "1000")
    hello(office, "b", 0)  # an agent that cannot read it
    hello(office, "c", 0, "1000")
    assert [] == alarms(office)
    hello(office, "d", 0, "2000")
    assert [("other-hardware", "2000", "it was 1000")] == [
        (each.kind, each.hardware, each.detail) for each in alarms(office)
    ]


def test_a_new_enrolment_knows_nothing_of_the_last(office: Office) -> None:
    """A device that takes over a name is another machine, and that is as it should be."""
    office.enrolled(PUMP)
    hello(office, "a", 0, "1000")
    office.enrolled(PUMP, replace=True)
    hello(office, "b", 0, "2000")
    hello(office, "c", 0, "2000")
    with office.registry.read() as transaction:
        assert [] == lineage.alarms_of(transaction, PUMP, 2)
        assert ["b", "c"] == [each.boot for each in boots.boots_of(transaction, PUMP)]


def test_memory_is_bounded_whatever_is_said(office: Office) -> None:
    """A device could fill the registry with names of starts, or with alarms."""
    office.enrolled(PUMP)
    draw = random.Random(5)
    for _ in range(150):
        hello(office, draw.choice("abcdefgh"), draw.randrange(150), draw.choice(["", "1000", "2000"]))
        with office.registry.read() as transaction:
            assert len(boots.boots_of(transaction, PUMP)) <= REMEMBERED
    assert ["other-hardware", "two-agents"] == sorted(each.kind for each in alarms(office))


def test_an_agent_without_a_start_is_as_before(office: Office) -> None:
    """A client that others wrote could not say hello."""
    office.enrolled(PUMP)
    hello(office, "", 0)
    with office.registry.read() as transaction:
        assert [] == boots.boots_of(transaction, PUMP)
