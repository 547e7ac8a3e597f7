"""What an application may say to the agent: one JSON object a line (docs/application-socket.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fleet import messages, topics
from fleet.arguments import Schema, parse
from fleet.errors import InvalidInput
from fleet.messages import InvalidMessage, JsonObject, ResultState
from fleet.uploads import RESERVED

MAX_LINE_BYTES: Final = 65_536
MAX_COMMANDS: Final = 64


@dataclass(frozen=True, slots=True)
class Register:
    """These commands are mine; `schemas` say of some what arguments they take."""

    app: str
    commands: tuple[str, ...]
    schemas: Mapping[str, Schema] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PublishTelemetry:
    """Publish a measurement."""

    stream: str
    data: Any
    qos: int


@dataclass(frozen=True, slots=True)
class PublishEvent:
    """Publish that something happened."""

    event: str
    data: Any


@dataclass(frozen=True, slots=True)
class ReportResult:
    """How a command goes: running, done or failed."""

    command_id: str
    state: ResultState
    output: Any
    error: str


@dataclass(frozen=True, slots=True)
class AskStatus:
    """One status line, please."""


@dataclass(frozen=True, slots=True)
class ReportState:
    """This has changed of what is: a merge patch."""

    patch: JsonObject


@dataclass(frozen=True, slots=True)
class AskState:
    """One line with what is wanted and what was reported, please."""


@dataclass(frozen=True, slots=True)
class AskRenewal:
    """A new certificate now, please, and a line when it is in use, or why it is not."""


Request = Register | PublishTelemetry | PublishEvent | ReportResult | ReportState | AskStatus | AskState | AskRenewal


def parse_request(line: bytes) -> Request:
    """The request in one line. Raises: InvalidMessage, which says what is wrong with it."""
    fields = messages.decode_object(line, max_bytes=MAX_LINE_BYTES)
    try:
        return _parse(fields)
    except InvalidMessage:
        raise
    except InvalidInput as error:
        raise InvalidMessage(error.message, hint=error.hint) from error


def _parse(fields: JsonObject) -> Request:
    match fields.get("type"):
        case "register":
            return _parse_register(fields)
        case "telemetry":
            return PublishTelemetry(_name(fields, "stream"), _required(fields, "data"), _qos(fields))
        case "event":
            return PublishEvent(_name(fields, "event"), _required(fields, "data"))
        case "result":
            return _parse_result(fields)
        case "status":
            return AskStatus()
        case "reported":
            return _parse_reported(fields)
        case "state":
            return AskState()
        case "renew":
            return AskRenewal()
        case other:
            raise InvalidMessage(f"{str(other)[:40]!r} is not a type of line")


def _parse_register(fields: JsonObject) -> Register:
    commands = fields.get("commands")
    if not isinstance(commands, list) or len(commands) > MAX_COMMANDS:
        raise InvalidMessage(f"commands is not a list of at most {MAX_COMMANDS} names")
    if any(isinstance(name, str) and name.startswith(RESERVED) for name in commands):
        raise InvalidMessage(f"commands that begin with {RESERVED} are the agent's own")
    if not all(isinstance(name, str) for name in commands):
        raise InvalidMessage("commands holds what is not a name")
    names = tuple(topics.check_name(name) for name in commands)
    return Register(_name(fields, "app"), names, _schemas(fields.get("schemas", {}), names))


def _schemas(declared: object, names: tuple[str, ...]) -> dict[str, Schema]:
    if not isinstance(declared, dict) or not declared.keys() <= set(names):
        raise InvalidMessage("schemas is not an object of some of the commands")
    found = {}
    for name, schema in declared.items():
        try:
            found[name] = parse(schema)
        except InvalidInput as error:
            raise InvalidMessage(f"the schema of {name}: {error.message}", hint=error.hint) from error
    return found


def _parse_result(fields: JsonObject) -> ReportResult:
    state = fields.get("state")
    if state not in ("running", "done", "failed"):
        raise InvalidMessage("state is not one of running, done, failed")
    error = fields.get("error", "")
    if not isinstance(error, str) or len(error) > messages.MAX_TEXT_CHARS:
        raise InvalidMessage(f"error is not a text of at most {messages.MAX_TEXT_CHARS} characters")
    return ReportResult(_name(fields, "command_id"), ResultState(state), fields.get("output"), error)


def _parse_reported(fields: JsonObject) -> ReportState:
    patch = fields.get("patch")
    if not isinstance(patch, dict):
        raise InvalidMessage("patch is not an object")
    return ReportState(patch)


def _name(fields: JsonObject, key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str):
        raise InvalidMessage(f"{key} is missing")
    return topics.check_name(value)


def _required(fields: JsonObject, key: str) -> Any:
    if key not in fields:
        raise InvalidMessage(f"{key} is missing")
    return fields[key]


def _qos(fields: JsonObject) -> int:
    value = fields.get("qos", 0)
    if type(value) is not int or value not in (0, 1):
        raise InvalidMessage("qos is neither 0 nor 1")
    return value
