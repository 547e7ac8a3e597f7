"""Devices that enrolled long ago and were switched off: their certificates have expired."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from device_agent import credentials
from device_agent.store import PosixDisk, Store
from enroll import authority, service
from enroll.registry import Registry
from enroll.service import Enrolment, Issued
from enroll.tokens import TokenOrder
from fleet import est, pki
from fleet.identity import DeviceId
from fleet.layout import AgentHome
from tests.fleets import CRL_URL, DOMAIN
from tests.system.agents import LiveFleet

SINCE = timedelta(days=290)
"""So long ago the fleet was made; its CAs issue for 300 days."""


@contextmanager
def past(fleet: LiveFleet) -> Iterator[Enrolment]:
    """What the service could do at any time."""
    cas = authority.load(fleet.home, DOMAIN, CRL_URL)
    with Registry.open(fleet.home.registry) as registry:
        yield Enrolment(registry, cas.devices, DOMAIN, secrets.token_bytes)


def asleep(fleet: LiveFleet, device: str, since: timedelta, profile: pki.Profile = pki.TEST_CLIENT) -> AgentHome:
    """The home of a device whose certificate expired so long ago."""
    then = datetime.now(UTC) - since - profile.life
    home, key_pem = fleet.new_agent_home(), credentials.new_key_pem()
    csr = est.parse_csr(est.build_csr(credentials.load_key(key_pem), DeviceId(device)))
    with past(fleet) as enrolment:
        order = TokenOrder(DeviceId(device), profile=profile.name)
        made = service.invite(enrolment.registry, order, by="test", now=then, token_bytes=secrets.token_bytes)
        issued = enrolment.enrol(made.token, lambda: csr, then)
    assert isinstance(issued, Issued)
    _write(fleet, home, device, key_pem, issued)
    return home


def renewed_unheard(fleet: LiveFleet, home: AgentHome, device: str, since: timedelta) -> None:
    """It had renewed before it slept, and put the new one into use, but never said so to the service."""
    then = datetime.now(UTC) - since - pki.TEST_CLIENT.life
    store, key_pem = Store(home, PosixDisk()), credentials.new_key_pem()
    csr = est.parse_csr(est.build_csr(credentials.load_key(key_pem), DeviceId(device)))
    with past(fleet) as enrolment:
        issued = enrolment.reenrol(store.credential().serial, csr, then)
    _write(fleet, home, device, key_pem, issued)


def _write(fleet: LiveFleet, home: AgentHome, device: str, key_pem: bytes, issued: Issued) -> None:
    store = Store(home, PosixDisk())
    store.prepare()
    pending = store.begin(DeviceId(device), fleet.url, key_pem)
    cas = authority.load(fleet.home, DOMAIN, CRL_URL)
    found = [x509.load_der_x509_certificate(issued.der), *cas.certificates]
    verified = credentials.verify_answer(found, key_pem, DeviceId(device), cas.root, fleet.url)
    store.complete(pending, verified.pem, cas.root.public_bytes(Encoding.PEM).decode().encode(), verified.credential)
