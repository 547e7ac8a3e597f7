"""What of a telemetry message Home Assistant is shown: each number is a sensor, each on or off a binary one (pure).

A device chooses the names of its fields, and a name stands in topics and ids of Home Assistant. So one that is not made
of letters, digits, `_`, `.` and `-` is replaced by what can be kept of it and a part of its hash: two names are never
one, and none has a level, a wildcard or a template in it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any, Final

from fleet.errors import printable

_SAFE: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,46}[A-Za-z0-9])?")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9]+")
_HASH_CHARS: Final = 12
_MAX_LABEL: Final = 64
MAX_FIELDS: Final = 64  # of one message
MAX_FIELD_CHARS: Final = 256  # with the names of what it is in; a longer one is shown to nobody


class Kind(StrEnum):
    """Which platform of Home Assistant shows it."""

    NUMBER = "sensor"
    SWITCHED = "binary_sensor"


@dataclass(frozen=True, slots=True, order=True)
class Entity:
    """One thing that is shown. `stream` and `key` can stand as a level of a topic."""

    stream: str
    key: str
    kind: Kind

    @property
    def id(self) -> str:
        """Unique among those of its device: no part has a colon."""
        return f"{self.stream}:{self.key}:{self.kind.value}"


@dataclass(frozen=True, slots=True)
class Value:
    """What an entity is now, as Home Assistant reads it; `field` is the name that its device gave it."""

    entity: Entity
    field: str
    text: str


def safe_key(field: str) -> str:
    """A level of a topic for any name: itself, if that can be one. Different names have different keys."""
    # A name that looks like a hashed one is hashed as well, or a device could take it for another's.
    if _SAFE.fullmatch(field) and not re.search(rf"-[0-9a-f]{{{_HASH_CHARS}}}$", field):
        return field
    kept = _UNSAFE.sub("_", field).strip("_")[:32] or "field"
    return f"{kept}-{hashlib.sha256(field.encode('utf-8', 'surrogatepass')).hexdigest()[:_HASH_CHARS]}"


def label(stream: str, field: str) -> str:
    """What people read: bounded, and nothing that drives a terminal or looks like a template."""
    text = printable(f"{stream} {field}").replace("{", "(").replace("}", ")")
    return text if len(text) <= _MAX_LABEL else f"{text[: _MAX_LABEL - 3]}..."


def values(stream: str, data: Any) -> list[Value]:
    """What `data` says of the stream: names of what is within others are joined by dots; the first MAX_FIELDS."""
    found: dict[Entity, Value] = {}
    for field, value in islice(_leaves("", data), MAX_FIELDS):
        kind = Kind.SWITCHED if isinstance(value, bool) else Kind.NUMBER
        entity = Entity(stream, safe_key(field), kind)
        text = ("ON" if value else "OFF") if isinstance(value, bool) else repr(value)
        found[entity] = Value(entity, field, text)
    return list(found.values())


def _leaves(path: str, data: Any) -> Iterator[tuple[str, float | bool]]:
    if len(path) > MAX_FIELD_CHARS:  # before more is added to it: 30,000 values may be in it
        return
    if isinstance(data, dict):
        for name, value in data.items():
            yield from _leaves(f"{path}.{name}" if path else name, value)
    elif isinstance(data, list):
        for at, value in enumerate(data):
            yield from _leaves(f"{path}.{at}" if path else str(at), value)
    elif isinstance(data, int | float):
        yield path or "value", data
