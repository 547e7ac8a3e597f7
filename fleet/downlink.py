"""What dispatch sends to a device carries a signature, and how it is written (docs/adr/0009-signed-down-link.md).

A message is its JSON object with one more member at its end, a JWS in compact form with detached, unencoded content
(RFC 7515, 7.1 and appendix F; RFC 7797):

    {"v":1,"id":"pump-07", ... ,"sig":"HEADER..SIGNATURE"}

The content that is signed is the topic, a NUL (which no topic has: MQTT 3.1.1, 1.5.3), and the object's bytes as they
are without that member. So nothing has to be made canonical, an agent that knows nothing of signatures reads the
message as it always did, and one that does acts on the very bytes that were verified.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from fleet import messages
from fleet.errors import InvalidInput
from fleet.messages import InvalidMessage

ALGORITHM: Final = "ES256"  # RFC 7518, 3.4: no other is made, and none is accepted
SIGNATURE_BYTES: Final = 64
MAX_SIGNED_BYTES: Final = messages.MAX_MESSAGE_BYTES + messages.MAX_SIGNATURE_BYTES
_MEMBER: Final = b',"sig":"'
_TAIL: Final = re.compile(rb',"sig":"([A-Za-z0-9_-]{1,400})\.\.([A-Za-z0-9_-]{86})"\}')
_MAX_HEADER_BYTES: Final = 300
_KEY_ID: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_LATEST: Final = 253_402_300_799  # the end of the year 9999, which is as far as dates go


@dataclass(frozen=True, slots=True)
class Signed:
    """A message taken apart; nothing of it has been verified.

    `protected` is the header as it was sent. It names the certificate whose key signed by its thumbprint (`key_id`;
    `x5t#S256`: RFC 7515, 4.1.8), and until when the message is good, in whole seconds.
    """

    body: bytes
    key_id: str
    until: datetime
    protected: bytes
    signature: bytes

    def content(self, topic: str) -> bytes:
        """What the signature is over, if this was sent on `topic`."""
        return signing_input(self.protected, topic, self.body)


def encode_header(key_id: str, until: datetime) -> bytes:
    """The protected header, as it stands in the message; of `until` the whole seconds."""
    fields = {
        "alg": ALGORITHM,
        "b64": False,
        "crit": ["b64"],  # RFC 7797, 6: who does not know b64 has to refuse
        "exp": int(until.timestamp()),
        "x5t#S256": key_id,
    }
    return to_base64url(messages.encode_object(fields))


def signing_input(protected: bytes, topic: str, body: bytes) -> bytes:
    """The bytes that are signed (RFC 7797, 3)."""
    return b"%b.%b\0%b" % (protected, topic.encode(), body)


def join(body: bytes, protected: bytes, signature: bytes) -> bytes:
    """The message: an object that has members, and its signature. Raises: ValueError for anything else."""
    if not (body.startswith(b"{") and body.endswith(b"}") and len(body) > 2):
        raise ValueError("only an object with members can be signed")
    if len(signature) != SIGNATURE_BYTES:
        raise ValueError(f"a signature has {SIGNATURE_BYTES} bytes")
    return b'%b%b%b..%b"}' % (body[:-1], _MEMBER, protected, to_base64url(signature))


def split(payload: bytes) -> Signed | None:
    """The inverse of `join`; None for a message without a signature that can be read."""
    at = payload.rfind(_MEMBER)
    found = _TAIL.fullmatch(payload, at) if at > 0 else None
    if found is None:
        return None
    try:
        key_id, until = _decode_header(found[1])
        return Signed(payload[:at] + b"}", key_id, until, found[1], _from_base64url(found[2]))
    except InvalidInput:
        return None


def _decode_header(protected: bytes) -> tuple[str, datetime]:
    """Raises: InvalidMessage for any but a header as `encode_header` makes it."""
    fields = messages.decode_object(_from_base64url(protected), max_bytes=_MAX_HEADER_BYTES)
    seconds, key_id = fields.get("exp"), fields.get("x5t#S256")
    if type(seconds) is not int or not 0 <= seconds <= _LATEST:
        raise InvalidMessage("exp is not a time")
    if not isinstance(key_id, str) or not _KEY_ID.fullmatch(key_id):
        raise InvalidMessage("x5t#S256 is not a thumbprint")
    until = datetime.fromtimestamp(seconds, UTC)
    if protected != encode_header(key_id, until):
        raise InvalidMessage("the header is not one of ours")
    return key_id, until


def to_base64url(data: bytes) -> bytes:
    """Base64url without padding (RFC 7515, 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _from_base64url(text: bytes) -> bytes:
    """The inverse of `to_base64url`, which writes everything in one way. Raises: InvalidMessage."""
    try:
        data = base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    except binascii.Error as error:
        raise InvalidMessage("it is not base64url") from error
    if to_base64url(data) != text:  # bits that nobody reads are none of ours
        raise InvalidMessage("it is not base64url as we write it")
    return data
