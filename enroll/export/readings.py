"""What one telemetry message says: a topic and bytes, read once for every sink (pure).

Firmware behind the agent sends JSON in an envelope (`v id ts boot seq`), and (device, boot, seq, stream) is the key by
which a message that comes twice is known. Anything else that is JSON is data without such a key, and anything else at
all is bytes. Who sent it is decided by the topic.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from fleet import messages, topics
from fleet.errors import FleetError
from fleet.identity import DeviceId
from fleet.messages import Envelope, InvalidMessage

_COMPACT: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_ENVELOPE: Final = frozenset({"v", "id", "ts", "boot", "seq"})


@dataclass(frozen=True, slots=True)
class Reading:
    """One message of `size_bytes`. `payload` is None if it was JSON: then `data` is what it said, be it null."""

    device: DeviceId
    stream: str
    received_at: datetime
    envelope: Envelope | None = None
    data: Any = None
    payload: bytes | None = None
    size_bytes: int = 0

    @property
    def boot(self) -> str | None:
        """Drawn at the sender's start; None without an envelope."""
        return None if self.envelope is None else self.envelope.boot

    @property
    def seq(self) -> int | None:
        """Counts within a boot; None without an envelope."""
        return None if self.envelope is None else self.envelope.seq

    @property
    def sent_at(self) -> datetime | None:
        """What the sender's clock said; None without an envelope."""
        return None if self.envelope is None else self.envelope.sent_at

    @property
    def json(self) -> str | None:
        """`data` as compact JSON; None if the message was none."""
        if self.payload is not None:
            return None
        return _COMPACT(self.data)


def read(topic: str, payload: bytes, received_at: datetime) -> Reading:
    """The message as it is to be kept.

    Raises: FleetError for a topic that is no telemetry, and for an envelope that names another device than its topic:
    such a message is set aside.
    """
    where = topics.parse(topic)
    if not isinstance(where, topics.Telemetry):
        raise InvalidMessage(f"{topic[:120]!r} is not telemetry")
    try:
        value = messages.decode_value(payload, max_bytes=messages.MAX_TELEMETRY_BYTES)
    except InvalidMessage:
        return Reading(where.device, where.stream, received_at, payload=payload, size_bytes=len(payload))
    envelope = _envelope(value, where.device)
    data = value if envelope is None else _said(value)
    return Reading(where.device, where.stream, received_at, envelope, data, size_bytes=len(payload))


def _envelope(value: Any, device: DeviceId) -> Envelope | None:
    """The envelope, or None if there is none that this program reads: what it says is then kept as it came."""
    if not isinstance(value, dict) or not value.keys() >= _ENVELOPE:
        return None
    if value["id"] != device:
        raise InvalidMessage(f"id is {str(value['id'])[:64]!r}, the topic says {device!s}")
    try:
        return messages.read_envelope(value, device)
    except FleetError:
        return None


def _said(fields: dict[str, Any]) -> Any:
    """What is not the envelope; what the agent puts into `data` stands for itself."""
    said = {name: value for name, value in fields.items() if name not in _ENVELOPE}
    return said["data"] if said.keys() == {"data"} else said
