"""State in the registry, from the admin who wants something to the device that has it; no network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from enroll import service, states
from enroll.bookkeeping import Books, SetAside
from enroll.registry import Registry, feed, identity, log
from enroll.registry.records import PrincipalRecord
from enroll.registry.state import StateRecord
from enroll.reports import HelloSeen, Report, StateSeen, StatusSeen
from enroll.service import issuance
from enroll.state_desk import Sending, StateBooks, StateTraffic
from enroll.states import Change
from fleet import state as rules
from fleet.errors import Denied, FleetError, InvalidInput, NotFound
from fleet.identity import DeviceId, Principal, Role, State
from fleet.messages import Envelope, Presence, StatusMessage
from fleet.state import NONE_YET, Delta, Mark, Marks, Part, ReportedMessage, Whole
from tests.fleets import NOW

PUMP, VALVE, ANNA, NOBODY = DeviceId("pump-07"), DeviceId("valve-1"), DeviceId("anna"), DeviceId("nobody")
LARGE = {"a": 1, "b": "a text that is longer than what changes"}


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """A registry with two devices and an operator."""
    with Registry.open(tmp_path / "registry.db") as opened:
        with opened.write() as transaction:
            feed.set_feed(transaction, "feed")
            for role, id_ in ((Role.DEVICE, PUMP), (Role.DEVICE, VALVE), (Role.OPERATOR, ANNA)):
                identity.add_principal(transaction, PrincipalRecord(Principal(role, id_), State.ACTIVE, 1, (), NOW))
        yield opened


@pytest.fixture
def books(registry: Registry) -> StateBooks:
    return StateBooks(registry, SetAside())


def want(registry: Registry, value: dict[str, Any], device: DeviceId = PUMP, **options: Any) -> StateRecord:
    return states.set_desired(registry, device, Change(value, **options), by="test", now=NOW)[0]


def present(registry: Registry, device: DeviceId = PUMP, presence: Presence = Presence.ONLINE) -> None:
    status = StatusMessage(Envelope(device, NOW, "boot", 1), presence)
    Books(registry).enter([StatusSeen(device, status, is_retained=False)], [], NOW)


def hello(desired: Mark = NONE_YET, reported: Mark = NONE_YET, device: DeviceId = PUMP) -> Report:
    return HelloSeen(device, "1", state=Marks(desired, reported))


def says(reported: Part, desired: Mark = NONE_YET, device: DeviceId = PUMP) -> Report:
    return StateSeen(device, ReportedMessage(Envelope(device, NOW, "boot", 1), desired, reported))


def answers(books: StateBooks, *reports: Report) -> list[tuple[Part, Mark]]:
    return [(each.message.desired, each.message.reported) for each in books.enter(reports, [], NOW)]


def due(books: StateBooks) -> list[Part]:
    return [sending.message.desired for sending in books.due(NOW)]


def test_who_can_have_a_state(registry: Registry) -> None:
    """What is wanted waits for someone who can never have it."""
    for device, kind in ((NOBODY, NotFound), (ANNA, InvalidInput)):
        with pytest.raises(kind):
            want(registry, {"a": 1}, device)
        with pytest.raises(kind):
            states.find(registry, device)
    service.suspend(registry, PUMP, by="test", now=NOW)
    assert 1 == want(registry, {"a": 1}).desired.version
    service.revoke(registry, PUMP, by="test", now=NOW)
    with pytest.raises(Denied):
        want(registry, {"a": 2})


def test_what_an_admin_wants_is_merged_replaced_counted_and_noted(registry: Registry) -> None:
    """An admin's change is lost, takes others' with it, or nobody knows whose it was."""
    assert {"a": {"b": 1}} == want(registry, {"a": {"b": 1}, "c": None}).desired.value
    assert {"a": {"b": 1, "d": 2}} == want(registry, {"a": {"d": 2}}).desired.value
    found, is_change = states.set_desired(registry, PUMP, Change({"a": {"d": 2}}), by="test", now=NOW)
    assert (2, False) == (found.desired.version, is_change)
    assert ({"e": 1}, 3) == (want(registry, {"e": 1}, replaces=True).desired.value, 3)
    assert states.find(registry, PUMP).desired == rules.owned({"e": 1}, 3)
    with pytest.raises(FleetError, match="has version 3, not 2"):
        want(registry, {"e": 2}, if_version=2)
    assert 4 == want(registry, {"e": 2}, if_version=3).desired.version
    with registry.read() as transaction:
        noted = [entry.event for entry in log.entries(transaction)]
    assert ["state.merged", "state.merged", "state.replaced", "state.merged"] == noted


def test_of_many_all_are_changed_or_none(registry: Registry) -> None:
    """Half a fleet has a setting, and the admin thinks that none has."""
    want(registry, {"x": "x" * 8000})
    with pytest.raises(InvalidInput, match=r"pump-07: the state would have"):
        states.set_all(registry, (VALVE, PUMP), Change({"y": "y" * 8000}), by="test", now=NOW)
    assert 0 == states.find(registry, VALVE).desired.version
    outcome = states.set_all(registry, (VALVE, PUMP, ANNA), Change({"x": "x" * 8000}), by="test", now=NOW)
    assert ([VALVE], [ANNA]) == (outcome.changed, outcome.left_out)


def test_what_is_due_is_of_devices_that_are_there_until_the_broker_has_it(
    registry: Registry, books: StateBooks
) -> None:
    """A device is told again and again, or never."""
    first = want(registry, LARGE)
    want(registry, LARGE, VALVE)
    assert [] == due(books)
    present(registry)
    assert [Whole(first.desired.mark, LARGE)] == due(books)
    books.enter([], [(PUMP, 1)], NOW)
    assert [] == due(books)
    present(registry, presence=Presence.OFFLINE)
    present(registry)
    assert [] == due(books)
    second = want(registry, {"a": 2})
    assert [Whole(second.desired.mark, LARGE | {"a": 2})] == due(books)
    books.enter([], [(PUMP, 1)], NOW)
    assert 1 == len(due(books)), "an older message stood for the newer"
    present(registry, presence=Presence.OFFLINE)
    assert [] == due(books)


def test_who_has_said_what_it_has_is_sent_the_difference(registry: Registry, books: StateBooks) -> None:
    """Every small change costs the whole state of every device."""
    first = want(registry, LARGE).desired.mark
    present(registry)
    assert [] == answers(books, hello(first))
    assert [] == due(books)
    second = want(registry, {"a": 2}).desired.mark
    assert [Delta(second, first, {"a": 2})] == due(books)
    third = want(registry, {"a": 3}).desired.mark
    assert [Delta(third, first, {"a": 3})] == due(books)
    assert [(Delta(third, first, {"a": 3}), NONE_YET)] == answers(books, hello(first))
    assert [(Whole(third, LARGE | {"a": 3}), NONE_YET)] == answers(books, hello(second))
    assert [] == answers(books, hello(third))
    assert third == getattr(states.find(registry, PUMP).known, "mark", None)


def test_what_a_device_reports_is_kept_and_answered(registry: Registry, books: StateBooks) -> None:
    """A device that is told nothing says it for ever."""
    first, second = Mark(1, "x"), Mark(2, "y")
    whole, delta = Whole(first, {"t": 1, "u": 2}), Delta(second, first, {"t": None})
    assert [(NONE_YET, first)] == answers(books, says(whole))
    assert [(NONE_YET, second)] == answers(books, says(delta))
    for old in (whole, delta, Delta(Mark(9, "z"), Mark(7, "w"), {"t": 7})):
        assert [(NONE_YET, second)] == answers(books, says(old))
    found = states.find(registry, PUMP)
    assert ({"u": 2}, second, NOW) == (found.reported.value, found.reported.mark, found.reported_at)
    assert [] == answers(books, hello(reported=second))
    assert [(NONE_YET, second)] == answers(books, hello(reported=first))


def test_a_device_cannot_change_what_is_desired_or_anothers(registry: Registry, books: StateBooks) -> None:
    """A device that was taken over has the registry tell others what it likes."""
    want(registry, LARGE)
    want(registry, LARGE, VALVE)
    before = states.find(registry, VALVE)
    answers(books, says(Whole(Mark(5, "x"), {"a": "mine"}), Mark(4, "x")))
    assert before == states.find(registry, VALVE)
    assert LARGE == states.find(registry, PUMP).desired.value


def test_a_claim_that_cannot_be_is_set_aside_and_others_are_heard(registry: Registry, books: StateBooks) -> None:
    """One device with nonsense stops what all others say."""
    want(registry, LARGE)
    heard = answers(
        books,
        says(Whole(Mark(1, "x"), {"t": 1}), Mark(2**52, "x")),
        says(Whole(Mark(1, "x"), {"t": "t" * 9000}), device=PUMP),
        says(Whole(Mark(1, "x"), {"t": 1}), device=NOBODY),
        says(Whole(Mark(1, "x"), {"t": 1}), device=VALVE),
    )
    assert [(NONE_YET, Mark(1, "x"))] == heard
    assert {"pump-07": 2, "nobody": 1} == books.aside.counts
    assert 1 == states.find(registry, PUMP).desired.version


def test_after_a_restore_the_registry_is_right_and_goes_past_the_device(registry: Registry, books: StateBooks) -> None:
    """A device ignores all that an admin wants until the restored registry has counted as far as it had."""
    want(registry, LARGE)
    [(part, _)] = answers(books, hello(Mark(7, "what the backup does not have")))
    assert Whole(rules.owned(LARGE, 8).mark, LARGE) == part
    assert [] == answers(books, hello(rules.owned(LARGE, 8).mark))


def test_who_takes_over_a_name_begins_with_nothing(registry: Registry, books: StateBooks) -> None:
    """A new device is what its predecessor was to be, and its predecessor's state is taken for its own."""
    want(registry, LARGE)
    answers(books, says(Whole(Mark(3, "x"), {"t": 1})))
    present(registry)
    with registry.write() as transaction:
        found = identity.find_principal(transaction, PUMP)
        assert found is not None
        issuance.store(transaction, replace(found, epoch=2), NOW)
    assert [] == due(books)
    assert StateRecord(PUMP, 2) == states.find(registry, PUMP)
    assert [(NONE_YET, Mark(1, "y"))] == answers(books, says(Whole(Mark(1, "y"), {"u": 1})))
    assert rules.owned({"b": 1}, 1) == want(registry, {"b": 1}).desired


def test_a_revoked_device_is_due_nothing(registry: Registry, books: StateBooks) -> None:
    """What nobody will ever take is looked at in every turn."""
    present(registry)
    want(registry, LARGE)
    service.revoke(registry, PUMP, by="test", now=NOW)
    with registry.read() as transaction:
        assert 0 == transaction.exec_driver_sql("SELECT count(*) FROM states WHERE is_due").scalar_one()


def test_a_hello_that_agrees_writes_nothing(registry: Registry, books: StateBooks) -> None:
    """A fleet that comes back after a broker's restart rewrites the registry."""
    mark = want(registry, LARGE).desired.mark
    answers(books, hello(mark), says(Whole(Mark(1, "x"), {}), mark))
    watch = registry.commit_mark()
    try:
        for report in (hello(mark, Mark(1, "x")), hello(device=VALVE), HelloSeen(PUMP, "0.1.0")):
            assert [] == answers(books, report)
        assert not watch.has_moved()
        assert [] == answers(books, hello(mark, Mark(1, "x"), VALVE), hello())[2:]
        assert watch.has_moved()
    finally:
        watch.close()


def test_what_is_under_way_is_not_sent_again(registry: Registry, books: StateBooks) -> None:
    """Each commit of anybody sends a device's state once more."""
    sent: list[str] = []

    def publish(topic: str, payload: bytes, until: object) -> int:
        sent.append(topic)
        return len(sent)

    traffic = StateTraffic(books, publish)
    present(registry)
    want(registry, LARGE)
    traffic.send_due(NOW)
    traffic.send_due(NOW)
    assert ["devices/pump-07/down/state"] == sent
    traffic.turn([], [1, 99], NOW)
    assert [] == due(books)
    assert isinstance(books.enter([hello()], [], NOW)[0], Sending)
