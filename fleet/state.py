"""A device's state: two documents, each with one writer, and the messages that carry them (docs/state.md). Pure.

`desired` is what admins want; the registry owns it, and the device follows. `reported` is what is; the device owns it,
and the registry follows. Owner and follower do the same on both sides:

    owner:    outrun(own, claim), then offer(own, claim, known)      what to tell a follower that claims to have `claim`
    follower: take(copy, part)                                       what it has once it was told

A version only goes up, so whatever comes twice, late or in another order changes nothing. The tag tells two documents
of one version apart: a registry that was restored from a backup counts through versions again that devices have.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, assert_never

from fleet import messages
from fleet.identity import DeviceId
from fleet.messages import Envelope, InvalidMessage, JsonObject

MAX_DOCUMENT_BYTES: Final = 8192  # as a device shadow of AWS IoT has, and its depth
MAX_DEPTH: Final = 8
MAX_STATE_BYTES: Final = 32_768  # of a message: a document whose every character is escaped, and what is around it
MAX_AHEAD: Final = 1_000_000
"""No backup is older than so many changes: a device's claim that is further ahead is a lie or damage."""
MAX_VERSION: Final = 2**52
_TAG: Final = re.compile(r"[A-Za-z0-9_-]{0,32}")


@dataclass(frozen=True, slots=True)
class Mark:
    """Which document somebody has: its version, and a tag that its owner gave it. (0, "") is none yet."""

    version: int = 0
    tag: str = ""

    def fields(self) -> JsonObject:
        return {"version": self.version, "tag": self.tag}


NONE_YET: Final = Mark()


@dataclass(frozen=True, slots=True)
class Marks:
    """What one side has of both documents."""

    desired: Mark = NONE_YET
    reported: Mark = NONE_YET

    def fields(self) -> JsonObject:
        return {"desired": self.desired.fields(), "reported": self.reported.fields()}


@dataclass(frozen=True, slots=True)
class Document:
    """A JSON object without nulls in its objects, within the bounds, and which one it is."""

    value: JsonObject
    mark: Mark

    @property
    def version(self) -> int:
        return self.mark.version

    def changed(self, value: JsonObject) -> Document:
        """The next version, as its owner makes it. Raises: InvalidMessage if it is too large or too deep."""
        return owned(value, self.version + 1)


def owned(value: JsonObject, version: int) -> Document:
    """The owner's document of that version. Raises: InvalidMessage if it is too large or too deep."""
    plain = bounded(merge({}, value))
    return Document(plain, Mark(version, tag_of(plain)) if version else NONE_YET)


EMPTY: Final = Document({}, NONE_YET)


@dataclass(frozen=True, slots=True)
class Whole:
    """All of a document."""

    mark: Mark
    value: JsonObject


@dataclass(frozen=True, slots=True)
class Delta:
    """What makes the document `mark` of the document `base`: a merge patch."""

    mark: Mark
    base: Mark
    patch: JsonObject


Part = Mark | Whole | Delta
"""What a message says of one document; a mark alone: this is what I have."""


def mark_of(part: Part) -> Mark:
    """Which document a part is about."""
    return part if isinstance(part, Mark) else part.mark


def merge(target: Any, patch: JsonObject) -> JsonObject:
    """`target` with a merge patch applied (RFC 7396, section 2): null deletes, objects merge, the rest replaces."""
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value) if isinstance(value, dict) else value
    return merged


def diff(before: JsonObject, after: JsonObject) -> JsonObject:
    """The merge patch that makes `after` of `before`, neither of which has nulls in its objects; empty if they agree.

    Numbers agree if they are written alike: 1 and 1.0 do not, nor do 1 and true.
    """
    patch: JsonObject = dict.fromkeys(before.keys() - after.keys())
    for name, value in after.items():
        old = before.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            if inner := diff(old, value):
                patch[name] = inner
        elif name not in before or _text(old) != _text(value):
            patch[name] = value
    return patch


def lacking(desired: JsonObject, reported: JsonObject) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Where the device is not as it should be: path, wanted value, reported value (None if there is none), in order.

    What is reported beside that is the device's own affair.
    """
    for name, value in sorted(desired.items()):
        found = reported.get(name)
        if isinstance(value, dict) and isinstance(found, dict):
            yield from (((name, *path), wanted, there) for path, wanted, there in lacking(value, found))
        elif _text(value) != _text(found):
            yield (name,), value, found


def tag_of(value: JsonObject) -> str:
    """The tag that an owner gives a document. It follows from what is in it; a follower need not know how."""
    return hashlib.sha256(_text(value).encode()).hexdigest()[:16]


def bounded(value: JsonObject) -> JsonObject:
    """The value, if it may be a document. Raises: InvalidMessage."""
    size = len(messages.encode_object(value))
    if size > MAX_DOCUMENT_BYTES:
        raise InvalidMessage(f"the state would have {size} bytes, the limit is {MAX_DOCUMENT_BYTES}")
    if _depth(value) > MAX_DEPTH:
        raise InvalidMessage(f"the state would be nested deeper than {MAX_DEPTH} levels")
    return value


def take(copy: Document, part: Part) -> Document:
    """What a follower has once it was told `part`. Raises: InvalidMessage if that breaks the bounds."""
    match part:
        case Whole(mark, value) if mark.version > copy.version:
            return Document(bounded(merge({}, value)), mark)
        case Delta(mark, base, patch) if mark.version > copy.version and base == copy.mark:
            return Document(bounded(merge(copy.value, patch)), mark)
        case _:
            return copy


def outrun(own: Document, claim: Mark, most: int = MAX_AHEAD) -> Document:
    """The owner's document, with a version above what a follower has that the owner never made, or forgot.

    Raises: InvalidMessage for a claim that is more than `most` ahead.
    """
    if claim == own.mark or claim.version < own.version:
        return own
    if claim.version - own.version > most:
        raise InvalidMessage(f"version {claim.version} is claimed, and the last one is {own.version}")
    return owned(own.value, claim.version + 1)


def offer(own: Document, claim: Mark, known: Document | None) -> Part:
    """What a follower that has `claim` is told: nothing new, the difference to `known` if that is it, or all of it."""
    if claim == own.mark:
        return own.mark
    if known is not None and known.mark == claim:
        patch = diff(known.value, own.value)
        if len(_text(patch)) < len(_text(own.value)):
            return Delta(own.mark, claim, patch)
    return Whole(own.mark, own.value)


@dataclass(frozen=True, slots=True)
class ReportedMessage:
    """On `up/state`: what the device has of the desired state, and what is to be known of the reported."""

    envelope: Envelope
    desired: Mark
    reported: Part

    def encode(self) -> bytes:
        said = {"desired": self.desired.fields(), "reported": _part_fields(self.reported)}
        return messages.encode_object(self.envelope.fields() | said)


@dataclass(frozen=True, slots=True)
class DesiredMessage:
    """On `down/state`: what is to be known of the desired state, and what the registry has of the reported."""

    device: DeviceId
    sent_at: datetime
    desired: Part
    reported: Mark

    def encode(self) -> bytes:
        head = {"v": messages.VERSION, "id": str(self.device), "ts": messages.format_time(self.sent_at)}
        said = {"desired": _part_fields(self.desired), "reported": self.reported.fields()}
        return messages.encode_object(head | said)


def decode_reported(payload: bytes, device: DeviceId) -> ReportedMessage:
    """What `device` says of its state. Raises: InvalidMessage."""
    fields = messages.decode_object(payload, max_bytes=MAX_STATE_BYTES)
    envelope = messages.read_envelope(fields, device)
    return ReportedMessage(envelope, _read_mark(fields, "desired"), _read_part(fields, "reported"))


def decode_desired(payload: bytes, device: DeviceId) -> DesiredMessage:
    """What the fleet says to `device` of its state. Raises: InvalidMessage."""
    fields = messages.decode_object(payload, max_bytes=MAX_STATE_BYTES)
    messages.check_version_and_sender(fields, device)
    sent_at = messages.parse_time(fields.get("ts"))
    return DesiredMessage(device, sent_at, _read_part(fields, "desired"), _read_mark(fields, "reported"))


def read_marks(fields: JsonObject) -> Marks:
    """The inverse of `Marks.fields`. Raises: InvalidMessage."""
    return Marks(_read_mark(fields, "desired"), _read_mark(fields, "reported"))


def document_fields(document: Document) -> JsonObject:
    """A document for a file: the inverse of `read_document`."""
    return document.mark.fields() | {"document": document.value}


def read_document(fields: JsonObject) -> Document:
    """A document from a file. Raises: InvalidMessage."""
    mark, value = _parse_mark(fields), fields.get("document")
    if not isinstance(value, dict) or (not mark.version and value):
        raise InvalidMessage("there is no document")
    return Document(bounded(merge({}, value)), mark)


def _part_fields(part: Part) -> JsonObject:
    match part:
        case Mark():
            return part.fields()
        case Whole(mark, value):
            return mark.fields() | {"document": value}
        case Delta(mark, base, patch):
            return mark.fields() | {"base": base.fields(), "patch": patch}
        case _:
            assert_never(part)


def _read_part(fields: JsonObject, name: str) -> Part:
    found, mark = fields.get(name), _read_mark(fields, name)
    assert isinstance(found, dict)
    match found:
        case {"document": _, "patch": _} | {"document": _, "base": _}:
            raise InvalidMessage(f"{name} is a document and a patch")
        case {"document": dict(value)} if mark.version:
            return Whole(mark, value)
        case {"patch": dict(patch), "base": dict()} if mark.version:
            return Delta(mark, _read_mark(found, "base"), patch)
        case {"document": _} | {"patch": _} | {"base": _}:
            raise InvalidMessage(f"{name} is neither a document nor a patch with its base")
        case _:
            return mark


def _read_mark(fields: JsonObject, name: str) -> Mark:
    found = fields.get(name)
    if not isinstance(found, dict):
        raise InvalidMessage(f"{name} is not an object with a version")
    return _parse_mark(found)


def _parse_mark(fields: JsonObject) -> Mark:
    version, tag = fields.get("version"), fields.get("tag")
    if type(version) is not int or not 0 <= version <= MAX_VERSION:
        raise InvalidMessage("a version is not a number from 0")
    if not isinstance(tag, str) or not _TAG.fullmatch(tag) or bool(tag) != bool(version):
        raise InvalidMessage("a tag is not a text of 1 to 32 letters and digits, and empty at version 0")
    return Mark(version, tag)


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
