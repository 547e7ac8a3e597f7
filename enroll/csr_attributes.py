"""What EST's csrattrs asks of a request: a P-256 key and ECDSA with SHA-256 (RFC 7030, 4.5.2; RFC 9908, 3.2)."""

from __future__ import annotations

from pyasn1.codec.der.encoder import encode
from pyasn1.type.univ import ObjectIdentifier
from pyasn1_modules import rfc5480, rfc7030


def csr_attributes() -> bytes:
    """The DER of `CsrAttrs`: id-ecPublicKey with secp256r1, and ecdsa-with-SHA256."""
    key = rfc7030.AttrOrOID()
    key["attribute"]["attrType"] = rfc5480.id_ecPublicKey
    key["attribute"]["attrValues"][0] = encode(ObjectIdentifier(rfc5480.secp256r1))
    signature = rfc7030.AttrOrOID()
    signature["oid"] = rfc5480.ecdsa_with_SHA256
    attributes = rfc7030.CsrAttrs()
    attributes.extend([key, signature])
    return bytes(encode(attributes))
