"""What `enroll job` shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enroll.cli.job_view import WaitingFor, duration, print_job, status_rows, watch_job
from enroll.cli.options import Output, parse_duration
from enroll.registry import Registry
from enroll.registry.jobs import unsettled
from enroll.service import jobs
from fleet.errors import FleetError, PartlyDone
from fleet.layout import AdminHome
from fleet.messages import Presence, ResultState
from tests.unit.enroll.jobbing import MINUTE, Site, plan


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Three devices, of which one is away."""
    with Registry.open(tmp_path_factory.mktemp("site") / "registry.db") as registry:
        found = Site(registry)
        found.add(3)
        found.is_online("pump-002", presence=Presence.OFFLINE)
        yield found


def test_a_watch_ends_as_the_job_did(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A script goes on after a rollout that reached half of the fleet."""
    partly = site.create(plan(1, (100,)))
    site.settle()
    for _ in range(2):
        for device in ("pump-000", "pump-001"):
            if device in site.open(partly):
                site.answer(device, ResultState.DONE, partly)
        site.settle()
    site.wait(10 * MINUTE)
    with pytest.raises(PartlyDone, match=f"job {partly.id} is finished: 2 done, 1 missed"):
        watch_job(AdminHome(tmp_path), WaitingFor(site.registry, partly.id))
    aborted = jobs.abort(site.registry, site.create(plan()).id, site.giver)
    with pytest.raises(FleetError, match=f"job {aborted.id} was aborted: by anna; 3 waiting") as error:
        watch_job(AdminHome(tmp_path), WaitingFor(site.registry, aborted.id))
    assert (6, 1) == (PartlyDone.exit_code, error.value.exit_code)
    assert ("", "") == capsys.readouterr(), "it is no terminal, and has ended"


def test_a_job_is_one_json_value_however_long(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """A program that reads the list of who failed cannot parse it."""
    job = site.create(plan(1))
    for state, expected in ((None, 3), ("waiting", 3), ("failed", 0)):
        print_job(Output.JSON, job, jobs.pages(site.registry, job), state)
        shown = json.loads(capsys.readouterr().out)
        assert [job.id, 3, expected] == [shown["id"], shown["counts"]["total"], len(shown["devices"])]
    print_job(Output.NAME, job, jobs.pages(site.registry, job), None)
    assert ["pump-000", "pump-001", "pump-002"] == sorted(capsys.readouterr().out.split())


def test_the_status_has_a_line_for_what_goes_on_or_needs_an_admin(tmp_path: Path) -> None:
    """Nobody knows that a rollout stopped at its first device, a week ago; or it is shown for ever."""

    def lines() -> list[str]:
        with registry.read() as transaction:
            return [words for _, words in status_rows(unsettled(transaction, site.now - timedelta(days=7)))]

    with Registry.open(tmp_path / "registry.db") as registry:
        site = Site(registry)
        site.add(2)
        halted = site.create(plan())
        site.settle()
        (device,) = site.open(halted)
        site.answer(device, ResultState.FAILED, halted)
        site.settle()
        paused = jobs.pause(registry, site.create(plan()).id, site.giver)
        first, second = lines()
        assert f"{halted.id} echo: halted in wave 1/2 (" in first
        assert f"1 failed, 1 waiting: enroll job show {halted.id} --state failed, then enroll job retry" in first
        assert f"{paused.id} echo: paused in wave 1/2, 2 waiting: enroll job resume {paused.id}" == second
        again = jobs.retry(registry, halted.id, site.giver, site.chance)
        jobs.abort(registry, paused.id, site.giver)
        assert [f"{again.id} echo: running in wave 1/2, 2 waiting"] == lines()
        for _ in range(11):
            site.create(plan())
        assert (11, "and 2 more: enroll job list") == (len(lines()), lines()[-1])


@given(st.integers(1, 999_999))
def test_a_time_is_shown_as_it_is_written(seconds: int) -> None:
    """An admin cannot repeat what was shown."""
    assert timedelta(seconds=seconds) == parse_duration(duration(timedelta(seconds=seconds)))
