"""The directory as it is followed: each change is applied, put on disk, then told to the engine, in this order.

Nobody new gets in by an old line from the moment it is applied. A live session is cut when that is on disk, so whoever
was seen to be cut stays out, after a kill -9 with the service away too. A disk that is full or hangs delays the cut by
half a second at most: then the cut comes first, and that it is not kept is said.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from broker.directory import Change, Directory, Journal
from fleet import directory
from fleet.directory import Current, Entry, FeedLine
from fleet.identity import DeviceId
from fleet.logs import event

_log = logging.getLogger(__name__)
_RETRY_SECONDS: Final = 5.0
_TOLD_IDS: Final = 20
_CUT_WITHIN_SECONDS: Final = 0.5  # half of what a revocation may take (DESIGN section 10)
_STALE_SECONDS: Final = 900.0  # long enough to restart a service, too short to use a stolen operator in peace


class Membership:
    """Owns a `Directory`; `on_change` hears of what changed, several changes of one principal as one."""

    def __init__(self, known: Directory, journal: Journal, monotonic: Callable[[], float]) -> None:
        self.directory = known
        self.on_change: Callable[[Change], None] = _ignore
        self._journal = journal
        self._monotonic = monotonic
        self._heard_at = monotonic()
        self._untold: dict[DeviceId, Entry | None] = {}  # as it was when the engine last heard
        self._unsaved: list[Entry] = []
        self._is_rewrite_needed = False
        self._saving = asyncio.Lock()
        self._work = asyncio.Event()
        self._has_snapshot = asyncio.Event()
        self._is_in_step = asyncio.Event()  # the stream that is open has told of all that the service knows
        if known.position is not None:
            self._has_snapshot.set()

    @property
    def age_seconds(self) -> float:
        """How long ago the service was heard, or this started."""
        return self._monotonic() - self._heard_at

    def is_fresh(self) -> bool:
        """Whether the service was heard of lately: what is known of revocations is not old."""
        return self.age_seconds < _STALE_SECONDS

    async def wait_for_snapshot(self) -> None:
        """Return once it is known who may connect."""
        await self._has_snapshot.wait()

    async def wait_in_step(self) -> None:
        """Return once the stream has come to the present: what else the service says is of the same history."""
        await self._is_in_step.wait()

    def take(self, line: FeedLine) -> None:
        """A line of the stream."""
        self._heard_at = self._monotonic()
        before, snapshots = self.directory.kept, self.directory.snapshots
        self._note(self.directory.apply(line))
        if self.directory.snapshots != snapshots:  # numbers of another history: behind older lines they would not count
            self._is_rewrite_needed = True
            self._work.set()
        if self.directory.kept and self.directory.kept is not before:
            ids = " ".join(sorted(self.directory.kept)[:_TOLD_IDS])
            _log.warning(event("directory.revocations_kept", count=len(self.directory.kept), ids=ids))
        if self.directory.position is not None:
            self._has_snapshot.set()
        if isinstance(line, Current):
            self._is_in_step.set()

    def take_found(self, entry: Entry) -> None:
        """An entry that was asked for by serial.

        Without a stream it may be of a registry that was restored, whose numbers say nothing here until its snapshot
        came: whoever was revoked would be let in by it, and be taken for good by the time that the snapshot is there.
        """
        if self._is_in_step.is_set():
            self._note(self.directory.apply_found(entry))

    def stream_ended(self) -> None:
        """What was half sent is forgotten."""
        self._is_in_step.clear()
        self.directory.forget_partial_snapshot()

    def _note(self, changes: Iterable[Change]) -> None:
        for change in changes:
            self._untold.setdefault(change.principal.id, change.before)
            if change.after is None:
                self._is_rewrite_needed = True
            else:
                self._unsaved.append(change.after)
            self._work.set()

    async def keep(self) -> None:
        """Put changes on disk as they come, those of one moment together, and tell them; for ever, as a task."""
        async with asyncio.TaskGroup() as saves:
            while True:
                await self._work.wait()
                self._work.clear()
                untold, self._untold = self._untold, {}
                await asyncio.wait([saves.create_task(self._save_or_say())], timeout=_CUT_WITHIN_SECONDS)
                self._tell(untold)

    async def _save_or_say(self) -> None:
        try:
            await self.save()
        except OSError as error:
            _log.error(event("directory.not_kept", reason=error.strerror))
            asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._work.set)

    def _tell(self, untold: dict[DeviceId, Entry | None]) -> None:
        for id_, before in untold.items():
            after = self.directory.entry(id_)
            if id_ in self._untold:
                self._untold[id_] = before  # it changed again meanwhile: told when that is on disk too
            elif before != after:
                self.on_change(Change(before, after))

    async def save(self) -> None:
        """Put on disk what is not there yet; after a failure, everything. Raises: OSError."""
        async with self._saving:
            unsaved, self._unsaved = self._unsaved, []
            is_rewrite = self._is_rewrite_needed or self._journal.is_rewrite_due(len(unsaved))
            self._is_rewrite_needed = False
            try:
                if is_rewrite:
                    await asyncio.to_thread(self._rewrite, self.directory.snapshot())
                elif unsaved:
                    await asyncio.to_thread(self._append, unsaved, self.directory.current())
            except BaseException:
                self._is_rewrite_needed = True
                raise
        if unsaved:
            _log.info(event("directory.kept", changes=len(unsaved), newest=max(entry.seq for entry in unsaved)))

    def _rewrite(self, lines: Sequence[FeedLine]) -> None:
        if lines:
            self._journal.rewrite(map(directory.encode, lines))

    def _append(self, entries: Sequence[Entry], current: Current | None) -> None:
        lines: list[FeedLine] = [*entries] if current is None else [*entries, current]
        self._journal.append(map(directory.encode, lines))


def _ignore(_change: Change) -> None:
    """Before there is an engine there is nobody to tell."""
