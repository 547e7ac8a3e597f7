"""How a device whose certificate has expired gets the next one: the wire, both sides, and what is signed.

    GET  /v1/recover/nonce   200 {"v": 1, "nonce": TEXT}        good for NONCE_SECONDS, for one request, at this service
    POST /v1/recover         {"v": 1, "serial": HEX, "nonce": TEXT, "csr": BASE64, "signature": BASE64}
                             200, 202 or an error, as simplereenroll answers

TLS knows the service alone: an expired certificate ends the handshake. `serial` is the expired certificate's, and its
key signs the `statement`, four lines of ASCII. They name the fleet, the device and the key (all are in the certificate
whose hash stands there), the service's own nonce, and the request, which its new key has signed. So whoever hears or
relays it all can do nothing but have the device's own certificate made once. Nothing else that the old key ever signs
begins like it: TLS signs what begins with spaces or with a 1 (RFC 8446, 4.4.3; RFC 5246, 7.4.8), PKCS#10 a SEQUENCE.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field
from typing import Final

from fleet import messages
from fleet.errors import InvalidInput
from fleet.identity import Serial

NONCE: Final = "/v1/recover/nonce"
RECOVER: Final = "/v1/recover"
MEDIA_TYPE: Final = "application/json"
NONCE_SECONDS: Final = 120.0
"""Two connections over the worst link that the agent's own time-outs allow."""
SCHEME: Final = "Recovery"
"""What a 401 asks for, in `WWW-Authenticate`."""

_LABEL: Final = "mqtt-fleet recovery 1"
_NONCE: Final = re.compile(r"[A-Za-z0-9_-]{22,128}")
_MAX_BODY_BYTES: Final = 16_384
_MAX_SIGNATURE_BYTES: Final = 512  # RSA 4096


class InvalidRecovery(InvalidInput):
    """The body is not a request for recovery, or not the answer to one for a nonce."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A request for recovery. Whether it is anybody's, its signature tells."""

    serial: Serial
    nonce: str
    csr: bytes
    signature: bytes = field(repr=False)

    def encode(self) -> bytes:
        fields = {
            "v": messages.VERSION,
            "serial": str(self.serial),
            "nonce": self.nonce,
            "csr": base64.b64encode(self.csr).decode(),
            "signature": base64.b64encode(self.signature).decode(),
        }
        return messages.encode_object(fields)


def decode_claim(body: bytes) -> Claim:
    """The inverse of `Claim.encode`. Raises: InvalidInput."""
    fields = _object(body)
    signature = _bytes(fields, "signature")
    if len(signature) > _MAX_SIGNATURE_BYTES:
        raise InvalidRecovery(f"signature has more than {_MAX_SIGNATURE_BYTES} bytes")
    return Claim(Serial(_text(fields, "serial")), _nonce(fields), _bytes(fields, "csr"), signature)


def encode_nonce(nonce: str) -> bytes:
    """The answer to whoever asks for a nonce."""
    return messages.encode_object({"v": messages.VERSION, "nonce": nonce})


def decode_nonce(body: bytes) -> str:
    """The inverse of `encode_nonce`: nothing that could end a line of the statement. Raises: InvalidInput."""
    return _nonce(_object(body))


def statement(certificate: bytes, nonce: str, csr: bytes) -> bytes:
    """What the expired certificate's key signs; `certificate` and `csr` are DER."""
    hashed = (hashlib.sha256(certificate).hexdigest(), nonce, hashlib.sha256(csr).hexdigest())
    return "\n".join((_LABEL, *hashed)).encode("ascii")


def _object(body: bytes) -> messages.JsonObject:
    fields = messages.decode_object(body, max_bytes=_MAX_BODY_BYTES)
    if type(fields.get("v")) is not int or fields["v"] != messages.VERSION:
        raise InvalidRecovery(f"v is {str(fields.get('v'))[:20]!r}, this program reads {messages.VERSION}")
    return fields


def _text(fields: messages.JsonObject, name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise InvalidRecovery(f"{name} is missing, or is not a text")
    return value


def _nonce(fields: messages.JsonObject) -> str:
    text = _text(fields, "nonce")
    if not _NONCE.fullmatch(text):
        raise InvalidRecovery("nonce is not 22 to 128 letters, digits, - and _")
    return text


def _bytes(fields: messages.JsonObject, name: str) -> bytes:
    text = _text(fields, name)
    try:
        found = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise InvalidRecovery(f"{name} is not base64") from error
    if not found:
        raise InvalidRecovery(f"{name} is empty")
    return found
