"""A registry with devices, and what drives its jobs, in a time that the test moves."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from enroll import service
from enroll.bookkeeping import Books
from enroll.commands import Giver
from enroll.jobs import Jobs
from enroll.registry import Registry, RegistryUnavailable, feed, identity, messaging
from enroll.registry.job_outcomes import Place, Standing
from enroll.registry.overview import Filter
from enroll.registry.records import CommandRecord, PrincipalRecord
from enroll.reports import ResultSeen, StatusSeen
from enroll.rollout import Earshot, Job, Plan
from enroll.service import jobs
from fleet.identity import DeviceId, Principal, Role, State
from fleet.messages import Envelope, Presence, ResultMessage, ResultState, StatusMessage

BEGIN = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def plan(
    canary: int = 1,
    waves: tuple[int, ...] = (50, 100),
    max_failures: int = 20,
    wave_timeout: timedelta = 10 * MINUTE,
    command_ttl: timedelta = 10 * MINUTE,
) -> Plan:
    """A plan for a few devices."""
    return Plan(canary, waves, max_failures, wave_timeout, command_ttl)


@dataclass
class Site:
    """Devices that are online, their jobs, and dispatch without a network."""

    registry: Registry
    now: datetime = BEGIN
    heard_since: datetime = BEGIN
    chance: random.Random = field(default_factory=lambda: random.Random(7))
    jobs: Jobs = field(init=False)

    def __post_init__(self) -> None:
        self.jobs = Jobs(self.registry)

    @property
    def giver(self) -> Giver:
        return Giver("anna", self.now, self.chance.randbytes)

    def add(self, count: int, *, first: int = 0) -> None:
        """So many more devices, which are online."""
        with self.registry.write() as transaction:
            if not first:
                feed.set_feed(transaction, "feed")
            for number in range(first, first + count):
                name = DeviceId(f"pump-{number:03}")
                record = PrincipalRecord(Principal(Role.DEVICE, name), State.ACTIVE, 1, (), self.now)
                identity.add_principal(transaction, record)
        self.is_online(*(f"pump-{number:03}" for number in range(first, first + count)))

    def is_online(self, *devices: str, presence: Presence = Presence.ONLINE) -> None:
        reports = [StatusSeen(DeviceId(name), StatusMessage(self._envelope(name), presence), False) for name in devices]
        Books(self.registry).enter(reports, (), self.now)

    def create(self, how: Plan, name: str = "echo") -> Job:
        """A job for all of them."""
        order = jobs.JobOrder(name, {"a": 1}, how, "all")
        return jobs.create(self.registry, order, jobs.fitting(self.registry, Filter()), self.giver, self.chance)

    def turn(self) -> datetime | None:
        """One turn of dispatch, in which all that is due goes out; when it would look again."""
        until = self.jobs.advance(Earshot(self.now, self.heard_since))
        books = Books(self.registry)
        books.enter((), [command.id for command in books.agenda(self.now).due], self.now)
        return until

    def turn_cut_after(self, instructions: int) -> bool:
        """A turn that fails once SQLite has taken so many instructions; whether it came to that."""
        with self._counted(instructions):
            try:
                self.turn()
            except RegistryUnavailable:
                return True
        return False

    def steps_of_a_look(self) -> int:
        """How many instructions SQLite takes to see that there is nothing to do."""
        with self._counted(1_000_000) as count:
            self.jobs.advance(Earshot(self.now, self.heard_since))
        return count[0]

    @contextmanager
    def _counted(self, limit: int) -> Iterator[list[int]]:
        count = [0]

        def step() -> int:
            count[0] += 1
            return count[0] == limit + 1  # only once: what fails is rolled back next

        with self.registry.read() as transaction:
            driver = transaction.connection.driver_connection
        assert driver is not None
        driver.set_progress_handler(step, 1)  # the connection that is idle now is the next to be lent
        try:
            yield count
        finally:
            driver.set_progress_handler(None, 1)

    def settle(self) -> datetime | None:
        """Turns until there is nothing left to do now."""
        mark = self.registry.commit_mark()
        try:
            for _ in range(500):
                mark.has_moved()
                until = self.turn()
                if not mark.has_moved():
                    return until
        finally:
            mark.close()
        raise AssertionError("it turns for ever")

    def wait(self, span: timedelta) -> None:
        """Let time pass, and dispatch look."""
        self.now += span
        self.settle()

    def answer(self, device: str, state: ResultState, job: Job) -> None:
        """A device says how far the job's command has come."""
        (place,) = (each for each in self.places(job) if each.target.device == device)
        assert place.command is not None
        result = ResultMessage(self._envelope(device), state, error="broken" if state is ResultState.FAILED else "")
        Books(self.registry).enter([ResultSeen(DeviceId(device), place.command, result)], (), self.now)

    def all_answer(self, state: ResultState, job: Job, limit: int = 1000) -> None:
        """So many of those who were given the command answer."""
        for device in self.open(job)[:limit]:
            self.answer(device, state, job)
        self.settle()

    def open(self, job: Job) -> list[DeviceId]:
        """Who has the job's command and has not ended it, by turn."""
        return [place.target.device for place in self.places(job) if place.standing.may_still_change]

    def find(self, job: Job) -> Job:
        return jobs.find(self.registry, job.id)

    def places(self, job: Job) -> list[Place]:
        return [place for page in jobs.pages(self.registry, job) for place in page]

    def standings(self, job: Job) -> dict[str, int]:
        return dict(Counter(place.standing.value for place in self.places(job)))

    def commands(self, job: Job) -> list[CommandRecord]:
        ids = [place.command for place in self.places(job) if place.command]
        with self.registry.read() as transaction:
            return messaging.find_commands(transaction, ids)

    def revoke(self, device: str) -> None:
        service.revoke(self.registry, DeviceId(device), by="test", now=self.now)

    def check(self, job: Job, *, is_settled: bool = True) -> None:
        """What the job has counted is what its devices have come to, and never more than the wave's share has it."""
        found, places = self.find(job), self.places(job)
        counted = Counter(place.standing for place in places)
        assert found.tally.total == len(places) == len({place.target.device for place in places})
        assert found.tally.reached == sum(place.standing is not Standing.WAITING for place in places)
        assert found.tally.reached <= found.ceilings[found.wave], "more than the wave's share"
        for name in ("done", "failed", "missed", "silent", "skipped"):
            assert not is_settled or counted[Standing(name)] == getattr(found.tally, name), name
        given = [place.command for place in places if place.command]
        assert len(given) == len(set(given))
        with self.registry.read() as transaction:
            of_job = transaction.exec_driver_sql("SELECT count(*) FROM commands WHERE job = ?", (job.number,))
            assert len(given) == of_job.scalar_one(), "a device was given the command twice"

    def _envelope(self, device: str) -> Envelope:
        return Envelope(DeviceId(device), self.now, "boot", 1)
