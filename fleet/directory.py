"""The directory feed: what a broker must know of each principal, as newline-delimited JSON.

`GET /v1/directory?after=SEQ&feed=ID` answers 200 `application/x-ndjson` and stays open. Lines:

    {"type": "snapshot", "feed": ID, "seq": N}   what follows up to the next "current" is the whole directory at N
    {"type": "entry", "seq": N, "id": ..., "role": ..., "state": ..., "epoch": N, "serials": [hex, ...]}
    {"type": "current", "feed": ID, "seq": N, "log": MARK}    all up to N was sent; also the heartbeat, every
                                                              HEARTBEAT_SECONDS

A request with the present feed id, a sequence number that the service still has and, as `log=MARK`, a mark that its log
holds is answered without a snapshot. A registry that was made anew has another feed id; one that was restored from a
backup has another log behind the backup, whatever its numbers are. So a broker that had followed this feed and is sent
a snapshot knows that what it saw happen may be unknown to the service. `GET /v1/directory?serial=HEX`
answers one entry line, or 404. An entry is the whole truth of one principal; the one with the higher `seq` wins.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, assert_never

from fleet.errors import InvalidInput
from fleet.identity import DeviceId, Principal, Role, Serial, State

PATH = "/v1/directory"
MEDIA_TYPE = "application/x-ndjson"
HEARTBEAT_SECONDS = 10.0
MAX_LINE_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class Entry:
    """One principal as of `seq`.

    `serials` may connect while `state` is active. `epoch` counts enrolments under this id: sessions kept from an older
    epoch belong to a predecessor and are not restored.

    A broker's own, in its file: which serials it saw end, and the only ones that may connect against what a registry
    says that was restored from a backup (`broker.restored`).
    """

    seq: int
    principal: Principal
    state: State
    epoch: int
    serials: frozenset[Serial]
    ended: tuple[Serial, ...] = ()
    only: frozenset[Serial] | None = None

    def admits(self, serial: Serial) -> bool:
        """Whether a certificate with `serial` may connect."""
        return self.state is State.ACTIVE and serial in self.serials


@dataclass(frozen=True, slots=True)
class SnapshotStart:
    """The whole directory follows, up to the next `Current`; principals not in it are gone."""

    feed: str
    seq: int


@dataclass(frozen=True, slots=True)
class Current:
    """The follower has all up to `seq`. `mark` names the newest entry of the service's log by its number and digest."""

    feed: str
    seq: int
    mark: str = field(default="", compare=False)


FeedLine = Entry | SnapshotStart | Current


def encode(line: FeedLine) -> bytes:
    """One line of the feed, with its newline."""
    return json.dumps(_fields(line), separators=(",", ":")).encode() + b"\n"


def _fields(line: FeedLine) -> dict[str, object]:
    match line:
        case Entry(seq, principal, state, epoch, serials, ended, only):
            own = {"ended": list(ended)} if ended else {}
            kept = {"only": sorted(only)} if only is not None else {}
            return (
                own
                | kept
                | {
                    "type": "entry",
                    "seq": seq,
                    "id": principal.id,
                    "role": principal.role.value,
                    "state": state.value,
                    "epoch": epoch,
                    "serials": sorted(serials),
                }
            )
        case SnapshotStart(feed, seq):
            return {"type": "snapshot", "feed": feed, "seq": seq}
        case Current(feed, seq, mark):
            return {"type": "current", "feed": feed, "seq": seq} | ({"log": mark} if mark else {})
        case _:
            assert_never(line)


def decode(line: bytes) -> FeedLine:
    """The inverse of `encode`. Raises: InvalidInput."""
    try:
        return _decode(json.loads(line))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidInput(f"not a line of a directory feed: {line[:80]!r}") from error


def _decode(fields: dict[str, Any]) -> FeedLine:
    match fields:
        case {"type": "entry", "seq": seq, "id": str(id_), "role": str(role), "state": str(state)}:
            match fields:
                case {"epoch": epoch, "serials": [*serials]}:
                    principal = Principal(Role(role), DeviceId(id_))
                    admitted = frozenset(Serial(s) for s in serials)
                    ended, only = fields.get("ended", []), fields.get("only")
                    kept = None if only is None else frozenset(map(Serial, only))
                    known = tuple(map(Serial, ended))
                    return Entry(_count(seq), principal, State(state), _count(epoch), admitted, known, kept)
        case {"type": "snapshot", "feed": str(feed), "seq": seq}:
            return SnapshotStart(_feed_id(feed), _count(seq))
        case {"type": "current", "feed": str(feed), "seq": seq}:
            return Current(_feed_id(feed), _count(seq), _feed_id(fields.get("log", "")))
    raise ValueError("unknown line")


def _count(value: object) -> int:
    """JSON's true is an int in Python; nothing here is below 0. Raises: ValueError."""
    if type(value) is not int or value < 0:
        raise ValueError("not a count")
    return value


def _feed_id(value: object) -> str:
    """A feed id or a mark. It goes back as a part of a URL: a lone surrogate could not. Raises: ValueError."""
    if not (isinstance(value, str) and value.isascii() and value.isprintable()):
        raise ValueError("not a feed id")
    return value
