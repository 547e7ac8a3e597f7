"""How a device whose certificate has expired comes back, and who does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import copy
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from enroll import service
from enroll.registry import identity, log
from enroll.registry.records import CertificateState
from enroll.service import waiting
from fleet import est, pki, recovery
from fleet.errors import Denied
from fleet.est import EstRequest, EstResponse
from fleet.identity import DeviceId, Role, Serial
from fleet.recovery import Claim
from tests.contract.registries import check_invariants
from tests.fleets import Office, certificate_in, csr, new_key, open_office
from tests.unit.enroll.sleepers import GRACE, SECOND, Sleeper, nonce_of, post, states

PUMP = DeviceId("pump-07")
DAY = timedelta(days=1)


def confirm(office: Office, peer: x509.Certificate) -> None:
    answer = office.app.handle(EstRequest("POST", est.CONFIRM, peer=peer.public_bytes(Encoding.DER)))
    assert 200 == answer.status


def request_in(response: EstResponse) -> str:
    assert 202 == response.status, response.body
    return response.headers[est.REQUEST_HEADER]


def set_state(office: Office, serial: Serial, state: CertificateState) -> None:
    with office.registry.write() as transaction:
        identity.set_certificate_states(transaction, [serial], state)


# Coming back -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slept", [timedelta(0), SECOND, 100 * DAY, GRACE - SECOND])
def test_it_comes_back_by_itself_within_the_grace(office: Office, slept: timedelta) -> None:
    """A device from a drawer has to be visited; or it comes back as somebody else, or with another profile."""
    pump = Sleeper(office)
    pump.oversleep(slept)
    found = certificate_in(pump.recover())
    assert pump.next_key.public_key() == found.public_key()
    assert (pump.certificate.subject, "pump-07") == (found.subject, pki.common_name_of(found.subject))
    assert ["1 confirmed", "2 pending"] == states(office)
    confirm(office, found)
    assert 200 == office.get(est.CONFIG, found).status
    check_invariants_with_two(office)


def check_invariants_with_two(office: Office) -> None:
    """The predecessor is confirmed as well, until its grace is over; then there is one."""
    service.succession.end_due(office.registry, office.now + DAY)
    check_invariants(office.registry)


def test_it_is_in_the_log_how_it_came_back(office: Office, pump: Sleeper) -> None:
    """Nobody could tell a recovery from a renewal."""
    serial = pki.serial_of(certificate_in(pump.recover()))
    with office.registry.read() as transaction:
        last = list(log.entries(transaction))[-1]
    fields = json.loads(last.fields)
    expected = ("certificate.issued", str(serial), str(pump.serial), "by itself")
    assert expected == (last.event, fields["serial"], fields["parent"], fields["recovered"])


def test_a_lost_answer_is_given_again(office: Office, pump: Sleeper) -> None:
    """A device whose answer was lost has used up its only chance; or a second certificate is about."""
    first = certificate_in(pump.recover())
    office.wait(30 * DAY)
    assert first == certificate_in(pump.recover())
    assert ["1 confirmed", "2 pending"] == states(office)


def test_a_renewal_whose_answer_was_lost_is_given_again(office: Office) -> None:
    """A device that ran out in the middle of a renewal comes with a key that was certified: it has to get that."""
    pump = Sleeper(office)
    office.wait(pump.certificate.not_valid_after_utc - office.now - SECOND)
    renewed = certificate_in(office.reenrol(pump.certificate, csr("pump-07", pump.next_key)))
    pump.oversleep()
    assert renewed == certificate_in(pump.recover())


def test_a_successor_that_expired_unused_does_not_use_up_the_chance(office: Office, pump: Sleeper) -> None:
    """A device that lost its power right after it recovered, and again slept too long, has to be visited."""
    second = certificate_in(pump.recover())
    office.wait(second.not_valid_after_utc - office.now + SECOND)
    assert 403 == pump.recover().status, "its key was certified"
    third = certificate_in(pump.recover(next_key=new_key()))
    assert ["1 confirmed", "2 superseded", "3 pending"] == states(office)
    assert 403 == office.get(est.CONFIG, second).status
    assert 200 == office.get(est.CONFIG, third).status


@pytest.mark.parametrize("make", [lambda: ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate])
def test_every_kind_of_key_that_enrols_recovers(office: Office, make: Callable[[], Any]) -> None:
    """A device with another key than ours can enrol and renew, and is lost once it has expired."""
    pump = Sleeper(office, key=make())
    pump.oversleep()
    certificate_in(pump.recover(next_key=make()))


def test_an_rsa_key_signs_as_well() -> None:
    """A TPM that makes no other keys could not come back."""
    key, said = rsa.generate_private_key(65_537, 2048), recovery.statement(b"certificate", "n" * 22, b"csr")
    signature = pki.sign(key, said)
    assert pki.is_signed(key.public_key(), said, signature)
    assert not pki.is_signed(key.public_key(), said + b"\n", signature)


# Who does not come back ------------------------------------------------------------------------------------------


def test_once_it_is_used_the_old_certificate_recovers_no_more(office: Office, pump: Sleeper) -> None:
    """A card that was copied in the drawer makes a second device, years later."""
    confirm(office, certificate_in(pump.recover()))
    for next_key in (pump.next_key, new_key()):
        refused = pump.recover(next_key=next_key)
        assert 403 == refused.status
        assert b"confirmed a later" in refused.body
    service.succession.end_due(office.registry, office.now + DAY)
    assert 403 == pump.recover(next_key=new_key()).status
    with office.registry.read() as transaction:
        assert "alarm.ended-certificate" == list(log.entries(transaction))[-1].event, "and nobody hears of it"


def test_a_frozen_identity_recovers_for_nobody(office: Office) -> None:
    """Of two that use one identity the one that oversleeps gets out of the freeze."""
    pump = Sleeper(office)
    second = certificate_in(office.reenrol(pump.certificate, csr("pump-07", pump.next_key)))
    confirm(office, second)
    assert 403 == office.reenrol(pump.certificate, csr("pump-07")).status, "a fork"
    pump.use(second, pump.next_key)
    pump.oversleep()
    refused = pump.recover()
    assert 403 == refused.status
    assert b"two devices use the identity" in refused.body


def test_another_key_beside_a_good_successor_waits_for_an_admin(office: Office, pump: Sleeper) -> None:
    """Whoever has copied the key throws the device out with it, or there are two."""
    second = certificate_in(pump.recover())
    request = request_in(pump.recover(next_key=new_key()))
    assert 200 == office.get(est.CONFIG, second).status
    past = service.history(office.registry, service.find_request(office.registry, request, office.now), office.now)
    assert past is not None
    assert "is good: does somebody else have its key?" in past.why(office.now)


def test_one_that_has_not_expired_renews_instead(office: Office) -> None:
    """A stolen key gets by without a connection that shows its certificate."""
    pump = Sleeper(office)
    office.wait(pump.certificate.not_valid_after_utc - office.now - SECOND)
    assert 403 == pump.recover().status


def test_a_stolen_key_of_an_earlier_generation_is_worth_nothing(office: Office) -> None:
    """A card that was thrown away years ago opens the fleet."""
    pump = Sleeper(office)
    stolen = copy(pump)
    second = certificate_in(office.reenrol(pump.certificate, csr("pump-07", pump.next_key)))
    confirm(office, second)
    pump.use(second, pump.next_key)
    pump.oversleep()
    for is_ended in (False, True):
        if is_ended:
            service.succession.end_due(office.registry, office.now)
        assert 403 == stolen.recover(next_key=new_key()).status
    certificate_in(pump.recover())


def test_a_key_that_was_never_confirmed_does_not_recover(office: Office) -> None:
    """A successor that nobody ever used, perhaps because another device had made it, is as good as the device's own."""
    pump = Sleeper(office)
    second = certificate_in(office.reenrol(pump.certificate, csr("pump-07", pump.next_key)))
    unused = copy(pump)
    unused.use(second, pump.next_key)
    unused.oversleep()
    refused = unused.recover()
    assert 403 == refused.status
    assert b"never confirmed" in refused.body
    certificate_in(pump.recover(next_key=new_key()))


def test_of_two_keys_that_were_never_confirmed_neither_decides(office: Office, pump: Sleeper) -> None:
    """A device that twice lost its power before it could confirm, and slept, is lost, or takes itself for a clone."""
    unused = copy(pump)
    second_key = new_key()
    unused.use(certificate_in(pump.recover(next_key=second_key)), second_key)
    unused.oversleep()
    third = certificate_in(pump.recover(next_key=new_key()))
    office.wait(third.not_valid_after_utc - office.now + SECOND)
    assert ["1 confirmed", "2 superseded", "3 pending"] == states(office)
    refused = unused.recover(next_key=new_key())
    assert (403, est.NEVER_CONFIRMED) == (refused.status, refused.headers[est.PROBLEM_HEADER])
    assert request_in(pump.recover(next_key=new_key())), "half a year after the last confirmed one it is for an admin"


def test_a_revoked_device_never_comes_back(office: Office, pump: Sleeper) -> None:
    """Revocation would end with the certificate."""
    office.revoke("pump-07")
    assert 403 == pump.recover().status
    office.wait(GRACE)
    assert 403 == pump.recover().status, "not by an admin's slip either"


def test_a_revoked_device_never_comes_back_by_what_it_had_got(office: Office, pump: Sleeper) -> None:
    """The answer that was lost is given again to whom the admin has thrown out meanwhile."""
    certificate_in(pump.recover())
    office.revoke("pump-07")
    assert 403 == pump.recover().status


def test_a_revoked_certificate_does_not_recover(office: Office, pump: Sleeper) -> None:
    """A key that an admin knows to be stolen is good again once it has expired."""
    service.revoke_certificate(office.registry, pump.serial, by="test", now=office.now)
    assert 403 == pump.recover().status


def test_a_suspended_device_waits_until_it_is_resumed(office: Office, pump: Sleeper) -> None:
    """A device that an admin keeps out comes in by being late; or it never comes in again."""
    service.suspend(office.registry, PUMP, by="test", now=office.now)
    assert 403 == pump.recover().status
    service.resume(office.registry, PUMP, by="test", now=office.now)
    certificate_in(pump.recover())


def test_a_device_whose_name_was_given_away_does_not_come_back(office: Office, pump: Sleeper) -> None:
    """The broken device that was replaced takes its successor's place."""
    certificate_in(office.enrol(office.invite("pump-07", replace=True), csr("pump-07")))
    assert 403 == pump.recover().status


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.SERVICE, Role.BROKER])
def test_devices_alone_recover(office: Office, role: Role) -> None:
    """An operator who left half a year ago is an operator again."""
    key = new_key()
    found = certificate_in(office.enrol(office.invite("anna", role=role), csr("anna", key)))
    office.wait(found.not_valid_after_utc - office.now + SECOND)
    nonce, request = nonce_of(office), csr("anna")
    said = recovery.statement(found.public_bytes(Encoding.DER), nonce, request)
    refused = post(office, Claim(pki.serial_of(found), nonce, request, pki.sign(key, said)).encode())
    assert 403 == refused.status


# After the grace -------------------------------------------------------------------------------------------------


def test_after_the_grace_an_admin_decides(office: Office) -> None:
    """A device that slept for a year is lost, or comes back without anybody having looked."""
    pump = Sleeper(office)
    pump.oversleep(GRACE)
    first = pump.recover()
    request = request_in(first)
    assert first.headers["Retry-After"]
    assert request == request_in(pump.recover()), "asking again makes another request"
    assert ["1 confirmed"] == states(office)
    found = service.find_request(office.registry, request, office.now)
    past = service.history(office.registry, found, office.now)
    assert past is not None
    assert f"{pump.serial} expired 180 days ago, past the grace" == past.why(office.now)
    assert [pump.serial] == [each.serial for each, _ in past.certificates]
    service.approve(office.registry, request, by="anna", now=office.now)
    certificate = certificate_in(pump.recover())
    assert certificate == certificate_in(pump.recover()), "a lost answer cannot be had again"
    confirm(office, certificate)
    with office.registry.read() as transaction:
        entries = list(log.entries(transaction))
    assert ["request.made", "request.approved", "certificate.issued"] == [each.event for each in entries][-4:-1]
    assert request == json.loads(entries[-2].fields)["recovered"]


def test_without_any_grace_an_admin_decides_always(tmp_path: Path) -> None:
    """An admin who switched it off finds devices back that nobody let in."""
    with open_office(tmp_path / "fleet") as office:
        office.app.recovery_grace = timedelta(0)
        pump = Sleeper(office)
        pump.oversleep(timedelta(0))
        request_in(pump.recover())


def test_an_approval_is_for_that_key_alone(office: Office) -> None:
    """Whoever has a copy of the key takes what was approved for another."""
    pump = Sleeper(office)
    pump.oversleep(GRACE)
    request = request_in(pump.recover())
    service.approve(office.registry, request, by="anna", now=office.now)
    request_in(pump.recover(next_key=new_key()))
    certificate_in(pump.recover())


def test_a_denied_device_hears_why(office: Office) -> None:
    """Somebody waits for ever before a device, or it gets in all the same."""
    pump = Sleeper(office)
    pump.oversleep(GRACE)
    service.deny(office.registry, request_in(pump.recover()), "wrong site", by="anna", now=office.now)
    refused = pump.recover()
    assert (403, "denied") == (refused.status, refused.headers[est.REQUEST_HEADER])
    assert b"wrong site" in refused.body


@pytest.mark.parametrize("is_approved", [False, True])
def test_a_request_ends_with_the_device(office: Office, is_approved: bool) -> None:
    """A revoked device comes back by what waited at that moment."""
    pump = Sleeper(office)
    pump.oversleep(GRACE)
    request = request_in(pump.recover())
    if is_approved:
        service.approve(office.registry, request, by="anna", now=office.now)
    office.revoke("pump-07")
    with pytest.raises(Denied):
        service.approve(office.registry, request, by="anna", now=office.now)
    assert 403 == pump.recover().status


def test_what_cannot_be_given_is_not_approved(office: Office) -> None:
    """The admin says yes, and the device hears no."""
    pump = Sleeper(office)
    pump.oversleep(GRACE)
    request = request_in(pump.recover())
    service.suspend(office.registry, PUMP, by="test", now=office.now)
    with pytest.raises(Denied, match="suspended"):
        service.approve(office.registry, request, by="anna", now=office.now)


def test_requests_of_a_device_are_bounded(office: Office) -> None:
    """Whoever has an old key fills the list that the admin looks at."""
    pump = Sleeper(office)
    pump.oversleep(GRACE)
    answers = [pump.recover(next_key=new_key()).status for _ in range(waiting.MAX_RECOVERIES_OF_DEVICE + 1)]
    assert [202] * waiting.MAX_RECOVERIES_OF_DEVICE + [503] == answers


def test_a_request_lives_a_week_and_is_no_pairing(office: Office) -> None:
    """It is over before the admin comes back from the week-end, or is counted among those of strangers."""
    pump = Sleeper(office)
    pump.oversleep(GRACE)
    request = request_in(pump.recover())
    office.wait(6 * DAY)
    found = service.find_request(office.registry, request, office.now)
    assert (False, pump.serial) == (found.is_pairing, found.recovers)
    assert "300" == pump.recover().headers["Retry-After"]
