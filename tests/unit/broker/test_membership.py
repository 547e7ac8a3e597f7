"""A line of the feed is applied, told, and kept, in this order, and survives a full disk."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from broker.directory import Change, Directory, Journal, load
from broker.membership import Membership
from fleet.directory import Current, Entry, SnapshotStart
from fleet.identity import DeviceId, Principal, Role, Serial, State

PUMP = DeviceId("pump-07")
SERIAL = Serial("aa")


def entry(seq: int, state: State = State.ACTIVE) -> Entry:
    return Entry(seq, Principal(Role.DEVICE, PUMP), state, 1, frozenset({SERIAL}))


SNAPSHOT = (SnapshotStart("f", 1), entry(1), Current("f", 1))


def taken(path: Path) -> Membership:
    """A membership that has followed a snapshot and put it on disk."""
    found = Membership(Directory(), Journal(path), lambda: 0.0)
    for line in SNAPSHOT:
        found.take(line)
    asyncio.run(found.save())
    return found


def test_a_change_is_told_before_it_is_on_disk(tmp_path: Path) -> None:
    """A session would wait for the disk to be cut."""
    path = tmp_path / "directory.ndjson"
    membership, told = taken(path), list[Change]()
    membership.on_change = told.append
    membership.take(entry(2, State.REVOKED))
    assert [frozenset({SERIAL})] == [change.ends() for change in told]
    assert load(path).admits(PUMP, SERIAL)
    asyncio.run(membership.save())
    assert not load(path).admits(PUMP, SERIAL)


def test_changes_of_one_moment_are_kept_together(tmp_path: Path) -> None:
    """A hundred revocations would cost a hundred fsyncs."""
    path = tmp_path / "directory.ndjson"
    membership = taken(path)
    before = len(path.read_bytes().splitlines())
    for seq in range(2, 102):
        membership.take(entry(seq))
    asyncio.run(membership.save())
    assert before + 100 == len(path.read_bytes().splitlines())
    asyncio.run(membership.save())
    assert before + 100 == len(path.read_bytes().splitlines())


def test_what_could_not_be_kept_is_kept_when_it_can(tmp_path: Path) -> None:
    """A disk that was full for a moment would cost a revocation."""
    path = tmp_path / "home" / "directory.ndjson"
    path.parent.mkdir()
    membership = taken(path)
    path.parent.rename(tmp_path / "away")
    membership.take(entry(2, State.REVOKED))
    with pytest.raises(OSError, match="No such file"):
        asyncio.run(membership.save())
    (tmp_path / "away").rename(path.parent)
    asyncio.run(membership.save())
    assert not load(path).admits(PUMP, SERIAL)


def test_whoever_waits_for_a_snapshot_is_woken_when_it_is_complete(tmp_path: Path) -> None:
    """The broker would start with half of its directory, or never."""

    async def follow() -> list[bool]:
        membership = Membership(Directory(), Journal(tmp_path / "directory.ndjson"), lambda: 0.0)
        waiting = asyncio.create_task(membership.wait_for_snapshot())
        seen = []
        for line in SNAPSHOT:
            membership.take(line)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            seen.append(waiting.done())
        return seen

    assert [False, False, True] == asyncio.run(follow())


def test_a_directory_is_fresh_as_long_as_the_service_is_heard(tmp_path: Path) -> None:
    """A broker that is cut off would let operators in for ever; or its own restart would lock them out."""
    now = [1000.0]
    membership = Membership(Directory(), Journal(tmp_path / "directory.ndjson"), lambda: now[0])
    assert membership.is_fresh()
    now[0] += 901
    assert not membership.is_fresh()
    for line in SNAPSHOT:
        membership.take(line)
    assert membership.is_fresh()
