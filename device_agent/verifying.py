"""Whether a message was signed by a key that our root has certified for that (docs/adr/0009-signed-down-link.md)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from device_agent.verdicts import Verdict
from fleet import downlink, pki
from fleet.downlink import Signed
from fleet.identity import Signatory, is_signatory
from fleet.signers import Chain, key_id_of

_HALF: Final = downlink.SIGNATURE_BYTES // 2
_ECDSA: Final = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True, slots=True)
class _Signer:
    """A key that is ours by its chain, for as long as all of the chain is valid."""

    key: ec.EllipticCurvePublicKey
    chain: tuple[x509.Certificate, ...]

    def is_valid(self, now: datetime) -> bool:
        return all(each.not_valid_before_utc <= now <= each.not_valid_after_utc for each in self.chain)


class Verifier:
    """Judges messages by the roots of a device, and the chains that it was told of."""

    def __init__(self, roots: Iterable[x509.Certificate], chains: Iterable[Chain]) -> None:
        anchors = tuple(roots)
        self._signers = {key_id_of(chain): _signer_of(chain, anchors) for chain in chains}

    def judge(self, topic: str, payload: bytes, now: datetime) -> Verdict:
        """What is to be thought of a message that came on `topic`."""
        signed = downlink.split(payload)
        if signed is None:
            return Verdict.UNSIGNED
        if signed.key_id not in self._signers:
            return Verdict.UNKNOWN_SIGNER
        signer = self._signers[signed.key_id]
        if signer is None:
            return Verdict.SIGNER_NOT_OURS
        if not signer.is_valid(now):
            return Verdict.SIGNER_OUT_OF_DATE
        return Verdict.GOOD if _is_signed_by(signed, topic, signer.key) else Verdict.BAD_SIGNATURE


def _is_signed_by(signed: Signed, topic: str, key: ec.EllipticCurvePublicKey) -> bool:
    r, s = int.from_bytes(signed.signature[:_HALF]), int.from_bytes(signed.signature[_HALF:])
    try:
        key.verify(encode_dss_signature(r, s), signed.content(topic), _ECDSA)
    except InvalidSignature:
        return False
    return True


def _signer_of(chain: Chain, roots: tuple[x509.Certificate, ...]) -> _Signer | None:
    """The key of a chain of just the right shape: for this purpose, by a CA for servers, by one of our roots."""
    try:
        leaf, issuer = map(x509.load_der_x509_certificate, chain)
        problems = [*pki.violations(leaf, pki.DISPATCH_SIGNING), *pki.violations(issuer, pki.SERVERS_CA)]
    except ValueError:
        return None
    key, root = leaf.public_key(), next((each for each in roots if _is_issued_by(issuer, each)), None)
    if problems or root is None or not _is_issued_by(leaf, issuer) or not is_signatory(_uris(leaf), Signatory.DISPATCH):
        return None
    is_usable = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
    return _Signer(key, (leaf, issuer, root)) if is_usable and isinstance(key, ec.EllipticCurvePublicKey) else None


def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _uris(certificate: x509.Certificate) -> list[str]:
    found = pki.extension(certificate, x509.SubjectAlternativeName)
    return found.value.get_values_for_type(x509.UniformResourceIdentifier) if found else []
