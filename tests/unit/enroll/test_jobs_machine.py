"""Any order of what admins, devices, time and power cuts do to a job: against the registry itself."""

from __future__ import annotations

import random
import shutil
from datetime import timedelta
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from enroll.registry import Registry
from enroll.rollout import JobState
from enroll.service import jobs
from fleet.errors import FleetError
from fleet.messages import Presence, ResultState
from tests.unit.enroll.jobbing import MINUTE, Site, plan

DEVICES = 12
NEEDS = settings(max_examples=20, stateful_step_count=25, suppress_health_check=list(HealthCheck))
STOPPED = (JobState.HALTED, JobState.ABORTED)


class Rollout(RuleBasedStateMachine):
    """One job, and all that can happen to it."""

    blank: Path  # a registry with devices, to be copied

    @initialize(
        canary=st.integers(0, 3),
        waves=st.sampled_from([(100,), (50, 100), (10, 30, 100)]),
        limit=st.sampled_from([0, 20, 50, 100]),
        ttl=st.sampled_from([5 * MINUTE, timedelta(hours=2)]),
    )
    def begin(self, canary: int, waves: tuple[int, ...], limit: int, ttl: timedelta) -> None:
        path = self.blank.with_name(f"{random.SystemRandom().getrandbits(64):x}.db")
        self.registry = Registry.open(Path(shutil.copy(self.blank, path)))
        self.site = Site(self.registry)
        self.job = self.site.create(plan(canary, waves, limit, command_ttl=ttl))
        self.stopped_at: int | None = None
        self.is_revoked = False

    def teardown(self) -> None:
        if not hasattr(self, "registry"):
            return
        try:
            self.ends()
        finally:
            self.registry.close()

    @rule(turns=st.integers(1, 4))
    def dispatch_turns(self, turns: int) -> None:
        for _ in range(turns):
            self.site.turn()

    @rule(instructions=st.integers(1, 3000))
    def dispatch_is_cut(self, instructions: int) -> None:
        """Its power goes amid a transaction; what is in memory is gone as well."""
        self.site.turn_cut_after(instructions)
        self.site = Site(self.registry, self.site.now, self.site.now, self.site.chance)

    @rule(minutes=st.sampled_from([1, 6, 11, 200]))
    def time_passes(self, minutes: int) -> None:
        self.site.now += minutes * MINUTE

    @rule(number=st.integers(0, DEVICES - 1), state=st.sampled_from(ResultState))
    def a_device_answers(self, number: int, state: ResultState) -> None:
        given = [place for place in self.site.places(self.job) if place.command]
        if given:
            self.site.answer(given[number % len(given)].target.device, state, self.job)

    @rule(state=st.sampled_from([ResultState.ACCEPTED, ResultState.DONE]))
    def all_answer(self, state: ResultState) -> None:
        for device in self.site.open(self.job):
            self.site.answer(device, state, self.job)

    @rule(number=st.integers(0, DEVICES - 1), presence=st.sampled_from(Presence))
    def a_device_comes_or_goes(self, number: int, presence: Presence) -> None:
        self.site.is_online(f"pump-{number:03}", presence=presence)

    @precondition(lambda self: not self.is_revoked)
    @rule(number=st.integers(0, DEVICES - 1))
    def a_device_is_revoked(self, number: int) -> None:
        self.is_revoked = True
        self.site.revoke(f"pump-{number:03}")

    @rule(verb=st.sampled_from([jobs.pause, jobs.resume, jobs.resume]))
    def an_admin_decides(self, verb: object) -> None:
        assert verb in (jobs.pause, jobs.resume)
        try:
            (jobs.pause if verb is jobs.pause else jobs.resume)(self.registry, self.job.id, self.site.giver)
        except FleetError:
            assert self.site.find(self.job).state.is_final

    @rule()
    def an_admin_aborts(self) -> None:
        try:
            jobs.abort(self.registry, self.job.id, self.site.giver)
        except FleetError:
            assert self.site.find(self.job).state in (JobState.HALTED, JobState.FINISHED)

    @invariant()
    def holds(self) -> None:
        """Never more than the wave's share, each device once, and none after it was stopped."""
        self.site.check(self.job, is_settled=False)
        found = self.site.find(self.job)
        if found.state in STOPPED:
            self.stopped_at = found.tally.reached if self.stopped_at is None else self.stopped_at
            assert self.stopped_at == found.tally.reached, "it went on"
        assert found.state is not JobState.FINISHED or found.tally.reached == DEVICES

    def ends(self) -> None:
        """Whatever happened, with time the job ends, and its count is right."""
        if self.site.find(self.job).state is JobState.PAUSED:
            jobs.resume(self.registry, self.job.id, self.site.giver)
        for _ in range(8):
            self.site.settle()
            self.holds()
            self.site.wait(timedelta(hours=2))
        assert self.site.find(self.job).state.is_final
        self.site.check(self.job)
        if self.site.find(self.job).state in STOPPED:
            assert not {"queued", "sent"} & self.site.standings(self.job).keys(), "not withdrawn"


def test_any_order_of_events_leaves_a_job_whole_and_ends_it(tmp_path: Path) -> None:
    """Some order gives a device the command twice, goes on after a halt, or leaves a job that never ends."""

    class Here(Rollout):
        blank = tmp_path / "blank.db"

    with Registry.open(Here.blank) as registry:
        Site(registry).add(DEVICES)
    run_state_machine_as_test(Here, settings=NEEDS)
