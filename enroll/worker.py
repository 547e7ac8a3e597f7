"""Answers requests, those that came at about the same time together, and keeps the loop from waiting for the disk.

What is computed is computed on the loop: to hand it to a thread and back costs more than the loop gains while one of
the two holds the interpreter. A thread does what may wait: the commit, unless the disk is quick, and a whole batch
while another process writes. What comes in the meantime is the next batch. How many wait is bounded, of all and of one
holder: whoever floods the service is told that it is busy, and the others are not.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Final, ParamSpec, Protocol, TypeVar

from enroll.registry import Begun, RegistryUnavailable
from enroll.slots import Holder
from fleet.est import EstRequest, EstResponse

_BATCH: Final = 16
_QUICK_SECONDS: Final = 0.01
_QUICK_COMMITS: Final = 8
_LATELY_SECONDS: Final = 1.0
"""The loop waits for a commit while so many in a row took no longer, the last of them lately."""
_Asked = tuple[EstRequest, asyncio.Future[EstResponse]]
_P = ParamSpec("_P")
_T = TypeVar("_T")


class Desk(Protocol):
    """What answers requests, on one thread at a time; `begin_all`, and `undone` behind it, without waiting."""

    def handle_all(self, requests: Sequence[EstRequest]) -> list[EstResponse]: ...

    def begin_all(self, requests: Sequence[EstRequest]) -> Begun[list[EstResponse]] | None: ...

    def undone(self, requests: Sequence[EstRequest], error: RegistryUnavailable) -> list[EstResponse]: ...


class Worker:
    """Answers with `desk`. To be used from one event loop. `seconds` is a clock that never jumps."""

    def __init__(
        self,
        desk: Desk,
        limit: int,
        share: Callable[[Holder], int],
        seconds: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._desk = desk
        self._limit = limit
        self._share = share
        self._seconds = seconds
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="enroll", daemon=True)  # nobody closes what did not start
        self._thread.start()
        self._asked: deque[_Asked] = deque()
        self._waiting = Counter[Holder]()
        self._is_working = False
        self._calls = 0
        self._quick_commits = 0  # in a row
        self._committed_at = -math.inf
        self._is_closed = False

    async def answer(self, request: EstRequest, holder: Holder) -> EstResponse:
        """The answer to one request of `holder`. Raises: RegistryUnavailable (too many wait, or it is closed)."""
        if self._is_closed:
            raise _closed()
        if len(self._asked) >= self._limit or self._waiting[holder] >= self._share(holder):
            raise RegistryUnavailable("the service is busy", hint="try again in a moment")
        answer: asyncio.Future[EstResponse] = asyncio.get_running_loop().create_future()
        self._asked.append((request, answer))
        if not self._is_working:
            self._is_working = True
            self._begin_batch()
        self._waiting[holder] += 1
        try:
            return await answer
        finally:
            self._waiting[holder] -= 1
            if not self._waiting[holder]:
                del self._waiting[holder]

    async def call(self, function: Callable[_P, _T], *args: _P.args, **kw: _P.kwargs) -> _T:
        """Call `function` in the thread, between two batches."""
        outcome: Future[_T] = Future()
        loop = asyncio.get_running_loop()

        def job() -> None:
            try:
                if outcome.set_running_or_notify_cancel():
                    outcome.set_result(function(*args, **kw))
            except BaseException as error:  # whoever asked has to hear of it
                outcome.set_exception(error)
            finally:
                loop.call_soon_threadsafe(self._called)

        self._calls += 1
        self._jobs.put(job)
        return await asyncio.wrap_future(outcome)

    def close(self) -> None:
        """End what was begun, refuse what was not, and wait for the thread's end."""
        self._is_closed = True
        while self._asked:
            _, answer = self._asked.popleft()
            if not answer.done():
                answer.set_exception(_closed())
        self._jobs.put(None)
        self._thread.join()

    def _called(self) -> None:
        self._calls -= 1

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _begin_batch(self) -> None:
        """Answer who asks by the end of this turn of the loop."""
        asyncio.get_running_loop().call_soon(self._answer_batch)

    def _answer_batch(self) -> None:
        batch = [self._asked.popleft() for _ in range(min(len(self._asked), _BATCH))]
        requests = [request for request, _ in batch]
        try:
            begun = None if self._calls else self._desk.begin_all(requests)
            if begun is None:
                self._hand_over(batch, partial(self._desk.handle_all, requests))
            elif begun.has_changes and not self._is_quick():
                self._hand_over(batch, partial(self._committed, requests, begun))
            else:
                self._end_batch(batch, self._committed(requests, begun))
        except RegistryUnavailable as error:
            self._end_batch(batch, self._desk.undone(requests, error))
        except Exception as error:
            self._end_batch(batch, error)

    def _is_quick(self) -> bool:
        """Whether the disk is likely to take the next commit at once."""
        is_lately = self._seconds() - self._committed_at < _LATELY_SECONDS
        return is_lately and self._quick_commits >= _QUICK_COMMITS

    def _committed(self, requests: Sequence[EstRequest], begun: Begun[list[EstResponse]]) -> list[EstResponse]:
        began = self._seconds()
        try:
            begun.commit()
        except RegistryUnavailable as error:
            return self._desk.undone(requests, error)
        finally:
            if begun.has_changes:
                self._committed_at = self._seconds()
                is_quick = self._committed_at - began <= _QUICK_SECONDS
                self._quick_commits = self._quick_commits + 1 if is_quick else 0
        return begun.outcome

    def _hand_over(self, batch: Sequence[_Asked], work: Callable[[], list[EstResponse]]) -> None:
        """Have the thread do the rest: there and back without an executor's locks and futures."""
        loop = asyncio.get_running_loop()

        def job() -> None:
            answers: list[EstResponse] | BaseException
            try:
                answers = work()
            except BaseException as error:
                answers = error
            loop.call_soon_threadsafe(self._end_batch, batch, answers)

        self._jobs.put(job)

    def _end_batch(self, batch: Sequence[_Asked], answers: list[EstResponse] | BaseException) -> None:
        for number, (_, answer) in enumerate(batch):
            if answer.done():
                continue  # its connection is gone
            if isinstance(answers, BaseException):
                answer.set_exception(answers)
            else:
                answer.set_result(answers[number])
        self._is_working = bool(self._asked)
        if self._asked:
            self._begin_batch()


def _closed() -> RegistryUnavailable:
    return RegistryUnavailable("the service is stopping", hint="try again in a moment")
