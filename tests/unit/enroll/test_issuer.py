"""Every kind of certificate that the fleet issues."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from pkilint import loader
from pkilint.pkix import certificate as pkix
from pkilint.pkix import extension, name

from enroll import authority
from enroll.issuer import IssuerEnding, Misissued, check_lives, checked, client_names, issue_root, serial_number
from enroll.keys import KeySigner, new_key
from fleet import pki
from fleet.errors import FleetError, InvalidInput
from fleet.identity import DeviceId, Principal, Role, TrustDomain
from tests.fleets import CRL_URL, DOMAIN, NOW, Office, open_office

CAS = ("root", "devices CA", "servers CA")
SPIFFE_FINDING = "ERROR pkix.invalid_uri_syntax"  # docs/divergences.md

PKIX: Any = pkix  # not annotated
LINTER = PKIX.create_pkix_certificate_validator_container(
    PKIX.create_decoding_validators(name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS),
    [
        PKIX.create_issuer_validator_container([]),
        PKIX.create_validity_validator_container(),
        PKIX.create_subject_validator_container([]),
        PKIX.create_extensions_validator_container([]),
        PKIX.create_spki_validator_container([]),
    ],
)


def findings(certificate: x509.Certificate) -> set[str]:
    """What pkilint has to say, from notice upwards."""
    document = loader.load_certificate(certificate.public_bytes(Encoding.PEM).decode(), "issued")
    return {
        f"{found.finding.severity.name} {found.finding.code}"
        for result in LINTER.validate(document.root)
        for found in result.finding_descriptions
        if found.finding.severity.name not in ("INFO", "DEBUG")
    }


def issued_kinds(office: Office) -> dict[str, x509.Certificate]:
    home = office.home
    paths = {
        "root": home.root.certificate,
        "devices CA": home.devices_ca.certificate,
        "servers CA": home.servers_ca.certificate,
        "enrollment server": home.enroll_server.certificate,
        "broker server": home.broker_server.certificate,
        "broker": home.broker_client.certificate,
        "service": home.dispatch.certificate,
        "operator": home.operator.identity.certificate,
        "dispatch's signing key": home.dispatch_signing.certificate,
    }
    return {kind: authority.read_certificate(path) for kind, path in paths.items()}


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    """A fleet whose host has a domain name: pkilint takes `localhost` for none."""
    with open_office(tmp_path / "fleet", hosts=("gateway.local", "127.0.0.1", "::1")) as opened:
        yield opened


@pytest.fixture
def kinds(office: Office) -> dict[str, x509.Certificate]:
    """One certificate of every kind that the fleet issues."""
    test_profile = office.enrolled("pump-08", profile=pki.TEST_CLIENT.name)
    devices = {"device": office.enrolled("pump-07"), "a second device": office.enrolled("pump-09")}
    return issued_kinds(office) | devices | {"device, test profile": test_profile}


def test_every_kind_passes_pkilint(kinds: dict[str, x509.Certificate]) -> None:
    """Some TLS stack of a customer refuses our certificates for a reason that the RFC gives."""
    expected = {kind: set() if kind in CAS else {SPIFFE_FINDING} for kind in kinds}
    assert expected == {kind: findings(certificate) for kind, certificate in kinds.items()}


def test_the_linter_would_see_a_fault() -> None:
    """The test above passes because the linter looks at nothing."""
    key = new_key()
    subject = x509.Name([])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .sign(key, SHA256())
    )
    assert findings(certificate)


PURPOSES = {
    ("device", "sslclient"): True,
    ("device", "sslserver"): False,
    ("operator", "sslclient"): True,
    ("operator", "sslserver"): False,
    ("broker", "sslclient"): True,
    ("broker", "sslserver"): False,
    ("enrollment server", "sslserver"): True,
    ("enrollment server", "sslclient"): False,
    ("broker server", "sslserver"): True,
    ("broker server", "sslclient"): False,
    ("dispatch's signing key", "sslserver"): False,
    ("dispatch's signing key", "sslclient"): False,
}


def test_openssl_takes_each_leaf_for_its_purpose_and_no_other(
    office: Office, kinds: dict[str, x509.Certificate], tmp_path: Path
) -> None:
    """A device passes itself off as a server, or a server as a client."""
    cas = b"".join(office.home.path.joinpath("ca", f"{ca}.pem").read_bytes() for ca in ("devices", "servers"))
    (tmp_path / "issuing.pem").write_bytes(cas)
    verdicts = {}
    for kind, purpose in PURPOSES:
        leaf = tmp_path / "leaf.pem"
        leaf.write_bytes(kinds[kind].public_bytes(Encoding.PEM))
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-attime", str(int(NOW.timestamp()))]
        trust = ["-CAfile", str(office.home.root.certificate), "-untrusted", str(tmp_path / "issuing.pem"), str(leaf)]
        verdicts[kind, purpose] = subprocess.run([*command, *trust], capture_output=True).returncode == 0
    assert PURPOSES == verdicts


def test_a_leaf_of_the_wrong_ca_is_nothing(office: Office) -> None:
    """A stolen devices CA makes servers."""
    names = client_names(DOMAIN, Principal(Role.DEVICE, DeviceId("pump-07")))
    forged = office.authority.devices.issue(pki.CLIENT, new_key().public_key(), names, serial=7, shard=1, now=NOW)
    with pytest.raises(Misissued):
        checked(forged, pki.CLIENT, office.authority.servers.certificate)


def issue(office: Office, **changes: object) -> x509.Certificate:
    names = client_names(DOMAIN, Principal(Role.DEVICE, DeviceId("pump-07")))
    profile = changes.pop("profile", pki.CLIENT)
    assert isinstance(profile, pki.Profile)
    fields: dict[str, Any] = {"serial": 7, "shard": 3, "now": NOW} | changes
    return office.authority.devices.issue(profile, new_key().public_key(), names, **fields)


def test_life_counts_from_issuance_and_is_backdated_a_little(office: Office) -> None:
    """A device with a slow clock is refused, or a certificate ends early."""
    certificate = issue(office)
    assert (NOW - timedelta(hours=1), NOW + timedelta(days=90)) == (
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )
    short = issue(office, profile=pki.TEST_CLIENT, life=timedelta(seconds=30))
    assert (NOW - timedelta(seconds=3), NOW + timedelta(seconds=30)) == (
        short.not_valid_before_utc,
        short.not_valid_after_utc,
    )


@pytest.mark.parametrize("life", [timedelta(minutes=59), timedelta(days=398)])
def test_a_life_outside_the_profile_is_refused(office: Office, life: timedelta) -> None:
    """A certificate lives for ever."""
    with pytest.raises(FleetError, match="a client certificate lives"):
        issue(office, life=life)


def test_the_distribution_point_names_the_shard(office: Office) -> None:
    """A certificate cannot be looked up on any CRL."""
    points = pki.extension(issue(office), x509.CRLDistributionPoints)
    assert points is not None
    (point,) = points.value
    assert [x509.UniformResourceIdentifier("http://localhost:8080/crl/3.crl")] == point.full_name


def test_an_issuer_with_less_than_two_lives_left_issues_no_more(office: Office) -> None:
    """The last certificates of a CA outlive it, and their devices with them."""
    ends = office.authority.devices.certificate.not_valid_after_utc
    last = ends - 2 * pki.CLIENT.max_life
    issue(office, now=last)
    with pytest.raises(IssuerEnding):
        issue(office, now=last + timedelta(seconds=1))


def test_a_ca_never_outlives_its_root(office: Office) -> None:
    """A chain is valid in part."""
    made = authority.create(DOMAIN, CRL_URL, now=NOW, token_bytes=random.Random(1).randbytes)
    for issuing in (made.authority.devices, made.authority.servers):
        assert issuing.certificate.not_valid_after_utc <= made.authority.root.not_valid_after_utc
        assert issuing.certificate.not_valid_before_utc >= made.authority.root.not_valid_before_utc


@pytest.mark.parametrize("make", [ed25519.Ed25519PrivateKey.generate, lambda: ec.generate_private_key(ec.SECP384R1())])
def test_other_strong_keys_sign_too(make: Callable[[], pki.PrivateKey]) -> None:
    """A root on Ed25519 or P-384 cannot be made."""
    assert (
        "x"
        == issue_root(KeySigner(make()), "x", serial=1, now=NOW)
        .subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0]
        .value
    )


@given(st.binary(min_size=20, max_size=20))
def test_serials_are_positive_and_fit(random_bytes: bytes) -> None:
    """A serial is zero or has 21 octets, and strict parsers refuse the certificate (RFC 5280, 4.1.2.2)."""
    assert 0 < serial_number(random_bytes) < 1 << 159


def test_names_of_two_cas_stay_apart_in_a_long_domain() -> None:
    """Two CAs of one name: a chain is built over the wrong one."""
    made = authority.create(TrustDomain("a" * 255), CRL_URL, now=NOW, token_bytes=random.Random(1).randbytes)
    subjects = {certificate.subject.rfc4514_string() for certificate in made.authority.certificates}
    assert 3 == len(subjects)


@pytest.mark.parametrize(("name", "life"), [("client", 30), ("client", 400 * 86_400), ("test", 29), ("server", 86_400)])
def test_a_life_that_no_certificate_may_have_is_refused(name: str, life: int) -> None:
    """The first device to enrol would find out, in the field."""
    with pytest.raises(InvalidInput, match=r"fleet\.toml"):
        check_lives({name: timedelta(seconds=life)})
    check_lives({"client": timedelta(days=30), "test": timedelta(seconds=30)})
