"""Kills the enrollment service at every system call on its registry while a job runs: `main` is all of it.

The service, the broker and the devices' connections are real. strace takes hold of a service that runs, for the time of
one job: a kill costs one start. After it the service is started again and nothing else is done: the job ends by itself,
each device was given the command once, and did it.
"""

from __future__ import annotations

import argparse
import random
import secrets
import sqlite3
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from enroll import audit
from enroll.commands import Giver
from enroll.registry import Registry, log
from enroll.registry.overview import Filter
from enroll.rollout import Plan
from enroll.service import jobs
from fleet.identity import DeviceId
from fleet.messages import ResultState
from tests.faults.cutting import Point
from tests.faults.service_cut import CALLS, Office, all_points, numbered, office
from tests.processes import Program
from tests.system.brokers import enrol
from tests.system.workers import Worker, at_work

DEVICES: Final = 3
_NAME: Final = "update"


@dataclass
class Site:
    """An office with its service, and devices that are connected to its broker throughout.

    `outcomes`: what they answer to which command, if it is not done. `count`: how often the service was killed.
    """

    office: Office
    workers: Sequence[Worker]
    outcomes: dict[str, ResultState]
    service: Program
    stack: ExitStack
    count: int = 0

    def restart(self) -> None:
        """The service, once it has ended."""
        self.service = self.stack.enter_context(self.office.serving(traced=False))

    def create(self, name: str = _NAME) -> str:
        """A job for all of them: one, then the others."""
        now, minute = datetime.now(UTC), timedelta(minutes=1)
        order = jobs.JobOrder(name, {}, Plan(1, (100,), 0, 10 * minute, 10 * minute), "all")
        giver = Giver("test", now, secrets.token_bytes)
        with Registry.open(self.office.home.registry) as registry:
            targets = jobs.fitting(registry, Filter())
            return jobs.create(registry, order, targets, giver, random.Random()).id

    def commands(self, job: str) -> dict[str, str | None]:
        """What each device was given for a job."""
        with Registry.open(self.office.home.registry) as registry:
            (page,) = jobs.pages(registry, jobs.find(registry, job))
        return {place.target.device: place.command for place in page}

    def run_job(self) -> str:
        """A job, to its end or that of the service."""
        job = self.create()
        try:
            self.service.wait_for_line(f"job.finished job={job}", stream="stderr")
        except AssertionError:
            assert self.service.wait() == -9, self.service.describe()
        return job

    @contextmanager
    def traced(self, inject: str = "") -> Iterator[None]:
        """strace has hold of the service; what `inject` says befalls it."""
        paths = [word for path in self.office.registry_files for word in ("-P", path)]
        faults = [f"--inject={inject}"] if inject else []
        options = ["-f", "-y", "-o", self.office.log, f"--trace={CALLS}", *faults, *paths]
        with Program("strace", *options, "-p", self.service.pid) as strace:
            strace.wait_for_line("attached", stream="stderr")
            yield


@contextmanager
def site(folder: Path) -> Iterator[Site]:
    """Devices of which the service has heard that they are online."""
    with office(folder) as at, ExitStack() as stack:
        files = {DeviceId(f"pump-{number}"): enrol(at.home, f"pump-{number}") for number in range(DEVICES)}
        outcomes: dict[str, ResultState] = {}
        service = stack.enter_context(at.serving(traced=False))
        service.wait_for_line("dispatch.online", stream="stderr")
        with at_work(at.home, at.broker_port, files, outcomes) as workers:
            for worker in workers:
                service.wait_for_line(f"device.online device={worker.id}", stream="stderr")
            yield Site(at, workers, outcomes, service, stack)


def points(at: Site) -> list[Point]:
    """Every call from the beginning of one to its end."""
    with at.traced():
        job = at.run_job()
    check(at, job)
    return all_points(numbered(at.office.log))


def cut(at: Site, point: Point) -> None:
    """A job in whose run the service is killed there, if it comes there, and started again."""
    with at.traced(point.kill):
        job = at.run_job()
    ended = at.service
    if ended.returncode is not None:
        at.count += 1
        at.restart()
        if not is_finished(at, job):
            at.service.wait_for_line(f"job.finished job={job}", stream="stderr")
    check(at, job)
    assert "Traceback" not in ended.stderr + at.service.stderr


def is_finished(at: Site, job: str) -> bool:
    """Whether it had ended before it was killed, or has since."""
    with Registry.open(at.office.home.registry) as registry:
        return jobs.find(registry, job).state.is_final


def check(at: Site, job: str) -> None:
    """The registry is whole, the job has ended well, and each device was told one command of it."""
    path = at.office.home.registry
    with closing(sqlite3.connect(path)) as connection:
        assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall()
        given = connection.execute(
            "SELECT count(*) FROM commands JOIN jobs ON job = jobs.number WHERE jobs.id = ?", [job]
        )
        assert (DEVICES,) == given.fetchone()
    with Registry.open(path) as registry, registry.read() as transaction:
        assert None is audit.first_broken(log.entries(transaction))
        assert DEVICES == jobs.find(registry, job).tally.done
    for worker in at.workers:
        told = worker.told[_NAME]
        assert at.commands(job)[worker.id] == told[-1]
        assert len(told) == len(set(told))
        assert len(told) == len(at.workers[0].told[_NAME]), "one was told more often than the others"


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="dev soak jobs", description=__doc__)
    parser.add_argument("--step", type=int, default=1, help="kill at every STEP-th system call (default: at every one)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, site(Path(folder)) as at:
        chosen = points(at)[:: options.step]
        for point in chosen:
            cut(at, point)
        print(
            f"jobs: {len(chosen)} runs, killed {at.count} times: every job ended, "
            f"each of its {DEVICES} devices was given the command once, and did it",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
