"""The JSON that devices and the fleet exchange: schemas, limits, and a strict decoder.

Every message is one object. Up-link messages carry `v` (1), `id` (the sender), `ts` (RFC 3339, UTC), `boot` (drawn at
each start) and `seq` (counts within a boot): receivers de-duplicate on (id, boot, seq). Who sent a message is decided
by its topic; an `id` that differs makes the message invalid. Telemetry may be any bytes and is not decoded here.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from itertools import accumulate
from typing import Any, Final, NoReturn, TypeVar

from fleet.errors import InvalidInput
from fleet.identity import DeviceId

VERSION: Final = 1
MAX_MESSAGE_BYTES: Final = 65_536
MAX_TELEMETRY_BYTES: Final = 131_072  # as AWS IoT Core
MAX_PRESENCE_BYTES: Final = 16_384  # status and hello: two texts of 1024 characters, even if each is escaped
MAX_CONTROL_BYTES: Final = 4096
MAX_SIGNATURE_BYTES: Final = 512  # what `fleet.downlink` adds to a message
MAX_DOWN_BYTES: Final = MAX_MESSAGE_BYTES - MAX_SIGNATURE_BYTES
MAX_TEXT_CHARS: Final = 1024
_MAX_SERIAL_CHARS: Final = 40
_MAX_HARDWARE_CHARS: Final = 64
MAX_DEPTH: Final = 32
_MAX_INT: Final = 2**53 - 1  # RFC 8259, section 6: what every JSON implementation agrees on

JsonObject = dict[str, Any]
_E = TypeVar("_E", bound=StrEnum)


class InvalidMessage(InvalidInput):
    """A payload that is not what its topic asks for. It is acknowledged, set aside and counted, never retried."""


def decode_object(payload: bytes, *, max_bytes: int = MAX_MESSAGE_BYTES) -> JsonObject:
    """The JSON object in `payload`. Raises: InvalidMessage for what `decode_value` refuses, and for no object."""
    value = decode_value(payload, max_bytes=max_bytes)
    if not isinstance(value, dict):
        raise InvalidMessage("the message is not a JSON object")
    return value


def decode_value(payload: bytes, *, max_bytes: int = MAX_MESSAGE_BYTES) -> Any:
    """The JSON value in `payload`, which need not be an object: telemetry may be a number alone.

    Raises: InvalidMessage for anything over `max_bytes` or MAX_DEPTH, not UTF-8, with NaN or infinities, duplicate
    keys, lone surrogates, or integers past 2**53 - 1 (I-JSON, RFC 7493, section 2).
    """
    if len(payload) > max_bytes:
        raise InvalidMessage(f"the message has {len(payload)} bytes, the limit is {max_bytes}")
    shape = payload.translate(_SHAPE)
    _check_depth(shape)
    try:
        value = json.loads(
            payload.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_finite_float if any(each in shape for each in _MAY_BE_INFINITE) else None,
            parse_int=_bounded_int if _LONG_INTEGER in shape else None,
            object_pairs_hook=_unique_keys,
        )
        if b"\\u" in payload:  # else there is no lone surrogate, which cannot be encoded
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise InvalidMessage(f"the message is not I-JSON: {error}") from error
    return value


def encode_object(value: Mapping[str, Any]) -> bytes:
    """`value` as compact UTF-8 JSON. Raises: InvalidMessage for what `decode_object` would refuse."""
    try:
        payload = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidMessage(f"the message cannot be written as JSON: {error}") from error
    decode_object(payload)
    return payload


# What a peer may have looked at closely 200 times a second is looked at once, and in C: the payload with all digits,
# exponents and brackets made the same says what it cannot hold.
_SHAPE: Final = bytes.maketrans(b"123456789E{}", b"000000000e[]")
_MAY_BE_INFINITE: Final = (b"e000", b"e+000", b"0" * 200)
_LONG_INTEGER: Final = b"0" * 16
_STEPS: Final = bytes.maketrans(b"[]", b"\x01\xff")  # one level deeper, one less deep
_ALL_BUT_BRACKETS: Final = bytes(each for each in range(256) if each not in b"[]")
# Possessive, so it is linear in whatever comes.
_TEXT: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?+', re.DOTALL)


def _check_depth(shape: bytes) -> None:
    if shape.count(b"[") <= MAX_DEPTH:
        return  # most messages: nothing is deeper than it has brackets
    steps = array("b", _TEXT.sub(b"", shape).translate(_STEPS, _ALL_BUT_BRACKETS))
    if max(accumulate(steps), default=0) > MAX_DEPTH:
        raise InvalidMessage(f"the message is nested deeper than {MAX_DEPTH} levels")


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number in JSON")


def _finite_float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("a number is too large")
    return value


def _bounded_int(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > _MAX_INT:
        raise ValueError("an integer is too large")
    return int(text)


def _unique_keys(pairs: list[tuple[str, Any]]) -> JsonObject:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds. `moment` must be aware."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(text: object) -> datetime:
    """The inverse of `format_time`. Raises: InvalidMessage unless it is RFC 3339 with an offset."""
    try:
        moment = datetime.fromisoformat(text if isinstance(text, str) else "")
        if moment.tzinfo is None:
            raise ValueError("no offset")
        return moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidMessage(
            f"{str(text)[:40]!r} is not a time", hint="write RFC 3339, as 2026-11-21T08:00:00Z"
        ) from error


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every up-link message carries."""

    device: DeviceId
    sent_at: datetime
    boot: str
    seq: int

    def fields(self) -> JsonObject:
        return {
            "v": VERSION,
            "id": str(self.device),
            "ts": format_time(self.sent_at),
            "boot": self.boot,
            "seq": self.seq,
        }


class Presence(StrEnum):
    ONLINE = "online"
    OFFLINE = "offline"


class ResultState(StrEnum):
    """How far a command has come; the last three are final."""

    ACCEPTED = "accepted"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        return self not in (ResultState.ACCEPTED, ResultState.RUNNING)


@dataclass(frozen=True, slots=True)
class StatusMessage:
    """Retained on `up/status`, and the will. `reason` says why a device is offline."""

    envelope: Envelope
    presence: Presence
    reason: str = ""
    agent_version: str = ""

    def encode(self) -> bytes:
        status = {"status": self.presence.value, "reason": self.reason, "agent": self.agent_version}
        return encode_object(self.envelope.fields() | status)


@dataclass(frozen=True, slots=True)
class HelloMessage:
    """Asks for what is due. `serial` and `hardware`: which certificate and which machine it says that it has.

    `state`: what it has of its state, as `fleet.state.Marks`; empty from an agent that does not keep any.
    """

    envelope: Envelope
    agent_version: str = ""
    serial: str = ""
    hardware: str = ""
    state: JsonObject = field(default_factory=dict)

    def encode(self) -> bytes:
        says = {"agent": self.agent_version, "serial": self.serial, "hardware": self.hardware}
        return encode_object(self.envelope.fields() | says | ({"state": self.state} if self.state else {}))


@dataclass(frozen=True, slots=True)
class ResultMessage:
    """How one command went. `output` is any JSON value of the firmware's; `error` says what failed, cut if too long."""

    envelope: Envelope
    state: ResultState
    output: Any = None
    error: str = ""

    def encode(self) -> bytes:
        said = {"state": self.state.value, "output": self.output, "error": self.error[:MAX_TEXT_CHARS]}
        return encode_object(self.envelope.fields() | said)


@dataclass(frozen=True, slots=True)
class CommandMessage:
    """An order to one device; its name and id are in the topic. Not begun after `deadline`."""

    device: DeviceId
    sent_at: datetime
    deadline: datetime
    args: JsonObject

    def encode(self) -> bytes:
        return encode_object(
            {
                "v": VERSION,
                "id": str(self.device),
                "ts": format_time(self.sent_at),
                "deadline": format_time(self.deadline),
                "args": self.args,
            }
        )


@dataclass(frozen=True, slots=True)
class ControlMessage:
    """How one device is to pace itself: it comes back at a random point within `reconnect_seconds` of a loss."""

    device: DeviceId
    sent_at: datetime
    reconnect_seconds: float

    def encode(self) -> bytes:
        fields = {"v": VERSION, "id": str(self.device), "ts": format_time(self.sent_at)}
        return encode_object(fields | {"reconnect_seconds": self.reconnect_seconds})


def decode_control(payload: bytes, device: DeviceId) -> ControlMessage:
    """A control to `device`; the agent bounds what it asks for. Raises: InvalidMessage."""
    fields = decode_object(payload, max_bytes=MAX_CONTROL_BYTES)
    check_version_and_sender(fields, device)
    seconds = fields.get("reconnect_seconds")
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or seconds < 0:
        raise InvalidMessage("reconnect_seconds is not a number from 0")
    return ControlMessage(device, parse_time(fields.get("ts")), float(seconds))


def decode_status(payload: bytes, device: DeviceId) -> StatusMessage:
    """A status of `device`. Raises: InvalidMessage."""
    fields = decode_object(payload, max_bytes=MAX_PRESENCE_BYTES)
    presence = _enum(Presence, fields.get("status"))
    return StatusMessage(read_envelope(fields, device), presence, _text(fields, "reason"), _text(fields, "agent"))


def decode_hello(payload: bytes, device: DeviceId) -> HelloMessage:
    """A hello of `device`. Raises: InvalidMessage."""
    fields = decode_object(payload, max_bytes=MAX_PRESENCE_BYTES)
    serial, hardware = _text(fields, "serial", _MAX_SERIAL_CHARS), _text(fields, "hardware", _MAX_HARDWARE_CHARS)
    state = fields.get("state", {})
    if not isinstance(state, dict):
        raise InvalidMessage("state is not an object")
    return HelloMessage(read_envelope(fields, device), _text(fields, "agent"), serial, hardware, state)


def decode_result(payload: bytes, device: DeviceId) -> ResultMessage:
    """A command's result, from `device`. Raises: InvalidMessage."""
    fields = decode_object(payload)
    state = _enum(ResultState, fields.get("state"))
    return ResultMessage(read_envelope(fields, device), state, fields.get("output"), _text(fields, "error"))


def decode_command(payload: bytes, device: DeviceId) -> CommandMessage:
    """A command to `device`. Raises: InvalidMessage."""
    fields = decode_object(payload)
    check_version_and_sender(fields, device)
    args = fields.get("args")
    if not isinstance(args, dict):
        raise InvalidMessage("args is not an object")
    return CommandMessage(device, parse_time(fields.get("ts")), parse_time(fields.get("deadline")), args)


def check_version_and_sender(fields: JsonObject, device: DeviceId) -> None:
    """Raises: InvalidMessage unless this program reads the message, and it is of or to `device`."""
    if type(fields.get("v")) is not int or fields["v"] != VERSION:
        raise InvalidMessage(f"v is {str(fields.get('v'))[:20]!r}, this program reads {VERSION}")
    if fields.get("id") != device:
        raise InvalidMessage(f"id is {str(fields.get('id'))[:64]!r}, the topic says {device!s}")


def read_envelope(fields: JsonObject, device: DeviceId) -> Envelope:
    """The envelope among `fields` of a message of `device`. Raises: InvalidMessage."""
    check_version_and_sender(fields, device)
    boot, seq = fields.get("boot"), fields.get("seq")
    if not (isinstance(boot, str) and 0 < len(boot) <= 64):
        raise InvalidMessage("boot is not a text of 1 to 64 characters")
    if type(seq) is not int or seq < 0:
        raise InvalidMessage("seq is not a number from 0")
    return Envelope(device, parse_time(fields.get("ts")), boot, seq)


def _text(fields: JsonObject, name: str, limit: int = MAX_TEXT_CHARS) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str) or len(value) > limit:
        raise InvalidMessage(f"{name} is not a text of at most {limit} characters")
    return value


def _enum(kind: type[_E], value: object) -> _E:
    try:
        return kind(str(value))
    except ValueError as error:
        raise InvalidMessage(f"{str(value)[:40]!r} is not one of {', '.join(kind)}") from error
