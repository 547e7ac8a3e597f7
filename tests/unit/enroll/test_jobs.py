"""Jobs in the registry, from the admin who creates one to its end; no network."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from enroll import audit
from enroll.registry import Registry, log, messaging
from enroll.registry.overview import Filter
from enroll.rollout import Earshot, JobState
from enroll.selection import parse
from enroll.service import jobs
from fleet.errors import Denied, FleetError, NotFound
from fleet.identity import DeviceId
from fleet.messages import InvalidMessage, Presence, ResultState
from tests.fleets import Office
from tests.unit.enroll.jobbing import MINUTE, Site, plan
from tests.unit.enroll.test_registry_scale import Watched, filled, scanning

DONE, FAILED, ACCEPTED = ResultState.DONE, ResultState.FAILED, ResultState.ACCEPTED


@pytest.fixture(scope="module", name="ten")
def _ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with ten devices, all online, to be copied: to make one takes longer than most tests."""
    path = tmp_path_factory.mktemp("ten") / "registry.db"
    with Registry.open(path) as registry:
        Site(registry).add(10)
    return path


@pytest.fixture
def site(ten: Path, tmp_path: Path) -> Iterator[Site]:
    """Ten devices, all online."""
    with Registry.open(Path(shutil.copy(ten, tmp_path))) as registry:
        yield (found := Site(registry))
        with found.registry.read() as transaction:
            assert None is audit.first_broken(log.entries(transaction))


def test_a_job_goes_wave_by_wave_to_its_end(site: Site) -> None:
    """A device is left out, or a wave begins before the one before it is through."""
    job = site.create(plan(1, (50, 100)))
    for given in (1, 4, 5):
        site.settle()
        assert given == len(site.open(job))
        site.check(job)
        site.all_answer(ACCEPTED, job)
        assert given == len(site.open(job))
        site.all_answer(DONE, job)
    assert JobState.FINISHED is site.find(job).state
    assert {"done": 10} == site.standings(job)
    assert {"echo"} == {command.name for command in site.commands(job)}
    assert {job.created_at + 10 * MINUTE} == {command.deadline for command in site.commands(job)}
    site.check(job)


def test_a_canary_that_fails_halts_the_job_for_good(site: Site) -> None:
    """The whole fleet is given what broke the first device."""
    job = site.create(plan(1))
    site.settle()
    site.all_answer(FAILED, job)
    assert (JobState.HALTED, "1 of 1 failed") == (site.find(job).state, site.find(job).reason)
    site.wait(timedelta(days=1))
    assert {"failed": 1, "waiting": 9} == site.standings(job)
    for verb in (jobs.pause, jobs.resume, jobs.abort):
        with pytest.raises(FleetError, match="is halted"):
            verb(site.registry, job.id, site.giver)
    site.check(job)


@pytest.mark.parametrize("state", [ACCEPTED, ResultState.RUNNING])
def test_a_canary_that_begins_and_dies_halts_the_job(site: Site, state: ResultState) -> None:
    """What bricks devices looks like devices that are away."""
    job = site.create(plan(2))
    site.settle()
    site.all_answer(state, job)
    site.all_answer(DONE, job, 1)
    site.wait(9 * MINUTE)
    assert JobState.RUNNING is site.find(job).state
    site.wait(MINUTE)
    assert JobState.HALTED is site.find(job).state
    assert {"done": 1, "silent": 1, "waiting": 8} == site.standings(job)
    site.check(job)


def test_who_was_silent_and_does_it_after_all_counts_as_done(site: Site) -> None:
    """The list that an admin goes by says that a device failed which has done it."""
    job = site.create(plan(4, max_failures=50))
    site.settle()
    site.all_answer(ACCEPTED, job)
    late = site.open(job)[0]
    for device in site.open(job)[1:]:
        site.answer(device, DONE, job)
    site.wait(10 * MINUTE)
    assert 1 == site.standings(job)["silent"]
    site.answer(late, DONE, job)
    site.settle()
    assert 4 == site.find(job).tally.done
    site.check(job)


def test_who_is_away_neither_fails_the_job_nor_holds_it_up(site: Site) -> None:
    """A fleet of which some sleep can never be updated."""
    job = site.create(plan(1, max_failures=0))
    site.settle()
    site.all_answer(DONE, job)
    away = site.open(job)
    site.wait(10 * MINUTE)
    assert 4 == len(away)
    assert 5 == len(site.open(job)), "the last wave"
    site.all_answer(DONE, job)
    assert JobState.FINISHED is site.find(job).state
    assert {"done": 6, "missed": 4} == site.standings(job)
    site.answer(away[0], DONE, job)  # it had begun in time, and its answer was late
    site.settle()
    assert {"done": 7, "missed": 3} == site.standings(job)
    site.check(job)


def test_a_command_may_wait_longer_than_its_wave(site: Site) -> None:
    """Devices that sleep for a day are never reached, or hold up all others for a day."""
    asleep = [f"pump-{number:03}" for number in range(5)]
    site.is_online(*asleep, presence=Presence.OFFLINE)
    job = site.create(plan(1, (60, 100), command_ttl=timedelta(days=1)))
    site.settle()
    for _ in range(3):
        for device in site.open(job):
            if device not in asleep:
                site.answer(device, DONE, job)
        site.wait(11 * MINUTE)
    assert (5, 5) == (site.find(job).tally.done, site.find(job).tally.open)
    site.answer(asleep[0], ACCEPTED, job)
    site.wait(9 * MINUTE)
    assert 0 == site.find(job).tally.silent, "it has as long as the others had"
    site.answer(asleep[0], DONE, job)
    site.wait(timedelta(days=1))
    assert JobState.FINISHED is site.find(job).state
    assert {"done": 6, "missed": 4} == site.standings(job)
    site.check(job)


def test_a_paused_job_gives_nothing_and_goes_on_where_it_was(site: Site) -> None:
    """An admin who wants to look first cannot stop it, or cannot let it go on."""
    job = site.create(plan(1))
    site.settle()
    assert JobState.PAUSED is jobs.pause(site.registry, job.id, site.giver).state
    site.all_answer(DONE, job)
    site.wait(timedelta(hours=1))
    assert {"done": 1, "waiting": 9} == site.standings(job)
    assert JobState.RUNNING is jobs.resume(site.registry, job.id, site.giver).state
    site.settle()
    assert 4 == len(site.open(job))


def test_an_abort_takes_back_what_nobody_has_begun(site: Site) -> None:
    """Devices that come back days later do what was called off."""
    site.is_online("pump-003", "pump-004", presence=Presence.OFFLINE)
    job = site.create(plan(0, (100,), command_ttl=timedelta(days=7)))
    site.settle()
    first, second, *_ = site.open(job)
    site.answer(first, ACCEPTED, job)
    jobs.abort(site.registry, job.id, site.giver)
    site.settle()
    assert {"accepted": 1, "missed": 9} == site.standings(job)
    assert {"", f"withdrawn: job {job.id} was aborted"} == {command.error for command in site.commands(job)}
    site.answer(first, DONE, job)
    site.answer(second, DONE, job)  # the broker had it
    site.settle()
    assert {"done": 2, "missed": 8} == site.standings(job)
    assert JobState.ABORTED is jobs.abort(site.registry, job.id, site.giver).state, "again"
    site.check(job)


def test_who_may_not_connect_any_more_or_was_replaced_is_skipped(site: Site) -> None:
    """A job waits for a device that is no more, or its successor is told what was meant for another."""
    job = site.create(plan(0, (100,)))
    site.revoke("pump-001")
    with site.registry.write() as transaction:
        transaction.exec_driver_sql("UPDATE principals SET epoch = 2 WHERE id = 'pump-002'")
    site.settle()
    site.revoke("pump-003")
    site.all_answer(DONE, job)
    assert JobState.FINISHED is site.find(job).state
    assert {"done": 7, "skipped": 2, "missed": 1} == site.standings(job)
    reasons = {place.target.device: place.error for place in site.places(job) if place.error}
    assert {"pump-001": "pump-001 is revoked", "pump-002": "pump-002 has been replaced since"} == reasons
    site.check(job)


def test_the_list_of_devices_is_frozen(site: Site) -> None:
    """Who joins the group amid a job has it without a canary."""
    job = site.create(plan(0, (100,)))
    site.add(1, first=10)
    site.settle()
    assert "pump-010" not in {place.target.device for place in site.places(job)}


def test_a_new_job_is_made_of_what_was_not_done(site: Site) -> None:
    """An admin has to write down by hand who failed, and has others do it again."""
    job = site.create(plan(0, (100,), max_failures=100))
    site.settle()
    for device in ("pump-000", "pump-001"):
        site.answer(device, FAILED, job)
    site.answer("pump-002", ACCEPTED, job)
    with pytest.raises(FleetError, match="is running"):
        jobs.retry(site.registry, job.id, site.giver, site.chance)
    for number in range(4, 10):
        site.answer(f"pump-{number:03}", DONE, job)
    jobs.abort(site.registry, job.id, site.giver)
    with pytest.raises(FleetError, match="being withdrawn"):
        jobs.retry(site.registry, job.id, site.giver, site.chance)
    site.settle()
    again = jobs.retry(site.registry, job.id, site.giver, site.chance)
    assert {"pump-000", "pump-001", "pump-003"} == {place.target.device for place in site.places(again)}
    assert (job.plan, job.args, f"not done by job {job.id}") == (again.plan, again.args, again.asked)


def test_devices_are_taken_as_they_are_meant(site: Site) -> None:
    """A job goes to who is suspended, or to nobody."""
    fitting = jobs.fitting(site.registry, Filter(where=parse("id=pump-00* and online and not id=pump-005")))
    assert [f"pump-{number:03}" for number in (0, 1, 2, 3, 4, 6, 7, 8, 9)] == [each.device for each in fitting]
    names = [DeviceId("pump-003"), DeviceId("pump-001"), DeviceId("pump-003")]
    assert ["pump-003", "pump-001"] == [each.device for each in jobs.named(site.registry, names)]
    with pytest.raises(NotFound):
        jobs.named(site.registry, [DeviceId("nobody")])
    site.revoke("pump-001")
    with pytest.raises(Denied):
        jobs.named(site.registry, names)
    order = jobs.JobOrder("echo", {"a": "x" * 70_000}, plan(), "all")
    with pytest.raises(InvalidMessage):
        jobs.create(site.registry, order, fitting, site.giver, site.chance)
    with pytest.raises(NotFound):
        jobs.create(site.registry, order, [], site.giver, site.chance)
    assert [] == jobs.newest(site.registry, 10)
    with pytest.raises(NotFound):
        jobs.find(site.registry, "nothing")


def test_what_was_done_is_in_the_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody can say later who stopped a rollout, or why it stopped."""
    with caplog.at_level(logging.INFO, "enroll.jobs"):
        job = site.create(plan(2, (100,)))
        jobs.pause(site.registry, job.id, site.giver)
        jobs.resume(site.registry, job.id, site.giver)
        site.settle()
        site.all_answer(DONE, job)
        site.all_answer(FAILED, job)
        other = site.create(plan())
        jobs.abort(site.registry, other.id, site.giver)
    with site.registry.read() as transaction:
        events = [entry.event for entry in log.entries(transaction) if entry.event.startswith("job.")]
    assert ["job.created", "job.paused", "job.resumed", "job.halted", "job.created", "job.aborted"] == events
    assert [
        f"job.wave_given job={job.id} wave=1 of=2 reached=2",
        f"job.wave_over job={job.id} wave=1 reached=2 done=2",
        f"job.wave_given job={job.id} wave=2 of=2 reached=10 done=2",
        f'job.halted job={job.id} reason="8 of 10 failed" reached=10 done=2 failed=8',
    ] == caplog.messages


def test_two_jobs_go_on_side_by_side(site: Site) -> None:
    """A large job keeps a small one waiting for an hour."""
    first, second = site.create(plan(0, (100,))), site.create(plan(0, (100,)), "reboot")
    site.settle()
    assert 10 == len(site.open(first)) == len(site.open(second))
    site.all_answer(DONE, second)
    assert [JobState.RUNNING, JobState.FINISHED] == [site.find(each).state for each in (first, second)]
    assert [first.id, second.id] == [each.id for each in jobs.newest(site.registry, 10)]


def test_a_step_is_taken_whole_or_not_at_all(site: Site) -> None:
    """A service killed amid a wave gives a device the command twice, or never, or counts it wrong."""
    job = site.create(plan(1))
    cuts = 0
    for _ in range(12):  # give, count, next wave, give, ... to the end
        budget = 1
        while site.turn_cut_after(budget):
            site.check(job, is_settled=False)
            budget, cuts = budget + 61, cuts + 1
        site.check(job)
        for device in site.open(job):
            site.answer(device, DONE, job)
    assert JobState.FINISHED is site.find(job).state
    assert {"done": 10} == site.standings(job)
    assert cuts > 50


def test_a_registry_from_a_backup_gives_the_same_commands(site: Site) -> None:
    """Devices do again what they did before the gateway's disk was restored."""
    job = site.create(plan(0, (100,)))
    site.settle()
    first = {command.device: command.id for command in site.commands(job)}
    with site.registry.write() as transaction:
        transaction.exec_driver_sql("DELETE FROM commands")
        transaction.exec_driver_sql("UPDATE job_targets SET command = NULL")
        transaction.exec_driver_sql("UPDATE jobs SET reached = 0, wave_ends_at = NULL")
    site.settle()
    assert first == {command.device: command.id for command in site.commands(job)}


def test_a_job_that_was_not_written_whole_is_never_begun(site: Site) -> None:
    """An admin who loses the connection amid `job create` starts half a job, or one that cannot be ended."""
    job = site.create(plan())
    with site.registry.write() as transaction:
        transaction.exec_driver_sql("UPDATE jobs SET state = 'preparing', is_active = 0")
    site.settle()
    assert {"waiting": 10} == site.standings(job)
    assert JobState.ABORTED is jobs.abort(site.registry, job.id, site.giver).state


def test_a_job_that_cannot_be_driven_leaves_dispatch_alone(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """One damaged row, and no device is sent anything any more."""
    job = site.create(plan())
    with site.registry.write() as transaction:
        transaction.exec_driver_sql("UPDATE jobs SET args = '['")
    assert site.now + MINUTE == site.turn() == site.turn()
    assert [f"jobs.failed job={job.id}"] == [
        record.getMessage() for record in caplog.records if record.levelname == "ERROR"
    ]


def test_a_clock_that_was_set_back_does_not_keep_jobs(site: Site) -> None:
    """A service that began in 2040 by its clock, and met one damaged row, drives no job until 2040."""
    job = site.create(plan())
    with site.registry.write() as transaction:
        transaction.exec_driver_sql("UPDATE jobs SET waves = '['")
    assert site.now + MINUTE == site.turn()
    with site.registry.write() as transaction:
        transaction.exec_driver_sql("UPDATE jobs SET waves = '[50, 100]'")
    site.now -= timedelta(days=1)
    site.settle()
    assert 1 == site.find(job).tally.reached


def test_a_job_that_cannot_be_driven_leaves_the_others_alone(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """One damaged row, and no other job goes on, nor does any know what its devices did."""
    bad, good = site.create(plan(1)), site.create(plan(1, (50, 100)))
    site.settle()
    with site.registry.write() as transaction:
        transaction.exec_driver_sql("UPDATE jobs SET args = '[' WHERE id = ?", (bad.id,))
    site.all_answer(DONE, bad)
    for _ in range(3):
        site.all_answer(DONE, good)
    assert JobState.FINISHED is site.find(good).state
    assert (1, 1) == (site.find(bad).tally.reached, site.find(bad).tally.done)
    failed = f"jobs.failed job={bad.id}"
    assert 1 == caplog.messages.count(failed)
    with site.registry.write() as transaction:
        transaction.exec_driver_sql("UPDATE jobs SET args = '{}' WHERE id = ?", (bad.id,))
    site.wait(MINUTE)
    assert (1, 5) == (caplog.messages.count(failed), site.find(bad).tally.reached)


def test_an_idle_look_at_jobs_commits_nothing(site: Site) -> None:
    """Each commit wakes every watcher, dispatch too: it would turn for ever."""
    site.create(plan())
    site.settle()
    mark = site.registry.commit_mark()
    try:
        assert site.now + 10 * MINUTE == site.turn()
        assert not mark.has_moved()
    finally:
        mark.close()


def test_a_large_job_is_written_and_given_in_small_transactions(site: Site) -> None:
    """While a job of 100,000 devices is created or begun, no device can enrol."""
    site.add(1190, first=10)
    job = site.create(plan(0, (100,)))
    with site.registry.read() as transaction:
        assert 1200 == transaction.exec_driver_sql("SELECT count(*) FROM job_targets").scalar_one()
    site.turn()
    assert 100 == site.find(job).tally.reached
    small = site.create(plan(0, (100,)), "reboot")
    site.turn()
    assert (100, 100) == (site.find(job).tally.reached, site.find(small).tally.reached), "one waits for the other"
    for each in (job, small):
        jobs.abort(site.registry, each.id, site.giver)
    site.settle()
    assert {"missed": 100, "waiting": 1100} == site.standings(job)
    site.check(job)


def test_what_is_about_to_go_out_is_withdrawn_first(site: Site) -> None:
    """After an abort commands still go out while those for who is away are taken back."""
    site.add(290, first=10)
    site.is_online(*(f"pump-{number:03}" for number in range(300)), presence=Presence.OFFLINE)
    job = site.create(plan(0, (100,)))
    site.settle()
    site.is_online(site.places(job)[-1].target.device)
    jobs.abort(site.registry, job.id, site.giver)
    site.jobs.advance(Earshot(site.now, site.now))
    assert {"missed": 200, "queued": 100} == site.standings(job)
    with site.registry.read() as transaction:
        assert [] == messaging.due_commands(transaction, site.now, 300)


def test_nothing_that_a_job_asks_of_the_registry_scans(office: Office) -> None:
    """With a million commands in the registry each answer of a device costs seconds."""
    filled(office)
    with Watched(office) as watched:
        site = Site(office.registry, office.now, office.now - timedelta(days=1))
        for how in (plan(2), plan(0, (100,))):
            job = site.create(how)
            site.settle()
            site.all_answer(ACCEPTED, job, 1)
            site.wait(20 * MINUTE)
        jobs.newest(office.registry, 10)
        other = site.create(plan())
        site.settle()
        jobs.abort(office.registry, other.id, site.giver)
        site.settle()
        site.places(other)
    assert [] == scanning(watched)
    assert [each for each in watched.statements if "job_targets" in each]


def test_commands_of_others_are_not_looked_at(site: Site) -> None:
    """A million commands beside a job make each of its steps slow."""
    job = site.create(plan(4))
    site.settle()
    few = site.steps_of_a_look()
    with site.registry.write() as transaction:
        transaction.exec_driver_sql(_MANY)
    assert few == site.steps_of_a_look()
    site.all_answer(DONE, job, 1)
    assert 1 == site.find(job).tally.done


_MANY = """
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
    INSERT INTO commands (id, device, epoch, name, args, state, created_at, deadline, changed_at, error, job, counted)
    SELECT 'x' || i, 'pump-001', 1, 'echo', '{}', CASE i % 3 WHEN 0 THEN 'queued' WHEN 1 THEN 'done' ELSE 'running' END,
           0, 9000000000000000, 0, '', CASE i % 2 WHEN 0 THEN 999 END, 'done' FROM n
"""
