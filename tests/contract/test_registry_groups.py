"""What every registry has to do with transactions that are committed together."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from enroll.registry import Registry, RegistryFull, RegistryUnavailable, feed, identity
from fleet.identity import DeviceId
from tests.contract.registries import principal


def names(registry: Registry) -> list[str]:
    with registry.read() as transaction:
        return [record.id for record in identity.list_principals(transaction)]


def test_a_group_is_one_commit_whose_members_fail_alone(registry: Registry) -> None:
    """One refused enrolment takes those along that came with it."""

    def refused() -> None:
        with registry.write() as transaction:
            identity.add_principal(transaction, principal(DeviceId("refused")))
            raise RuntimeError

    with registry.group():
        for name in ("first", "second"):
            with registry.write() as transaction:
                identity.add_principal(transaction, principal(DeviceId(name)))
                feed.announce(transaction, DeviceId(name))
            with pytest.raises(RuntimeError):
                refused()
        assert ["first", "second"] == names(registry)
        with ThreadPoolExecutor(1) as another:
            assert [] == another.submit(names, registry).result()
    assert ["first", "second"] == names(registry)


def test_a_group_that_fails_leaves_nothing(registry: Registry) -> None:
    """Devices were refused, and are enrolled all the same."""

    def fail() -> None:
        with registry.group():
            with registry.write() as transaction:
                identity.add_principal(transaction, principal())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with registry.write() as transaction:  # and the next transaction is one of its own again
        assert [] == identity.list_principals(transaction)


@pytest.mark.parametrize("is_first", [True, False])
def test_whoever_fails_in_a_group_takes_nothing_along(registry: Registry, is_first: bool) -> None:
    """One disk error for one device, and the others of its batch have no certificate, or it has half of one."""

    def add(name: str) -> None:
        with registry.write() as transaction:
            identity.add_principal(transaction, principal(DeviceId(name)))
            if name == "failing":
                raise RuntimeError

    with registry.group():
        if not is_first:
            add("before")
        with pytest.raises(RuntimeError):
            add("failing")
        add("after")
    assert ["after", "before"][: 2 - is_first] == names(registry)


def test_a_group_that_the_database_ended_writes_nothing_more(registry: Registry) -> None:
    """A full disk ends a transaction, and what follows in it is kept piece by piece."""

    def add() -> None:
        with registry.write() as transaction:
            identity.add_principal(transaction, principal())
            transaction.connection.rollback()  # as SQLite does by itself

    def add_twice() -> None:
        with registry.group():
            add()
            add()

    with pytest.raises(RegistryUnavailable):
        add_twice()
    assert [] == names(registry)


@pytest.mark.parametrize("before", [0, 1])
def test_a_full_disk_amid_a_group_is_said_and_leaves_nothing(registry: Registry, before: int) -> None:
    """An admin is told to check file permissions, or finds half a batch."""

    def fill() -> None:
        with registry.group():
            for name in ["first"][:before]:
                with registry.write() as transaction:
                    identity.add_principal(transaction, principal(DeviceId(name)))
            with registry.write() as transaction:
                transaction.exec_driver_sql("PRAGMA max_page_count = 1")
                for number in range(10_000):
                    identity.add_principal(transaction, principal(DeviceId(f"pump-{number}")))

    with pytest.raises(RegistryFull):
        fill()
    assert [] == names(registry)


def test_what_was_begun_is_there_once_somebody_has_committed_it(registry: Registry) -> None:
    """An answer is true before it is on disk, or never; or what was begun keeps everybody else out for ever."""

    def add() -> str:
        with registry.write() as transaction:
            identity.add_principal(transaction, principal())
        return "added"

    begun = registry.begin_group(add)
    assert begun is not None
    assert ("added", True) == (begun.outcome, begun.has_changes)
    assert [] == names(registry)
    assert registry.begin_group(add) is None  # somebody else is writing
    with ThreadPoolExecutor(1) as another:
        another.submit(begun.commit).result()
    with registry.write() as transaction:
        assert [principal()] == identity.list_principals(transaction)


def test_what_fails_before_its_commit_leaves_nothing(registry: Registry) -> None:
    """A mistake of ours in one answer keeps the registry locked, or half of what it did."""

    def fail() -> None:
        with registry.write() as transaction:
            identity.add_principal(transaction, principal())
        raise RuntimeError

    with pytest.raises(RuntimeError):
        registry.begin_group(fail)
    with registry.write() as transaction:
        assert [] == identity.list_principals(transaction)
    begun = registry.begin_group(lambda: None)
    assert begun is not None
    assert not begun.has_changes
    begun.commit()
