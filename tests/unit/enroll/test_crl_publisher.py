"""Every list is current: after every order of events, across restarts, with wrong clocks and full disks."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from enroll import keys, service
from enroll.crl import LIFE
from enroll.crl_publisher import CHECK_SECONDS, CrlPublisher, read
from enroll.issuer import Issuer
from enroll.registry import identity
from enroll.registry.records import LIVE, CertificateState, Reason
from fleet import pki
from fleet.identity import DeviceId, Serial
from tests.crls import lines_of
from tests.fleets import CRL_URL, NOW, Office, certificate_in, csr, open_office

PUMP = DeviceId("pump-07")
HOUR = timedelta(hours=1)


def publisher_of(office: Office) -> CrlPublisher:
    """As the service has it when it starts."""
    return CrlPublisher(office.home, office.registry, office.authority, lambda: office.seconds)


def list_of(office: Office, name: str) -> x509.CertificateRevocationList:
    """What is in the file."""
    return x509.load_der_x509_crl(office.home.crl(name).read_bytes())


def number_of(office: Office, name: str) -> int:
    found = read(office.home, name)
    assert found is not None
    return found.issue.number


def ends_at(office: Office, name: str) -> datetime:
    found = read(office.home, name)
    assert found is not None
    return found.issue.next_update


def refreshed(office: Office, publisher: CrlPublisher) -> None:
    """After a rest, so that every list may be made."""
    office.wait(timedelta(seconds=10))
    publisher.refresh(office.now)


def test_all_lists_are_there_from_the_start(office: Office) -> None:
    """Whoever looks finds nothing, and lets the revoked in, or nobody."""
    publisher_of(office).refresh(office.now)
    found = {path.name for path in (office.home.path / "crl").iterdir()}
    assert {"0.crl", "1.crl", "devices.crl", "devices.pem", "servers.crl", "servers.pem"} == found
    assert {0o600} == {path.stat().st_mode & 0o777 for path in (office.home.path / "crl").iterdir()}
    in_pem = x509.load_pem_x509_crl(office.home.crl("devices").with_suffix(".pem").read_bytes())
    assert list_of(office, "devices") == in_pem


def test_a_change_makes_the_lists_anew_that_it_is_about(office: Office) -> None:
    """A revoked device is on no list, or each revocation costs as much as all lists."""
    publisher, leaf = publisher_of(office), office.enrolled(PUMP)
    publisher.refresh(office.now)
    before = {name: number_of(office, name) for name in ("0", "1", "devices", "servers")}
    service.revoke(office.registry, PUMP, by="test", now=office.now, reason=Reason.KEY_COMPROMISE)
    refreshed(office, publisher)
    after = {name: number_of(office, name) for name in before}
    assert {"1", "devices"} == {name for name in before if before[name] < after[name]}
    assert Reason.KEY_COMPROMISE is lines_of(list_of(office, "1"))[pki.serial_of(leaf)]
    assert lines_of(list_of(office, "1")) == lines_of(list_of(office, "devices"))


def test_nothing_changed_and_nothing_is_made(office: Office) -> None:
    """Every enrolment makes all lists anew."""
    publisher = publisher_of(office)
    publisher.refresh(office.now)
    before = number_of(office, "1")
    office.enrolled(PUMP)
    refreshed(office, publisher)
    assert before == number_of(office, "1")


def test_half_of_a_life_later_all_are_made_anew(office: Office) -> None:
    """A list ends while the service runs, and nobody gets in anywhere."""
    publisher = publisher_of(office)
    publisher.refresh(office.now)
    office.wait(LIFE / 2)
    assert publisher.refresh(office.now) <= CHECK_SECONDS
    for name in ("0", "1", "devices", "servers"):
        assert office.now + LIFE == ends_at(office, name)


def test_after_a_restart_numbers_go_on(office: Office) -> None:
    """RFC 5280, 5.2.3: numbers rise, whatever the clock did while nothing ran."""
    publisher_of(office).refresh(office.now)
    before = number_of(office, "1")
    publisher_of(office).refresh(office.now - 400 * 24 * HOUR)
    assert before + 1 == number_of(office, "1")
    assert office.now < ends_at(office, "1")


@dataclass(frozen=True, slots=True)
class SlowSigner:
    """A signer with which a list takes two seconds."""

    signer: keys.Signer
    office: Office

    @property
    def public_key(self) -> pki.PublicKey:
        return self.signer.public_key

    def sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        return self.signer.sign(builder)

    def sign_bytes(self, data: bytes) -> bytes:
        return self.signer.sign_bytes(data)

    def sign_crl(self, builder: x509.CertificateRevocationListBuilder) -> x509.CertificateRevocationList:
        self.office.seconds += 2.0
        return self.signer.sign_crl(builder)


def test_a_storm_of_changes_leaves_the_machine_alone(office: Office) -> None:
    """A thousand renewals a minute keep a core busy with one list."""
    signer = SlowSigner(keys.KeySigner(keys.read_key(office.home.devices_ca.key)), office)
    devices = Issuer("devices", office.authority.devices.certificate, signer, CRL_URL)
    cas = replace(office.authority, devices=devices)
    publisher = CrlPublisher(office.home, office.registry, cas, lambda: office.seconds)
    publisher.refresh(office.now)
    before = number_of(office, "devices")
    office.enrolled(PUMP)
    office.revoke(PUMP)
    assert 0 < publisher.refresh(office.now) <= 8
    assert before == number_of(office, "devices")
    office.seconds += 8
    publisher.refresh(office.now)
    assert before < number_of(office, "devices")


@pytest.mark.parametrize("damage", [b"", b"rubbish", b"0\x82"])
def test_a_damaged_file_is_replaced(office: Office, damage: bytes) -> None:
    """What a power cut left of a file stops the service."""
    publisher_of(office).refresh(office.now)
    office.home.crl("1").write_bytes(damage)
    publisher_of(office).refresh(office.now)
    assert list_of(office, "1").is_signature_valid(office.authority.devices.certificate.public_key())  # type: ignore[arg-type]


async def found_by(publisher: CrlPublisher, name: str) -> dict[Serial, Reason | None]:
    found = await publisher.find(name, 0.0)
    assert found is not None
    return lines_of(x509.load_der_x509_crl(found.der))


@pytest.mark.parametrize("obstacle", ["crl", "crl/1.crl"])
def test_what_cannot_be_written_is_served_all_the_same(
    office: Office, caplog: pytest.LogCaptureFixture, obstacle: str
) -> None:
    """A full disk keeps a revocation off the lists."""
    place = office.home.path / obstacle
    if obstacle == "crl":
        place.write_bytes(b"in the way")
    else:
        place.mkdir(parents=True)
    publisher, leaf = publisher_of(office), office.enrolled(PUMP)
    office.revoke(PUMP)
    publisher.refresh(office.now)
    assert pki.serial_of(leaf) in asyncio.run(found_by(publisher, "1"))
    assert any(record.getMessage().startswith("crl.not_written name=1") for record in caplog.records)


def test_what_ended_leaves_after_one_more_issue(office: Office) -> None:
    """RFC 5280, 3.3: whoever looks at a time stamp later never learns of it; or lists grow for ever."""
    publisher = publisher_of(office)
    serial = pki.serial_of(office.enrolled(PUMP, profile=pki.TEST_CLIENT.name))
    office.revoke(PUMP)
    publisher.refresh(office.now)
    is_listed = [serial in lines_of(list_of(office, "1"))]
    for _ in range(2):
        office.wait(LIFE / 2)
        publisher.refresh(office.now)
        is_listed.append(serial in lines_of(list_of(office, "1")))
    assert [True, True, False] == is_listed


@dataclass(slots=True)
class Known:
    """What the naive model knows of a certificate."""

    device: str
    not_after: datetime
    reason: Reason | None = None
    is_ended: bool = False


class Lists(RuleBasedStateMachine):
    """Any order of what happens to certificates, beside a model of what must be listed."""

    folders: Iterator[Path]

    @initialize()
    def begin(self) -> None:
        self.stack = ExitStack()
        self.office = self.stack.enter_context(open_office(next(type(self).folders)))
        self.publisher = publisher_of(self.office)
        self.known: dict[Serial, Known] = {}
        self.suspended: set[str] = set()
        self.previous: datetime | None = None  # when the list was made
        self.since: datetime | None = None  # when the one before it was
        with self.office.registry.read() as transaction:
            everything = identity.certificates_of(transaction, DeviceId("broker"))
        for device in ("pump-1", "pump-2"):
            self.add(device, self.office.enrolled(device))
        self.always = {c.serial: c.not_after for c in everything if c.state is CertificateState.REVOKED}

    def teardown(self) -> None:
        self.stack.close()

    def live(self, device: str) -> list[Known]:
        return [each for each in self.known.values() if each.device == device and not each.is_ended]

    def add(self, device: str, certificate: x509.Certificate) -> None:
        self.known[pki.serial_of(certificate)] = Known(device, certificate.not_valid_after_utc)

    devices = st.integers(1, 2).map(lambda number: f"pump-{number}")

    @rule(device=devices, is_short=st.booleans())
    def enrol(self, device: str, is_short: bool) -> None:
        profile = pki.TEST_CLIENT if is_short else pki.CLIENT
        if device in self.suspended:
            return
        certificate = self.office.enrolled(device, profile=profile.name, replace=True)
        for each in self.live(device):
            each.is_ended, each.reason = True, Reason.SUPERSEDED
        self.add(device, certificate)

    @rule(device=devices)
    def renew_twice(self, device: str) -> None:
        live = {serial: each for serial, each in self.known.items() if each.device == device and not each.is_ended}
        if not live or device in self.suspended:
            return
        with self.office.registry.write() as transaction:
            found = [c for c in identity.certificates_of(transaction, DeviceId(device)) if c.state in LIVE]
        peer = x509.load_der_x509_certificate(found[-1].der)
        response = self.office.reenrol(peer, csr(device))
        if response.status == 200:
            for serial, each in live.items():
                if serial != pki.serial_of(peer):
                    each.is_ended, each.reason = True, Reason.SUPERSEDED
            self.add(device, certificate_in(response))

    @rule(device=devices)
    def suspend_or_resume(self, device: str) -> None:
        if device in self.suspended:
            service.resume(self.office.registry, DeviceId(device), by="test", now=self.office.now)
            self.suspended.discard(device)
        elif self.live(device):
            service.suspend(self.office.registry, DeviceId(device), by="test", now=self.office.now)
            self.suspended.add(device)

    @rule(device=devices, reason=st.sampled_from([None, Reason.KEY_COMPROMISE, Reason.CESSATION_OF_OPERATION]))
    def revoke(self, device: str, reason: Reason | None) -> None:
        if not self.live(device):
            return
        service.revoke(self.office.registry, DeviceId(device), by="test", now=self.office.now, reason=reason)
        self.suspended.discard(device)
        for each in self.live(device):
            each.is_ended, each.reason = True, reason

    @rule(data=st.data(), reason=st.sampled_from([None, Reason.KEY_COMPROMISE]))
    def revoke_one(self, data: st.DataObject, reason: Reason | None) -> None:
        if not self.known:
            return
        serial = data.draw(st.sampled_from(list(self.known)))  # in the order of issuance: serials are random
        each = self.known[serial]
        service.revoke_certificate(self.office.registry, serial, by="test", now=self.office.now, reason=reason)
        each.reason, each.is_ended = reason or each.reason, True

    @rule(span=st.sampled_from([timedelta(minutes=1), HOUR, LIFE / 2, 95 * 24 * HOUR]))
    def wait(self, span: timedelta) -> None:
        if self.office.now + span < NOW + 500 * 24 * HOUR:  # near its own end the CA issues no more
            self.office.wait(span)

    @rule()
    def restart(self) -> None:
        self.publisher = publisher_of(self.office)

    @invariant()
    def is_published(self) -> None:
        refreshed(self.office, self.publisher)
        made = list_of(self.office, "devices")
        if self.previous != made.last_update_utc:
            self.since, self.previous = self.previous, made.last_update_utc
        since = self.since
        expected: dict[Serial, Reason | None] = {
            serial: None for serial, end in self.always.items() if since is None or end >= since
        }
        for serial, each in self.known.items():
            is_held = not each.is_ended and each.device in self.suspended
            if (each.is_ended or is_held) and (since is None or each.not_after >= since):
                expected[serial] = Reason.CERTIFICATE_HOLD if is_held else each.reason
        assert expected == lines_of(made)
        assert made.last_update_utc <= self.office.now < ends_at(self.office, "devices")


def test_no_order_of_events_makes_a_wrong_list(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Some order of renewals, holds, revocations and ends lists one that is good, or leaves one off that is not."""
    folders = (tmp_path_factory.mktemp("fleet") / secrets.token_hex(4) for _ in iter(int, 1))
    machine = type("Machine", (Lists,), {"folders": folders})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=15, stateful_step_count=25, suppress_health_check=list(HealthCheck), deadline=None
        ),
    )
