"""What a broker says of its sessions under `$SYS/sessions/`, to whoever may read `$SYS/#`: topics, codec, reasons.

Everything is of one start of the broker (`boot`), in which whatever happens to a session has a number (`seq`). Three
kinds of messages, all at QoS 0, so that nothing is kept for who is not there:

    $SYS/sessions/broker       retained, and every HEARTBEAT_SECONDS: {"v": 1, "boot": ID, "seq": N, "uptime": SECONDS};
                               its last word before it stops has "stopping": true
    $SYS/sessions/list/B/K     retained: {"v": 1, "boot": ID, "seq": N, "sessions": [...], "ended": [...]}: at N these
                               sessions of the clients with `bucket_of(client, B) == K` were there, and no others
    $SYS/sessions/changes      {"v": 1, "boot": ID, "first": N, "last": N, "changes": [...]}: all that happened from
                               the one number to the other

A session that began: {"n": SEQ, "id": ..., "role": ..., "serial": HEX, "address": "IP:PORT", "at": TIME}, and "client"
where it is not the id. One that ended: {"n": SEQ, "client": ..., "began": SEQ, "reason": ..., "at": TIME}; a list has
the last few of these. Whoever subscribes is sent the list as it is at that moment. Changes and list may overtake each
other: of what is said of one client that with the higher number holds. Whoever finds numbers missing subscribes again.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from fleet.errors import FleetError
from fleet.identity import DeviceId, Principal, Role, Serial
from fleet.messages import VERSION, InvalidMessage, JsonObject, decode_object, format_time, parse_time

ROOT: Final = "$SYS/sessions"
ALL: Final = f"{ROOT}/#"
BROKER: Final = f"{ROOT}/broker"
CHANGES: Final = f"{ROOT}/changes"
HEARTBEAT_SECONDS: Final = 10.0
MAX_BYTES: Final = 1_048_576
MAX_BUCKETS: Final = 65_536
MAX_UPTIME_SECONDS: Final = 10 * 365 * 86_400
_MAX_CLIENT_CHARS: Final = 128
_MAX_ADDRESS_CHARS: Final = 128
_LIST: Final = re.compile(rf"{re.escape(ROOT)}/list/([1-9][0-9]{{0,4}})/(0|[1-9][0-9]{{0,4}})")
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))  # `json.dumps` makes one for each session
_BOOT: Final = re.compile(r"[0-9a-zA-Z-]{1,64}")


class Ending(StrEnum):
    """Why a session ended. The first are the broker's words, as in its log and its metrics."""

    DISCONNECTED = "disconnected"  # the client said goodbye
    LOST = "connection-lost"  # closed without
    KEEPALIVE = "keepalive"  # nothing was heard of it for one and a half times its keep-alive
    TAKEN_OVER = "taken-over"  # the same client connected again
    REVOKED = "revoked"
    SUSPENDED = "suspended"
    REMOVED = "removed"
    SUPERSEDED = "superseded"  # its certificate has a successor
    EXPIRED = "certificate-expired"
    PROTOCOL = "protocol-violation"
    PUBLISH_DENIED = "publish-denied"
    TOO_MANY_DENIALS = "too-many-denials"
    TOO_MANY_RETAINED = "too-many-retained"
    TOO_FAST = "too-fast"
    NOT_READING = "not-reading"
    NOT_STORED = "not-stored"  # the broker's disk did not take what it had to promise
    ADMIN = "admin"
    STOPPED = "broker-stopped"
    OTHER = "other"  # a word that this program does not know
    # What nobody said, and follows from what is there.
    RESTARTED = "broker-restarted"  # the broker ended without a word, and the client did not come back
    UNHEARD = "unheard"  # it had ended while nobody listened
    NO_SESSION = "no-session"  # its own status said that it is online, and it was not


@dataclass(frozen=True, slots=True)
class Began:
    """A session that is there since `seq`, which names it."""

    seq: int
    client_id: str
    principal: Principal
    serial: Serial
    address: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of the session that began at the number `began`."""

    seq: int
    client_id: str
    began: int
    ending: Ending
    at: datetime


@dataclass(frozen=True, slots=True)
class Alive:
    """The broker runs for so long already, and has come to the number `seq`."""

    boot: str
    seq: int
    uptime_seconds: float
    is_stopping: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """All sessions at `seq` whose clients are in one of so many buckets, and some of those that ended before."""

    boot: str
    seq: int
    buckets: int
    bucket: int
    sessions: tuple[Began, ...]
    ended: tuple[Ended, ...] = ()


@dataclass(frozen=True, slots=True)
class Changes:
    """All that happened from the number `first` to `last`, both included."""

    boot: str
    first: int
    last: int
    changes: tuple[Began | Ended, ...]


Announcement = Alive | Page | Changes


def bucket_of(client_id: str, buckets: int) -> int:
    """In which of so many lists a client is."""
    return zlib.crc32(client_id.encode("utf-8", "surrogatepass")) % buckets


def page_topic(buckets: int, bucket: int) -> str:
    """Where that list is."""
    return f"{ROOT}/list/{buckets}/{bucket}"


def encode_alive(alive: Alive) -> bytes:
    """The payload of `BROKER`."""
    fields = {"v": VERSION, "boot": alive.boot, "seq": alive.seq, "uptime": round(alive.uptime_seconds, 3)}
    return _dump(fields | ({"stopping": True} if alive.is_stopping else {}))


def encode_change(change: Began | Ended) -> bytes:
    """One session as it stands in a list or among changes: a broker writes it once and sends it often."""
    if isinstance(change, Ended):
        why = {"began": change.began, "reason": change.ending.value, "at": format_time(change.at)}
        return _dump({"n": change.seq, "client": change.client_id} | why)
    principal = change.principal
    fields = {"n": change.seq, "id": principal.id, "role": principal.role.value, "serial": change.serial}
    client = {} if change.client_id == principal.id else {"client": change.client_id}
    return _dump(fields | client | {"address": change.address, "at": format_time(change.at)})


def encode_changes(boot: str, first: int, last: int, changes: Iterable[bytes]) -> bytes:
    """The payload of `CHANGES`; `changes` are encoded already."""
    head = _dump({"v": VERSION, "boot": boot, "first": first, "last": last})
    return head[:-1] + b',"changes":[' + b",".join(changes) + b"]}"


def encode_page(boot: str, seq: int, sessions: Iterable[bytes], ended: Iterable[bytes]) -> bytes:
    """The payload of a list; what stands in it is encoded already."""
    head = _dump({"v": VERSION, "boot": boot, "seq": seq})
    return head[:-1] + b',"sessions":[' + b",".join(sessions) + b'],"ended":[' + b",".join(ended) + b"]}"


def _dump(fields: JsonObject) -> bytes:
    return _ENCODER.encode(fields).encode()


def decode(topic: str, payload: bytes) -> Announcement:
    """What a broker says under `topic`. Raises: InvalidMessage, for a topic that is none of these too."""
    fields = decode_object(payload, max_bytes=MAX_BYTES)
    if type(fields.get("v")) is not int or fields["v"] != VERSION:
        raise InvalidMessage(f"v is {str(fields.get('v'))[:20]!r}, this program reads {VERSION}")
    try:
        return _decode(topic, fields)
    except (KeyError, TypeError, ValueError, FleetError) as error:
        raise InvalidMessage(f"not what a broker says of its sessions: {topic[:80]!r}: {str(error)[:120]}") from error


def _decode(topic: str, fields: JsonObject) -> Announcement:
    boot = fields["boot"]
    if not _BOOT.fullmatch(boot):
        raise ValueError("boot")
    if topic == BROKER:
        uptime = fields["uptime"]
        if isinstance(uptime, bool) or not 0 <= uptime <= MAX_UPTIME_SECONDS:
            raise ValueError("uptime")
        return Alive(boot, _count(fields["seq"]), float(uptime), fields.get("stopping") is True)
    if topic == CHANGES:
        changes = tuple(_began(each) if "id" in each else _ended(each) for each in _all(fields, "changes"))
        return Changes(boot, _count(fields["first"]), _count(fields["last"]), changes)
    if (found := _LIST.fullmatch(topic)) is None or not int(found[2]) < int(found[1]) <= MAX_BUCKETS:
        raise ValueError("topic")
    sessions, ended = tuple(map(_began, _all(fields, "sessions"))), tuple(map(_ended, _all(fields, "ended")))
    return Page(boot, _count(fields["seq"]), int(found[1]), int(found[2]), sessions, ended)


def _began(fields: JsonObject) -> Began:
    principal = Principal(Role(fields["role"]), DeviceId(fields["id"]))
    client_id = _text(fields.get("client", principal.id), _MAX_CLIENT_CHARS)
    address = _text(fields["address"], _MAX_ADDRESS_CHARS)
    return Began(_count(fields["n"]), client_id, principal, Serial(fields["serial"]), address, parse_time(fields["at"]))


def _ended(fields: JsonObject) -> Ended:
    reason = fields["reason"]
    ending = Ending(reason) if reason in set(Ending) else Ending.OTHER
    client_id = _text(fields["client"], _MAX_CLIENT_CHARS)
    return Ended(_count(fields["n"]), client_id, _count(fields["began"]), ending, parse_time(fields["at"]))


def _all(fields: JsonObject, name: str) -> list[Any]:
    found = fields[name]
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise TypeError(name)
    return found


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("not a number from 0")
    return value


def _text(value: object, limit: int) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= limit:
        raise ValueError("not a text")
    return value
