"""Tokens made many at once, limited, and ended with all that they let in."""

from __future__ import annotations

import secrets

import pytest

from enroll import service
from enroll.registry import tokens as token_rows
from enroll.service import invitations
from enroll.tokens import TokenOrder
from fleet import est
from fleet.errors import Denied
from fleet.identity import DeviceId, State
from tests.fleets import Office, csr, enrolment_request


def test_a_token_from_another_network_is_refused_and_keeps_its_use(office: Office) -> None:
    """A token stolen from a site lets in a device elsewhere; or trying it elsewhere uses it up."""
    token = office.invite("pump-07", sources=("198.51.100.0/24",))
    body = est.encode_body(csr("pump-07"))
    refused = office.app.handle(enrolment_request(token, body))
    assert 403 == refused.status
    assert b"not taken from 192.0.2.7" in refused.body
    assert 200 == office.app.handle(enrolment_request(token, body, address="198.51.100.9")).status


def test_many_tokens_are_made_all_or_none(office: Office) -> None:
    """Half of a list is in the registry, and nobody knows which half."""
    office.enrolled("pump-2")
    orders = [TokenOrder(DeviceId(f"pump-{number}")) for number in range(4)]
    before = service.tokens(office.registry)
    with pytest.raises(Denied, match="pump-2 has an identity already"):
        service.invite_all(office.registry, orders, by="test", now=office.now, token_bytes=secrets.token_bytes)
    assert before == service.tokens(office.registry)
    assert [False, False, True, False] == [bool(problem) for problem in service.check_orders(office.registry, orders)]


def test_whom_a_token_let_in_is_revoked_with_it(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stolen token is ended, and what the thief enrolled goes on."""
    monkeypatch.setattr(invitations, "REVOKED_AT_ONCE", 2)
    token = office.invite(pattern="pump-*", uses=5)
    for number in range(5):
        office.enrol(token, csr(f"pump-{number}"))
    office.enrolled("valve-1")
    office.revoke("pump-1")
    office.enrol(office.invite("pump-2", replace=True), csr("pump-2"))  # somebody else's by now
    wanted = ["pump-0", "pump-3", "pump-4"]
    assert wanted == service.enrolled_by(office.registry, token.id)
    revoked = list(service.revoke_enrolled(office.registry, token.id, by="test", now=office.now))
    assert [2, 1] == [len(some) for some in revoked]
    assert wanted == sorted(device for some in revoked for device in some)
    states: dict[str, State] = {record.id: record.state for record in service.principals(office.registry)}
    assert (State.ACTIVE, State.ACTIVE, State.REVOKED) == (states["pump-2"], states["valve-1"], states["pump-3"])


def test_the_networks_of_a_token_come_back_from_the_registry(office: Office) -> None:
    """A limit is lost on its way through the database, and the token works from everywhere."""
    token = office.invite("pump-07", sources=("192.0.2.0/24", "2001:db8::7"))
    with office.registry.read() as transaction:
        record = token_rows.find_token(transaction, token.id)
    assert record is not None
    assert ("192.0.2.0/24", "2001:db8::7/128") == record.sources
