"""Groups and labels as admins change them."""

from __future__ import annotations

import pytest

from enroll.registry import identity, labels, log
from enroll.selection import MAX_LABELS
from enroll.service import Change, mark, show
from fleet.errors import InvalidInput, NotFound
from fleet.identity import DeviceId
from tests.fleets import Office

PUMP, VALVE, NOBODY = DeviceId("pump-07"), DeviceId("valve-1"), DeviceId("nobody")


def noted(office: Office, id: DeviceId) -> dict[str, str]:
    with office.registry.read() as transaction:
        return labels.labels_of(transaction, id)


def marked(office: Office, change: Change, *ids: DeviceId) -> list[DeviceId]:
    return mark(office.registry, ids or (PUMP,), change, by="test", now=office.now)


def test_groups_and_labels_come_and_go(office: Office) -> None:
    """What an admin notes is lost, or what it replaces stays."""
    office.enrolled("pump-07", groups=("cellar",))
    assert [PUMP] == marked(office, Change(groups=("canary",), labels={"site": "berlin", "floor": "2"}))
    assert [PUMP] == marked(office, Change(no_groups=("cellar",), labels={"site": "bonn"}, no_labels=("floor",)))
    assert ("canary",) == show(office.registry, PUMP).record.groups
    assert {"site": "bonn"} == noted(office, PUMP)


def test_what_is_so_already_is_no_change(office: Office) -> None:
    """The log tells of changes that nobody made."""
    office.enrolled("pump-07", groups=("cellar",))
    change = Change(groups=("cellar",), no_labels=("site",))
    before = len(entries(office))
    assert [] == marked(office, change)
    assert before == len(entries(office))


def test_a_change_is_in_the_log_with_who_made_it(office: Office) -> None:
    """Nobody knows who moved a device into the group that the next update goes to."""
    office.enrolled("pump-07")
    marked(office, Change(groups=("canary",), labels={"site": "berlin"}))
    event, fields = entries(office)[-1]
    assert "principal.marked" == event
    for word in ('"by":"test"', '"canary"', '"site=berlin"', "pump-07"):
        assert word in fields


def test_all_are_changed_or_none(office: Office) -> None:
    """A slip in a list of ids leaves half of it changed."""
    office.enrolled("pump-07")
    with pytest.raises(NotFound, match="there is no nobody"):
        marked(office, Change(groups=("canary",)), PUMP, NOBODY)
    assert () == show(office.registry, PUMP).record.groups


def test_a_device_has_not_any_number_of_labels(office: Office) -> None:
    """A script in a loop fills the registry."""
    office.enrolled("pump-07")
    marked(office, Change(labels={f"l{number}": "x" for number in range(MAX_LABELS)}))
    with pytest.raises(InvalidInput, match="33 labels"):
        marked(office, Change(labels={"one-more": "x"}))
    assert [PUMP] == marked(office, Change(labels={"one-more": "x"}, no_labels=("l0",)))


def test_a_device_that_joins_again_keeps_its_marks(office: Office) -> None:
    """A repaired device is in no group any more, and found by nothing."""
    office.enrolled("pump-07")
    marked(office, Change(groups=("canary",), labels={"site": "berlin"}))
    office.enrolled("pump-07", replace=True)
    assert ("canary",) == show(office.registry, PUMP).record.groups
    assert {"site": "berlin"} == noted(office, PUMP)


def test_groups_are_asked_for_both_ways(office: Office) -> None:
    """device show says one thing, and what is sent to the group another."""
    office.enrolled("pump-07")
    office.enrolled("valve-1")
    marked(office, Change(groups=("canary",)), PUMP, VALVE)
    marked(office, Change(no_groups=("canary",)), PUMP)
    with office.registry.read() as transaction:
        rows = transaction.exec_driver_sql("SELECT principal FROM memberships WHERE name = 'canary'").all()
        assert ["valve-1"] == [row[0] for row in rows]
        assert [("canary",), ()] == [
            record.groups for record in (identity.find_principal(transaction, each) for each in (VALVE, PUMP)) if record
        ]


def entries(office: Office) -> list[tuple[str, str]]:
    with office.registry.read() as transaction:
        return [(entry.event, entry.fields) for entry in log.entries(transaction)]
