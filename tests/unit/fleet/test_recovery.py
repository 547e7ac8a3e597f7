"""The wire of recovery: what is written is read, and nothing else."""

from __future__ import annotations

import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from fleet import pki, recovery
from fleet.errors import InvalidInput
from fleet.identity import Serial
from fleet.recovery import Claim
from tests.fuzz.targets import recovery_claim

_KEY = ec.generate_private_key(ec.SECP256R1())
_DER = st.binary(min_size=1, max_size=300)
_NONCES = st.from_regex(r"[A-Za-z0-9_-]{22,128}", fullmatch=True)
_SERIALS = st.from_regex(r"[1-9a-f][0-9a-f]{0,39}", fullmatch=True).map(Serial)
CLAIM = Claim(Serial("5f"), "n" * 54, b"request", b"signature")


@given(_SERIALS, _NONCES, _DER, _DER)
def test_what_is_written_is_read(serial: Serial, nonce: str, csr: bytes, signature: bytes) -> None:
    """A device's request would not arrive as it was signed."""
    claim = Claim(serial, nonce, csr, signature)
    assert claim == recovery.decode_claim(claim.encode())
    assert nonce == recovery.decode_nonce(recovery.encode_nonce(nonce))


@pytest.mark.fuzz
@given(st.binary(max_size=400))
def test_any_body_is_a_claim_or_refused(body: bytes) -> None:
    """A stranger's body breaks the decoder."""
    recovery_claim(body)


@pytest.mark.fuzz
@given(
    st.sampled_from(["v", "serial", "nonce", "csr", "signature"]),
    st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=60),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=5,
    ),
)
def test_any_value_in_any_place_is_read_or_refused(name: str, value: object) -> None:
    """A claim whose shape is right but for one place ends in a traceback."""
    fields = json.loads(CLAIM.encode()) | {name: value}
    recovery_claim(json.dumps(fields).encode())


@pytest.mark.parametrize("name", ["v", "serial", "nonce", "csr", "signature"])
def test_nothing_may_be_missing(name: str) -> None:
    """A claim without a part of it means something."""
    fields = json.loads(CLAIM.encode())
    del fields[name]
    with pytest.raises(InvalidInput):
        recovery.decode_claim(json.dumps(fields).encode())


@pytest.mark.parametrize(
    "nonce", ["", "short", "n" * 129, "n" * 30 + "\n", "n" * 30 + "\nserial", "n" * 30 + "=", "ñ" * 30]
)
def test_a_nonce_cannot_change_what_is_signed(nonce: str) -> None:
    """A service has a device sign other lines than it means to."""
    for read, body in (
        (recovery.decode_nonce, {"v": 1, "nonce": nonce}),
        (recovery.decode_claim, json.loads(CLAIM.encode()) | {"nonce": nonce}),
    ):
        with pytest.raises(InvalidInput):
            read(json.dumps(body).encode())


def test_the_bounds() -> None:
    """A stranger sends more than anybody needs."""
    with pytest.raises(InvalidInput):
        recovery.decode_claim(Claim(Serial("5f"), "n" * 54, b"c" * 16_384, b"s").encode())
    with pytest.raises(InvalidInput):
        recovery.decode_claim(Claim(Serial("5f"), "n" * 54, b"c", b"s" * 513).encode())


@given(_DER, _DER, _NONCES, _NONCES, _DER, _DER)
def test_two_statements_are_never_the_same(a: bytes, b: bytes, m: str, n: str, x: bytes, y: bytes) -> None:
    """A signature for one device, nonce or request is good for another."""
    is_same = (a, m, x) == (b, n, y)
    assert is_same == (recovery.statement(a, m, x) == recovery.statement(b, n, y))


@pytest.mark.parametrize("key", [_KEY, ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()])
def test_a_signature_is_its_keys_and_its_statements(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey,
) -> None:
    """Anybody's signature is good, or one of something else."""
    said = recovery.statement(b"certificate", "n" * 54, b"request")
    signature = pki.sign(key, said)
    assert pki.is_signed(key.public_key(), said, signature)
    assert not pki.is_signed(key.public_key(), said + b" ", signature)
    assert not pki.is_signed(ec.generate_private_key(ec.SECP256R1()).public_key(), said, signature)
    assert not pki.is_signed(key.public_key(), said, b"rubbish")


def test_a_statement_is_nothing_that_a_key_signs_elsewhere() -> None:
    """A signature from a handshake, or of a request, would recover."""
    said = recovery.statement(b"certificate", "n" * 54, b"request")
    assert said.startswith(b"mqtt-fleet recovery 1\n")
    assert said[:1] not in (b" ", b"\x01", b"\x30")
