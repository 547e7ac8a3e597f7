"""How often a hello is answered."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from enroll.greetings import INTERVAL_SECONDS, Greetings
from enroll.reports import HelloSeen, Report, StateSeen, StatusSeen
from fleet.identity import DeviceId
from fleet.messages import Envelope, Presence, StatusMessage
from fleet.state import NONE_YET, ReportedMessage
from tests.fleets import NOW

PUMP, VALVE = DeviceId("pump-07"), DeviceId("valve-1")


def hello(device: DeviceId = PUMP, version: str = "1") -> HelloSeen:
    return HelloSeen(device, version)


def status(presence: Presence) -> StatusSeen:
    return StatusSeen(PUMP, StatusMessage(Envelope(PUMP, NOW, "boot", 1), presence), is_retained=False)


def handled(greetings: Greetings, now: float, *reports: Report) -> list[Report]:
    timely = greetings.timely(reports, now)
    greetings.answered(timely, now)
    return timely


def test_the_first_hello_is_answered_at_once_and_of_those_that_follow_the_last() -> None:
    """A device that says hello in a loop has all its commands sent each time, or is never answered again."""
    greetings = Greetings()
    assert [hello()] == handled(greetings, 0.0, hello())
    assert [] == handled(greetings, 0.1, hello(version="2"), hello(version="3"))
    assert [] == handled(greetings, INTERVAL_SECONDS - 0.1)
    assert [hello(version="3")] == handled(greetings, INTERVAL_SECONDS)
    assert [] == handled(greetings, 2 * INTERVAL_SECONDS)


def test_one_device_does_not_hold_up_another() -> None:
    """A loop of one device delays the others' commands."""
    greetings = Greetings()
    handled(greetings, 0.0, hello())
    assert [hello(VALVE)] == handled(greetings, 0.1, hello(), hello(VALVE))


def test_what_else_is_said_passes_in_its_order() -> None:
    """A result or a status waits, or is lost."""
    greetings = Greetings()
    handled(greetings, 0.0, hello())
    said = [status(Presence.ONLINE), status(Presence.OFFLINE)]
    assert said == handled(greetings, 0.1, said[0], hello(), said[1])


def test_a_device_that_has_gone_again_is_not_taken_for_present() -> None:
    """A hello that was held back overtakes the news that its device is offline."""
    greetings = Greetings()
    handled(greetings, 0.0, hello())
    handled(greetings, 0.1, hello())
    handled(greetings, 0.2, status(Presence.OFFLINE))
    assert [] == handled(greetings, 10.0)


def test_a_hello_that_could_not_be_recorded_is_not_lost() -> None:
    """While the disk is full, devices that come back are never sent what is theirs."""
    greetings = Greetings()
    handled(greetings, 0.0, hello())
    handled(greetings, 0.1, hello())
    assert [hello()] == greetings.timely((), 3.0)
    assert [hello()] == handled(greetings, 3.1)


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from([PUMP, VALVE])), max_size=40))
def test_answers_are_apart_and_the_last_hello_gets_one(steps: list[tuple[float, DeviceId]]) -> None:
    """The bound does not hold, or somebody is forgotten."""
    greetings, now = Greetings(), 0.0
    answers: dict[DeviceId, list[float]] = {PUMP: [], VALVE: []}
    last: dict[DeviceId, float] = {}
    for pause, device in [*steps, *[(INTERVAL_SECONDS, None)] * 2]:
        now += pause
        if device is not None:
            last[device] = now
        for report in handled(greetings, now, *([hello(device)] if device is not None else [])):
            answers[report.device].append(now)
    for device, said in last.items():
        times = answers[device]
        assert times[-1] >= said
        assert all(b - a >= INTERVAL_SECONDS for a, b in pairwise(times))


def test_what_a_device_says_of_its_state_is_paced_alike() -> None:
    """A device that reports in a loop keeps dispatch writing, and what it said last is lost."""
    pace = Greetings(StateSeen, 1.0)
    said = [ReportedMessage(Envelope(PUMP, NOW, "boot", seq), NONE_YET, NONE_YET) for seq in range(4)]
    first, *others = (StateSeen(PUMP, message) for message in said)
    assert [first] == handled(pace, 0.0, first)
    assert [hello()] == handled(pace, 0.1, others[0], hello(), others[1])
    assert [hello()] == handled(pace, 0.9, hello(), others[2])
    assert [others[2]] == handled(pace, 1.0)
