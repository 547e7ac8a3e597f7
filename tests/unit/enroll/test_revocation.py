"""Certificates that admins revoke one by one, or all of a CA, and why."""

from __future__ import annotations

import json

import pytest

from enroll import service
from enroll.cli.options import parse_reason
from enroll.registry import feed, identity, log, revocations
from enroll.registry.records import Reason
from fleet.errors import InvalidInput, NotFound
from fleet.identity import DeviceId, Serial, State
from fleet.pki import serial_of
from tests.fleets import Office, certificate_in, csr

PUMP = DeviceId("pump-07")


def revoke(office: Office, serial: Serial, reason: Reason | None = None) -> service.Ended:
    return service.revoke_certificate(office.registry, serial, by="test", now=office.now, reason=reason)


def admitted(office: Office, device: str) -> frozenset[Serial]:
    """What brokers are told."""
    with office.registry.read() as transaction:
        entry = feed.entry_of(transaction, DeviceId(device))
    assert entry is not None
    return entry.serials


def reason_of(office: Office, serial: Serial) -> Reason | None:
    with office.registry.read() as transaction:
        found = revocations.find(transaction, serial)
    assert found is not None
    return found.reason


def test_one_certificate_ends_and_the_other_stays(office: Office) -> None:
    """A renewed device is locked out with its old certificate, or goes on with it."""
    first = office.enrolled(PUMP)
    second = certificate_in(office.reenrol(first, csr(PUMP)))
    ended = revoke(office, serial_of(first), Reason.KEY_COMPROMISE)
    assert (False, (serial_of(second),)) == (ended.is_repeated, ended.left)
    assert {serial_of(second)} == admitted(office, PUMP)
    assert Reason.KEY_COMPROMISE is reason_of(office, serial_of(first))


def test_brokers_hear_of_it_at_once(office: Office) -> None:
    """The session goes on until the broker starts again."""
    leaf = office.enrolled(PUMP)
    with office.registry.read() as transaction:
        before = feed.head(transaction)
    revoke(office, serial_of(leaf))
    with office.registry.read() as transaction:
        assert [PUMP] == [entry.principal.id for entry in feed.changes(transaction, before, 10).entries]


def test_a_second_time_only_a_new_reason_counts(office: Office) -> None:
    """The log fills with what was not done, or a key that leaked is listed as if it had not."""
    serial = serial_of(office.enrolled(PUMP))
    repeated = [revoke(office, serial, reason).is_repeated for reason in (None, None, Reason.KEY_COMPROMISE, None)]
    assert [False, True, False, True] == repeated
    assert Reason.KEY_COMPROMISE is reason_of(office, serial)
    with office.registry.read() as transaction:
        told = [json.loads(entry.fields) for entry in log.entries(transaction) if entry.event == "certificate.revoked"]
    assert [None, "keyCompromise"] == [entry.get("reason") for entry in told if entry.get("id") == PUMP]


def test_a_device_that_is_revoked_again_may_have_another_reason(office: Office) -> None:
    """What was learnt later is on no list."""
    serial = serial_of(office.enrolled(PUMP))
    for reason in (None, Reason.KEY_COMPROMISE, None):
        service.revoke(office.registry, PUMP, by="test", now=office.now, reason=reason)
    assert Reason.KEY_COMPROMISE is reason_of(office, serial)


def test_a_name_that_goes_to_a_new_key_supersedes_the_old(office: Office) -> None:
    """A verifier takes the broken device's certificate for the new one's."""
    first = office.enrolled(PUMP)
    office.enrolled(PUMP, replace=True)
    assert Reason.SUPERSEDED is reason_of(office, serial_of(first))


def test_a_servers_certificate_is_listed_among_the_servers(office: Office) -> None:
    """It stands on a list that another CA signed."""
    with office.registry.read() as transaction:
        everything = {line.serial for line in revocations.of_issuer(transaction, "servers", office.now)}
    assert set() == everything
    from enroll.authority import read_certificate

    serial = serial_of(read_certificate(office.home.broker_server.certificate))
    assert () == revoke(office, serial).left
    with office.registry.read() as transaction:
        assert [serial] == [line.serial for line in revocations.of_shard(transaction, 0, office.now)]


def test_all_of_a_ca_but_those_who_carry_the_news(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compromised CA's certificates stay, or the brokers never hear that they ended."""
    monkeypatch.setattr("enroll.service.revocation.REVOKED_AT_ONCE", 2)
    for number in range(5):
        office.enrolled(f"pump-{number}")
    assert 6 == service.count_issued(office.registry, "devices")  # and the first operator
    batches, last = [], 0
    while some := service.revoke_some_issued(office.registry, "devices", last, by="test", now=office.now):
        batches.append(len(some))
        last = some[-1].number
    assert [2, 2, 2] == batches
    assert 0 == service.count_issued(office.registry, "devices")
    with office.registry.read() as transaction:
        live = {
            record.id
            for record in identity.list_principals(transaction)
            if identity.live_certificates_of(transaction, record.id)
        }
        assert {"broker", "dispatch"} == live
        assert {State.ACTIVE} == {record.state for record in identity.list_principals(transaction)}
    certificate_in(office.enrol(office.invite("pump-1", replace=True), csr("pump-1")))


def test_what_is_not_there_is_said_so(office: Office) -> None:
    """A mistyped serial looks as if it had been revoked."""
    with pytest.raises(NotFound):
        revoke(office, Serial("12ab"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, None),
        ("unspecified", None),
        ("keyCompromise", Reason.KEY_COMPROMISE),
        ("key-compromise", Reason.KEY_COMPROMISE),
        ("CACOMPROMISE", Reason.CA_COMPROMISE),
        ("privilege_withdrawn", Reason.PRIVILEGE_WITHDRAWN),
    ],
)
def test_reasons_are_taken_as_people_write_them(text: str | None, reason: Reason | None) -> None:
    """An admin in a hurry looks up how an RFC capitalises."""
    assert reason is parse_reason(text)


@pytest.mark.parametrize("text", ["", "lost", "certificateHold", "removeFromCRL", "1"])
def test_other_reasons_are_refused(text: str) -> None:
    """A certificate that was revoked for good is listed as if it could come back."""
    with pytest.raises(InvalidInput):
        parse_reason(text)
