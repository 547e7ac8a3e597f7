"""One identity, two devices: what is a fork and what is not, what it freezes, and what an admin decides."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from enroll import service
from enroll.registry import endings, feed, identity, lineage, log, revocations
from enroll.registry.records import Reason
from enroll.service.grace import GRACE
from enroll.service.lineage import NOTED_EVERY, Decision, plan, resolve
from enroll.service.succession import confirm, end_due
from fleet import est, pki
from fleet.errors import Denied, InvalidInput, NotFound
from fleet.est import EstRequest, EstResponse
from fleet.identity import DeviceId, Serial
from tests.fleets import Office, certificate_in, csr, new_key

PUMP = DeviceId("pump-07")
HOUR = timedelta(hours=1)


class Holder:
    """Somebody with a certificate of the pump, and what it says of its machine."""

    def __init__(self, office: Office, certificate: x509.Certificate, address: str, hardware: str = "") -> None:
        self.office = office
        self.certificate = certificate
        self.address = address
        self.hardware = hardware

    @property
    def serial(self) -> Serial:
        return pki.serial_of(self.certificate)

    def ask(self, method: str, path: str, body: bytes = b"", key: x509.Certificate | None = None) -> EstResponse:
        headers = {"content-type": est.PKCS10, est.SERIAL_HEADER.lower(): self.hardware}
        der = (key or self.certificate).public_bytes(Encoding.DER)
        return self.office.app.handle(EstRequest(method, path, headers, body, peer=der, address=self.address))

    def requested(self, key: ec.EllipticCurvePrivateKey | None = None) -> EstResponse:
        """The answer to a renewal, which is not put into use."""
        return self.ask("POST", est.SIMPLE_REENROLL, est.encode_body(csr(PUMP, key)))

    def confirm(self) -> EstResponse:
        return self.ask("POST", est.CONFIRM)

    def renew(self) -> None:
        """As an agent does: asked for, put into use, confirmed."""
        self.certificate = certificate_in(self.requested())
        assert 200 == self.confirm().status


@pytest.fixture(name="owner")
def _owner(office: Office) -> Holder:
    return Holder(office, office.enrolled(PUMP), "192.0.2.7")


@pytest.fixture(name="clone")
def _clone(office: Office, owner: Holder) -> Holder:
    """A copy of the owner's card, made when it was new."""
    return Holder(office, owner.certificate, "198.51.100.9")


def is_told(answer: EstResponse) -> bool:
    """Whether the device hears that an admin has to decide."""
    return (403, est.IDENTITY_USED_TWICE) == (answer.status, answer.headers.get(est.PROBLEM_HEADER))


def states(office: Office) -> list[str]:
    with office.registry.read() as transaction:
        return [f"{each.generation} {each.state}" for each in identity.certificates_of(transaction, PUMP)]


def listed(office: Office) -> frozenset[Serial]:
    with office.registry.read() as transaction:
        entry = feed.entry_of(transaction, PUMP)
    assert entry is not None
    return entry.serials


def alarms(office: Office) -> list[str]:
    with office.registry.read() as transaction:
        return [each.kind.value for each in lineage.alarms_of(transaction, PUMP, 1)]


def events(office: Office) -> list[str]:
    with office.registry.read() as transaction:
        return [entry.event for entry in log.entries(transaction)]


def decided(office: Office, keep: Serial) -> Decision:
    return resolve(office.registry, PUMP, keep, by="test", now=office.now)


def test_a_clone_that_renews_after_the_owner_freezes_both(office: Office, owner: Holder, clone: Holder) -> None:
    """The clone's renewal would end the owner's certificate, and the copy would be the device."""
    owner.renew()
    assert is_told(clone.requested())
    assert ["1 confirmed", "2 confirmed"] == states(office)
    assert ["forked"] == alarms(office)
    assert 1 == events(office).count("alarm.forked")
    for holder in (owner, clone):
        assert is_told(holder.requested())
        assert is_told(holder.ask("GET", est.RENEWAL_INFO))
    assert ["1 confirmed", "2 confirmed"] == states(office)


def test_a_thief_that_renews_before_the_owner_freezes_both(office: Office, owner: Holder, clone: Holder) -> None:
    """The newer may be the owner, and the older as well: whoever came later would be shut out."""
    clone.renew()
    office.wait(GRACE)
    end_due(office.registry, office.now)
    assert ["1 superseded", "2 confirmed"] == states(office)
    assert is_told(owner.ask("GET", est.RENEWAL_INFO))
    assert is_told(clone.requested())
    assert ["forked"] == alarms(office)


def test_nothing_of_a_frozen_identity_ends_by_itself(office: Office, owner: Holder, clone: Holder) -> None:
    """The older may be the owner: its certificate would end ten minutes after the thief's renewal."""
    owner.renew()
    clone.requested()
    office.wait(GRACE)
    assert [] == end_due(office.registry, office.now)
    assert {owner.serial, clone.serial} == listed(office)
    with office.registry.read() as transaction:
        assert endings.first(transaction) is None


def test_the_same_key_asks_again_and_gets_the_same(office: Office, owner: Holder) -> None:
    """A reply that got lost, or a power cut before the promotion, would freeze an honest device."""
    key = new_key()
    first = owner.requested(key)
    assert certificate_in(first) == certificate_in(owner.requested(key))
    assert [] == alarms(office)


def test_a_new_key_while_the_last_was_never_used_ends_that(office: Office, owner: Holder) -> None:
    """A device that lost its pending key with its card would be frozen."""
    for _ in range(3):
        owner.requested()
    assert ["1 confirmed", "2 superseded", "3 superseded", "4 pending"] == states(office)
    assert [] == alarms(office)


def test_the_same_again_is_answered_while_frozen(office: Office, owner: Holder, clone: Holder) -> None:
    """A repeated request would look like another one; nothing is issued by it."""
    key = new_key()
    owner.certificate, before = certificate_in(owner.requested(key)), owner.certificate
    owner.confirm()
    clone.requested()
    repeated = owner.ask("POST", est.SIMPLE_REENROLL, est.encode_body(csr(PUMP, key)), before)
    assert owner.certificate == certificate_in(repeated)
    assert ["1 confirmed", "2 confirmed"] == states(office)


def test_a_confirmation_of_what_was_replaced_is_a_fork(office: Office, owner: Holder, clone: Holder) -> None:
    """Two got a successor of one certificate, and the one whose was ended would only hear that it is over."""
    owner.certificate = certificate_in(owner.requested())
    clone.certificate = certificate_in(clone.requested())
    assert is_told(owner.confirm())
    assert is_told(clone.confirm())
    assert ["1 confirmed", "2 superseded", "3 pending"] == states(office)


def test_a_key_that_comes_back_after_another_got_its_place_is_a_fork(
    office: Office, owner: Holder, clone: Holder
) -> None:
    """One device throws a key away before it makes another: this is two that ask in turn, each ending the other's."""
    key = new_key()
    owner.requested(key)
    clone.requested()
    assert is_told(owner.requested(key))
    assert ["forked"] == alarms(office)


def test_the_key_of_a_used_certificate_is_no_fork(office: Office, owner: Holder) -> None:
    """A request that was long on its way would freeze a device that has renewed twice meanwhile."""
    key, first = new_key(), owner.certificate
    owner.certificate = certificate_in(owner.requested(key))
    owner.confirm()
    owner.renew()
    office.wait(GRACE)
    end_due(office.registry, office.now)
    assert ["1 superseded", "2 superseded", "3 confirmed"] == states(office)
    assert 403 == owner.ask("POST", est.CONFIRM, b"", first).status
    assert [] == alarms(office)


def test_whoever_shows_an_ended_certificate_is_an_alarm_and_freezes_nothing(
    office: Office, owner: Holder, clone: Holder
) -> None:
    """An owner whom a thief has shut out would not be heard of until its next renewal, weeks later."""
    owner.renew()
    office.wait(GRACE)
    end_due(office.registry, office.now)
    assert is_told(clone.ask("GET", est.CONFIG))
    assert ["ended-certificate"] == alarms(office)
    owner.renew()
    with office.registry.read() as transaction:
        before = feed.head(transaction), lineage.alarms_of(transaction, PUMP, 1)
    clone.ask("GET", est.CONFIG)
    with office.registry.read() as transaction:
        assert before == (feed.head(transaction), lineage.alarms_of(transaction, PUMP, 1))
    office.wait(NOTED_EVERY)
    clone.ask("GET", est.CONFIG)
    with office.registry.read() as transaction:
        assert [2] == [each.count for each in lineage.alarms_of(transaction, PUMP, 1)]


def test_the_configuration_of_a_frozen_device_says_so(office: Office, owner: Holder, clone: Holder) -> None:
    """`device-agent doctor` finds nothing wrong with a device that will run out of its certificate."""
    assert "problem" not in json.loads(owner.ask("GET", est.CONFIG).body)
    owner.renew()
    clone.requested()
    assert est.IDENTITY_USED_TWICE == json.loads(owner.ask("GET", est.CONFIG).body)["problem"]


def test_other_hardware_is_an_alarm_and_gets_its_certificate(office: Office, owner: Holder) -> None:
    """A card in a spare Pi would be locked out, or a copy on another board would go unnoticed."""
    owner.hardware = "1000000012345678"
    owner.renew()
    owner.renew()
    assert [] == alarms(office)
    owner.hardware = "10000000deadbeef"
    owner.renew()
    assert ["other-hardware"] == alarms(office)
    with office.registry.read() as transaction:
        (alarm,) = lineage.alarms_of(transaction, PUMP, 1)
    assert ("192.0.2.7", "10000000deadbeef", "it was 1000000012345678") == (alarm.address, alarm.hardware, alarm.detail)


def test_a_decision_keeps_one_line_and_ends_the_other_for_good(office: Office, owner: Holder, clone: Holder) -> None:
    """The clone would come back, or would freeze the device again each time it asks."""
    owner.renew()
    clone.requested()
    with office.registry.read() as transaction:
        before = feed.head(transaction)
    assert [clone.serial] == [each.serial for each in decided(office, owner.serial).revoked]
    assert {owner.serial} == listed(office)
    with office.registry.read() as transaction:
        assert before < feed.head(transaction)
        ended = revocations.find(transaction, clone.serial)
    assert ended is not None
    assert Reason.KEY_COMPROMISE is ended.reason
    assert [] == alarms(office)
    for path in (est.RENEWAL_INFO, est.CONFIG):
        refused = clone.ask("GET", path)
        assert (403, False) == (refused.status, is_told(refused))
    assert 403 == clone.requested().status
    assert [] == alarms(office)
    owner.renew()
    assert ["1 revoked", "2 confirmed", "3 confirmed"] == states(office)


def test_the_older_may_be_kept(office: Office, owner: Holder, clone: Holder) -> None:
    """A thief that was quicker than the owner would have won."""
    clone.renew()
    owner.requested()
    assert [clone.serial] == [each.serial for each in decided(office, owner.serial).revoked]
    assert {owner.serial} == listed(office)
    owner.renew()
    assert ["1 confirmed", "2 revoked", "3 confirmed"] == states(office)
    assert 403 == clone.requested().status
    assert [] == alarms(office)


def test_an_ended_one_that_is_kept_does_not_return_but_is_renewed(office: Office, owner: Holder, clone: Holder) -> None:
    """Somebody would have to go to a device that a thief has shut out; or what is on a CRL would be good again."""
    clone.renew()
    office.wait(GRACE)
    end_due(office.registry, office.now)
    owner.requested()
    before = owner.certificate
    assert decided(office, owner.serial).has_ended
    assert ["1 superseded", "2 revoked"] == states(office)
    assert frozenset() == listed(office)
    assert 200 == owner.ask("GET", est.RENEWAL_INFO).status
    owner.renew()
    assert ["1 superseded", "2 revoked", "3 confirmed"] == states(office)
    assert {owner.serial} == listed(office)
    assert is_told(Holder(office, before, "198.51.100.9").requested())


def test_of_a_line_all_is_kept(office: Office, owner: Holder, clone: Holder) -> None:
    """A device that had begun its next renewal would be shut out by the decision for it."""
    owner.renew()
    following = certificate_in(owner.requested())
    assert is_told(clone.requested())
    kept = decided(office, owner.serial)
    assert [clone.serial] == [each.serial for each in kept.revoked]
    assert {owner.serial, pki.serial_of(following)} == listed(office)


def test_a_card_in_a_spare_machine_is_no_theft(office: Office, owner: Holder) -> None:
    """What ended in order would stand on CRLs as stolen, because a board was replaced."""
    owner.hardware = "1000"
    owner.renew()
    office.wait(GRACE)
    end_due(office.registry, office.now)
    owner.hardware = "2000"
    owner.renew()
    office.wait(GRACE)
    end_due(office.registry, office.now)
    decision = decided(office, owner.serial)
    assert ((), 1) == (decision.revoked, decision.closes)
    assert ["1 superseded", "2 superseded", "3 confirmed"] == states(office)


def test_a_plan_changes_nothing(office: Office, owner: Holder, clone: Holder) -> None:
    """`--dry-run` would decide."""
    owner.renew()
    clone.requested()
    planned = plan(office.registry, PUMP, clone.serial, now=office.now)
    assert [owner.serial] == [each.serial for each in planned.revoked]
    assert {owner.serial, clone.serial} == listed(office)
    assert ["forked"] == alarms(office)


def test_what_cannot_be_kept_is_refused(office: Office, owner: Holder, clone: Holder) -> None:
    """A slip of the admin would end both lines."""
    other = pki.serial_of(office.enrolled("pump-08"))
    clone.renew()
    owner.requested()
    with pytest.raises(NotFound):
        resolve(office.registry, DeviceId("pump-09"), owner.serial, by="test", now=office.now)
    with pytest.raises(InvalidInput):
        decided(office, other)
    decided(office, owner.serial)
    with pytest.raises(Denied, match="is revoked"):
        decided(office, clone.serial)
    with pytest.raises(Denied, match="has expired"):
        resolve(office.registry, PUMP, owner.serial, by="test", now=owner.certificate.not_valid_after_utc)


def test_a_decision_may_be_repeated(office: Office, owner: Holder, clone: Holder) -> None:
    """An admin who is not sure would end what the device got meanwhile."""
    owner.renew()
    clone.requested()
    decided(office, owner.serial)
    owner.renew()
    before = states(office)
    assert () == decided(office, owner.serial).revoked
    assert before == states(office)
    assert 1 == events(office).count("alarm.resolved")


def test_revoking_the_device_ends_both(office: Office, owner: Holder, clone: Holder) -> None:
    """An admin who wants neither would have to decide for one first."""
    owner.renew()
    clone.requested()
    office.revoke(PUMP)
    assert ["1 revoked", "2 revoked"] == states(office)
    with office.registry.read() as transaction:
        assert 0 == lineage.count_alarmed(transaction)


def test_a_new_enrolment_begins_without_the_alarm(office: Office, owner: Holder, clone: Holder) -> None:
    """A device that an admin set up anew would never renew."""
    owner.renew()
    clone.requested()
    owner.certificate = office.enrolled(PUMP, replace=True)
    with office.registry.read() as transaction:
        assert [] == lineage.alarms_of(transaction, PUMP, 2)
        assert {} == lineage.kinds_of(transaction, [PUMP])
    owner.renew()
    assert 403 == clone.requested().status
    with office.registry.read() as transaction:
        assert [] == lineage.alarms_of(transaction, PUMP, 2)


def test_another_device_is_not_touched(office: Office, owner: Holder, clone: Holder) -> None:
    """One stolen key would stop the renewals of a fleet."""
    other = office.enrolled("pump-08")
    owner.renew()
    clone.requested()
    assert 200 == office.reenrol(other, csr("pump-08")).status
    decided(office, owner.serial)
    with office.registry.read() as transaction:
        entry = feed.entry_of(transaction, DeviceId("pump-08"))
    assert entry is not None
    assert pki.serial_of(other) in entry.serials


@pytest.mark.parametrize("is_confirmed", [False, True])
def test_two_at_once_get_one_successor_each_or_are_found_out(
    office: Office, owner: Holder, clone: Holder, is_confirmed: bool
) -> None:
    """Two connections in one moment would both be given a certificate that is good."""
    ready = threading.Barrier(2)

    def at_once(holder: Holder) -> None:
        ready.wait()
        _quiet(holder, is_confirmed)

    with ThreadPoolExecutor(2) as pool:
        tries = [pool.submit(at_once, each) for each in (owner, clone)]
        for each in tries:
            each.result()
    counted = [state.partition(" ")[2] for state in states(office)]
    assert counted.count("pending") <= 1
    assert counted.count("confirmed") <= 2  # the predecessor, in its grace
    if is_confirmed:
        assert ["forked"] == alarms(office)
    else:
        assert ["confirmed", "superseded", "pending"] == counted


def _quiet(holder: Holder, is_confirmed: bool) -> None:
    """By the use cases, which several threads may use."""
    office = holder.office
    with suppress(Denied):
        issued = office.app.enrolment.reenrol(holder.serial, est.parse_csr(csr(PUMP)), office.now)
        if is_confirmed:
            confirm(office.registry, issued.serial, office.now)


def test_a_suspended_device_is_only_that(office: Office, owner: Holder, clone: Holder) -> None:
    """What an admin has put on hold would be in the log as stolen."""
    owner.renew()
    service.suspend(office.registry, PUMP, by="test", now=office.now)
    answer = clone.requested()
    assert (403, False) == (answer.status, is_told(answer))
    assert [] == alarms(office)
