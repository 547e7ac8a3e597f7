"""What the enrollment service answers to good and bad requests."""

from __future__ import annotations

import base64
import json
import subprocess
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from pyasn1.codec.der.decoder import decode
from pyasn1_modules import rfc7030

from enroll.audit import first_broken
from enroll.registry import feed, identity, log
from enroll.registry import tokens as token_rows
from fleet import directory, est, pki
from fleet.est import EstRequest
from fleet.identity import DeviceId, Role
from fleet.join import Token, new_token
from tests.fleets import Office, certificate_in, csr, enrolment_request, new_key

PUMP = DeviceId("pump-07")


def uses_left(office: Office, token: Token) -> int:
    with office.registry.read() as transaction:
        record = token_rows.find_token(transaction, token.id)
    assert record is not None
    return record.uses_left


def built(subject: x509.Name, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def openssl_request(*options: str) -> bytes:
    """What `openssl req` makes for pump-07 with a new P-256 key."""
    command = ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    rest = ["-keyout", "/dev/null", "-subj", "/CN=pump-07", "-outform", "DER"]
    return subprocess.run([*command, *rest, *options], check=True, capture_output=True).stdout


def named(*names: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])


def test_a_token_gets_a_certificate_for_the_requested_key(office: Office) -> None:
    """A device with a good token gets no certificate, or one for another key or name."""
    key = new_key()
    certificate = certificate_in(office.enrol(office.invite("pump-07"), csr("pump-07", key)))
    assert key.public_key() == certificate.public_key()
    assert PUMP == pki.common_name_of(certificate.subject)
    assert [] == pki.violations(certificate, pki.CLIENT)


def test_an_enrolment_is_in_outbox_and_audit(office: Office) -> None:
    """Brokers do not hear of a new device, or nobody can tell later who let it in."""
    certificate = office.enrolled("pump-07")
    with office.registry.read() as transaction:
        entry = feed.entry_of(transaction, PUMP)
        entries = list(log.entries(transaction))
        head = feed.head(transaction)
    assert entry is not None
    assert (head, frozenset({pki.serial_of(certificate)})) == (entry.seq, entry.serials)
    assert "certificate.issued" == entries[-1].event
    assert pki.serial_of(certificate) in entries[-1].fields
    assert first_broken(entries) is None


def test_the_same_token_and_key_get_the_same_certificate_again(office: Office) -> None:
    """A device whose reply was lost after the commit never gets in."""
    token, request = office.invite("pump-07"), csr("pump-07")
    first = certificate_in(office.enrol(token, request))
    office.wait(timedelta(days=2))  # past the token's end
    assert first == certificate_in(office.enrol(token, request))


@pytest.mark.parametrize("change", ["revoked", "suspended"])
def test_a_certificate_that_was_ended_is_not_given_again(office: Office, change: str) -> None:
    """A thief with token and request looks enrolled after the admin has ended it."""
    from enroll import service

    token, request = office.invite("pump-07"), csr("pump-07")
    office.enrol(token, request)
    if change == "revoked":
        office.revoke("pump-07")
    else:
        service.suspend(office.registry, PUMP, by="test", now=office.now)
    assert 403 == office.enrol(token, request).status


def test_a_used_token_with_another_key_is_refused(office: Office) -> None:
    """Whoever finds a used token in a log gets an identity."""
    token = office.invite("pump-07")
    office.enrol(token, csr("pump-07"))
    assert 401 == office.enrol(token, csr("pump-07")).status


def test_an_expired_token_is_refused(office: Office) -> None:
    """A token lives for ever."""
    token = office.invite("pump-07", ttl=timedelta(minutes=5))
    office.wait(timedelta(minutes=5))
    response = office.enrol(token, csr("pump-07"))
    assert 401 == response.status
    assert b"expired" in response.body
    assert b"hint: ask for a new one: enroll token create" in response.body


def test_a_spent_token_is_refused_before_its_request_is_judged(office: Office) -> None:
    """401 comes before 400: a stranger with an old token learns what the parser thinks."""
    token = office.invite("pump-07", ttl=timedelta(minutes=5))
    office.wait(timedelta(minutes=5))
    assert 401 == office.enrol(token, b"rubbish").status


def test_a_foreign_token_is_refused_and_says_how_to_authenticate(office: Office) -> None:
    """Any well-formed token lets in."""
    response = office.enrol(new_token(bytes(21)), csr("pump-07"))
    assert 401 == response.status
    assert response.headers["WWW-Authenticate"].startswith("Basic realm=")


def test_a_guessed_secret_of_a_real_token_is_refused(office: Office) -> None:
    """The token's id is enough."""
    token = office.invite("pump-07")
    assert 401 == office.enrol(Token(token.id, bytes(16)), csr("pump-07")).status


@pytest.mark.parametrize(
    "authorization", [None, "", "Basic", "Basic !", "Bearer abc", "Basic " + base64.b64encode(b"\xff:x").decode()]
)
def test_without_a_credential_nothing_is_issued(office: Office, authorization: str | None) -> None:
    """A request without a token is served, or breaks the service."""
    headers = {"content-type": est.PKCS10}
    if authorization is not None:
        headers["authorization"] = authorization
    request = enrolment_request(None, est.encode_body(csr("pump-07")), headers=headers)
    assert 401 == office.app.handle(request).status


def test_a_revoked_token_is_refused(office: Office) -> None:
    """`enroll token revoke` does nothing."""
    from enroll import service

    token = office.invite("pump-07")
    service.revoke_token(office.registry, token.id, by="test", now=office.now)
    assert 401 == office.enrol(token, csr("pump-07")).status


def test_a_name_that_is_not_the_tokens_is_refused_and_the_token_stays_good(office: Office) -> None:
    """A device with its own token takes another's name, or a typing error burns the token."""
    token = office.invite("pump-07")
    assert 403 == office.enrol(token, csr("pump-08")).status
    assert 1 == uses_left(office, token)
    certificate_in(office.enrol(token, csr("pump-07")))


@pytest.mark.parametrize(("device", "status"), [("pump-1", 200), ("pump-", 400), ("xpump-1", 403), ("pum-1", 403)])
def test_a_pattern_is_matched_whole(office: Office, device: str, status: int) -> None:
    """A token for pump-* lets in a valve."""
    token = office.invite(pattern="pump-*", uses=9)
    request = built(named(device), new_key())
    assert status == office.enrol(token, request).status


def test_a_pattern_token_has_its_number_of_uses(office: Office) -> None:
    """A token for two lets in three."""
    token = office.invite(pattern="pump-*", uses=2)
    statuses = [office.enrol(token, csr(f"pump-{number}")).status for number in range(3)]
    assert [200, 200, 401] == statuses


def _bad_signature() -> bytes:
    der = bytearray(csr("pump-07"))
    der[-5] ^= 1
    return bytes(der)


BAD_REQUESTS = {
    "not a request": b"this is no request",
    "nothing": b"",
    "truncated": csr("pump-07")[:-10],
    "a weak curve": built(named("pump-07"), ec.generate_private_key(ec.SECP224R1())),
    "a weak RSA key": built(named("pump-07"), rsa.generate_private_key(65537, 1024)),
    "an exponent of 3": built(named("pump-07"), rsa.generate_private_key(3, 2048)),
    "SHA-1": openssl_request("-sha1"),
    "a bad signature": _bad_signature(),
    "two names": built(named("pump-07", "pump-08"), new_key()),
    "no name": built(x509.Name([]), new_key()),
    "a wildcard": built(named("pump/+/#"), new_key()),
    "upper case": built(named("Pump-07"), new_key()),
    "a newline": built(named("pump-07\n"), new_key()),
    "an organisation": built(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "pump-07")]), new_key()),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_request_that_cannot_be_signed_gets_400_and_keeps_the_token(office: Office, name: str) -> None:
    """A bad request is signed, breaks the service, burns the token, or counts as a break-in."""
    token = office.invite("pump-07")
    for _ in range(40):
        response = office.enrol(token, BAD_REQUESTS[name])
        assert 400 == response.status, response.body
        assert response.headers["Content-Type"].startswith("text/plain")
    assert 1 == uses_left(office, token)
    certificate_in(office.enrol(token, csr("pump-07")))


@pytest.mark.parametrize("wrapping", ["wrapped", "unwrapped", "pem", "crlf"])
def test_every_base64_that_clients_send_is_read(office: Office, wrapping: str) -> None:
    """curl, libest, openssl or mbedTLS cannot enrol."""
    der = csr("pump-07")
    bodies = {
        "wrapped": base64.encodebytes(der),
        "unwrapped": base64.b64encode(der),
        "pem": x509.load_der_x509_csr(der).public_bytes(Encoding.PEM),
        "crlf": base64.encodebytes(der).replace(b"\n", b"\r\n"),
    }
    certificate_in(office.app.handle(enrolment_request(office.invite("pump-07"), bodies[wrapping])))


@pytest.mark.parametrize("body", [b"!!!!", b"AAA", b"\xff\xfe", b"-----BEGIN CERTIFICATE REQUEST-----"])
def test_broken_base64_is_refused(office: Office, body: bytes) -> None:
    """A truncated upload breaks the service."""
    assert 400 == office.app.handle(enrolment_request(office.invite("pump-07"), body)).status


def test_null_parameters_behind_the_algorithm_work(office: Office) -> None:
    """mbedTLS 2.28 and tpm2-openssl devices cannot enrol."""
    plain, with_null = bytes.fromhex("300a06082a8648ce3d040302"), bytes.fromhex("300c06082a8648ce3d0403020500")
    der = csr("pump-07")
    assert b"\x30\x81" == der[:2]
    inner = der[3:].replace(plain, with_null)
    wire = b"\x30\x81" + len(inner).to_bytes(1) + inner
    assert len(der) + 2 == len(wire)
    certificate_in(office.enrol(office.invite("pump-07"), wire))


def test_413_and_415_come_before_401(office: Office) -> None:
    """Strangers make the service look at what it will not take."""
    body = est.encode_body(csr("pump-07"))
    too_large = enrolment_request(None, b"x" * (est.MAX_BODY_BYTES + 1))
    assert 413 == office.app.handle(too_large).status
    assert 415 == office.app.handle(enrolment_request(None, body, headers={"content-type": "text/plain"})).status
    assert 415 == office.app.handle(enrolment_request(None, body, headers={})).status


def test_a_name_in_use_is_refused_with_words(office: Office) -> None:
    """A second device takes the first one's name."""
    token = office.invite(pattern="pump-*", uses=2)
    certificate_in(office.enrol(token, csr("pump-07")))
    response = office.enrol(token, csr("pump-07"))
    assert 403 == response.status
    assert b"pump-07 has an identity already" in response.body


def test_a_key_is_certified_once(office: Office) -> None:
    """Two principals share a key, and either can be the other."""
    key = new_key()
    certificate_in(office.enrol(office.invite("pump-07"), csr("pump-07", key)))
    assert 403 == office.enrol(office.invite("pump-08"), csr("pump-08", key)).status


def test_replace_begins_a_new_epoch_and_ends_the_old_certificate(office: Office) -> None:
    """A replaced device's predecessor stays connected, or sessions of the predecessor are handed on."""
    old = office.enrolled("pump-07")
    new = office.enrolled("pump-07", replace=True)
    with office.registry.read() as transaction:
        entry = feed.entry_of(transaction, PUMP)
    assert entry is not None
    assert (2, {pki.serial_of(new)}) == (entry.epoch, set(entry.serials))
    assert 403 == office.get(est.CONFIG, old).status


def test_a_revoked_name_comes_back_only_by_a_new_replace_token(office: Office) -> None:
    """Revoking is undone by a token that was made before."""
    office.enrolled("pump-07")
    before = office.invite("pump-07", replace=True)
    office.revoke("pump-07")
    assert 401 == office.enrol(before, csr("pump-07")).status
    certificate_in(office.enrol(office.invite("pump-07", replace=True), csr("pump-07")))


def test_a_name_never_changes_role(office: Office) -> None:
    """An operator's name is taken by a device."""
    from fleet.errors import Denied

    with pytest.raises(Denied):
        office.invite("admin", replace=True)
    token = office.invite(pattern="*")
    assert 403 == office.enrol(token, csr("admin")).status


def test_reenrolment_keeps_the_names_and_takes_a_new_key(office: Office) -> None:
    """A device cannot renew, or becomes another."""
    first = office.enrolled("pump-07")
    second = certificate_in(office.reenrol(first, csr("pump-07")))
    assert first.subject == second.subject
    assert pki.extension(first, x509.SubjectAlternativeName) == pki.extension(second, x509.SubjectAlternativeName)
    assert first.public_key() != second.public_key()


def _live(office: Office) -> list[str]:
    with office.registry.read() as transaction:
        return [
            f"{certificate.generation} {certificate.state}"
            for certificate in identity.live_certificates_of(transaction, PUMP)
        ]


def test_one_confirmed_and_one_pending_serial_at_most(office: Office) -> None:
    """Every renewal leaves a key behind that still connects."""
    first = office.enrolled("pump-07")
    assert ["1 confirmed"] == _live(office)
    office.reenrol(first, csr("pump-07"))
    assert ["1 confirmed", "2 pending"] == _live(office)
    second = certificate_in(office.reenrol(first, csr("pump-07")))
    assert ["1 confirmed", "3 pending"] == _live(office)
    office.reenrol(second, csr("pump-07"))
    assert ["3 confirmed", "4 pending"] == _live(office)
    assert 403 == office.reenrol(first, csr("pump-07")).status


def test_a_repeated_reenrolment_gets_the_same_certificate(office: Office) -> None:
    """A device whose reply was lost has a generation that it does not know of."""
    first, request = office.enrolled("pump-07"), csr("pump-07")
    assert certificate_in(office.reenrol(first, request)) == certificate_in(office.reenrol(first, request))


def test_reenrolment_refuses_the_old_key_and_another_name(office: Office) -> None:
    """A stolen key lives for ever, or a device renames itself."""
    key = new_key()
    first = certificate_in(office.enrol(office.invite("pump-07"), csr("pump-07", key)))
    assert 403 == office.reenrol(first, csr("pump-07", key)).status
    assert 403 == office.reenrol(first, csr("pump-08")).status


def test_a_revoked_or_suspended_device_does_nothing(office: Office) -> None:
    """A revoked device renews, or a suspended one asks on."""
    from enroll import service

    certificate = office.enrolled("pump-07")
    service.suspend(office.registry, PUMP, by="test", now=office.now)
    assert 403 == office.get(est.CONFIG, certificate).status
    service.resume(office.registry, PUMP, by="test", now=office.now)
    assert 200 == office.get(est.CONFIG, certificate).status
    office.revoke("pump-07")
    assert 403 == office.get(est.CONFIG, certificate).status
    assert 403 == office.reenrol(certificate, csr("pump-07")).status


def test_what_needs_a_certificate_says_so(office: Office) -> None:
    """A request without a client certificate is served."""
    assert [401, 401, 401] == [
        office.reenrol(None, csr("pump-07")).status,
        office.get(est.CONFIG).status,
        office.get(directory.PATH, serial="1").status,
    ]


def test_config_tells_a_principal_its_brokers_and_groups(office: Office) -> None:
    """A device does not find its broker."""
    certificate = office.enrolled("pump-07", groups=("north",))
    expected = {
        "v": 1,
        "brokers": ["mqtts://localhost:8883"],
        "groups": ["north"],
        "limits": {"max_telemetry_bytes": 131072},
    }
    assert expected == json.loads(office.get(est.CONFIG, certificate).body)


def test_only_brokers_read_the_directory(office: Office) -> None:
    """A device learns who else is in the fleet."""
    device = office.enrolled("pump-07")
    broker = x509.load_pem_x509_certificate(office.home.broker_client.certificate.read_bytes())
    serial = pki.serial_of(device)
    assert 403 == office.get(directory.PATH, device, serial=serial).status
    entry = directory.decode(office.get(directory.PATH, broker, serial=serial).body)
    assert isinstance(entry, directory.Entry)
    assert entry.admits(serial)
    assert (Role.DEVICE, PUMP) == (entry.principal.role, entry.principal.id)
    assert 404 == office.get(directory.PATH, broker, serial="1").status
    assert 400 == office.get(directory.PATH, broker, serial="xyz").status


def test_cacerts_has_the_root_and_both_issuing_cas(office: Office) -> None:
    """A client cannot build the chain."""
    response = office.get(est.CACERTS)
    assert est.PKCS7 == response.headers["Content-Type"]
    assert "base64" == response.headers["Content-Transfer-Encoding"]
    certificates = set(est.decode_certificates(response.body))
    assert set(office.authority.certificates) == certificates


def test_csrattrs_asks_for_p256_and_sha256(office: Office) -> None:
    """A client that asks first makes a key that is refused."""
    attributes, rest = decode(base64.b64decode(office.get(est.CSRATTRS).body), asn1Spec=rfc7030.CsrAttrs())
    assert not rest
    assert "1.2.840.10045.2.1" == str(attributes[0]["attribute"]["attrType"])
    assert "1.2.840.10045.4.3.2" == str(attributes[1]["oid"])


@pytest.mark.parametrize("name", ["serverkeygen", "fullcmc"])
def test_keys_are_never_made_here(office: Office, name: str) -> None:
    """A client believes that the service would make its key."""
    response = office.app.handle(EstRequest("POST", f"{est.BASE}/{name}"))
    assert 404 == response.status
    assert b"keys never leave the device" in response.body


def test_requests_that_come_together_are_answered_each_for_itself(office: Office) -> None:
    """One bad request spoils the others', or two with one token both get in."""
    shared = office.invite("pump-01")
    requests = [
        enrolment_request(shared, est.encode_body(csr("pump-01"))),
        enrolment_request(office.invite("pump-02"), b"rubbish"),
        enrolment_request(shared, est.encode_body(csr("pump-01"))),
        enrolment_request(office.invite("pump-03"), est.encode_body(csr("pump-03"))),
        EstRequest("GET", est.HEALTH),
    ]
    assert [200, 400, 401, 200, 200] == [answer.status for answer in office.app.handle_all(requests)]
    with office.registry.read() as transaction:
        ids = {record.id for record in identity.list_principals(transaction, Role.DEVICE)}
        assert first_broken(log.entries(transaction)) is None
    assert {"pump-01", "pump-03"} == ids


def test_other_methods_and_paths_are_refused(office: Office) -> None:
    """A wrong request is served, or breaks the service."""
    assert (405, "POST") == (
        (response := office.get(est.SIMPLE_ENROLL)).status,
        response.headers["Allow"],
    )
    assert 404 == office.get("/").status
    assert 404 == office.app.handle(EstRequest("BREW", "/coffee")).status
