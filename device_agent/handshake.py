"""What passes in a TLS handshake, read from its messages (RFC 8446, section 4; RFC 5246, section 7.4; RFC 8422).

For `explain` alone: nothing is decided by it. What is not understood is left out, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

HANDSHAKE: Final = 22
ALERT: Final = 21


class Kind(IntEnum):
    """Handshake types."""

    CLIENT_HELLO = 1
    SERVER_HELLO = 2
    NEW_SESSION_TICKET = 4
    ENCRYPTED_EXTENSIONS = 8
    CERTIFICATE = 11
    SERVER_KEY_EXCHANGE = 12
    CERTIFICATE_REQUEST = 13
    SERVER_HELLO_DONE = 14
    CERTIFICATE_VERIFY = 15
    CLIENT_KEY_EXCHANGE = 16
    FINISHED = 20

    @property
    def title(self) -> str:
        """As the RFCs write it: ServerHello."""
        return self.name.title().replace("_", "")


GROUPS: Final = {
    0x0017: "secp256r1",
    0x0018: "secp384r1",
    0x0019: "secp521r1",
    0x001D: "x25519",
    0x001E: "x448",
    0x11EB: "SecP256r1MLKEM768",
    0x11EC: "X25519MLKEM768",
}
SIGNATURES: Final = {
    0x0401: "rsa_pkcs1_sha256",
    0x0403: "ecdsa_secp256r1_sha256",
    0x0501: "rsa_pkcs1_sha384",
    0x0503: "ecdsa_secp384r1_sha384",
    0x0603: "ecdsa_secp521r1_sha512",
    0x0804: "rsa_pss_rsae_sha256",
    0x0805: "rsa_pss_rsae_sha384",
    0x0806: "rsa_pss_rsae_sha512",
    0x0807: "ed25519",
    0x0808: "ed448",
}
ALERTS: Final = {
    0: "close_notify",
    40: "handshake_failure",
    42: "bad_certificate",
    43: "unsupported_certificate",
    44: "certificate_revoked",
    45: "certificate_expired",
    46: "certificate_unknown",
    48: "unknown_ca",
    49: "access_denied",
    70: "protocol_version",
    80: "internal_error",
    112: "unrecognized_name",
    116: "certificate_required",
}
_KEY_SHARE: Final = 51
_NAMED_CURVE: Final = 3


@dataclass(frozen=True, slots=True)
class Message:
    """One handshake message, its header of four bytes included."""

    is_ours: bool
    kind: Kind
    data: bytes = field(repr=False)

    @property
    def body(self) -> bytes:
        return self.data[4:]


@dataclass(slots=True)
class Trace:
    """All that passed in one handshake, in its order, and the alerts."""

    messages: list[Message] = field(default_factory=list)
    alerts: list[tuple[bool, str]] = field(default_factory=list)

    def record(self, is_ours: bool, content_type: int, data: bytes) -> None:
        """Take what the TLS library hands over; records of other kinds are not kept."""
        if content_type == ALERT and len(data) == 2:
            self.alerts.append((is_ours, ALERTS.get(data[1], f"alert {data[1]}")))
        elif content_type == HANDSHAKE and data and data[0] in Kind.__members__.values():
            self.messages.append(Message(is_ours, Kind(data[0]), data))

    def find(self, kind: Kind, *, ours: bool) -> Message | None:
        return next((each for each in self.messages if each.kind is kind and each.is_ours is ours), None)

    @property
    def is_tls13(self) -> bool:
        """A TLS 1.3 ServerHello has a key share, and TLS 1.2 has a message of its own for it."""
        return self.find(Kind.SERVER_KEY_EXCHANGE, ours=False) is None and self.key_group is not None

    @property
    def key_group(self) -> str | None:
        """The group of the ephemeral keys."""
        exchange = self.find(Kind.SERVER_KEY_EXCHANGE, ours=False)
        if exchange is not None:
            number = int.from_bytes(exchange.body[1:3]) if exchange.body[:1] == bytes([_NAMED_CURVE]) else 0
        else:
            hello = self.find(Kind.SERVER_HELLO, ours=False)
            number = _key_share(hello.body) if hello is not None else 0
        return GROUPS.get(number, f"group 0x{number:04x}") if number else None

    def signature(self, *, ours: bool) -> str | None:
        """The algorithm with which one side proved that it holds its key."""
        verify = self.find(Kind.CERTIFICATE_VERIFY, ours=ours)
        if verify is not None:
            number = int.from_bytes(verify.body[:2])
        elif not ours and (exchange := self.find(Kind.SERVER_KEY_EXCHANGE, ours=False)) is not None:
            at = 4 + exchange.body[3] if len(exchange.body) > 3 else 0  # TLS 1.2: behind the server's ephemeral key
            number = int.from_bytes(exchange.body[at : at + 2])
        else:
            return None
        return SIGNATURES.get(number, f"0x{number:04x}")

    def certificates(self, *, ours: bool) -> list[bytes]:
        """The DER of each certificate that one side sent."""
        message = self.find(Kind.CERTIFICATE, ours=ours)
        return list(_certificates(message.body, self.is_tls13)) if message is not None else []


def _key_share(hello: bytes) -> int:
    """The group of the server's share; 0 without one (RFC 8446, 4.1.3 and 4.2.8)."""
    at = 2 + 32
    at += 1 + hello[at] if len(hello) > at else 0
    at += 2 + 1 + 2  # cipher suite, compression, length of the extensions
    while at + 4 <= len(hello):
        kind, size = int.from_bytes(hello[at : at + 2]), int.from_bytes(hello[at + 2 : at + 4])
        if kind == _KEY_SHARE:
            return int.from_bytes(hello[at + 4 : at + 6])
        at += 4 + size
    return 0


def _certificates(body: bytes, is_tls13: bool) -> Iterator[bytes]:
    """RFC 8446, 4.4.2 and RFC 5246, 7.4.2: 1.3 adds a context in front and extensions behind each."""
    at = 3 + (1 + body[0] if is_tls13 and body else 0)
    while at + 3 <= len(body):
        size = int.from_bytes(body[at : at + 3])
        der = body[at + 3 : at + 3 + size]
        if len(der) < size:
            return
        yield der
        at += 3 + size
        if is_tls13:
            at += 2 + int.from_bytes(body[at : at + 2])
