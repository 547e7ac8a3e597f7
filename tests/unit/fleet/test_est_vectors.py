"""Requests of every kind that openssl makes, as they were recorded (tests/vectors/record_csr.py)."""

from __future__ import annotations

import pytest

from fleet import est
from fleet.errors import FleetError
from fleet.est import InvalidCsr
from fleet.identity import InvalidDeviceId
from fleet.pki import WeakKey, spki
from tests.vectors.record_csr import CASES, HERE

REFUSED: dict[str, type[FleetError]] = {
    "p521": WeakKey,
    "secp256k1": WeakKey,
    "ed448": WeakKey,
    "rsa1024": WeakKey,
    "rsa-pss-key": WeakKey,
    "sha1": InvalidCsr,
    "teletex-name": InvalidDeviceId,
    "bmp-name": InvalidDeviceId,
    "two-names": InvalidDeviceId,
    "names-in-one": InvalidDeviceId,
    "organisation": InvalidDeviceId,
    "upper-case": InvalidDeviceId,
}
CHALLENGES = {"challenge": b"AAECAwQFBgcICQoL", "challenge-and-extensions": b"secret"}


def der_of(name: str) -> bytes:
    return est.decode_body((HERE / f"{name}.pem").read_bytes())


def test_every_kind_was_recorded() -> None:
    """A kind is listed and never tried."""
    assert {f"{name}.pem" for name in CASES} == {path.name for path in HERE.iterdir()}


@pytest.mark.parametrize("name", CASES)
def test_a_request_of_openssl_is_read_or_refused(name: str) -> None:
    """A device whose key and request are sound cannot enrol, or one whose are not can."""
    if (expected := REFUSED.get(name)) is not None:
        with pytest.raises(expected):
            est.parse_csr(der_of(name))
        return
    csr = est.parse_csr(der_of(name))
    assert ("pump-07", CHALLENGES.get(name)) == (csr.device, csr.challenge)


def test_the_key_is_certified_as_it_was_sent() -> None:
    """A device gets a certificate that does not fit its key."""
    taken = CASES.keys() - REFUSED.keys() - {"explicit-curve"}
    assert all(spki(est.parse_csr(der_of(name)).public_key) in der_of(name) for name in taken)


def test_a_curve_of_ones_own_is_not_p256() -> None:
    """A key on P-256 with another base point passes for one on P-256 (CVE-2020-0601)."""
    der = der_of("explicit-curve")
    base_point = bytes.fromhex("046b17d1f2e12c42")
    assert 1 == der.count(base_point)
    assert "pump-07" == est.parse_csr(der).device
    with pytest.raises(InvalidCsr, match="is not a PKCS#10"):  # and not: the signature does not fit
        est.parse_csr(der.replace(base_point, base_point[:-1] + b"\x43"))
