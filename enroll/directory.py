"""The directory feed (fleet/directory.py): a snapshot, then every change, to brokers that are still admitted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

from enroll.commits import Commits
from enroll.registry import Registry, RegistryUnavailable, Transaction, feed
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
    """How far a follower is: all up to `seq` of the feed `feed`."""

    feed: str
    seq: int


def position_of(query: Mapping[str, str]) -> Position:
    """Where a request wants to begin; without both parameters, with a snapshot. Raises: InvalidInput."""
    after = query.get("after", "0")
    if not (after.isascii() and after.isdigit() and len(after) < 19):
        raise InvalidInput(f"after={after[:40]!r} is not a sequence number", hint="leave it out to get a snapshot")
    return Position(query.get("feed", ""), int(after))


@dataclass(frozen=True, slots=True)
class DirectoryFeed:
    """Feeds of one registry. Reads run in `executor`, so that a large snapshot keeps nobody waiting."""

    registry: Registry
    commits: Commits
    executor: Executor

    async def follow(self, serial: Serial, position: Position) -> AsyncGenerator[bytes]:
        """Lines for the broker that holds `serial`, in chunks, until it is no longer admitted or the service stops."""
        loop = asyncio.get_running_loop()
        try:
            while not self.commits.is_over:
                changed = self.commits.next
                chunk, position, is_whole = await loop.run_in_executor(self.executor, self._read, serial, position)
                yield chunk
                if is_whole:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(changed.wait(), directory.HEARTBEAT_SECONDS)
        except NotAdmitted:
            return
        except RegistryUnavailable as error:  # the broker comes back, and goes on where it was
            _log.warning(event("feed.interrupted", serial=serial, reason=error))

    def _read(self, serial: Serial, position: Position) -> tuple[bytes, Position, bool]:
        """The next chunk, the position behind it, and whether that is the present."""
        with self.registry.read() as transaction:
            check_broker(transaction, serial)
            present, head = feed.feed_id(transaction), feed.head(transaction)
            if position.feed != present or position.seq > head:
                lines = b"".join(_snapshot(transaction, present, head))
                return lines, Position(present, head), True
            entries = feed.changes(transaction, position.seq, _BATCH)
            is_whole = len(entries) < _BATCH
            reached = head if is_whole else entries[-1].seq
            lines = b"".join(map(directory.encode, entries))
            return lines + directory.encode(Current(present, reached)), Position(present, reached), is_whole


def check_broker(transaction: Transaction, serial: Serial) -> None:
    """Raises: NotAdmitted, Denied unless `serial` is an active broker's."""
    principal = admit(transaction, serial).record.principal
    if principal.role is not Role.BROKER:
        raise Denied(f"{principal} may not read the directory", hint="it is for brokers")


def _snapshot(transaction: Transaction, feed_id: str, head: int) -> Iterator[bytes]:
    yield directory.encode(SnapshotStart(feed_id, head))
    after: DeviceId | None = None
    while page := feed.page(transaction, after):
        yield from map(directory.encode, page)
        after = page[-1].principal.id
    yield directory.encode(Current(feed_id, head))
