"""The short way to a leaf certificate comes to what the long one does."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from enroll import authority
from enroll.issuer import Issuer, Misissued, client_names, issue_ca, issue_root
from enroll.keys import KeySigner, Signer, new_key
from enroll.leaf import Form, Leaf
from fleet import pki
from fleet.identity import DeviceId, Principal, Role
from tests.fleets import CRL_URL, DOMAIN, NOW
from tests.unit.fleet.strategies import device_ids

_SIGNERS: Final = tuple(
    KeySigner(key)
    for key in (
        new_key(),
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65_537, 2048),
    )
)
_KEYS = st.sampled_from([signer.public_key for signer in _SIGNERS])
_LAST: Final = datetime(2200, 1, 1, tzinfo=UTC)
_DATES = st.integers(0, int(_LAST.timestamp())).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
_NAMES = st.one_of(
    st.from_regex(r"spiffe://[a-z]{1,20}/[a-z]{1,90}", fullmatch=True).map(x509.UniformResourceIdentifier),
    st.from_regex(r"[a-z]{1,20}\.[a-z]{1,20}", fullmatch=True).map(x509.DNSName),
    st.ip_addresses().map(x509.IPAddress),
)
_SHARDS = st.integers(0, 10**9).map(lambda shard: x509.UniformResourceIdentifier(f"{CRL_URL}/{shard}.crl"))
_LEAVES: Final = st.builds(
    Leaf,
    st.text("abcäöü日本 '=+/", min_size=1, max_size=64).map(
        lambda name: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    ),
    _KEYS,
    st.integers(1, (1 << 159) - 1),
    _DATES,
    st.just(_LAST),
    st.lists(_NAMES, min_size=1, max_size=4).map(x509.SubjectAlternativeName),
    _SHARDS.map(lambda url: x509.CRLDistributionPoints([x509.DistributionPoint([url], None, None, None)])),
)


def builder(profile: pki.Profile) -> x509.CertificateBuilder:
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a CA")])
    made = x509.CertificateBuilder().issuer_name(issuer).add_extension(pki.key_usage(profile), critical=True)
    assert profile.extended_key_usage is not None
    return made.add_extension(x509.ExtendedKeyUsage([profile.extended_key_usage]), critical=False)


@given(_LEAVES, _LEAVES, st.sampled_from(_SIGNERS), st.sampled_from((pki.CLIENT, pki.SERVER, pki.DISPATCH_SIGNING)))
def test_a_form_that_is_filled_is_what_is_built(first: Leaf, leaf: Leaf, signer: Signer, profile: pki.Profile) -> None:
    """A device's certificate has a field of another one's, or one that no parser takes."""
    form = Form(signer.sign(first.built(builder(profile))))
    built = signer.sign(leaf.built(builder(profile)))
    filled = form.to_be_signed(leaf)
    assert built.tbs_certificate_bytes == filled
    certificate = form.signed(filled, signer.sign_bytes(filled))
    assert (filled, built.signature_algorithm_oid, built.signature_algorithm_parameters.__class__) == (
        certificate.tbs_certificate_bytes,
        certificate.signature_algorithm_oid,
        certificate.signature_algorithm_parameters.__class__,
    )
    assert pki.is_signed(signer.public_key, certificate.tbs_certificate_bytes, certificate.signature)


@given(
    st.lists(st.tuples(device_ids, _KEYS, st.integers(1, (1 << 159) - 1), st.integers(1, 9)), min_size=2, max_size=4)
)
def test_whatever_an_issuer_issues_is_of_its_profile(
    orders: list[tuple[DeviceId, pki.PublicKey, int, int]],
) -> None:
    """The first certificate after a start is right, and those that follow are not."""
    made = authority.create(DOMAIN, CRL_URL, now=NOW, token_bytes=random.Random(7).randbytes).authority.devices
    for device, key, serial, shard in orders:
        for profile in (pki.CLIENT, pki.TEST_CLIENT):
            names = client_names(DOMAIN, Principal(Role.DEVICE, device))
            found = made.issue(profile, key, names, serial=serial, shard=shard, now=NOW)
            assert [] == pki.violations(found, profile)
            found.verify_directly_issued_by(made.certificate)
            assert (serial, key, device) == (found.serial_number, found.public_key(), pki.common_name_of(found.subject))
            assert (NOW + profile.life).replace(microsecond=0) == found.not_valid_after_utc
            points = pki.extension(found, x509.CRLDistributionPoints)
            assert points is not None
            assert f"{CRL_URL}/{shard}.crl" in repr(points.value)


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize(
    "fields",
    [
        {"serial": 0},
        {"serial": -5},
        {"serial": 1 << 159},
        {"key": rsa.generate_private_key(65_537, 1024).public_key()},
        {"key": ec.generate_private_key(ec.SECP521R1()).public_key()},
        {"now": NOW - timedelta(days=400)},
    ],
)
def test_what_no_leaf_may_have_is_in_none(before: int, fields: dict[str, Any]) -> None:
    """The first certificate after a start is checked, and those that follow are not."""
    made = authority.create(DOMAIN, CRL_URL, now=NOW, token_bytes=random.Random(7).randbytes).authority.devices
    names = client_names(DOMAIN, Principal(Role.DEVICE, DeviceId("pump-07")))
    good: dict[str, Any] = {"key": new_key().public_key(), "names": names, "serial": 7, "shard": 1, "now": NOW}
    for _ in range(before):
        made.issue(pki.CLIENT, **good)
    with pytest.raises((Misissued, pki.WeakKey)):
        made.issue(pki.CLIENT, **(good | fields))


@dataclass
class Faulty:
    """A signer whose key, or the memory that it is in, is not what it was."""

    signer: Signer
    replaced: Signer | None = None

    @property
    def public_key(self) -> pki.PublicKey:
        return self.signer.public_key

    def sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        return (self.replaced or self.signer).sign(builder)

    def sign_bytes(self, data: bytes) -> bytes:
        return (self.replaced or self.signer).sign_bytes(data)

    def sign_crl(self, builder: x509.CertificateRevocationListBuilder) -> x509.CertificateRevocationList:
        return self.signer.sign_crl(builder)


@pytest.mark.parametrize("before", [0, 1])
def test_what_does_not_verify_reaches_nobody(before: int) -> None:
    """A faulty signature tells the CA's key to whoever has it, and connects nobody."""
    root, signer = KeySigner(new_key()), Faulty(KeySigner(new_key()))
    top = issue_root(root, "root", serial=1, now=NOW)
    own = issue_ca(pki.DEVICES_CA, top, root, signer.public_key, "devices", serial=2, now=NOW)
    devices = Issuer("devices", own, signer, CRL_URL)
    names = client_names(DOMAIN, Principal(Role.DEVICE, DeviceId("pump-07")))
    for serial in range(1, 1 + before):
        devices.issue(pki.CLIENT, new_key().public_key(), names, serial=serial, shard=1, now=NOW)
    signer.replaced = KeySigner(new_key())
    with pytest.raises(Misissued):
        devices.issue(pki.CLIENT, new_key().public_key(), names, serial=9, shard=1, now=NOW + timedelta(seconds=1))
