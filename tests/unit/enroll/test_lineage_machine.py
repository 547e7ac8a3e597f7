"""Any order of what one device, or several copies of it, do: against the registry itself."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from enroll import authority
from enroll.registry import Registry, endings, identity, lineage
from enroll.registry.records import LIVE, CertificateRecord, CertificateState
from enroll.service import Asker, Enrolment, Issued, invite
from enroll.service.admission import admit
from enroll.service.admission import holder as holder_of
from enroll.service.lineage import check_may_renew, check_not_ended, resolve
from enroll.service.succession import confirm, end_due
from enroll.tokens import TokenOrder
from fleet.errors import Denied, FleetError
from fleet.est import Csr
from fleet.identity import DeviceId, Serial
from tests.fleets import CRL_URL, DOMAIN, NOW, new_key

PUMP = DeviceId("pump-07")
AUTHORITY = authority.create(DOMAIN, CRL_URL, now=NOW, token_bytes=random.Random(7).randbytes).authority
NEEDS = settings(max_examples=15, stateful_step_count=25, suppress_health_check=list(HealthCheck), deadline=None)


def new_csr() -> Csr:
    return Csr(PUMP, new_key().public_key())


class Service(RuleBasedStateMachine):
    """The registry with one device, and the service's use cases."""

    folder: Path

    @initialize()
    def begin(self) -> None:
        self.random = random.Random(11)
        self.registry = Registry.open(self.folder / f"{random.SystemRandom().getrandbits(64):x}.db")
        self.now = NOW
        self.first = self.enrol()
        self.opened()

    def teardown(self) -> None:
        if hasattr(self, "registry"):
            self.registry.close()

    def opened(self) -> None:
        """What a machine begins with."""

    @property
    def enrolment(self) -> Enrolment:
        return Enrolment(self.registry, AUTHORITY.devices, DOMAIN, self.random.randbytes)

    def enrol(self, *, is_anew: bool = False) -> Serial:
        wanted = TokenOrder(PUMP, replace=is_anew)
        token = invite(self.registry, wanted, by="test", now=self.now, token_bytes=self.random.randbytes).token
        issued = self.enrolment.enrol(token, new_csr, self.now)
        assert isinstance(issued, Issued)
        return issued.serial

    def family(self) -> list[CertificateRecord]:
        with self.registry.read() as transaction:
            return identity.certificates_of(transaction, PUMP)

    def is_frozen(self) -> bool:
        with self.registry.read() as transaction:
            found = identity.find_principal(transaction, PUMP)
            assert found is not None
            return lineage.is_frozen(transaction, PUMP, found.epoch)

    @rule(span=st.sampled_from([timedelta(minutes=1), timedelta(minutes=11), timedelta(days=2)]))
    def wait(self, span: timedelta) -> None:
        if self.now + span < NOW + timedelta(days=60):
            self.now += span
            end_due(self.registry, self.now)


@dataclass(frozen=True)
class Card:
    """What a device has on its card: the certificate in use, and the key that it has asked with."""

    current: Serial
    pending: Csr | None = None
    candidate: Serial | None = None


class Device(Service):
    """One honest device, whose replies get lost and whose power fails. It keeps what is on its card."""

    def opened(self) -> None:
        self.card = Card(self.first)
        self.previous: Serial | None = None

    @rule(is_lost=st.booleans())
    def request(self, is_lost: bool) -> None:
        """The key goes to the disk first; a reply that got lost is asked for again with it."""
        if self.card.candidate is not None:
            return
        pending = self.card.pending or new_csr()
        self.card = replace(self.card, pending=pending)
        issued = self.enrolment.reenrol(self.card.current, pending, self.now)
        if not is_lost:
            self.card = replace(self.card, candidate=issued.serial)

    @rule()
    def lose_the_key(self) -> None:
        """A card that had no room, or was written anew by hand."""
        self.card = replace(self.card, pending=None, candidate=None)

    @rule()
    def promote(self) -> None:
        """The candidate is in use, and not proven by a connection yet."""
        if self.card.candidate is not None:
            self.previous, self.card = self.card.current, Card(self.card.candidate)

    @rule()
    def fall_back(self) -> None:
        """The broker refused it; what was made is thrown away before another key is made."""
        if self.previous is not None and self.is_pending(self.card.current):
            self.card, self.previous = Card(self.previous), None

    @rule()
    def confirm(self) -> None:
        """Its reply may be lost, and it comes again."""
        if self.previous is not None:
            confirm(self.registry, self.card.current, self.now)
            confirm(self.registry, self.card.current, self.now)
            self.previous = None

    def is_pending(self, serial: Serial) -> bool:
        return any(each.serial == serial and each.state is CertificateState.PENDING for each in self.family())

    @invariant()
    def is_never_taken_for_two(self) -> None:
        with self.registry.read() as transaction:
            assert 0 == lineage.count_alarmed(transaction)
            admit(transaction, self.card.current)


@dataclass
class Copy:
    """Somebody with some certificates of the device, and the keys it has asked with."""

    serials: list[Serial]
    asked: list[Csr] = field(default_factory=list)


class Copies(Service):
    """Copies of a card, each of which does whatever the protocol lets it do."""

    def opened(self) -> None:
        self.holders = [Copy([self.first])]
        self.ended: set[Serial] = set()
        self.used: set[Serial] = set()
        self.frozen_with: set[Serial] | None = None

    holders_at, serials_at = st.integers(0, 3), st.integers(0, 7)

    def holder(self, at: int) -> Copy:
        return self.holders[at % len(self.holders)]

    @rule(at=holders_at)
    def copy(self, at: int) -> None:
        if len(self.holders) < 4:
            found = self.holder(at)
            self.holders.append(Copy(list(found.serials), list(found.asked)))

    @rule(at=holders_at, which=serials_at, is_again=st.booleans(), is_lost=st.booleans())
    def renew(self, at: int, which: int, is_again: bool, is_lost: bool) -> None:
        holder = self.holder(at)
        asked = holder.asked[-1] if is_again and holder.asked else new_csr()
        holder.asked.append(asked)
        with suppress(Denied):
            serial = holder.serials[which % len(holder.serials)]
            issued = self.enrolment.reenrol(serial, asked, self.now, Asker("192.0.2.7"))
            if not is_lost:
                holder.serials.append(issued.serial)

    @rule(at=holders_at)
    def renew_as_agents_do(self, at: int) -> None:
        holder = self.holder(at)
        with suppress(Denied):
            issued = self.enrolment.reenrol(holder.serials[-1], new_csr(), self.now)
            confirm(self.registry, issued.serial, self.now)
            holder.serials.append(issued.serial)

    @rule(at=holders_at, which=serials_at)
    def confirm(self, at: int, which: int) -> None:
        holder = self.holder(at)
        with suppress(Denied):
            confirm(self.registry, holder.serials[which % len(holder.serials)], self.now)

    @rule(at=holders_at, which=serials_at, is_about_to_renew=st.booleans())
    def look(self, at: int, which: int, is_about_to_renew: bool) -> None:
        holder = self.holder(at)
        with suppress(Denied):
            with self.registry.read() as transaction:
                peer = holder_of(transaction, holder.serials[which % len(holder.serials)])
            (check_may_renew if is_about_to_renew else check_not_ended)(self.registry, peer, Asker(), self.now)

    @rule(which=st.integers(0, 9))
    def decide(self, which: int) -> None:
        family = self.family()
        with suppress(FleetError):
            resolve(self.registry, PUMP, family[which % len(family)].serial, by="test", now=self.now)
            self.frozen_with = None

    @rule()
    def set_up_anew(self) -> None:
        self.holders[0] = Copy([self.enrol(is_anew=True)])
        self.frozen_with = None

    @invariant()
    def what_ended_never_returns(self) -> None:
        family = self.family()
        assert not self.ended & {each.serial for each in family if each.state in LIVE}
        self.ended |= {each.serial for each in family if each.state not in LIVE}

    @invariant()
    def what_was_used_is_followed_by_its_own_successor_alone(self) -> None:
        family = self.family()
        self.used |= {each.serial for each in family if each.state is CertificateState.CONFIRMED}
        followed = {each.parent for each in family if each.serial in self.used}
        for each in family:
            if each.serial in self.used and each.state is CertificateState.SUPERSEDED:
                assert each.serial in followed

    @invariant()
    def frozen_never_issues_and_nothing_of_it_ends(self) -> None:
        family = self.family()
        if not self.is_frozen():
            self.frozen_with = None
            return
        live = {each.serial for each in family if each.state in LIVE}
        if self.frozen_with is not None:
            assert self.frozen_with == live
        self.frozen_with = live

    @invariant()
    def one_is_confirmed_and_one_pending(self) -> None:
        live = [each for each in self.family() if each.state in LIVE]
        assert sum(each.state is CertificateState.PENDING for each in live) <= 1
        with self.registry.read() as transaction:
            staying = [each for each in live if endings.planned(transaction, each.serial) is None]
        confirmed = sum(each.state is CertificateState.CONFIRMED for each in staying)
        assert confirmed <= (2 if self.is_frozen() else 1)

    @invariant()
    def generations_are_of_one_each(self) -> None:
        family = self.family()
        assert len(family) == len({(each.epoch, each.generation) for each in family})
        by_serial = {each.serial: each for each in family}
        for each in family:
            if each.parent is not None:
                parent = by_serial[each.parent]
                assert (parent.epoch, True) == (each.epoch, parent.generation < each.generation)


@pytest.mark.parametrize("kind", [Device, Copies])
def test_no_order_of_events_breaks_a_rule(kind: type[Service], tmp_path: Path) -> None:
    """An honest device is frozen by lost replies and power cuts, or copies get more than one line of certificates."""
    machine = type("Machine", (kind,), {"folder": tmp_path})
    run_state_machine_as_test(machine, settings=NEEDS)
