"""A change is applied, kept, then told; a disk that is full or hangs does not keep a revoked device in."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from broker.directory import Change, Directory, Journal, load
from broker.membership import Membership
from fleet.directory import Current, Entry, SnapshotStart
from fleet.identity import DeviceId, Principal, Role, Serial, State
from tests.deadlines import within

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


Told = tuple[Change, bool]
"""What was told, and whether the file admitted the device at that moment."""


def told_first(path: Path, *entries: Entry, when_told: Callable[[], None] = lambda: None) -> Told:
    """What a broker that has restarted tells first of these lines. `path` is its file, and may be broken by now."""
    membership = Membership(known(), Journal(path), lambda: 0.0)

    async def follow() -> Told:
        heard: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        membership.on_change = lambda change: heard.set_result((change, is_admitted_in(path)))
        keeping = asyncio.create_task(membership.keep())
        for line in entries:
            membership.take(line)
        async with asyncio.timeout(within(10)):
            found = await heard
        when_told()
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        return found

    return asyncio.run(follow())


def known() -> Directory:
    found = Directory()
    for line in SNAPSHOT:
        found.apply(line)
    return found


def is_admitted_in(path: Path) -> bool:
    return path.is_file() and load(path).admits(PUMP, SERIAL)


def test_a_revocation_is_told_when_it_is_on_disk(tmp_path: Path) -> None:
    """A device that was seen to be cut would be let in by a broker that was killed at that moment."""
    path = tmp_path / "directory.ndjson"
    taken(path)
    change, was_admitted_on_disk = told_first(path, entry(2, State.REVOKED))
    assert frozenset({SERIAL}) == change.ends()
    assert not was_admitted_on_disk


def test_changes_of_one_principal_are_told_as_one(tmp_path: Path) -> None:
    """A session of a device that was suspended and resumed meanwhile would be cut by the line that is old."""
    change, _ = told_first(tmp_path / "directory.ndjson", entry(2, State.SUSPENDED), entry(3))
    assert (frozenset(), entry(3)) == (change.ends(), change.after)


def test_a_full_disk_does_not_keep_a_revoked_device_in(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A thief would only have to fill the disk."""
    change, _ = told_first(tmp_path / "not-there" / "directory.ndjson", entry(2, State.REVOKED))
    assert frozenset({SERIAL}) == change.ends()
    assert "directory.not_kept" in caplog.text


def test_a_disk_that_hangs_does_not_keep_a_revoked_device_in(tmp_path: Path) -> None:
    """An SD card that stalls for ten seconds would leave a thief as many."""
    path = tmp_path / "directory.ndjson"
    pipe = path.with_suffix(".partial")
    os.mkfifo(pipe)  # to open it for writing waits for a reader
    readers: list[int] = []
    change, _ = told_first(
        path, entry(2, State.REVOKED), when_told=lambda: readers.append(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))
    )
    assert frozenset({SERIAL}) == change.ends()
    os.close(readers.pop())


@pytest.mark.parametrize("feed", ["f", "g"])
def test_a_second_history_is_kept_as_it_was_taken(tmp_path: Path, feed: str) -> None:
    """After a restore its numbers are lower: a restart would let in who was revoked since, or would not succeed."""
    path = tmp_path / "directory.ndjson"
    membership = Membership(Directory(), Journal(path), lambda: 0.0)
    for line in (SnapshotStart("f", 50), entry(50), Current("f", 50)):
        membership.take(line)
    asyncio.run(membership.save())
    for line in (SnapshotStart(feed, 10), entry(9), Current(feed, 10, "other")):
        membership.take(line)
    asyncio.run(membership.save())
    membership.take(entry(11, State.REVOKED))
    asyncio.run(membership.save())
    again = load(path)
    assert (membership.directory.entries, membership.directory.position) == (again.entries, again.position)
    assert not again.admits(PUMP, SERIAL)


def test_changes_of_one_moment_are_kept_together(tmp_path: Path) -> None:
    """A hundred revocations would cost a hundred fsyncs."""
    path = tmp_path / "directory.ndjson"
    membership = taken(path)
    before = len(path.read_bytes().splitlines())
    for seq in range(2, 102):
        membership.take(entry(seq))
    asyncio.run(membership.save())
    assert before + 101 == len(path.read_bytes().splitlines())  # and how far it was followed
    asyncio.run(membership.save())
    assert before + 101 == len(path.read_bytes().splitlines())


def test_how_far_it_was_followed_is_kept_with_what_changed(tmp_path: Path) -> None:
    """After a restart the service could not tell that the broker has seen what a restored registry does not know."""
    path = tmp_path / "directory.ndjson"
    membership = taken(path)
    for line in (entry(2, State.SUSPENDED), Current("f", 2, "17-ab")):
        membership.take(line)
    asyncio.run(membership.save())
    found = load(path).position
    assert found is not None
    assert ("f", 2, "17-ab") == (found.feed, found.seq, found.mark)


def test_whom_a_restored_registry_would_let_in_again_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An admin would not know that there is something to decide."""
    membership = taken(tmp_path / "directory.ndjson")
    for line in (entry(2, State.REVOKED), *SNAPSHOT, Current("f", 1)):
        membership.take(line)
    assert ["directory.revocations_kept count=1 ids=pump-07"] == caplog.messages


def test_what_is_found_counts_while_the_stream_is_followed(tmp_path: Path) -> None:
    """A restored registry would let in who was revoked, by an answer that comes before its snapshot."""
    membership = taken(tmp_path / "directory.ndjson")
    membership.take(entry(2, State.REVOKED))
    membership.stream_ended()
    membership.take_found(entry(3))  # renewed with a registry that has forgotten
    for line in (SnapshotStart("f", 3), entry(3), Current("f", 3, "other")):
        assert not membership.directory.admits(PUMP, SERIAL)
        membership.take(line)
    assert not membership.directory.admits(PUMP, SERIAL)
    membership.take_found(replace(entry(4), epoch=2))
    assert membership.directory.admits(PUMP, SERIAL)


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
