"""What a device is to be, and is, on its side: `desired` follows the registry, `reported` is its own. Pure.

What must outlive a restart is both documents. What the registry has is asked for again: it may have been restored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from fleet import messages
from fleet import state as rules
from fleet.errors import InvalidInput
from fleet.identity import DeviceId
from fleet.messages import InvalidMessage, JsonObject
from fleet.state import EMPTY, MAX_DOCUMENT_BYTES, NONE_YET, DesiredMessage, Document, Mark, Marks, Part

MAX_FILE_BYTES = 16 * MAX_DOCUMENT_BYTES


@dataclass(frozen=True, slots=True)
class Shadow:
    """Both documents. Of the reported one the registry said last that it has `has`, which is `known` if we know it.

    `sent`: what the last message would make of it.
    """

    desired: Document = EMPTY
    reported: Document = EMPTY
    has: Mark | None = None
    known: Document | None = None
    sent: Document | None = None

    @property
    def marks(self) -> Marks:
        return Marks(self.desired.mark, self.reported.mark)

    @property
    def is_told(self) -> bool:
        """Whether the registry has what is reported; nothing need be told of a document that there is not yet."""
        return self.reported.mark in (self.has, NONE_YET)

    def report(self, patch: JsonObject) -> Shadow:
        """With that changed by the firmware; this same one if it changes nothing. Raises: InvalidMessage."""
        value = rules.merge(self.reported.value, patch)
        if self.reported.version and not rules.diff(self.reported.value, value):
            return self
        return replace(self, reported=self.reported.changed(value))

    def heard(self, message: DesiredMessage) -> tuple[Shadow, bool]:
        """After a message of the registry, and whether it has to be answered. Raises: InvalidMessage."""
        desired = rules.take(self.desired, message.desired)
        # A card that was replaced has lost all versions; the registry's word is signed.
        reported = rules.outrun(self.reported, message.reported, rules.MAX_VERSION)
        mine = (reported, self.sent, self.known)
        known = next((each for each in mine if each is not None and each.mark == message.reported), None)
        after = replace(self, desired=desired, reported=reported, has=message.reported, known=known)
        agrees = rules.mark_of(message.desired) == desired.mark == self.desired.mark
        return after, not (agrees and after.is_told)

    def says(self) -> tuple[Shadow, Part]:
        """What to tell of the reported state; which one it is, where it is not known what the registry has."""
        part = self.reported.mark if self.has is None else rules.offer(self.reported, self.has, self.known)
        return replace(self, sent=self.reported), part

    def encode(self, device: DeviceId) -> bytes:
        """As a file: an object a line, so that a document is nested as deep as in a message."""
        lines = ({"v": 1, "id": str(device)}, *map(rules.document_fields, (self.desired, self.reported)))
        return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def decode_shadow(data: bytes, device: DeviceId) -> Shadow:
    """The inverse of `Shadow.encode`; of another device's file nothing is taken. Raises: InvalidInput."""
    try:
        header, *lines = [messages.decode_object(line, max_bytes=MAX_FILE_BYTES) for line in data.splitlines()]
        if header.get("v") != 1:
            raise ValueError("it is of another version")
        if header.get("id") != device:
            return Shadow()
        desired, reported = map(rules.read_document, lines)
    except (ValueError, InvalidMessage) as error:
        raise InvalidInput(f"the state on disk is damaged: {error}") from error
    return Shadow(desired, reported)
