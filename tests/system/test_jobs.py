"""Jobs over the real service and broker, with devices that do as they are told; see `./dev soak jobs`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fleet.layout import AdminHome
from fleet.messages import ResultState
from tests.faults.cutting import Point
from tests.faults.jobs_cut import cut, site
from tests.processes import Finished, run


def job(home: AdminHome, *words: object) -> Finished:
    return run("enroll", "job", *words, "--home", home.path, seconds=60)


@pytest.mark.timeout(240)
def test_a_job_goes_to_its_end_or_is_halted_and_survives_a_kill(tmp_path: Path) -> None:
    """A fleet is broken by what broke its canary, or a restart of the gateway forgets or repeats what was begun."""
    with site(tmp_path) as at:
        home = at.office.home
        at.outcomes["break"] = ResultState.FAILED
        cut(at, Point("fdatasync", 4))
        assert 1 == at.count, "it was not killed amid the job"
        good = job(home, "create", "reboot", "--where", "id=pump-*", "--waves", "50,100").check().stdout.strip()
        assert f"job {good} is finished: 3 done\n" in job(home, "watch", good).check().stderr
        bad = at.create("break")
        halted = job(home, "watch", bad)
        at.service.wait_for_line(f'job.halted job={bad} reason="1 of 1 failed"', stream="stderr")
        assert 1 == halted.returncode
        assert f"error: job {bad} was halted: 1 of 1 failed; 1 failed, 2 waiting\n" in halted.stderr
        given = {device: [command] for device, command in at.commands(good).items()}
        assert given == {worker.id: worker.told["reboot"] for worker in at.workers}
        assert 1 == sum("break" in worker.told for worker in at.workers)
        shown = json.loads(job(home, "show", bad, "-o", "json").check().stdout)
        assert ["failed", "waiting", "waiting"] == [each["state"] for each in shown["devices"]]
