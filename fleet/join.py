"""The secrets that let a device in: the enrolment token, and the join code that carries it with all else to know.

A join code is `fleet1_` and lower-case base32 (RFC 4648, without padding) of

    version (1) | SHA-256 of the root's SubjectPublicKeyInfo (32) | token id (5) | secret (16) | URL | checksum (4)

where the checksum is the first four bytes of the SHA-256 of all before it: it catches typing errors, nothing else.
A token is `fleettok_` and base32 of token id and secret; it is the password of EST's HTTP Basic authentication.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from fleet.errors import InvalidInput
from fleet.identity import DeviceId

TOKEN_ID_BYTES: Final = 5
SECRET_BYTES: Final = 16
PIN_BYTES: Final = 32
_TOKEN_PREFIX: Final = "fleettok_"  # noqa: S105 - what secret scanners look for
_TOKEN_ID_CHARS: Final = TOKEN_ID_BYTES * 8 // 5  # no bit of the secret is in them
_TOKEN_CHARS: Final = -(-(TOKEN_ID_BYTES + SECRET_BYTES) * 8 // 5)
_CODE_PREFIX: Final = "fleet1_"
_VERSION: Final = b"\x01"
_CHECKSUM_BYTES: Final = 4
_MAX_CODE_CHARS: Final = 1024
_HINT = "ask for a new one: enroll token create"


class InvalidToken(InvalidInput):
    """Not an enrolment token."""


class InvalidJoinCode(InvalidInput):
    """Not a join code."""


@dataclass(frozen=True, slots=True)
class Token:
    """A one-time secret that allows an enrolment. Only `digest` is ever stored."""

    id: str
    secret: bytes = field(repr=False)

    def __str__(self) -> str:
        return _TOKEN_PREFIX + _base32(_unbase32(self.id) + self.secret)

    @property
    def digest(self) -> bytes:
        """What the registry keeps: SHA-256 is enough for 128 random bits (no dictionary can hold them)."""
        return hashlib.sha256(self.secret).digest()


def new_token(random_bytes: bytes) -> Token:
    """A token from TOKEN_ID_BYTES + SECRET_BYTES fresh random bytes."""
    if len(random_bytes) != TOKEN_ID_BYTES + SECRET_BYTES:
        raise ValueError(f"{TOKEN_ID_BYTES + SECRET_BYTES} bytes are needed")
    return Token(_base32(random_bytes[:TOKEN_ID_BYTES]), random_bytes[TOKEN_ID_BYTES:])


def parse_token(text: str) -> Token:
    """The inverse of `str(token)`. Raises: InvalidToken, which does not repeat the text."""
    try:
        if not text.startswith(_TOKEN_PREFIX) or len(text) != len(_TOKEN_PREFIX) + _TOKEN_CHARS:
            raise ValueError("prefix")
        body = text.removeprefix(_TOKEN_PREFIX)
        return Token(body[:_TOKEN_ID_CHARS], _unbase32(body)[TOKEN_ID_BYTES:])
    except ValueError as error:
        raise InvalidToken("this is not an enrolment token", hint=_HINT) from error


@dataclass(frozen=True, slots=True)
class JoinCode:
    """All that a device needs to enrol: where, whom to trust, and the token."""

    url: str
    root_pin: bytes
    token: Token

    def __post_init__(self) -> None:
        check_enroll_url(self.url)
        if len(self.root_pin) != PIN_BYTES:
            raise ValueError(f"a pin has {PIN_BYTES} bytes")

    def __str__(self) -> str:
        body = _VERSION + self.root_pin + _unbase32(self.token.id) + self.token.secret + self.url.encode()
        return _CODE_PREFIX + _base32(body + _checksum(body))


def parse_join_code(text: str) -> JoinCode:
    """The inverse of `str(code)`; white space and upper case from pasting are forgiven.

    Raises: InvalidJoinCode, which does not repeat the text.
    """
    folded = "".join(text.split()).lower()
    if not folded.startswith(_CODE_PREFIX) or len(folded) > _MAX_CODE_CHARS:
        raise InvalidJoinCode("this is not a join code: it starts with fleet1_", hint=_HINT)
    try:
        data = _unbase32(folded.removeprefix(_CODE_PREFIX))
        body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        if _checksum(body) != checksum or body[:1] != _VERSION:
            raise ValueError("checksum")
        pin, rest = body[1 : 1 + PIN_BYTES], body[1 + PIN_BYTES :]
        split = TOKEN_ID_BYTES + SECRET_BYTES
        return JoinCode(rest[split:].decode(), pin, new_token(rest[:split]))
    except (ValueError, InvalidInput) as error:
        raise InvalidJoinCode("the join code is damaged", hint="paste it whole, or " + _HINT) from error


@dataclass(frozen=True, slots=True)
class JoinFile:
    """What lies on a boot partition until the first boot: the join code, and the id if it is not the host name."""

    code: JoinCode
    device: DeviceId | None = None

    def encode(self) -> str:
        lines = [f'id = "{self.device}"'] if self.device is not None else []
        return "\n".join([*lines, f'code = "{self.code}"', ""])


def parse_join_file(text: str) -> JoinFile:
    """The inverse of `JoinFile.encode`. Raises: InvalidInput, which does not repeat the code."""
    import tomllib  # a running device agent has no use for it

    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput("the join file is not TOML", hint=_HINT + " -o file") from error
    code, device = table.get("code"), table.get("id")
    if not isinstance(code, str) or not isinstance(device, str | None) or not table.keys() <= {"code", "id"}:
        raise InvalidInput("the join file holds something else than code and id", hint=_HINT + " -o file")
    return JoinFile(parse_join_code(code), None if device is None else DeviceId(device))


def fingerprint(key: bytes) -> str:
    """What people compare of a key: 128 bits of its SHA-256, in groups of four hexadecimal digits."""
    digits = key[:16].hex()
    return " ".join(digits[at : at + 4] for at in range(0, len(digits), 4))


def check_enroll_url(url: str) -> str:
    """`url` if it is an https address with a host and no more than a port behind it. Raises: InvalidInput."""
    try:
        parts = urlsplit(url)
        is_ours = parts.scheme == "https" and bool(parts.hostname) and parts.path in ("", "/") and parts.port != 0
        is_plain = not (parts.query or parts.fragment or parts.username or parts.password)
    except ValueError:
        is_ours = is_plain = False
    if not (is_ours and is_plain and len(url) <= 512 and url.isascii() and url.isprintable() and " " not in url):
        raise InvalidInput(f"{url[:120]!r} is not the address of an enrollment service", hint="use https://HOST:8443")
    return url


def parse_root_pin(text: str) -> bytes:
    """The pin in hexadecimal, colons and upper case forgiven. Raises: InvalidInput."""
    try:
        pin = binascii.unhexlify(text.replace(":", "").strip())
    except (ValueError, binascii.Error):
        pin = b""
    if len(pin) != PIN_BYTES:
        raise InvalidInput(
            "the pin is not a SHA-256 in hexadecimal", hint="`enroll ca show` prints the pin of the root: 64 digits"
        )
    return pin


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:_CHECKSUM_BYTES]


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode("ascii").rstrip("=").lower()


def _unbase32(text: str) -> bytes:
    """Strict: one text for one value. Raises: ValueError."""
    if not _BASE32.fullmatch(text):
        raise ValueError("not base32")
    spare_bits = 5 * len(text) % 8
    number = int(text.translate(_AS_DIGITS) or "0", 32)
    if spare_bits >= 5 or number % (1 << spare_bits):
        raise ValueError("not canonical base32")
    return (number >> spare_bits).to_bytes(5 * len(text) // 8)


_BASE32 = re.compile("[a-z2-7]*")
_AS_DIGITS = str.maketrans("abcdefghijklmnopqrstuvwxyz234567", "0123456789abcdefghijklmnopqrstuv")
