"""Whose signature devices are to believe, as `/v1/config` says it and a device remembers it.

A chain is the certificate of a signing key, then the one that issued it, in DER. Whose they are is for whoever verifies
a message to find out (`fleet.downlink`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable
from typing import Final

from fleet.errors import InvalidInput

Chain = tuple[bytes, ...]

MAX_CHAINS: Final = 4
MAX_BYTES: Final = 131_072
_MAX_CERTIFICATES: Final = 3
_MAX_CERTIFICATE_CHARS: Final = 8192


def key_id_of(chain: Chain) -> str:
    """What a signature names its key by: the SHA-256 of the certificate (`x5t#S256`: RFC 7515, 4.1.8)."""
    return base64.urlsafe_b64encode(hashlib.sha256(chain[0]).digest()).rstrip(b"=").decode()


def to_json(chains: Iterable[Chain]) -> list[list[str]]:
    """As JSON carries them: base64 of DER (as `x5c`: RFC 7515, 4.1.6)."""
    return [[base64.b64encode(each).decode() for each in chain] for chain in chains]


def from_json(listed: object) -> tuple[Chain, ...]:
    """The inverse of `to_json`. Raises: InvalidInput."""
    if not isinstance(listed, list) or len(listed) > MAX_CHAINS:
        raise InvalidInput("signers is not a list of certificate chains")
    return tuple(map(_chain, listed))


def _chain(texts: object) -> Chain:
    if not isinstance(texts, list) or not 0 < len(texts) <= _MAX_CERTIFICATES:
        raise InvalidInput("a signer is not a certificate chain")
    return tuple(map(_certificate, texts))


def _certificate(text: object) -> bytes:
    if not isinstance(text, str) or not 0 < len(text) <= _MAX_CERTIFICATE_CHARS or not text.isascii():
        raise InvalidInput("a signer's certificate is not base64")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise InvalidInput("a signer's certificate is not base64") from error
