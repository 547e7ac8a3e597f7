"""The directory feed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography import x509

from enroll import service
from enroll.commits import Commits
from enroll.directory import DirectoryFeed, Position, position_of
from enroll.registry import Registry, feed, log
from fleet import directory, pki
from fleet.directory import Current, Entry, SnapshotStart
from fleet.errors import InvalidInput
from fleet.identity import DeviceId, Serial, State
from tests.deadlines import within
from tests.fleets import NOW, Office, csr

BEGIN = Position("", 0)


def broker_serial(office: Office) -> Serial:
    return pki.serial_of(x509.load_pem_x509_certificate(office.home.broker_client.certificate.read_bytes()))


async def read(chunks: AsyncGenerator[bytes]) -> list[directory.FeedLine]:
    """The lines of the next chunk."""
    async with asyncio.timeout(within(10)):
        return [directory.decode(line) for line in (await anext(chunks)).splitlines()]


def following(office: Office, steps: Callable[[DirectoryFeed], Awaitable[None]]) -> None:
    """Run `steps` with a feed over the office's registry."""

    async def run() -> None:
        with ThreadPoolExecutor(1) as executor:
            async with Commits(office.registry) as commits:
                await steps(DirectoryFeed(office.registry, commits, executor))

    asyncio.run(run())


def test_a_new_follower_gets_a_snapshot_then_each_change(office: Office) -> None:
    """A broker does not know whom to let in."""
    office.enrolled("pump-07")

    async def steps(source: DirectoryFeed) -> None:
        async with contextlib.aclosing(source.follow(broker_serial(office), BEGIN)) as chunks:
            start, *entries, current = await read(chunks)
            assert isinstance(start, SnapshotStart)
            assert Current(start.feed, start.seq) == current
            names = [entry.principal.id for entry in entries if isinstance(entry, Entry)]
            assert ["admin", "broker", "dispatch", "pump-07"] == names
            office.revoke("pump-07")
            entry, current = await read(chunks)
            assert isinstance(entry, Entry)
            assert (start.seq + 1, State.REVOKED, frozenset[Serial]()) == (entry.seq, entry.state, entry.serials)
            assert Current(start.feed, start.seq + 1) == current

    following(office, steps)


def test_a_commit_of_another_process_is_noticed(office: Office) -> None:
    """`enroll device revoke` is not heard of before the service restarts."""
    office.enrolled("pump-07")

    async def steps(source: DirectoryFeed) -> None:
        async with contextlib.aclosing(source.follow(broker_serial(office), BEGIN)) as chunks:
            await read(chunks)
            with Registry.open(office.home.registry) as another:
                service.revoke(another, DeviceId("pump-07"), by="test", now=NOW)
            entry, _ = await read(chunks)
            assert isinstance(entry, Entry)
            assert State.REVOKED is entry.state

    following(office, steps)


def test_a_follower_that_was_away_gets_only_what_changed(office: Office) -> None:
    """Every reconnect costs a whole snapshot."""
    with office.registry.read() as transaction:
        position = Position(feed.feed_id(transaction), feed.head(transaction))
    office.enrolled("pump-07")
    office.enrolled("pump-08")

    async def steps(source: DirectoryFeed) -> None:
        async with contextlib.aclosing(source.follow(broker_serial(office), position)) as chunks:
            lines = await read(chunks)
        assert ["pump-07", "pump-08"] == [line.principal.id for line in lines if isinstance(line, Entry)]
        assert Current(position.feed, position.seq + 2) == lines[-1]

    following(office, steps)


@pytest.mark.parametrize("position", [Position("another", 1), Position("", 1)])
def test_a_follower_of_another_feed_gets_a_snapshot(office: Office, position: Position) -> None:
    """After a restore a broker keeps what is no longer so."""

    async def steps(source: DirectoryFeed) -> None:
        async with contextlib.aclosing(source.follow(broker_serial(office), position)) as chunks:
            assert isinstance((await read(chunks))[0], SnapshotStart)

    following(office, steps)


def test_a_follower_ahead_of_the_feed_gets_a_snapshot(office: Office) -> None:
    """After a restore of the same feed a broker waits for numbers that never come."""
    with office.registry.read() as transaction:
        ahead = Position(feed.feed_id(transaction), feed.head(transaction) + 1)

    async def steps(source: DirectoryFeed) -> None:
        async with contextlib.aclosing(source.follow(broker_serial(office), ahead)) as chunks:
            assert isinstance((await read(chunks))[0], SnapshotStart)

    following(office, steps)


async def first_line(source: DirectoryFeed, office: Office, position: Position) -> directory.FeedLine:
    async with contextlib.aclosing(source.follow(broker_serial(office), position)) as chunks:
        return (await read(chunks))[0]


def test_a_follower_of_a_history_that_is_lost_gets_a_snapshot(office: Office) -> None:
    """A restored registry that has gone on would tell a broker half of what it does not know."""
    office.enrolled("pump-07")
    with office.registry.read() as transaction:
        name, seq, mark = feed.feed_id(transaction), feed.head(transaction), log.mark(transaction)
    office.enrolled("pump-08")
    lost = f"{mark.partition('-')[0]}-{'0' * 32}"  # an entry with that number, and another one

    async def steps(source: DirectoryFeed) -> None:
        assert isinstance(await first_line(source, office, Position(name, seq, mark)), Entry)
        for other in (lost, f"999-{'0' * 32}", "rubbish", "1-", f"{'9' * 30}-{'0' * 32}"):
            assert isinstance(await first_line(source, office, Position(name, seq, other)), SnapshotStart), other
        async with contextlib.aclosing(source.follow(broker_serial(office), Position(name, seq, mark))) as chunks:
            *_, current = await read(chunks)
        assert isinstance(current, Current)
        assert isinstance(await first_line(source, office, Position(name, seq, current.mark)), Entry)

    following(office, steps)


def test_a_revoked_broker_loses_its_stream(office: Office) -> None:
    """A stolen broker reads on who is in the fleet."""

    async def steps(source: DirectoryFeed) -> None:
        async with contextlib.aclosing(source.follow(broker_serial(office), BEGIN)) as chunks:
            await read(chunks)
            office.revoke("broker")
            with pytest.raises(StopAsyncIteration):
                await read(chunks)

    following(office, steps)


def test_many_principals_come_in_pages_and_each_once(office: Office) -> None:
    """A large fleet's snapshot misses someone at a page's end."""
    token = office.invite(pattern="d*", uses=feed.PAGE_ENTRIES + 10)
    names = [f"d{number}" for number in range(feed.PAGE_ENTRIES + 10)]
    for name in names:
        assert 200 == office.enrol(token, csr(name)).status

    async def steps(source: DirectoryFeed) -> None:
        async with contextlib.aclosing(source.follow(broker_serial(office), BEGIN)) as chunks:
            lines = await read(chunks)
            assert not any(isinstance(line, Current) for line in lines), "a snapshot of any size is one chunk"
            lines += await read(chunks)
        assert isinstance(lines[-1], Current)
        found = [line.principal.id for line in lines if isinstance(line, Entry)]
        assert sorted([*names, "admin", "broker", "dispatch"]) == sorted(found)
        assert all(line.serials for line in lines if isinstance(line, Entry))

    following(office, steps)


def test_what_changes_during_a_snapshot_comes_behind_it(office: Office) -> None:
    """A device that is enrolled, or revoked, while a broker reads a large directory stays unknown there, or alive."""
    token = office.invite(pattern="d*", uses=feed.PAGE_ENTRIES)
    for number in range(feed.PAGE_ENTRIES):
        office.enrol(token, csr(f"d{number:03}"))

    async def steps(source: DirectoryFeed) -> None:
        async with contextlib.aclosing(source.follow(broker_serial(office), BEGIN)) as chunks:
            start, *_ = await read(chunks)
            office.revoke("d000")  # on the page that was sent
            office.enrolled("a-new-one")  # before it
            *_, current = await read(chunks)
            assert isinstance(start, SnapshotStart)
            assert Current(start.feed, start.seq) == current
            changes = [line for line in await read(chunks) if isinstance(line, Entry)]
        assert [("d000", State.REVOKED), ("a-new-one", State.ACTIVE)] == [
            (line.principal.id, line.state) for line in changes
        ]

    following(office, steps)


@pytest.mark.parametrize("after", ["-1", "x", "1.5", "9" * 30, "\u0661"])
def test_a_position_that_is_none_is_refused(after: str) -> None:
    """A broken broker breaks the service."""
    with pytest.raises(InvalidInput):
        position_of({"after": after})
