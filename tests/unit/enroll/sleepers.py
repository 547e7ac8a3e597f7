"""Devices whose certificate has expired, and what they send to come back."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from enroll.registry import identity
from fleet import pki, recovery
from fleet.est import EstRequest, EstResponse
from fleet.identity import DeviceId, Serial
from fleet.recovery import Claim
from tests.fleets import Office, certificate_in, csr, new_key

GRACE = timedelta(days=180)
SECOND = timedelta(seconds=1)


def nonce_of(office: Office) -> str:
    """A fresh one."""
    answer = office.app.handle(EstRequest("GET", recovery.NONCE, address="192.0.2.7"))
    assert 200 == answer.status
    return recovery.decode_nonce(answer.body)


def post(office: Office, body: bytes, **changes: Any) -> EstResponse:
    """The answer to a request for recovery with that body."""
    fields: dict[str, Any] = {"headers": {"content-type": recovery.MEDIA_TYPE}, "address": "192.0.2.7"}
    return office.app.handle(EstRequest("POST", recovery.RECOVER, body=body, **fields | changes))


def states(office: Office) -> list[str]:
    """What has become of the certificates of `pump-07`, by generation."""
    with office.registry.read() as transaction:
        found = identity.certificates_of(transaction, DeviceId("pump-07"))
        return [f"{each.generation} {each.state}" for each in found]


@dataclass
class Sleeper:
    """One device. `certificate` and `key` are those in use, `next_key` is what it wants certified."""

    office: Office
    device: str = "pump-07"
    key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    next_key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    certificate: x509.Certificate = field(init=False)

    def __post_init__(self) -> None:
        self.certificate = certificate_in(
            self.office.enrol(self.office.invite(self.device), csr(self.device, self.key))
        )

    @property
    def serial(self) -> Serial:
        return pki.serial_of(self.certificate)

    def oversleep(self, by: timedelta = SECOND) -> None:
        """Let so much time pass since the end of its certificate."""
        self.office.wait(self.certificate.not_valid_after_utc - self.office.now + by)

    def claim(self, **changes: Any) -> Claim:
        """What it sends; `key`, `nonce`, `certificate`, `csr` may be another's."""
        der = self.certificate.public_bytes(Encoding.DER)
        request = changes.get("csr") or csr(changes.get("device", self.device), changes.get("next_key", self.next_key))
        nonce = changes.get("nonce") or nonce_of(self.office)
        said = recovery.statement(changes.get("certificate", der), nonce, request)
        signature = pki.sign(changes.get("key", self.key), said)
        return Claim(changes.get("serial", self.serial), nonce, request, signature)

    def recover(self, **changes: Any) -> EstResponse:
        return post(self.office, self.claim(**changes).encode())

    def use(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        """It is the one in use from now on."""
        self.certificate, self.key, self.next_key = certificate, key, new_key()
