"""A broken device's name goes to the one that takes its place: the name, its groups, and nothing else."""

from __future__ import annotations

from datetime import timedelta

import pytest

from enroll import commands, service
from enroll.bookkeeping import Books
from enroll.registry import Registry, feed
from enroll.registry.records import Approval, CertificateState, CommandState
from enroll.reports import HelloSeen
from fleet import pki
from fleet.identity import DeviceId
from tests.contract.registries import check_invariants
from tests.fleets import Office, certificate_in, csr

PUMP = DeviceId("pump-07")


def test_the_old_certificate_ends_in_the_transaction_that_gives_the_new_one(office: Office) -> None:
    """For a moment both may connect, or neither; or brokers hear of it in two steps."""
    old = office.enrolled("pump-07", groups=("cellar",))
    token = office.invite("pump-07", replace=True)
    with office.registry.read() as before:
        feed.head(before)  # SQLite begins a read at its first query
        new = certificate_in(office.enrol(token, csr("pump-07")))
        entry = feed.entry_of(before, PUMP)
    assert entry is not None
    assert {pki.serial_of(old)} == entry.serials, "a reader saw half of it"
    with office.registry.read() as after:
        entry, head = feed.entry_of(after, PUMP), feed.head(after)
    assert entry is not None
    assert (frozenset({pki.serial_of(new)}), head, 2) == (entry.serials, entry.seq, entry.epoch)
    details = service.show(office.registry, PUMP)
    assert ("cellar",) == details.record.groups
    assert [CertificateState.REVOKED, CertificateState.CONFIRMED] == [each.state for each in details.certificates]
    check_invariants(office.registry)


def test_the_predecessor_cannot_renew(office: Office) -> None:
    """Whoever holds the broken device's key takes the name back."""
    old = office.enrolled("pump-07")
    office.enrolled("pump-07", replace=True)
    assert 403 == office.reenrol(old, csr("pump-07")).status


@pytest.mark.parametrize("approval", list(Approval))
def test_the_successor_does_not_inherit_commands(office: Office, approval: Approval) -> None:
    """A new device does what the broken one was told."""
    office.enrolled("pump-07")
    before = given(office)
    token, der = office.invite("pump-07", replace=True, approval=approval), csr("pump-07")
    if office.enrol(token, der).status == 202:
        [waiting] = service.requests(office.registry, office.now)
        service.approve(office.registry, waiting.id, by="anna", now=office.now)
    certificate_in(office.enrol(token, der))
    books, after = Books(office.registry), given(office)
    assert [after] == [command.id for command in books.enter([HelloSeen(PUMP, "0.1.0")], (), office.now)]
    books.agenda(office.now)
    assert CommandState.EXPIRED is state(office.registry, before)


def given(office: Office) -> str:
    return commands.send(
        office.registry,
        PUMP,
        commands.Order("open", {}, office.now + timedelta(hours=1)),
        commands.Giver("test", office.now, office.app.enrolment.token_bytes),
    ).id


def state(registry: Registry, id: str) -> CommandState:
    return commands.find(registry, id).state
