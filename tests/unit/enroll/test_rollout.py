"""What the next step of a job is."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enroll.rollout import (
    LISTENING,
    BeginWave,
    CountSilent,
    Earshot,
    Finish,
    Give,
    Halt,
    Job,
    JobState,
    Plan,
    Rest,
    Step,
    Tally,
    Target,
    Withdraw,
    in_order,
    next_step,
    silent_before,
)
from fleet.errors import InvalidInput
from fleet.identity import DeviceId
from tests.unit.enroll.jobbing import BEGIN, MINUTE, plan

END = BEGIN + 10 * MINUTE
LONG_AGO = BEGIN - timedelta(days=1)


def job(tally: Tally, wave: int = 0, ends: datetime | None = END, state: JobState = JobState.RUNNING) -> Job:
    """A job with a canary of 2, a wave of 10 per cent and the rest, that may fail in 20 per cent."""
    how = plan(2, (10, 100), 20)
    return Job(1, "j", "echo", "{}", how, state, tally, BEGIN, "anna", "all", wave, ends)


def step(of: Job, now: datetime = BEGIN, *, has_silent: bool = False, heard_since: datetime = LONG_AGO) -> Step:
    return next_step(of, Earshot(now, heard_since), has_silent=has_silent)


@pytest.mark.parametrize(
    ("tally", "wave", "expected"),
    [
        (Tally(100), 0, Give(2)),
        (Tally(100, 1), 0, Give(2)),
        (Tally(100, 2), 0, Rest(END)),
        (Tally(100, 2, done=1), 0, Rest(END)),
        (Tally(100, 2, done=2), 0, BeginWave(1)),
        (Tally(100, 2, done=1, missed=1), 0, BeginWave(1)),
        (Tally(100, 2, done=1, skipped=1), 0, BeginWave(1)),
        (Tally(100, 2, done=1, failed=1), 0, Halt("1 of 2 failed")),
        (Tally(100, 2, failed=1), 0, Halt("1 of 1 failed")),  # whatever the other will say
        (Tally(100, 2, missed=2), 0, Halt("no device of the first wave did it")),
        (Tally(100, 2, skipped=2), 0, Halt("no device of the first wave did it")),
        (Tally(100, 2, done=2), 1, Give(10)),
        (Tally(100, 6, done=4, failed=1), 1, Give(10)),  # too few answers for a rate
        (Tally(100, 5, done=3, failed=2), 1, Give(10)),  # 2 of 10 at best, once all have it
        (Tally(100, 10, done=4, failed=2), 1, Rest(END)),
        (Tally(100, 10, done=4, failed=3), 1, Halt("3 of 7 failed")),  # 3 of 10 at best
        (Tally(100, 10, done=8, failed=2), 1, BeginWave(2)),
        (Tally(100, 10, done=3, missed=7), 1, BeginWave(2)),
        (Tally(100, 40, done=10, failed=2), 2, Give(100)),
        (Tally(100, 40, done=7, failed=3), 2, Halt("3 of 10 failed")),  # just enough for a rate
        (Tally(100, 40, done=10, failed=3), 2, Halt("3 of 13 failed")),
        (Tally(100, 40, done=10, failed=1, silent=2), 2, Halt("3 of 13 failed")),
        (Tally(100, 100, done=85, failed=5), 2, Rest(END)),
        (Tally(100, 100, done=85, failed=5, missed=6, skipped=4), 2, Finish()),
    ],
)
def test_what_follows_before_the_waves_time_is_over(tally: Tally, wave: int, expected: Step) -> None:
    """A wave goes on too early or never, or a job that fails is not stopped."""
    ends = END if tally.reached == (2, 10, 100)[wave] else None
    assert expected == step(job(tally, wave, ends))


@pytest.mark.parametrize(
    ("tally", "wave", "has_silent", "expected"),
    [
        (Tally(100, 2, done=1), 0, True, CountSilent(END)),
        (Tally(100, 2, done=1, silent=1), 0, False, Halt("1 of 2 failed")),
        (Tally(100, 2, done=1), 0, False, BeginWave(1)),  # the other is away
        (Tally(100, 2), 0, False, Halt("no device of the first wave did it")),
        (Tally(100, 10, done=7, failed=1), 1, False, BeginWave(2)),
        (Tally(100, 10, done=3, failed=1), 1, False, Halt("1 of 4 failed")),
        (Tally(100, 100, done=90), 2, True, CountSilent(END)),
        (Tally(100, 100, done=90), 2, False, Rest(END + timedelta(seconds=30))),  # until the commands' own time is over
        (Tally(100, 100, done=90, missed=10), 2, False, Finish()),
    ],
)
def test_what_follows_when_the_waves_time_is_over(tally: Tally, wave: int, has_silent: bool, expected: Step) -> None:
    """A device that begins and dies is waited for for ever, or counts as well."""
    assert expected == step(job(tally, wave), END, has_silent=has_silent)


@pytest.mark.parametrize("state", JobState)
def test_a_job_that_does_not_run_is_left_alone_or_taken_back(state: JobState) -> None:
    """A paused or ended job gives one more command."""
    found = step(job(Tally(100, 1, done=1), state=state), END + MINUTE)
    match state:
        case JobState.RUNNING:
            assert Give(2) == found
        case JobState.HALTED | JobState.ABORTED:
            assert Withdraw() == found
        case _:
            assert Rest() == found


def test_nobody_is_silent_while_dispatch_could_not_hear_it() -> None:
    """A gateway that was down for a night calls a wave failed whose answers wait in the broker."""
    waiting = job(Tally(100, 2, done=1))
    back = Earshot(END + timedelta(hours=9), END + timedelta(hours=9))
    assert silent_before(waiting, back) is None
    assert Rest(back.now + LISTENING) == next_step(waiting, back, has_silent=False)
    assert back.now + LISTENING - 10 * MINUTE == silent_before(waiting, replace(back, now=back.now + LISTENING))


def test_who_comes_after_the_waves_time_has_as_long() -> None:
    """A device that was away counts as failed the moment it begins."""
    last = job(Tally(100, 100, done=90), 2)
    assert END == silent_before(last, Earshot(END, LONG_AGO))
    assert END + 5 * MINUTE == silent_before(last, Earshot(END + 15 * MINUTE, LONG_AGO))


@given(st.integers(0, 120), st.sets(st.integers(1, 99), max_size=5), st.integers(1, 300))
def test_waves_rise_to_all_devices(canary: int, percents: set[int], total: int) -> None:
    """A device is left out, or a wave has nobody and never ends."""
    ceilings = plan(canary, (*sorted(percents), 100)).ceilings(total)
    assert total == ceilings[-1]
    assert list(ceilings) == sorted({each for each in ceilings if each > 0})
    assert not canary or min(canary, total) == ceilings[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"canary": -1},
        {"waves": ()},
        {"waves": (50,)},
        {"waves": (50, 50, 100)},
        {"waves": (0, 100)},
        {"waves": (100, 50)},
        {"waves": (50, 100, 101)},
        {"max_failures": 101},
        {"max_failures": -1},
        {"wave_timeout": timedelta(0)},
        {"command_ttl": timedelta(days=91)},
    ],
    ids=str,
)
def test_a_plan_that_leads_nowhere_is_refused(changes: dict[str, object]) -> None:
    """A job begins that leaves devices out or never ends."""
    with pytest.raises(InvalidInput):
        replace(plan(), **changes)  # type: ignore[arg-type] # a test's own fields


def test_the_canary_is_online_and_the_rest_in_no_order() -> None:
    """The canaries are all away, or the first wave is one site."""
    targets = [Target(DeviceId(f"d{number}"), 1, number % 10 == 7) for number in range(50)]
    found = in_order(targets, 3, random.Random(1))
    assert [True] * 3 == [each.is_online for each in found[:3]]
    assert sorted(targets, key=lambda each: each.device) == sorted(found, key=lambda each: each.device)
    assert found[3:] != [each for each in targets if each in found[3:]]
    assert 5 == sum(each.is_online for each in in_order(targets, 9, random.Random(1))[:5])


def test_a_plan_of_percents_says_what_it_is() -> None:
    """The words of the command line and the waves that come of them differ."""
    assert (3, 10, 50, 100) == Plan(3, (10, 50, 100), 10, MINUTE, MINUTE).ceilings(100)
    assert (1,) == Plan(3, (10, 50, 100), 10, MINUTE, MINUTE).ceilings(1)
    assert (3, 5) == Plan(3, (10, 50, 100), 10, MINUTE, MINUTE).ceilings(5)
