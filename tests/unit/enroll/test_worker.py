"""Who waits for the disk, and for others that write: never the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from enroll.registry import Begun, RegistryUnavailable
from enroll.worker import Worker
from fleet.errors import FleetError
from fleet.est import EstRequest, EstResponse
from tests.deadlines import within

_FULL = RegistryUnavailable("the registry cannot be written", hint="free space")
_REQUEST = EstRequest("GET", "/")


def _here() -> str:
    return threading.current_thread().name


@dataclass
class Office:
    """A desk that tells of each batch where it was answered and committed, and by how many it was asked."""

    commit: Callable[[], None] = lambda: None
    is_busy: bool = False
    has_changes: bool = True
    commit_seconds: float = 0.0
    now: float = 0.0
    error: Exception | None = None
    batches: list[tuple[str, int]] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)

    def handle_all(self, requests: Sequence[EstRequest]) -> list[EstResponse]:
        self.batches.append((_here(), len(requests)))
        return [EstResponse(200)] * len(requests)

    def begin_all(self, requests: Sequence[EstRequest]) -> Begun[list[EstResponse]] | None:
        if self.error is not None:
            raise self.error
        if self.is_busy:
            return None
        rest = ExitStack()
        rest.callback(self._commit)
        return Begun(self.handle_all(requests), self.has_changes, rest)

    def undone(self, requests: Sequence[EstRequest], error: RegistryUnavailable) -> list[EstResponse]:
        return [EstResponse(503, error.message.encode())] * len(requests)

    def _commit(self) -> None:
        self.commits.append(_here())
        self.now += self.commit_seconds
        self.commit()


@dataclass(frozen=True)
class Gate:
    """What waits in its thread until it is let through."""

    begun: threading.Event = field(default_factory=threading.Event)
    turn: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> None:
        self.begun.set()
        self.turn.wait(within(20))

    async def reached(self) -> None:
        await asyncio.to_thread(self.begun.wait, within(20))


def _run(office: Office, steps: Callable[[Worker], Coroutine[object, object, None]]) -> None:
    async def all_of_them() -> None:
        worker = Worker(office, 100, lambda _: 100, lambda: office.now)
        try:
            async with asyncio.timeout(within(20)):
                await steps(worker)
        finally:
            worker.close()

    asyncio.run(all_of_them())


async def _ask(worker: Worker) -> int:
    return (await worker.answer(_REQUEST, "here")).status


async def _run_in(office: Office, worker: Worker) -> None:
    """As many quick commits as it takes to have the next one on the loop."""
    while not office.commits or office.commits[-1] == "enroll":
        assert len(office.commits) < 20
        await _ask(worker)


def test_a_quick_disk_is_waited_for_where_the_answer_was_made_and_a_slow_one_is_not() -> None:
    """Every enrolment pays for two changes of thread; or a gateway shakes no hands while its card writes."""
    office = Office()

    async def steps(worker: Worker) -> None:
        await _run_in(office, worker)
        assert ["enroll"] * 8 + ["MainThread"] == office.commits
        office.commit_seconds = 0.03  # nobody knew
        await _ask(worker)
        office.commit_seconds = 0.0001
        office.commits.clear()
        await _run_in(office, worker)
        assert ["enroll"] * 8 + ["MainThread"] == office.commits
        office.now += 60.0  # the disk may sleep by now
        await _ask(worker)
        await _ask(worker)
        assert ["enroll", "MainThread"] == office.commits[-2:]

    _run(office, steps)


def test_while_the_disk_writes_the_loop_goes_on_and_what_comes_is_the_next_batch() -> None:
    """A gateway's card does thirty commits a second, and that many devices enrol."""
    gate = Gate()
    office = Office(gate)

    async def steps(worker: Worker) -> None:
        asked = [asyncio.ensure_future(_ask(worker))]
        await gate.reached()
        asked += [asyncio.ensure_future(_ask(worker)) for _ in range(3)]
        await asyncio.sleep(0)
        gate.turn.set()
        assert [200] * 4 == await asyncio.gather(*asked)
        assert [("MainThread", 1), ("MainThread", 3)] == office.batches

    _run(office, steps)


def test_what_changes_nothing_is_not_handed_over() -> None:
    """A fleet that asks for its configuration after an outage waits for a thread each time."""
    office = Office(has_changes=False)

    async def steps(worker: Worker) -> None:
        assert 200 == await _ask(worker)
        assert ["MainThread"] == office.commits

    _run(office, steps)


def test_the_thread_waits_for_whoever_writes() -> None:
    """An import by a command stops every handshake."""
    office = Office(is_busy=True)

    async def steps(worker: Worker) -> None:
        assert 200 == await _ask(worker)
        assert [("enroll", 1)] == office.batches
        office.is_busy = False
        assert 200 == await _ask(worker)
        assert ("MainThread", 1) == office.batches[-1]

    _run(office, steps)


def test_a_call_and_a_batch_never_run_at_once() -> None:
    """What the desk counts is counted by two threads at a time."""
    office, gate = Office(), Gate()

    def call() -> str:
        gate()
        return _here()

    async def steps(worker: Worker) -> None:
        called = asyncio.ensure_future(worker.call(call))
        await gate.reached()
        asked = asyncio.ensure_future(_ask(worker))
        for _ in range(5):
            await asyncio.sleep(0)
        assert [] == office.batches
        gate.turn.set()
        assert ("enroll", 200) == (await called, await asked)
        assert [("enroll", 1)] == office.batches
        while office.batches[-1][0] == "enroll":  # and then the loop answers again
            assert 200 == await _ask(worker)

    _run(office, steps)


@pytest.mark.parametrize("is_quick", [False, True])
@pytest.mark.parametrize(
    ("error", "expected"),
    [(_FULL, 503), (FleetError("the registry is damaged"), FleetError), (KeyError("x"), KeyError)],
)
def test_an_answer_whose_commit_fails_is_not_given_and_the_next_one_is(
    is_quick: bool, error: Exception, expected: object
) -> None:
    """A device has a certificate that its fleet does not know; or one failure, and nobody is answered again."""

    def fail() -> None:
        raise error

    office = Office()

    async def steps(worker: Worker) -> None:
        if is_quick:
            await _run_in(office, worker)
        office.commit = fail
        answers = await asyncio.gather(_ask(worker), _ask(worker), return_exceptions=True)
        assert [expected] * 2 == [type(each) if isinstance(each, Exception) else each for each in answers]
        assert ("MainThread" if is_quick else "enroll") == office.commits[-1]
        office.commit = lambda: None
        assert 200 == await _ask(worker)

    _run(office, steps)


@pytest.mark.parametrize(("error", "expected"), [(_FULL, 503), (KeyError("ours"), KeyError)])
def test_a_batch_that_fails_is_answered_and_the_next_one_too(error: Exception, expected: object) -> None:
    """One mistake of ours, and nobody is answered again."""
    office = Office(error=error)

    async def steps(worker: Worker) -> None:
        answers = await asyncio.gather(_ask(worker), _ask(worker), return_exceptions=True)
        assert [expected] * 2 == [type(each) if isinstance(each, Exception) else each for each in answers]
        office.error = None
        assert 200 == await _ask(worker)

    _run(office, steps)


def test_what_was_answered_is_committed_before_the_end() -> None:
    """A certificate is lost whose request came as the service was told to end."""
    office = Office()

    async def steps(worker: Worker) -> None:
        asked = asyncio.ensure_future(_ask(worker))
        for _ in range(3):
            await asyncio.sleep(0)
        worker.close()
        assert ["enroll"] == office.commits
        assert 200 == await asked

    _run(office, steps)


def test_what_is_not_begun_when_it_ends_is_refused() -> None:
    """A transaction is begun that nobody ends, and the next process waits for its lock."""
    gate = Gate()
    office = Office(gate)

    async def steps(worker: Worker) -> None:
        first = asyncio.ensure_future(_ask(worker))
        await gate.reached()
        second = asyncio.ensure_future(_ask(worker))
        await asyncio.sleep(0)
        asyncio.get_running_loop().run_in_executor(None, gate.turn.set)
        worker.close()
        assert 200 == await first
        for refused in (second, _ask(worker)):
            with pytest.raises(RegistryUnavailable, match="is stopping"):
                await refused
        assert 1 == len(office.commits)

    _run(office, steps)


def test_a_call_that_is_given_up_does_not_end_the_thread() -> None:
    """A broker that goes away while it is looked up, and nothing is committed any more."""
    office, gate = Office(), Gate()

    async def steps(worker: Worker) -> None:
        called, waiting = (asyncio.ensure_future(worker.call(each)) for each in (gate, gate.begun.clear))
        await gate.reached()
        called.cancel()
        waiting.cancel()
        await asyncio.gather(called, waiting, return_exceptions=True)
        gate.turn.set()
        assert 200 == await _ask(worker)
        assert gate.begun.is_set(), "what was given up before its turn is not called"

    _run(office, steps)
