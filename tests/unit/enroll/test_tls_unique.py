"""Every way to a certificate compares what a request says of its connection (RFC 7030, 3.5)."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AttributeOID

from enroll import service
from enroll.service import new_claim
from fleet import est
from fleet.est import EstRequest
from fleet.identity import DeviceId
from tests.fleets import Office, enrolment_request
from tests.makers import Maker

THIS, OTHER = bytes(range(12)), bytes(range(1, 13))
_SENT = {"content-type": est.PKCS10}
_PAIRING = _SENT | {"authorization": "Basic " + base64.b64encode(f"{est.PAIRING_USER}:".encode()).decode()}


def by_token(office: Office) -> EstRequest:
    return enrolment_request(office.invite("pump-07"), b"")


def by_pairing(office: Office) -> EstRequest:
    office.app.is_pairing = True
    return EstRequest("POST", est.SIMPLE_ENROLL, _PAIRING, address="192.0.2.7")


def by_claim(office: Office) -> EstRequest:
    maker = Maker("Pumps Ltd", office.now)
    ours = office.authority.certificates
    service.add_manufacturer(office.registry, "pumps", [maker.ca], ours, by="anna", now=office.now)
    claimed = new_claim("pumps", "SN-1", DeviceId("pump-07"), office.now)
    service.add_claims(office.registry, [claimed], by="anna", now=office.now)
    return EstRequest("POST", est.SIMPLE_ENROLL, _SENT, peer=maker.hardware("SN-1").der, address="192.0.2.7")


def by_certificate(office: Office) -> EstRequest:
    held = office.enrolled("pump-07").public_bytes(Encoding.DER)
    return EstRequest("POST", est.SIMPLE_REENROLL, _SENT, peer=held, address="192.0.2.7")


def request_for(connection: bytes) -> bytes:
    """The body of a request that says for which connection it was made."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pump-07")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    builder = builder.add_attribute(AttributeOID.CHALLENGE_PASSWORD, base64.b64encode(connection))
    signed = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return est.encode_body(signed.public_bytes(Encoding.DER))


@pytest.mark.parametrize("ask", [by_token, by_pairing, by_claim, by_certificate])
def test_a_request_is_good_for_its_connection_whatever_lets_it_in(
    office: Office, ask: Callable[[Office], EstRequest]
) -> None:
    """A relayed request gets in by a way on which nobody looks, or uses up what would have let the device in."""
    request = replace(ask(office), body=request_for(THIS))
    for binding in (OTHER, None):
        answer = office.app.handle(replace(request, tls_unique=binding))
        assert (400, True) == (answer.status, b"challengePassword" in answer.body)
    assert [] == service.requests(office.registry, office.now)
    assert office.app.handle(replace(request, tls_unique=THIS)).status in (200, 202)
