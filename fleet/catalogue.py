"""The commands that a device takes: what its firmware has declared, as the agent tells it to the fleet.

A device that says nothing of them (an older agent) is sent any command, as one whose firmware has declared none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fleet.arguments import Schema, parse
from fleet.errors import InvalidInput
from fleet.identity import DeviceId
from fleet.messages import Envelope, InvalidMessage, JsonObject, decode_object, encode_object, read_envelope
from fleet.topics import check_name
from fleet.uploads import RESERVED

MAX_COMMANDS: Final = 256  # of one device, all applications together
MAX_CATALOGUE_BYTES: Final = 32_768

Catalogue = Mapping[str, Schema | None]
"""Each command with what arguments it takes, or None if that was not said."""


@dataclass(frozen=True, slots=True)
class CatalogueMessage:
    """On `up/commands`: all commands that the device takes; said after each hello, and when it has changed."""

    envelope: Envelope
    catalogue: Catalogue

    def encode(self) -> bytes:
        return encode_object(self.envelope.fields() | {"commands": catalogue_fields(self.catalogue)})


def decode_catalogue(payload: bytes, device: DeviceId) -> CatalogueMessage:
    """What `device` says that it takes. Raises: InvalidMessage."""
    fields = decode_object(payload)
    return CatalogueMessage(read_envelope(fields, device), parse_catalogue(fields.get("commands")))


def parse_catalogue(declared: object) -> dict[str, Schema | None]:
    """The inverse of `catalogue_fields`. Raises: InvalidMessage."""
    if not isinstance(declared, dict) or len(declared) > MAX_COMMANDS:
        raise InvalidMessage(f"commands is not an object of at most {MAX_COMMANDS} commands")
    try:
        found = {check_name(name): None if schema is None else parse(schema) for name, schema in declared.items()}
    except InvalidInput as error:
        raise InvalidMessage(f"commands: {error.message}") from error
    if size_bytes(found) > MAX_CATALOGUE_BYTES:
        raise InvalidMessage(f"all commands with their schemas have {MAX_CATALOGUE_BYTES} bytes at most")
    return found


def catalogue_fields(catalogue: Catalogue) -> JsonObject:
    """The catalogue as JSON, in the order of names."""
    return {name: None if schema is None else schema.fields for name, schema in sorted(catalogue.items())}


def size_bytes(catalogue: Catalogue) -> int:
    """How much of a message it is."""
    return sum(
        len(name) + 4 + (4 if schema is None else len(schema.text.encode())) for name, schema in catalogue.items()
    )


def misfit(catalogue: Catalogue, name: str, args: JsonObject) -> str | None:
    """Why a device with this catalogue would not do the command, in words; None if it would.

    What is the agent's own is in no catalogue.
    """
    if name.startswith(RESERVED):
        return None
    if name not in catalogue:
        return f"it takes no {name}, but: {', '.join(sorted(catalogue))[:200] or 'nothing'}"
    schema = catalogue[name]
    return None if schema is None else schema.violation(args)
