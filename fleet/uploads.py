"""What a device sends on request over HTTPS: the command that asks, and the headers of the requests that carry it.

An upload is asked for by a command whose id is the upload's too. Its content goes in pieces to `PATH/ID`, each with a
Content-Range (RFC 9110, 14.4) and, as Repr-Digest (RFC 9530), the SHA-256 of the whole; docs/files.md has it all.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any, Final

from fleet.errors import InvalidInput
from fleet.messages import JsonObject

RESERVED: Final = "agent."
"""Commands whose names begin so are the agent's own; applications cannot take them."""
COMMAND: Final = f"{RESERVED}upload"
PATH: Final = "/v1/uploads"
PIECE_BYTES: Final = 65_536  # one request: what a link of 52 kbit/s carries in the 10 s that the service waits for it
MAX_LINES: Final = 10_000
MAX_LOG_BYTES: Final = 131_072
MAX_LISTING_BYTES: Final = 262_144
_MAX_NAME_BYTES: Final = 1024
_ID: Final = re.compile(r"[a-z2-7]{16}")
_RANGE: Final = re.compile(r"bytes (?:([0-9]{1,15})-([0-9]{1,15})|\*)/([0-9]{1,15})")
_DIGEST: Final = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """`[enroll.uploads]` in `fleet.toml`: how much devices may send. Every value is above 0."""

    max_bytes: int = 16 << 20  # of one upload
    device_bytes: int = 256 << 20  # of one device, with what it may still send
    total_bytes: int = 2 << 30
    free_bytes: int = 64 << 20  # what is left of the disk for the registry
    keep_days: int = 7


@dataclass(frozen=True, slots=True)
class LogWanted:
    """The last lines that the agent logged."""

    lines: int


@dataclass(frozen=True, slots=True)
class FileWanted:
    """A file in a folder that the device shares, by its absolute path there."""

    name: str


@dataclass(frozen=True, slots=True)
class ListingWanted:
    """The names of the files that the device shares."""


Wanted = LogWanted | FileWanted | ListingWanted


@dataclass(frozen=True, slots=True)
class Order:
    """What a device is to send, and how much of it at most."""

    wanted: Wanted
    max_bytes: int

    @property
    def what(self) -> str:
        match self.wanted:
            case LogWanted():
                return "log"
            case FileWanted():
                return "file"
            case ListingWanted():
                return "listing"

    @property
    def name(self) -> str:
        """The file's name; empty where there is none."""
        return self.wanted.name if isinstance(self.wanted, FileWanted) else ""

    def encode(self) -> JsonObject:
        """As the arguments of the command."""
        fields: JsonObject = {"what": self.what, "max_bytes": self.max_bytes}
        match self.wanted:
            case LogWanted(lines):
                return fields | {"lines": lines}
            case FileWanted(name):
                return fields | {"name": name}
            case ListingWanted():
                return fields


def decode_order(args: JsonObject) -> Order:
    """The inverse of `Order.encode`. Raises: InvalidInput."""
    max_bytes = _number(args.get("max_bytes"), "max_bytes", 1, 2**53)
    match args.get("what"):
        case "log":
            return Order(LogWanted(_number(args.get("lines"), "lines", 1, MAX_LINES)), max_bytes)
        case "file":
            return Order(FileWanted(check_file_name(args.get("name"))), max_bytes)
        case "listing":
            return Order(ListingWanted(), max_bytes)
    raise InvalidInput("what is not one of log, file, listing")


def _number(value: Any, name: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise InvalidInput(f"{name} is not a number from {least} to {most}")
    return value


def check_file_name(name: object) -> str:
    """`name` if it is an absolute path that names one thing, whatever links there are. Raises: InvalidInput."""
    if not isinstance(name, str) or not name.startswith("/") or "\0" in name:
        raise InvalidInput("the name of a file is its absolute path on the device", hint="as /var/log/pump/pump.log")
    if any(part in ("", ".", "..") for part in name[1:].split("/")):
        raise InvalidInput("the name of a file has a part that is empty, . or ..", hint="write it without")
    try:
        is_long = len(name.encode()) > _MAX_NAME_BYTES
    except UnicodeEncodeError as error:
        raise InvalidInput("the name of a file is not text in UTF-8") from error
    if is_long:
        raise InvalidInput(f"the name of a file has more than {_MAX_NAME_BYTES} bytes")
    return name


def path_of(id: str) -> str:
    """Where an upload goes."""
    return f"{PATH}/{id}"


def id_in(path: str) -> str | None:
    """The inverse of `path_of`; None for any other path."""
    prefix, _, name = path.rpartition("/")
    return name if prefix == PATH and _ID.fullmatch(name) else None


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes `first` to `first + length` of `total`. One of no length says that all are there."""

    first: int
    length: int
    total: int

    @property
    def end(self) -> int:
        return self.first + self.length

    @property
    def header(self) -> str:
        """The Content-Range."""
        return f"bytes {self.first}-{self.end - 1}/{self.total}" if self.length else f"bytes */{self.total}"


def parse_piece(header: str) -> Piece:
    """The inverse of `Piece.header`. Raises: InvalidInput."""
    found = _RANGE.fullmatch(header)
    if found is None:
        raise InvalidInput("Content-Range is missing or damaged", hint="bytes FIRST-LAST/TOTAL, or bytes */TOTAL")
    first, last, total = found.groups()
    if first is None:
        return Piece(int(total), 0, int(total))
    if not int(first) <= int(last) < int(total):
        raise InvalidInput("Content-Range contradicts itself", hint="FIRST <= LAST < TOTAL")
    return Piece(int(first), int(last) - int(first) + 1, int(total))


def digest_header(digest: bytes) -> str:
    """The Repr-Digest of a content with that SHA-256."""
    return f"sha-256=:{base64.b64encode(digest).decode()}:"


def parse_digest(header: str) -> bytes:
    """The inverse of `digest_header`. Raises: InvalidInput."""
    found = _DIGEST.fullmatch(header)
    try:
        if found is not None:
            return base64.b64decode(found[1], validate=True)
    except binascii.Error:
        pass
    raise InvalidInput("Repr-Digest is missing or damaged", hint="sha-256=:BASE64:")
