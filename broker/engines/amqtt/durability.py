"""Group commit: all that was promised while one commit ran is the next. A thread writes, and the loop never waits.

A disk that is full or fails: nobody is answered, that is said once, and it is tried again each second until it works.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from functools import partial
from typing import Final, TypeVar

from broker.engine import Event, MessagesLost, StoreDamaged, StoreFailed, StoreRecovered
from broker.engines.amqtt.hub import Hub
from broker.engines.amqtt.journal import Batch, Journal
from broker.engines.amqtt.restore import fill, restore, snapshot
from broker.engines.amqtt.session import FleetSession
from broker.engines.amqtt.store import Contents, Damaged, Kept, Store, is_damage, reason_of
from fleet.errors import FleetError

T = TypeVar("T")
_LATER_SECONDS: Final = 1.0  # what nobody waits for is on disk within so long
_RETRY_SECONDS: Final = 1.0


class Durability:
    """Keeps what a hub's journal notes in a store.

    `released` hears up to which commit everything is on disk, `stalled` that nothing more will be for a while.
    """

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop, observe: Callable[[Event], None]) -> None:
        self._store = store
        self._loop = loop
        self._observe = observe
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self.journal = Journal(self._wake, self._wake_later)
        self._hub: Hub | None = None
        self._released: Callable[[int], None] = _nobody
        self._stalled: Callable[[], None] = _nobody_waits
        self._start: asyncio.Handle | None = None  # of the next commit
        self._is_writing = False
        self._is_closed = False
        self._damage: BaseException | None = None  # found while a commit ran
        self._loads: dict[FleetSession, asyncio.Future[None]] = {}
        self._newest_row = 0

    async def open(self) -> Kept:
        """What is on disk. A damaged file is kept aside. Raises: FleetError."""
        try:
            try:
                return await self._run(self._store.open)
            except (sqlite3.Error, Damaged, ValueError, TypeError, FleetError) as error:
                if not is_damage(error):
                    raise
                return await self._begin_anew(error)
        except (sqlite3.Error, OSError) as error:
            hint = (
                "is another broker running on this home?" if "locked" in str(error) else "free space, or mend its disk"
            )
            raise FleetError(f"cannot open {self._store.path}: {reason_of(error)}", hint=hint) from error

    async def _begin_anew(self, error: Exception) -> Kept:
        await self._run(self._store.keep_aside)
        kept = await self._run(self._store.open)
        self._observe(StoreDamaged(str(self._store.damaged_path), reason_of(error)))
        return kept

    def attach(self, hub: Hub, kept: Kept, released: Callable[[int], None], stalled: Callable[[], None]) -> None:
        """Fill the hub with what was on disk, and keep what it notes from now on."""
        self._hub, self._newest_row = hub, kept.newest_row
        self._released, self._stalled = released, stalled
        if kept.damaged:
            self._lost("", kept.damaged)
        restored = restore(hub, self.journal, kept, self.load_soon)
        if any(astuple(restored)):
            self._observe(restored)

    async def close(self) -> None:
        """Write what is left, and let go of the file."""
        self._is_closed = True
        if self._start is not None:
            self._start.cancel()
        try:
            await self._run(partial(self._store.write, self.journal.take()))
        except (sqlite3.Error, OSError) as error:
            self._observe(StoreFailed(reason_of(error)))
        finally:
            await self._run(self._store.close)
            self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._thread, work)

    # Commits

    def _wake(self) -> None:
        """Begin as soon as this turn of the loop is over: what else is promised in it goes along."""
        if self._is_writing or self.journal.is_failing or self._is_closed:
            return
        if self._start is not None:
            self._start.cancel()
        self._start = self._loop.call_soon(self._commit)

    def _wake_later(self) -> None:
        if self._start is None and not self._is_writing and not self._is_closed:
            self._start = self._loop.call_later(_LATER_SECONDS, self._commit)

    def _commit(self) -> None:
        self._start = None
        number, batch = self.journal.number, self.journal.take()
        if batch.is_empty():
            self._committed(number)
        else:
            self._write(number, batch)

    def _write(self, number: int, batch: Batch) -> None:
        self._is_writing = True
        writing = self._loop.run_in_executor(self._thread, self._store.write, batch)
        writing.add_done_callback(partial(self._written, number, batch))

    def _written(self, number: int, batch: Batch, writing: asyncio.Future[None]) -> None:
        self._is_writing = False
        if writing.cancelled():
            return
        error = writing.exception()
        if self._damage is not None:
            self._replace(self._damage)
        elif error is None:
            self._committed(number)
        elif is_damage(error):
            self._replace(error)
        elif isinstance(error, sqlite3.Error | OSError):
            self._failed(batch, error)
        else:
            raise error

    def _committed(self, number: int) -> None:
        journal, hub = self.journal, self._hub
        assert hub is not None
        hub.counted.store_commits += 1
        if journal.is_failing:
            journal.is_failing, hub.counted.store_failing = False, 0
            self._observe(StoreRecovered())
        journal.committed = number
        self._released(number)
        if self._is_closed or self._start is not None:
            return
        if journal.has_promises:
            self._commit()
        elif journal.has_notes:
            self._wake_later()

    def _failed(self, batch: Batch, error: Exception) -> None:
        assert self._hub is not None
        self.journal.give_back(batch)
        self._hub.counted.store_failures += 1
        if not self.journal.is_failing:
            self.journal.is_failing, self._hub.counted.store_failing = True, 1
            self._observe(StoreFailed(reason_of(error)))
            self._stalled()
        if not self._is_closed:
            self._start = self._loop.call_later(_RETRY_SECONDS, self._commit)

    def _replace(self, error: BaseException) -> None:
        """Begin a new file with what is in memory: what was promised before is in it, but for what was never loaded."""
        assert self._hub is not None
        self._damage, number = None, self.journal.number
        self.journal.take()
        batch, lost = snapshot(self._hub)
        if lost:
            self._lost("", lost)
        self._observe(StoreDamaged(str(self._store.damaged_path), reason_of(error)))
        self._is_writing = True
        aside = self._loop.run_in_executor(self._thread, self._store.begin_anew)
        aside.add_done_callback(partial(self._began_anew, number, batch))

    def _began_anew(self, number: int, batch: Batch, aside: asyncio.Future[None]) -> None:
        self._is_writing = False
        if aside.cancelled():
            return
        if (error := aside.exception()) is None:
            self._write(number, batch)
        elif isinstance(error, sqlite3.Error | OSError):
            self._failed(batch, error)
        else:
            raise error

    def _lost(self, client_id: str, count: int) -> None:
        assert self._hub is not None
        self._hub.counted.messages_dropped += count
        self._observe(MessagesLost(client_id, count))

    # Sessions that are on disk and not in memory

    def load_soon(self, session: FleetSession) -> None:
        """Load what a session holds on disk, if that is not being done."""
        if session not in self._loads and not self._is_closed:
            self._loads[session] = self._loop.create_future()
            self._load(session)

    async def load(self, session: FleetSession) -> None:
        """Return once a session is loaded, or there is no need any more."""
        self.load_soon(session)
        if (loaded := self._loads.get(session)) is not None:
            await asyncio.shield(loaded)

    def _load(self, session: FleetSession) -> None:
        loading = self._loop.run_in_executor(self._thread, self._store.load, session.number, self._newest_row)
        loading.add_done_callback(partial(self._loaded, session))

    def _loaded(self, session: FleetSession, loading: asyncio.Future[Contents]) -> None:
        if loading.cancelled():
            return
        error = loading.exception()
        if session.unloaded is not None and session.number:
            if error is not None:
                self._not_loaded(session, error)
                return
            contents = loading.result()
            fill(session, contents)
            if contents.damaged:
                self._lost(session.client_id, contents.damaged)
        self._loads.pop(session).set_result(None)

    def _not_loaded(self, session: FleetSession, error: BaseException) -> None:
        if is_damage(error):
            self._damage = error
            if not self._is_writing:
                self._replace(error)
        elif not isinstance(error, sqlite3.Error | OSError):
            raise error
        if not self._is_closed:
            self._loop.call_later(_RETRY_SECONDS, self._load, session)


def _nobody(_commit: int) -> None:
    """Before there is a listener."""


def _nobody_waits() -> None:
    """The same."""
