"""Jobs over the real service and broker, with devices that do as they are told."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from fleet.identity import DeviceId
from fleet.layout import AdminHome
from fleet.messages import ResultState
from tests.fleets import new_home
from tests.processes import Finished, run
from tests.system.brokers import enrol, start_broker, start_service, wait_ready
from tests.system.workers import at_work

DEVICES = [DeviceId(f"pump-{number}") for number in range(4)]


def job(home: AdminHome, *words: object) -> Finished:
    return run("enroll", "job", *words, "--home", home.path, seconds=60)


def shown(home: AdminHome, id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(job(home, "show", id, "-o", "json").check().stdout)
    return found


@pytest.mark.timeout(180)
def test_a_job_goes_to_its_end_or_is_halted_and_survives_a_kill(tmp_path: Path) -> None:
    """A fleet is broken by what broke its canary, or a restart of the gateway forgets or repeats what was begun."""
    home = new_home(tmp_path / "fleet")
    files = {device: enrol(home, device) for device in DEVICES}
    may_answer = threading.Event()
    with start_service(home) as service, start_broker(home) as broker:
        port = wait_ready(broker)
        service.wait_for_line("dispatch.online", stream="stderr")
        with at_work(home, port, files, {"break": ResultState.FAILED}, may_answer) as workers:
            for worker in workers:
                service.wait_for_line(f"device.online device={worker.id}", stream="stderr")
            good = job(home, "create", "update", "--where", "id=pump-*", "--waves", "50,100").check().stdout.strip()
            service.wait_for_line(f"job.wave_given job={good} wave=1 of=3", stream="stderr")
            service.kill()
            may_answer.set()
            with start_service(home) as again:
                finished = job(home, "watch", good).check()
                assert f"job {good} is finished: 4 done\n" in finished.stderr
                bad = job(home, "create", "break", "--where", "id=pump-*").check().stdout.strip()
                halted = job(home, "watch", bad)
                assert f"error: job {bad} was halted: 1 of 1 failed; 1 failed, 3 waiting\n" in halted.stderr
                assert 1 == halted.returncode
                again.wait_for_line(f'job.halted job={bad} reason="1 of 1 failed"', stream="stderr")
        by_device = {each["device"]: each["command"] for each in shown(home, good)["devices"]}
        assert {worker.id: [by_device[worker.id]] for worker in workers} == {
            worker.id: worker.told["update"] for worker in workers
        }
        assert 1 == sum("break" in worker.told for worker in workers)
        assert ["failed"] == [each["state"] for each in shown(home, bad)["devices"] if each["state"] != "waiting"]
    assert "Traceback" not in service.stderr + again.stderr
