"""What every registry has to do, whatever database is under it."""

from __future__ import annotations

import random
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from enroll import audit, authority, service
from enroll.authority import Authority
from enroll.issuer import client_names, server_names
from enroll.registry import Registry, feed, identity, log
from enroll.registry import tokens as token_rows
from enroll.registry.records import Approval, CertificateRecord, CertificateState, PrincipalRecord, TokenRecord
from enroll.service import Asker, Enrolment, Issued, NotAdmitted, NotAllowed, Recovery, TooManyWaiting
from enroll.service.certification import Order, certify, key_digest
from enroll.tokens import TokenOrder, TokenRefused
from fleet import pki
from fleet.errors import Denied, FleetError
from fleet.est import Csr
from fleet.identity import DeviceId, Role, Serial, Server
from fleet.join import Token
from tests.contract.registries import PUMP, RegistryFactory, check_invariants, principal
from tests.deadlines import within
from tests.fleets import CRL_URL, DOMAIN, NOW, new_key

AUTHORITY = authority.create(DOMAIN, CRL_URL, now=NOW, token_bytes=random.Random(7).randbytes).authority


def csr(device: DeviceId = PUMP) -> Csr:
    return Csr(device, new_key().public_key())


def enrolment(registry: Registry, authority: Authority = AUTHORITY) -> Enrolment:
    return Enrolment(registry, authority.devices, DOMAIN, random.Random().randbytes)


def enrol(registry: Registry, token: Token, asked: Csr, now: datetime = NOW) -> Issued:
    """What a token that needs no approval gives."""
    outcome = enrolment(registry).enrol(token, lambda: asked, now)
    assert isinstance(outcome, Issued)
    return outcome


def invite(registry: Registry, order: TokenOrder, now: datetime = NOW) -> Token:
    return service.invite(registry, order, by="test", now=now, token_bytes=random.Random().randbytes).token


def test_what_is_stored_comes_back(registry: Registry) -> None:
    """A value changes on its way through the database: a time zone, a group, a missing field."""
    token = TokenRecord(
        "abc", b"\0" * 32, None, "pump-*", Role.DEVICE, ("a", "b"), "client", False, 3, 3, NOW, NOW + timedelta(hours=1)
    )
    stored = principal(created_at=NOW + timedelta(microseconds=1))
    with registry.write() as transaction:
        identity.add_principal(transaction, stored)
        token_rows.add_token(transaction, token)
        feed.announce(transaction, PUMP)
    with registry.read() as transaction:
        assert stored == identity.find_principal(transaction, PUMP)
        assert token == token_rows.find_token(transaction, "abc")
        assert [stored] == identity.list_principals(transaction, Role.DEVICE)
        assert [] == identity.list_principals(transaction, Role.BROKER)


def test_a_transaction_that_fails_leaves_nothing(registry: Registry) -> None:
    """Half an enrolment is left behind."""

    def fail() -> None:
        with registry.write() as transaction:
            identity.add_principal(transaction, principal())
            audit.record(transaction, NOW, "x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with registry.read() as transaction:
        assert identity.find_principal(transaction, PUMP) is None
        assert log.last_digest(transaction) is None


def test_what_was_committed_is_there_when_opened_again(factory: RegistryFactory, tmp_path: Path) -> None:
    """A restart forgets the fleet."""
    with factory(tmp_path) as opened, opened.write() as transaction:
        identity.add_principal(transaction, principal())
    with factory(tmp_path) as opened, opened.read() as transaction:
        assert principal() == identity.find_principal(transaction, PUMP)


def test_a_reader_sees_one_state(registry: Registry) -> None:
    """A broker's snapshot mixes before and after."""
    with registry.read() as reading:
        assert 0 == feed.head(reading)
        with registry.write() as transaction:
            identity.add_principal(transaction, principal())
            feed.announce(transaction, PUMP)
        assert 0 == feed.head(reading)
        assert identity.find_principal(reading, PUMP) is None


def test_sequence_numbers_are_given_in_commit_order(registry: Registry) -> None:
    """A broker that has all up to N has missed one below N."""
    with registry.write() as transaction:
        identity.add_principal(transaction, principal())
        feed.announce(transaction, PUMP)
    seen: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            with registry.read() as transaction:
                seen.append(feed.head(transaction))

    def announce(_: int) -> int:
        with registry.write() as transaction:
            return feed.announce(transaction, PUMP)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(announce, range(40)))
    stop.set()
    watcher.join(within(10))
    assert sorted(numbers) == list(range(2, 42))
    assert sorted(seen) == seen


def certificate(number: int, serial: str) -> CertificateRecord:
    fields = (PUMP, "client", b"k" * 32, 1, 1, None, CertificateState.CONFIRMED, NOW, NOW, b"der")
    return CertificateRecord(number, Serial(serial), *fields)


@pytest.mark.parametrize("what", ["serial", "number", "key"])
def test_a_serial_a_number_and_a_key_are_given_once(registry: Registry, what: str) -> None:
    """Two certificates share a serial, or two principals a key."""
    with registry.write() as transaction:
        identity.add_principal(transaction, principal())
        feed.announce(transaction, PUMP)

    def give_twice() -> None:
        with registry.write() as transaction:
            identity.add_key(transaction, b"k" * 32, PUMP, NOW)
            identity.add_certificate(transaction, certificate(1, "a1"), issuer="devices", shard=1, now=NOW)
            assert 1 == identity.last_number(transaction)
            if what == "key":
                identity.add_key(transaction, b"k" * 32, PUMP, NOW)
            else:
                again = certificate(1, "a2") if what == "number" else certificate(2, "a1")
                identity.add_certificate(transaction, again, issuer="devices", shard=1, now=NOW)

    with pytest.raises(Exception, match=r"(?i)unique"):
        give_twice()


def test_shards_have_ten_thousand_certificates() -> None:
    """A CRL grows without end."""
    assert [1, 1, 1, 2, 2, 3] == [identity.shard_of(number) for number in (1, 2, 9_999, 10_000, 19_999, 20_000)]


def test_servers_and_clients_are_in_shards_of_their_own(registry: Registry) -> None:
    """A CRL holds serials of an issuer that did not sign it."""
    first, second = new_key().public_key(), new_key().public_key()
    of_server = Order(pki.SERVER, server_names(DOMAIN, Server.BROKER, ("localhost",)), first, key_digest(first), None)
    of_client = Order(pki.CLIENT, client_names(DOMAIN, principal().principal), second, key_digest(second), PUMP)
    with registry.write() as transaction:
        identity.add_principal(transaction, principal())
        feed.announce(transaction, PUMP)
        for order, issuer, shard in ((of_server, AUTHORITY.servers, 0), (of_client, AUTHORITY.devices, 1)):
            made = certify(transaction, issuer, order, now=NOW, token_bytes=secrets.token_bytes)
            points = pki.extension(x509.load_der_x509_certificate(made.der), x509.CRLDistributionPoints)
            assert points is not None
            assert f"/{shard}.crl" in repr(points.value)


def test_one_token_and_two_keys_at_once_give_one_certificate(factory: RegistryFactory, tmp_path: Path) -> None:
    """Two devices race for one token and both get in."""
    with factory(tmp_path) as first, factory(tmp_path) as second:
        for number in range(10):
            device = DeviceId(f"pump-{number}")
            token = invite(first, TokenOrder(device))
            barrier = threading.Barrier(2)

            def redeem(
                registry: Registry,
                asked: Csr,
                barrier: threading.Barrier = barrier,
                token: Token = token,
            ) -> bool:
                barrier.wait(within(10))
                try:
                    enrol(registry, token, asked)
                except TokenRefused:
                    return False
                return True

            with ThreadPoolExecutor(2) as pool:
                assert [False, True] == sorted(pool.map(redeem, (first, second), (csr(device), csr(device))))
            check_invariants(first)


def test_one_token_and_one_key_at_once_give_one_certificate(factory: RegistryFactory, tmp_path: Path) -> None:
    """A device that retries before the first answer has two identities."""
    with factory(tmp_path) as first, factory(tmp_path) as second:
        token, asked = invite(first, TokenOrder(PUMP)), csr()

        def redeem(registry: Registry) -> Issued:
            return enrol(registry, token, asked)

        with ThreadPoolExecutor(2) as pool:
            one, other = pool.map(redeem, (first, second))
        assert one.der == other.der
        assert {True, False} == {one.is_repeated, other.is_repeated}
        check_invariants(first)


def test_a_revocation_and_a_renewal_at_once_leave_nothing_live(factory: RegistryFactory, tmp_path: Path) -> None:
    """A revoked device keeps the certificate that it was getting at that moment."""
    with factory(tmp_path) as first, factory(tmp_path) as second:
        for number in range(10):
            device = DeviceId(f"pump-{number}")
            token, asked = invite(first, TokenOrder(device)), csr(device)
            serial = enrol(first, token, asked).serial
            barrier = threading.Barrier(2)

            def renew(serial: Serial = serial, device: DeviceId = device, barrier: threading.Barrier = barrier) -> None:
                following = csr(device)
                barrier.wait(within(10))
                try:
                    enrolment(second).reenrol(serial, following, NOW)
                except NotAdmitted:
                    return

            with ThreadPoolExecutor(1) as pool:
                renewing = pool.submit(renew)
                barrier.wait(within(10))
                service.revoke(first, device, by="test", now=NOW)
                renewing.result(within(10))
            check_invariants(first)


class Fleet(RuleBasedStateMachine):
    """Admins and devices do anything in any order."""

    factory: RegistryFactory
    folder: Callable[[], Path]

    @initialize()
    def open(self) -> None:
        self.context: AbstractContextManager[Registry] = type(self).factory(type(self).folder())
        self.registry = self.context.__enter__()
        self.tokens: list[Token] = []
        self.requests: list[Csr] = []
        self.issued: list[Issued] = []
        self.now = NOW

    def teardown(self) -> None:
        self.context.__exit__(None, None, None)

    devices = st.sampled_from([DeviceId("a"), DeviceId("b")])

    @rule(device=devices, replaces=st.booleans())
    def invite(self, device: DeviceId, replaces: bool) -> None:
        try:
            self.tokens.append(invite(self.registry, TokenOrder(device, replace=replaces), self.now))
        except Denied:
            assert not replaces

    @rule(uses=st.integers(1, 3))
    def invite_any(self, uses: int) -> None:
        self.tokens.append(invite(self.registry, TokenOrder(pattern="*", uses=uses), self.now))

    @rule(device=devices, replaces=st.booleans())
    def invite_for_approval(self, device: DeviceId, replaces: bool) -> None:
        order = TokenOrder(device, replace=replaces, approval=Approval.MANUAL)
        try:
            self.tokens.append(invite(self.registry, order, self.now))
        except Denied:
            assert not replaces

    @rule(data=st.data())
    def revoke_token(self, data: st.DataObject) -> None:
        if self.tokens:
            token = data.draw(st.sampled_from(self.tokens))
            service.revoke_token(self.registry, token.id, by="test", now=self.now)

    @rule(device=devices)
    def make_request(self, device: DeviceId) -> None:
        self.requests.append(csr(device))

    @rule(data=st.data())
    def enrol(self, data: st.DataObject) -> None:
        if not (self.tokens and self.requests):
            return
        token, asked = data.draw(st.sampled_from(self.tokens)), data.draw(st.sampled_from(self.requests))
        try:
            outcome = enrolment(self.registry).enrol(token, lambda: asked, self.now)
        except (TokenRefused, NotAllowed, TooManyWaiting):
            return
        if isinstance(outcome, Issued):
            self.issued.append(outcome)

    @rule(data=st.data())
    def pair(self, data: st.DataObject) -> None:
        if not self.requests:
            return
        try:
            outcome = enrolment(self.registry).pair(data.draw(st.sampled_from(self.requests)), self.now, Asker())
        except (NotAllowed, TooManyWaiting):
            return
        if isinstance(outcome, Issued):
            self.issued.append(outcome)

    @rule(data=st.data(), is_denied=st.booleans())
    def decide(self, data: st.DataObject, is_denied: bool) -> None:
        waiting = service.requests(self.registry, self.now)
        if not waiting:
            return
        request = data.draw(st.sampled_from(waiting)).id
        try:
            if is_denied:
                service.deny(self.registry, request, "no", by="test", now=self.now)
            else:
                service.approve(self.registry, request, by="test", now=self.now)
        except Denied:
            return

    @rule(data=st.data())
    def reenrol(self, data: st.DataObject) -> None:
        if not (self.issued and self.requests):
            return
        used, asked = data.draw(st.sampled_from(self.issued)), data.draw(st.sampled_from(self.requests))
        try:
            self.issued.append(enrolment(self.registry).reenrol(used.serial, asked, self.now))
        except (NotAdmitted, NotAllowed):
            return

    @rule(data=st.data())
    def recover(self, data: st.DataObject) -> None:
        """Whoever has the key of a certificate, which is nothing to the registry."""
        if not (self.issued and self.requests):
            return
        used, asked = data.draw(st.sampled_from(self.issued)), data.draw(st.sampled_from(self.requests))
        try:
            outcome = Recovery(enrolment(self.registry)).recover(used.serial, asked, self.now, Asker())
        except (NotAdmitted, NotAllowed, TooManyWaiting):
            return
        assert used.not_after <= self.now
        if isinstance(outcome, Issued):
            self.issued.append(outcome)

    @rule(days=st.sampled_from([90, 200]))
    def sleep(self, days: int) -> None:
        """Every certificate expires, or even the grace after it."""
        self.now = min(self.now + timedelta(days=days), NOW + timedelta(days=290))

    @rule(device=devices, change=st.sampled_from([service.suspend, service.resume, service.revoke]))
    def administer(self, device: DeviceId, change: Callable[..., PrincipalRecord]) -> None:
        try:
            change(self.registry, device, by="test", now=self.now)
        except FleetError:
            return

    @rule(hours=st.integers(1, 30))
    def wait(self, hours: int) -> None:
        self.now = min(self.now + timedelta(hours=hours), NOW + timedelta(days=295))  # their CA issues so long

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "registry"):
            check_invariants(self.registry)


def test_no_order_of_events_breaks_an_invariant(
    factory: RegistryFactory, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Some order of invitations, enrolments, renewals and revocations gives two identities, or a live revoked one."""
    machine = type(
        "Machine",
        (Fleet,),
        {"factory": staticmethod(factory), "folder": staticmethod(lambda: tmp_path_factory.mktemp("registry"))},
    )
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=20, stateful_step_count=25, suppress_health_check=list(HealthCheck), deadline=None
        ),
    )
