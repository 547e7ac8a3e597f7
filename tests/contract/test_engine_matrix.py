"""Issuer x claimed name x role x state: only one corner of it gets in, and with the role that the directory says."""

from __future__ import annotations

import itertools
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from broker.engine import Clock, Connected, Engine
from fleet.identity import DeviceId, Principal, Role, State
from fleet.policy import DEFAULT_POLICY, Action
from tests import mqtt
from tests.certificates import Identity, TestFleet, client_context
from tests.contract.engines import RunningEngine
from tests.mqtt import Peer

ISSUERS = ("ours", "foreign")
CLAIMS = ("its own name", "another's name", "nobody's name")
STATES = (*(state.value for state in State), "superseded")


@dataclass(frozen=True, slots=True)
class Case:
    """One certificate, and what the directory says of the name in it."""

    number: int
    issuer: str
    claim: str
    certified: Role
    listed: Role
    state: str

    @property
    def name(self) -> DeviceId:
        return DeviceId(f"case-{self.number}")

    @property
    def is_admitted(self) -> bool:
        return (self.issuer, self.claim, self.state) == ("ours", "its own name", "active")

    def __str__(self) -> str:
        roles = self.certified.value if self.certified is self.listed else f"{self.certified}-listed-as-{self.listed}"
        return f"{self.issuer}-{self.claim}-{roles}-{self.state}"


def cases() -> Iterator[Case]:
    """Every combination; where the certificate gets in, also every role that it may say wrongly."""
    numbers = itertools.count()
    for issuer, claim, role, state in itertools.product(ISSUERS, CLAIMS, Role, STATES):
        case = Case(next(numbers), issuer, claim, role, role, state)
        yield case
        if case.is_admitted:
            for other in (each for each in Role if each is not role):
                yield replace(case, number=next(numbers), certified=other)


@pytest.fixture(scope="module")
def shared(make_engine: Callable[[Clock], Engine], fleet: TestFleet) -> Iterator[RunningEngine]:
    """One engine for all cases: each has a name of its own."""
    with RunningEngine(make_engine, fleet) as running:
        yield running


def set_up(broker: RunningEngine, other_fleet: TestFleet, case: Case) -> Identity:
    """The certificate of a case; the directory is told."""
    shown = (broker.fleet if case.issuer == "ours" else other_fleet).client(case.name, case.certified)
    if case.claim == "nobody's name":
        return shown
    holder = shown
    if case.claim == "another's name" or case.state == "superseded":
        holder = broker.fleet.client(case.name, case.listed)
    state = State.ACTIVE if case.state == "superseded" else State(case.state)
    entry = broker.entry(holder, state)
    broker.apply(replace(entry, principal=Principal(case.listed, case.name)))
    return shown


def codes(broker: RunningEngine, identity: Identity, filters: list[str]) -> list[int] | None:
    """What subscriptions are granted; None for who does not get in."""
    try:
        with Peer(broker.address, client_context(broker.fleet.root_file, identity)) as peer:
            if peer.ask(mqtt.connect(identity.id)) != mqtt.ACCEPTED:
                return None
            return list(peer.ask(mqtt.subscribe(*((wanted, 0) for wanted in filters)))[4:])
    except (ConnectionError, ssl.SSLError):
        return None


@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_only_the_listed_serial_of_an_active_principal_gets_in(
    shared: RunningEngine, other_fleet: TestFleet, case: Case
) -> None:
    """A certificate would be worth more than the directory says, or less."""
    identity = set_up(shared, other_fleet, case)
    filters = [f"devices/{case.name}/down/#", "devices/other/down/#", "devices/+/up/#", "fleet/notices/#", "$SYS/#"]
    granted = codes(shared, identity, filters)
    if not case.is_admitted:
        assert granted is None
        assert not any(isinstance(e, Connected) and e.client.client_id == case.name for e in shared.events)
        return
    principal = Principal(case.listed, case.name)
    allowed = [DEFAULT_POLICY.decide(principal, Action.SUBSCRIBE, wanted).allowed for wanted in filters]
    assert [0 if is_allowed else 0x80 for is_allowed in allowed] == granted
    assert principal == shared.wait_event(Connected, lambda e: e.client.client_id == case.name).client.principal
