"""Requests that wait for an admin: with a token that wants it, and as pairings without any token."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from enroll import service
from enroll.audit import first_broken
from enroll.registry import log
from enroll.registry.records import Approval, ApprovalRecord, ApprovalState
from enroll.service import waiting
from enroll.service.certification import key_digest
from fleet import est
from fleet.errors import Denied, InvalidInput, NotFound
from fleet.est import EstResponse
from fleet.identity import DeviceId, Role, State
from fleet.join import Token, fingerprint
from tests.contract.registries import check_invariants
from tests.fleets import Office, certificate_in, csr, enrolment_request, new_key

PUMP = DeviceId("pump-07")


def manual(office: Office, device: str | None = "pump-07", **order: object) -> Token:
    return office.invite(device, approval=Approval.MANUAL, **order)


def request_in(response: EstResponse) -> str:
    """The id of the request that waits."""
    assert 202 == response.status, response.body
    return response.headers[est.REQUEST_HEADER]


def approve(office: Office, request: str) -> ApprovalRecord:
    return service.approve(office.registry, request, by="anna", now=office.now)


def deny(office: Office, request: str, reason: str = "wrong site") -> ApprovalRecord:
    return service.deny(office.registry, request, reason, by="anna", now=office.now)


def events(office: Office) -> list[str]:
    with office.registry.read() as transaction:
        entries = list(log.entries(transaction))
    assert first_broken(entries) is None
    return [entry.event for entry in entries]


def pair(office: Office, der: bytes, address: str = "192.0.2.7") -> EstResponse:
    """The answer to a device without a token."""
    office.app.is_pairing = True
    credentials = base64.b64encode(b"pairing:").decode()
    headers = {"content-type": est.PKCS10, "authorization": f"Basic {credentials}"}
    return office.app.handle(enrolment_request(None, est.encode_body(der), headers=headers, address=address))


def test_a_request_waits_until_an_admin_approves_it(office: Office) -> None:
    """A device gets in that nobody has looked at, or does not get in although somebody did."""
    token, key = manual(office), new_key()
    first = office.enrol(token, csr("pump-07", key))
    request = request_in(first)
    assert 2 == int(first.headers["Retry-After"])
    assert request == request_in(office.enrol(token, csr("pump-07", key))), "asking again makes another request"
    assert [] == [record for record in service.principals(office.registry) if record.id == PUMP]
    assert "anna" == approve(office, request).decided_by
    certificate = certificate_in(office.enrol(token, csr("pump-07", key)))
    assert key.public_key() == certificate.public_key()
    assert certificate == certificate_in(office.enrol(token, csr("pump-07", key))), "a lost answer cannot be had again"
    assert ["request.made", "request.approved", "certificate.issued"] == events(office)[-3:]
    check_invariants(office.registry)


def test_what_the_admin_sees_is_what_the_device_has(office: Office) -> None:
    """The admin compares with something else than the key, or believes the serial of another device."""
    key = new_key()
    headers = {est.SERIAL_HEADER.lower(): "10000000\x1b[2Ja1b2" + "x" * 80, est.MODEL_HEADER.lower(): "Raspberry Pi"}
    request = enrolment_request(manual(office), est.encode_body(csr("pump-07", key)))
    office.app.handle(replace(request, headers={**request.headers, **headers}))
    [record] = service.requests(office.registry, office.now)
    digest = key_digest(key.public_key())
    assert (PUMP, "192.0.2.7", "Raspberry Pi", digest) == (record.device, record.address, record.model, record.key)
    assert record.hardware_serial.startswith("10000000[2Ja1b2x")
    assert 64 == len(record.hardware_serial)
    assert fingerprint(digest).replace(" ", "") == digest.hex()[:32]


def test_a_denied_device_hears_why(office: Office) -> None:
    """Somebody waits for ever before a device, or the device gets in all the same."""
    token, der = manual(office), csr("pump-07")
    deny(office, request_in(office.enrol(token, der)))
    refused = office.enrol(token, der)
    assert (403, "denied") == (refused.status, refused.headers[est.REQUEST_HEADER])
    assert b"wrong site" in refused.body
    with pytest.raises(Denied):
        approve(office, service.requests(office.registry, office.now)[0].id)
    assert 202 == office.enrol(token, csr("pump-07")).status, "a device that was set up anew may ask"


@pytest.mark.parametrize("reason", ["", " ", "a\nb", "\x1b[2J", "x" * 201])
def test_a_reason_is_one_plain_line(office: Office, reason: str) -> None:
    """What an admin pastes drives the terminal of whoever stands before the device."""
    request = request_in(office.enrol(manual(office), csr("pump-07")))
    with pytest.raises(InvalidInput):
        deny(office, request, reason)


def test_a_request_made_in_time_outlives_its_token(office: Office) -> None:
    """A device that came on Friday has to be visited, because the admin came on Monday."""
    token, der = manual(office), csr("pump-07")
    request = request_in(office.enrol(token, der))
    office.wait(timedelta(days=3))
    assert 401 == office.enrol(token, csr("pump-07")).status, "the token is over for everybody else"
    assert 300 == int(office.enrol(token, der).headers["Retry-After"])
    approve(office, request)
    office.wait(timedelta(days=3))
    certificate_in(office.enrol(token, der))


def test_a_request_does_not_wait_for_ever(office: Office) -> None:
    """A request that everybody forgot is approved a year later, by a slip."""
    token, der = manual(office, ttl=timedelta(days=30)), csr("pump-07")
    request = request_in(office.enrol(token, der))
    office.wait(waiting.LIFE)
    with pytest.raises(NotFound):
        approve(office, request)
    another = request_in(office.enrol(token, der))
    assert request != another
    approve(office, another)
    office.wait(waiting.LIFE)
    assert 202 == office.enrol(token, der).status, "an approval lasts for ever"


def test_a_request_of_another_role_lives_an_hour(office: Office) -> None:
    """An operator's token lives an hour, and its request for days."""
    token, der = manual(office, "anna", role=Role.OPERATOR), csr("anna")
    request = request_in(office.enrol(token, der))
    office.wait(timedelta(hours=1))
    with pytest.raises(NotFound):
        approve(office, request)


def test_a_token_is_used_as_often_as_it_says(office: Office) -> None:
    """Ten requests on a token for two, all approved, are ten devices."""
    token = manual(office, None, pattern="pump-*", uses=2)
    asked = [csr(f"pump-{number}") for number in range(4)]
    found = [request_in(office.enrol(token, der)) for der in asked]
    approve(office, found[0])
    approve(office, found[1])
    with pytest.raises(Denied, match="no use left"):
        approve(office, found[2])
    assert [200, 200, 401, 401] == [office.enrol(token, der).status for der in asked]
    check_invariants(office.registry)


def test_requests_of_a_token_are_bounded(office: Office) -> None:
    """Whoever has found a token fills the registry, and the admin's list."""
    token = manual(office)
    answers = [office.enrol(token, csr("pump-07")).status for _ in range(waiting.SPARE_OF_TOKEN + 2)]
    assert [202] * (1 + waiting.SPARE_OF_TOKEN) + [503] == answers


def test_all_requests_are_bounded(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token for a million devices makes a list of a million requests."""
    monkeypatch.setattr(waiting, "MAX_WITH_TOKEN", 2)
    token = manual(office, None, pattern="*", uses=1000)
    answers = [office.enrol(token, csr(f"pump-{number}")) for number in range(3)]
    assert [202, 202, 503] == [answer.status for answer in answers]
    assert answers[-1].headers["Retry-After"]


def ended_by_token(office: Office, token: Token) -> None:
    service.revoke_token(office.registry, token.id, by="anna", now=office.now)


def ended_by_device(office: Office, token: Token) -> None:
    office.revoke("pump-07")


@pytest.mark.parametrize("end", [ended_by_token, ended_by_device])
@pytest.mark.parametrize("is_approved", [False, True])
def test_a_request_ends_with_what_it_hangs_on(
    office: Office, end: Callable[[Office, Token], None], is_approved: bool
) -> None:
    """A revoked token, or the successor of a revoked device, still lets in what waited at that moment."""
    office.enrolled("pump-07")
    token, der = manual(office, replace=True), csr("pump-07")
    request = request_in(office.enrol(token, der))
    if is_approved:
        approve(office, request)
    end(office, token)
    with pytest.raises(Denied):
        approve(office, request)
    assert office.enrol(token, der).status in (401, 403)
    assert ApprovalState.DENIED is service.requests(office.registry, office.now)[0].state
    check_invariants(office.registry)


def test_a_suspended_device_is_not_replaced_by_an_approval(office: Office) -> None:
    """A device that an admin keeps out comes back as its own successor."""
    office.enrolled("pump-07")
    token, der = manual(office, replace=True), csr("pump-07")
    approve(office, request_in(office.enrol(token, der)))
    service.suspend(office.registry, PUMP, by="anna", now=office.now)
    assert 403 == office.enrol(token, der).status


def test_one_name_is_promised_once(office: Office) -> None:
    """Two devices are told yes for one name, and the one that comes first is not the one that was compared."""
    tokens = [manual(office), manual(office)]
    asked = [csr("pump-07"), csr("pump-07")]
    found = [request_in(office.enrol(token, der)) for token, der in zip(tokens, asked, strict=True)]
    approve(office, found[0])
    with pytest.raises(Denied, match="was approved"):
        approve(office, found[1])


def test_a_key_that_waits_cannot_change_its_name(office: Office) -> None:
    """The admin approves pump-1, and the device comes back as pump-2."""
    token, key = manual(office, None, pattern="pump-*", uses=9), new_key()
    request = request_in(office.enrol(token, csr("pump-1", key)))
    approve(office, request)
    assert 403 == office.enrol(token, csr("pump-2", key)).status
    assert "pump-1" == certificate_in(office.enrol(token, csr("pump-1", key))).subject.rfc4514_string()[3:]


def test_another_key_does_not_get_what_was_approved(office: Office) -> None:
    """Whoever has the token too takes the approval that was another's."""
    token, der = manual(office), csr("pump-07")
    approve(office, request_in(office.enrol(token, der)))
    assert 202 == office.enrol(token, csr("pump-07")).status


# Pairing ---------------------------------------------------------------------------------------------------------


def test_pairing_is_off_unless_it_was_switched_on(office: Office) -> None:
    """Every stranger can put requests before the admin of a fleet that never wanted any."""
    assert not office.app.is_pairing
    headers = {"content-type": est.PKCS10, "authorization": "Basic " + base64.b64encode(b"pairing:").decode()}
    request = enrolment_request(None, est.encode_body(csr("pump-07")), headers=headers)
    assert 401 == office.app.handle(request).status
    assert [] == service.requests(office.registry, office.now)


def test_a_device_is_paired_by_its_code(office: Office) -> None:
    """Somebody without a token cannot begin, or a lost answer means another visit."""
    key = new_key()
    code = request_in(pair(office, csr("pump-07", key)))
    assert code == request_in(pair(office, csr("pump-07", key)))
    approve(office, f"{code[:4]}-{code[4:]}".upper())
    certificate = certificate_in(pair(office, csr("pump-07", key)))
    assert certificate == certificate_in(pair(office, csr("pump-07", key)))
    [record] = [record for record in service.principals(office.registry) if record.id == PUMP]
    assert (Role.DEVICE, State.ACTIVE, ()) == (record.principal.role, record.state, record.groups)
    check_invariants(office.registry)


def test_a_second_request_for_the_same_name_has_a_code_of_its_own(office: Office) -> None:
    """An attacker asks for the same name in the same minute, and the admin's yes is his."""
    honest, attacker = csr("pump-07"), csr("pump-07")
    codes = request_in(pair(office, honest)), request_in(pair(office, attacker))
    assert codes[0] != codes[1]
    approve(office, codes[0])
    assert 202 == pair(office, attacker).status
    with pytest.raises(Denied):
        approve(office, codes[1])
    certificate_in(pair(office, honest))
    with pytest.raises(Denied, match="has an identity already"):
        approve(office, codes[1])
    assert 202 == pair(office, attacker).status, "a stranger learns which names are taken"


def test_an_approved_code_is_good_for_that_key_and_name_alone(office: Office) -> None:
    """Whoever has read the code off the display comes with a key of his own, or under another name."""
    key = new_key()
    approve(office, request_in(pair(office, csr("pump-07", key))))
    assert 202 == pair(office, csr("pump-07")).status
    assert 403 == pair(office, csr("pump-08", key)).status


def test_a_code_is_over_after_a_quarter_of_an_hour(office: Office) -> None:
    """A code from yesterday's display is approved for whoever stands there today."""
    der = csr("pump-07")
    code = request_in(pair(office, der))
    office.wait(timedelta(minutes=15))
    with pytest.raises(NotFound, match="is over"):
        approve(office, code)
    another = request_in(pair(office, der))
    assert code != another
    approve(office, another)
    office.wait(timedelta(minutes=15))
    assert 202 == pair(office, der).status, "an approval that nobody fetched lasts for ever"


def test_guessed_codes_are_no_requests(office: Office) -> None:
    """An admin who mistypes a code approves another device."""
    code = request_in(pair(office, csr("pump-07")))
    for guess in ("", "aaaaaaaa", code[:-1], code + "a", "%", "' OR 1=1 --"):
        with pytest.raises(NotFound):
            approve(office, guess)


def test_a_flood_from_one_network_leaves_room_for_others(office: Office) -> None:
    """One machine keeps everybody from pairing, or fills the registry."""
    flood = [pair(office, csr(f"bot-{number}"), f"2001:db8::{number}").status for number in range(12)]
    assert [202] * waiting.MAX_PAIRINGS_OF_NETWORK + [503] * 2 == flood
    assert 202 == pair(office, csr("pump-07"), "192.0.2.9").status


def test_a_flood_from_everywhere_is_bounded_and_over_soon(office: Office) -> None:
    """A botnet fills the registry, or pairing is broken until somebody cleans up."""
    key = new_key()
    answers = [pair(office, csr(f"bot-{n}", key_of(n)), f"198.51.{n}.1").status for n in range(waiting.MAX_PAIRINGS)]
    assert {202} == set(answers)
    assert 503 == pair(office, csr("pump-07", key)).status
    assert waiting.MAX_PAIRINGS == len(service.requests(office.registry, office.now))
    office.wait(waiting.PAIRING_LIFE)
    assert 202 == pair(office, csr("pump-07", key)).status
    assert 1 == len(service.requests(office.registry, office.now))
    assert "request.made" not in events(office), "a stranger fills the log that is kept for ever"


def key_of(number: int) -> ec.EllipticCurvePrivateKey:
    """A key that costs nothing to make."""
    return ec.derive_private_key(number + 1, ec.SECP256R1())


def test_pairing_replaces_nobody(office: Office) -> None:
    """Whoever stands in the hall takes over the name of an operator, or of another device."""
    office.enrolled("pump-07")
    for taken in ("pump-07", "admin"):
        code = request_in(pair(office, csr(taken)))
        with pytest.raises(Denied):
            approve(office, code)


def test_what_happened_since_the_approval_of_a_pairing_counts(office: Office) -> None:
    """Two devices have one name, or one key is two devices', because an admin said yes before that."""
    key, other_key = new_key(), new_key()
    for device, paired in (("pump-07", key), ("pump-08", other_key)):
        approve(office, request_in(pair(office, csr(device, paired))))
    first = office.enrolled("pump-07")
    certificate_in(office.enrol(office.invite("valve-1"), csr("valve-1", other_key)))
    assert [403, 403] == [pair(office, csr("pump-07", key)).status, pair(office, csr("pump-08", other_key)).status]
    assert 200 == office.get(est.CONFIG, first).status


def test_a_paired_device_that_was_revoked_does_not_come_back(office: Office) -> None:
    """The code that let it in lets it in again."""
    der = csr("pump-07")
    approve(office, request_in(pair(office, der)))
    certificate_in(pair(office, der))
    office.revoke("pump-07")
    assert 403 == pair(office, der).status


def test_what_is_no_request_is_refused_as_ever(office: Office) -> None:
    """Rubbish from strangers gets into the registry."""
    assert 400 == pair(office, b"rubbish").status
    assert [] == service.requests(office.registry, office.now)
