"""The directory feed (fleet/directory.py): a snapshot, then every change, to brokers that are still admitted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Final

from enroll.commits import Commits
from enroll.registry import Registry, RegistryUnavailable, Transaction, feed, log
from enroll.service import NotAdmitted, admit
from fleet import directory
from fleet.directory import Current, SnapshotStart
from fleet.errors import Denied, InvalidInput
from fleet.identity import DeviceId, Role, Serial
from fleet.logs import event

_log = logging.getLogger(__name__)

_BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class Position:
    """How far a follower is: all up to `seq` of the feed `feed`; the newest entry of the log was `mark` then."""

    feed: str
    seq: int
    mark: str = ""


def position_of(query: Mapping[str, str]) -> Position:
    """Where a request wants to begin; without both parameters, with a snapshot. Raises: InvalidInput."""
    after = query.get("after", "0")
    if not (after.isascii() and after.isdigit() and len(after) < 19):
        raise InvalidInput(f"after={after[:40]!r} is not a sequence number", hint="leave it out to get a snapshot")
    return Position(query.get("feed", ""), int(after), query.get("log", ""))


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """A snapshot of the feed as of `seq` that is under way: all up to the id `after` was sent."""

    feed: str
    seq: int
    after: DeviceId | None = None


@dataclass(frozen=True, slots=True)
class DirectoryFeed:
    """Feeds of one registry. Reads run in `executor`, so that a large snapshot keeps nobody waiting."""

    registry: Registry
    commits: Commits
    executor: Executor

    async def follow(self, serial: Serial, position: Position) -> AsyncGenerator[bytes]:
        """Lines for the broker that holds `serial`, in chunks, until it is no longer admitted or the service stops."""
        loop = asyncio.get_running_loop()
        reached: Position | _Snapshot = position
        try:
            while not self.commits.is_over:
                changed = self.commits.next
                chunk, reached, is_whole = await loop.run_in_executor(self.executor, self._read, serial, reached)
                yield chunk
                if is_whole:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(changed.wait(), directory.HEARTBEAT_SECONDS)
        except NotAdmitted:
            return
        except RegistryUnavailable as error:  # the broker comes back, and goes on where it was
            _log.warning(event("feed.interrupted", serial=serial, reason=error))

    def _read(self, serial: Serial, at: Position | _Snapshot) -> tuple[bytes, Position | _Snapshot, bool]:
        """The next chunk, how far that is, and whether that is the present."""
        with self.registry.read() as transaction:
            check_broker(transaction, serial)
            present, head = feed.feed_id(transaction), feed.head(transaction)
            if at.feed != present or (isinstance(at, Position) and not _is_ours(transaction, at, head)):
                at = _Snapshot(present, head)
            if isinstance(at, _Snapshot):
                return _page(transaction, at, head)
            changes = feed.changes(transaction, at.seq, _BATCH)
            lines = b"".join(map(directory.encode, changes.entries))
            reached = head if changes.is_all else changes.reached
            current = Current(present, reached, log.mark(transaction))
            return lines + directory.encode(current), Position(present, reached), changes.is_all


def _page(transaction: Transaction, at: _Snapshot, head: int) -> tuple[bytes, Position | _Snapshot, bool]:
    """A page of a snapshot, each in a transaction of its own: a slow broker holds up no checkpoint of the registry.

    What changes meanwhile comes again, behind the snapshot; an entry that is newer than its snapshot is right, too.
    """
    entries = feed.page(transaction, at.after)
    lines = b"".join(map(directory.encode, entries))
    if at.after is None:
        lines = directory.encode(SnapshotStart(at.feed, at.seq)) + lines
    if len(entries) == feed.PAGE_ENTRIES:
        return lines, replace(at, after=entries[-1].principal.id), False
    current = Current(at.feed, at.seq, log.mark(transaction))
    return lines + directory.encode(current), Position(at.feed, at.seq), at.seq == head


def _is_ours(transaction: Transaction, at: Position, head: int) -> bool:
    """Whether all that the follower has seen has happened here: not if this registry came from an older backup."""
    return at.seq <= head and (not at.mark or log.holds(transaction, at.mark))


def check_broker(transaction: Transaction, serial: Serial) -> None:
    """Raises: NotAdmitted, Denied unless `serial` is an active broker's."""
    principal = admit(transaction, serial).record.principal
    if principal.role is not Role.BROKER:
        raise Denied(f"{principal} may not read the directory", hint="it is for brokers")
