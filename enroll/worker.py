"""The one thread in which requests are answered, those that came at about the same time together.

What comes while it works is its next batch. How many wait is bounded, of all and of one holder: whoever floods it is
told that it is busy, and the others are not.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Final, ParamSpec, TypeVar

from enroll.registry import RegistryUnavailable
from enroll.slots import Holder
from fleet.est import EstRequest, EstResponse

_BATCH: Final = 16
_Asked = tuple[EstRequest, asyncio.Future[EstResponse]]
_P = ParamSpec("_P")
_T = TypeVar("_T")


class Worker:
    """Answers with `answer_all`. To be used from one event loop."""

    def __init__(
        self, answer_all: Callable[[list[EstRequest]], list[EstResponse]], limit: int, share: Callable[[Holder], int]
    ) -> None:
        self._answer_all = answer_all
        self._limit = limit
        self._share = share
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="enroll", daemon=True)  # nobody closes what did not start
        self._thread.start()
        self._asked: deque[_Asked] = deque()
        self._waiting = Counter[Holder]()
        self._is_working = False

    async def answer(self, request: EstRequest, holder: Holder) -> EstResponse:
        """The answer to one request of `holder`. Raises: RegistryUnavailable (too many wait already)."""
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
        """Call `function` between two batches."""
        outcome: Future[_T] = Future()

        def job() -> None:
            try:
                outcome.set_result(function(*args, **kw))
            except BaseException as error:  # whoever asked has to hear of it
                outcome.set_exception(error)

        self._jobs.put(job)
        return await asyncio.wrap_future(outcome)

    def close(self) -> None:
        """Do what is left, and wait for the thread's end."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _begin_batch(self) -> None:
        batch = [self._asked.popleft() for _ in range(min(len(self._asked), _BATCH))]
        self._jobs.put(partial(self._work, batch, asyncio.get_running_loop()))

    def _work(self, batch: list[_Asked], loop: asyncio.AbstractEventLoop) -> None:
        """In the thread. A batch is handed over, there and back, without an executor's locks and futures."""
        answers: list[EstResponse] | BaseException
        try:
            answers = self._answer_all([request for request, _ in batch])
        except BaseException as error:
            answers = error
        loop.call_soon_threadsafe(self._end_batch, batch, answers)

    def _end_batch(self, batch: list[_Asked], answers: list[EstResponse] | BaseException) -> None:
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
