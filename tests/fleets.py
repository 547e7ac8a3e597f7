"""A fleet's home and registry for tests, made as `enroll init` makes them, and requests to its service as values."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from enroll import authority, service
from enroll.authority import Authority
from enroll.est_app import EstApp
from enroll.initialise import Plan, initialise
from enroll.registry import Registry
from enroll.service import Enrolment
from enroll.tokens import TokenOrder
from fleet import est
from fleet.config import parse_address, parse_crl_listen
from fleet.est import EstRequest, EstResponse
from fleet.identity import DeviceId, TrustDomain
from fleet.join import Token
from fleet.layout import AdminHome

DOMAIN = TrustDomain("acme.example")
NOW = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
PASSPHRASE = b"correct horse battery staple"
CRL_URL = "http://localhost:8080/crl"


def plan(**changes: Any) -> Plan:
    """What a fleet for tests is to be: on this machine alone, on any free port."""
    fields: dict[str, Any] = {
        "trust_domain": DOMAIN,
        "hosts": ("localhost", "127.0.0.1"),
        "crl_url": CRL_URL,
        "passphrase": PASSPHRASE,
        "enroll_listen": parse_address("127.0.0.1:0"),
        "broker_listen": parse_address("127.0.0.1:0"),
        "crl_listen": parse_crl_listen("127.0.0.1:0"),
    }
    return Plan(**fields | changes)


def new_home(path: Path, now: datetime | None = None, **changes: Any) -> AdminHome:
    """An initialised home; `now` is the real time unless given."""
    home = AdminHome(path)
    initialise(home, plan(**changes), now=now or datetime.now(UTC), token_bytes=secrets.token_bytes)
    return home


def new_key() -> ec.EllipticCurvePrivateKey:
    """A device's key."""
    return ec.generate_private_key(ec.SECP256R1())


def csr(device: str, key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
    """The DER of a device's request."""
    return est.build_csr(key or new_key(), DeviceId(device))


def enrolment_request(token: Token | str | None, body: bytes, **changes: Any) -> EstRequest:
    """A simpleenroll with that token as password; `body` goes as it is."""
    headers = {"content-type": est.PKCS10}
    if token is not None:
        headers["authorization"] = "Basic " + base64.b64encode(f"anyone:{token}".encode()).decode()
    fields: dict[str, Any] = {"address": "192.0.2.7", "headers": headers, "body": body}
    return EstRequest("POST", est.SIMPLE_ENROLL, **fields | changes)


def certificate_in(response: EstResponse) -> x509.Certificate:
    """The one certificate of a successful answer."""
    assert 200 == response.status, response.body
    (certificate,) = est.decode_certificates(response.body)
    return certificate


@dataclass(slots=True)
class Office:
    """An enrollment service without a network, whose clock the test moves."""

    home: AdminHome
    registry: Registry
    authority: Authority
    now: datetime = NOW
    seconds: float = 1000.0
    brokers: tuple[str, ...] = ("mqtts://localhost:8883",)
    app: EstApp = field(init=False)

    def __post_init__(self) -> None:
        enrolment = Enrolment(self.registry, self.authority.devices, DOMAIN, secrets.token_bytes)
        self.app = EstApp(
            enrolment, self.authority.certificates, lambda: self.brokers, lambda: self.now, lambda: self.seconds
        )

    def invite(self, device: str | None = None, **order: Any) -> Token:
        """A token, for one device unless a pattern is given."""
        ordered = TokenOrder(device=None if device is None else DeviceId(device), **order)
        invitation = service.invite(self.registry, ordered, by="test", now=self.now, token_bytes=secrets.token_bytes)
        return invitation.token

    def enrol(self, token: Token | str, der: bytes) -> EstResponse:
        """The answer to a simpleenroll."""
        return self.app.handle(enrolment_request(token, est.encode_body(der)))

    def enrolled(self, device: str, **order: Any) -> x509.Certificate:
        """A new device's certificate."""
        return certificate_in(self.enrol(self.invite(device, **order), csr(device)))

    def reenrol(self, peer: x509.Certificate | None, der: bytes) -> EstResponse:
        """The answer to a simplereenroll over a connection with that client certificate."""
        request = EstRequest(
            "POST",
            est.SIMPLE_REENROLL,
            {"content-type": est.PKCS10},
            est.encode_body(der),
            peer=None if peer is None else peer.public_bytes(Encoding.DER),
            address="192.0.2.7",
        )
        return self.app.handle(request)

    def get(self, path: str, peer: x509.Certificate | None = None, **query: str) -> EstResponse:
        """The answer to a GET."""
        der = None if peer is None else peer.public_bytes(Encoding.DER)
        return self.app.handle(EstRequest("GET", path, query=query, peer=der, address="192.0.2.7"))

    def revoke(self, device: str) -> None:
        service.revoke(self.registry, DeviceId(device), by="test", now=self.now)

    def wait(self, span: timedelta) -> None:
        """Let time pass."""
        self.now += span
        self.seconds += span.total_seconds()


@contextmanager
def open_office(path: Path, now: datetime = NOW, **changes: Any) -> Iterator[Office]:
    """An office in a new home at `path`."""
    home = new_home(path, now, **changes)
    with Registry.open(home.registry) as registry:
        yield Office(home, registry, authority.load(home, DOMAIN, CRL_URL), now)
