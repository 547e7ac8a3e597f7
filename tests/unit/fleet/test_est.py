"""CSR and PKCS#7 codecs, with requests as others make them."""

import base64
import warnings

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from pyasn1.codec.der import decoder, encoder
from pyasn1.type.char import PrintableString
from pyasn1.type.univ import BitString
from pyasn1_modules import rfc2985, rfc2986

from fleet import est
from fleet.errors import FleetError
from fleet.identity import DeviceId, InvalidDeviceId
from fleet.pki import WeakKey, check_public_key, spki
from tests.fleets import NOW

_KEY = ec.generate_private_key(ec.SECP256R1())
_DER = est.build_csr(_KEY, DeviceId("pump-07"))


def _csr(
    *names: str,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = _KEY,
    algorithm: hashes.HashAlgorithm | None = None,
) -> bytes:
    with warnings.catch_warnings(action="ignore"):  # names past X.520's bounds are wanted here
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name, _validate=False) for name in names])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(key, algorithm or hashes.SHA256()).public_bytes(Encoding.DER)  # type: ignore[arg-type]


def _with_null_parameters(der: bytes) -> bytes:
    """The request as mbedTLS 2.28 writes it: NULL behind ecdsa-with-SHA256, both outer lengths two longer."""
    oid = bytes.fromhex("06082a8648ce3d040302")
    at = der.rindex(b"\x30\x0a" + oid)
    body = der[:at] + b"\x30\x0c" + oid + b"\x05\x00" + der[at + 12 :]
    assert body[1] == 0x81, "the test's request has a length of one byte"
    return body[:2] + bytes([body[2] + 2]) + body[3:]


def _with_challenges(*attributes: tuple[str, ...]) -> bytes:
    """A request with a challengePassword attribute for each, and each with so many values."""
    request, _ = decoder.decode(_DER, asn1Spec=rfc2986.CertificationRequest())
    info = request["certificationRequestInfo"]
    for number, values in enumerate(attributes):
        attribute = rfc2986.Attribute()
        attribute["type"] = rfc2985.pkcs_9_at_challengePassword
        for position, value in enumerate(values):
            attribute["values"][position] = encoder.encode(PrintableString(value))
        info["attributes"][number] = attribute
    signature = _KEY.sign(encoder.encode(info), ec.ECDSA(hashes.SHA256()))
    request["signature"] = BitString.fromOctetString(signature)
    return bytes(encoder.encode(request))


def test_a_challenge_is_read_and_compared_whole() -> None:
    """A request is taken on a connection that it was not made for."""
    csr = est.parse_csr(_with_challenges(("AAEC",)))
    assert b"AAEC" == csr.challenge
    est.check_connection(csr, bytes(range(3)))
    for binding in (None, b"", bytes(range(2)), bytes(range(4)), b"AAEC"):
        with pytest.raises(est.InvalidCsr):
            est.check_connection(csr, binding)
    est.check_connection(est.parse_csr(_DER), None)


@pytest.mark.parametrize("challenges", [[("AAEC",), ("AAED",)], [("AAEC",), ("AAEC",)], [("AAEC", "AAED")], [()]])
def test_a_request_is_made_for_one_connection(challenges: list[tuple[str, ...]]) -> None:
    """A second value beside the right one is passed over, or fails the service."""
    with pytest.raises(est.InvalidCsr):
        est.parse_csr(_with_challenges(*challenges))


def test_a_request_of_ours_is_read() -> None:
    """The agent's own request is refused."""
    for key in (_KEY, ed25519.Ed25519PrivateKey.generate()):
        csr = est.parse_csr(est.build_csr(key, DeviceId("pump-07")))
        assert csr.device == "pump-07"
        assert spki(csr.public_key) == spki(key.public_key())


def test_null_parameters_are_taken_out() -> None:
    """A device with mbedTLS 2.28 or tpm2-openssl cannot enrol."""
    theirs = _with_null_parameters(_DER)
    assert est.without_null_parameters(theirs) == _DER
    assert est.parse_csr(theirs).device == "pump-07"
    assert est.without_null_parameters(_DER) == _DER


def test_rsa_keeps_its_null() -> None:
    """The NULL that RFC 4055 asks of RSA is taken out too."""
    der = _csr("pump-07", key=rsa.generate_private_key(65_537, 2048))
    assert est.without_null_parameters(der) == der
    assert est.parse_csr(der).device == "pump-07"


def test_bodies_as_others_send_them() -> None:
    """Wrapped base64, unwrapped base64, or PEM is refused (RFC 8951, 3.1)."""
    plain = base64.b64encode(_DER)
    pem = b"-----BEGIN CERTIFICATE REQUEST-----\n" + est.encode_body(_DER) + b"-----END CERTIFICATE REQUEST-----\n"
    for body in (plain, est.encode_body(_DER), est.encode_body(_DER).replace(b"\n", b"\r\n"), pem):
        assert est.decode_body(body) == _DER


@pytest.mark.parametrize("body", [b"", b"\n", b"====", b"a", b"ab!c", _DER])
def test_bodies_that_are_not_base64(body: bytes) -> None:
    """Broken base64 is taken for something."""
    with pytest.raises(est.InvalidCsr):
        est.decode_body(body)


def test_signatures_that_prove_nothing() -> None:
    """A request with a foreign, damaged or SHA-1 signature is signed."""
    damaged = _DER[:-1] + bytes([_DER[-1] ^ 1])
    with pytest.raises(est.InvalidCsr):
        est.parse_csr(damaged)
    swapped = _DER.replace(b"pump-07", b"pump-08")
    with pytest.raises(est.InvalidCsr, match="does not fit its key"):
        est.parse_csr(swapped)


@pytest.mark.parametrize("names", [[], ["a", "b"], ["A"], ["a/b"], ["+"], ["x" * 64 + "-"], ["a\u00e4"]])
def test_subjects_that_are_not_one_device_id(names: list[str]) -> None:
    """A subject that is not just one device id gets a certificate."""
    with pytest.raises(InvalidDeviceId):
        est.parse_csr(_csr(*names))


def test_weak_keys() -> None:
    """A key that DESIGN section 4 does not allow gets a certificate."""
    for key in (ec.generate_private_key(ec.SECP256K1()), ec.generate_private_key(ec.SECP224R1())):
        with pytest.raises(WeakKey):
            est.parse_csr(_csr("a", key=key))
    with pytest.raises(WeakKey):
        est.parse_csr(_csr("a", key=rsa.generate_private_key(65_537, 1024)))
    with pytest.raises(WeakKey):
        check_public_key(ed448.Ed448PrivateKey.generate().public_key())


@given(st.binary(max_size=400))
def test_bytes_raise_only_what_the_wire_can_say(data: bytes) -> None:
    """A hostile body ends in a 500."""
    for parse in (est.decode_body, est.parse_csr):
        try:
            parse(data)
        except FleetError:
            continue


@given(st.integers(0, len(_DER) - 1), st.integers(0, 255))
def test_one_changed_byte_is_never_another_identity(at: int, byte: int) -> None:
    """A damaged request yields a certificate for something that its key did not sign."""
    try:
        csr = est.parse_csr(_DER[:at] + bytes([byte]) + _DER[at + 1 :])
    except FleetError:
        return
    assert csr.device == "pump-07"
    assert spki(csr.public_key) == spki(_KEY.public_key())


@given(st.binary(max_size=200))
def test_answers_raise_only_value_errors(data: bytes) -> None:
    """A hostile service ends the agent with a traceback."""
    with pytest.raises(ValueError, match=r".*"):
        est.decode_certificates(data)


@given(st.integers(0, 300))
def test_one_certificate_is_wrapped_as_many_are(filling: int) -> None:
    """A device cannot read the certificate that it was given, for some lengths of it."""
    builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(x509.Name([]))
    builder = builder.public_key(_KEY.public_key()).serial_number(1).not_valid_before(NOW).not_valid_after(NOW)
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), bytes(filling))
    certificate = builder.add_extension(extension, critical=False).sign(_KEY, hashes.SHA256())
    wrapped = est.encode_certificate(certificate.public_bytes(Encoding.DER))
    assert est.encode_certificates([certificate]) == wrapped
    assert [certificate] == est.decode_certificates(wrapped)
