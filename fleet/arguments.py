"""Which arguments a command takes: a small part of JSON Schema (2020-12), checked alike by the fleet and by the device.

    {"type": "object", "properties": {"seconds": {"type": "number", "minimum": 0.05}}, "required": ["seconds"]}

A schema comes from firmware and arguments from whoever gives commands, so neither may cost more than it is long: no
regular expressions, no references, no alternatives, one schema for each place. What is not understood is refused when
it is declared: a keyword that is passed over would promise a check that nobody makes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fleet.errors import InvalidInput, printable
from fleet.messages import JsonObject

MAX_SCHEMA_BYTES: Final = 4_096
MAX_DEPTH: Final = 8
_MAX_ENUM: Final = 64
_MAX_SHOWN: Final = 60


class InvalidSchema(InvalidInput):
    """Not a schema of this part of JSON Schema."""


@dataclass(frozen=True, slots=True)
class _Node:
    """What one place may hold. `types` empty: of any type; each other rule concerns only values of its own type."""

    types: frozenset[str] = frozenset()
    choices: frozenset[object] | None = None
    minimum: float | None = None
    maximum: float | None = None
    min_length: int = 0
    max_length: int | None = None
    items: _Node | None = None
    min_items: int = 0
    max_items: int | None = None
    properties: Mapping[str, _Node] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    is_open: bool = True


@dataclass(frozen=True, slots=True)
class Schema:
    """The schema of a command's arguments; two are equal if they were written alike."""

    text: str
    _root: _Node = field(compare=False, repr=False)

    @property
    def fields(self) -> JsonObject:
        """As it was declared."""
        found: JsonObject = json.loads(self.text)
        return found

    def violation(self, args: JsonObject) -> str | None:
        """What is wrong with these arguments, the first thing alone, in words; None if they fit.

        Takes time in proportion to the length of `args`, whatever the schema is.
        """
        return _violation(self._root, args, "")


def parse(declared: object) -> Schema:
    """The schema that `declared`, decoded JSON, is. Raises: InvalidSchema, which says where and why not."""
    root = _parse(declared, "the schema", MAX_DEPTH)
    if root.types not in (frozenset(), frozenset({"object"})):
        raise InvalidSchema("arguments are an object, so the schema's type is object")
    text = json.dumps(declared, separators=(",", ":"), ensure_ascii=False)
    if len(text.encode()) > MAX_SCHEMA_BYTES:
        raise InvalidSchema(f"a schema has {MAX_SCHEMA_BYTES} bytes at most")
    return Schema(text, root)


# What JSON calls the types of Python's values; a bool is an int to Python alone.


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: object) -> bool:
    """2.0 is one (JSON Schema Validation 2020-12, 6.1.1)."""
    return _is_number(value) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))


_IS_OF: Final[Mapping[str, Callable[[object], bool]]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "number": _is_number,
    "integer": _is_integer,
}


def _key(value: object) -> object:
    """Equal for values that are equal in JSON: 1 and 1.0 are, 1 and true are not."""
    return (isinstance(value, bool), value)


def _violation(node: _Node, value: Any, where: str) -> str | None:
    if node.types and not any(_IS_OF[each](value) for each in node.types):
        return _said(where, value, f"is not of type {' or '.join(sorted(node.types))}")
    if node.choices is not None and (isinstance(value, dict | list) or _key(value) not in node.choices):
        return _said(where, value, "is not one of the values that it may have")
    match value:
        case bool():
            return None  # which is an int to Python
        case dict():
            return _in_object(node, value, where)
        case list():
            return _in_array(node, value, where)
        case str():
            return _in_range(len(value), node.min_length, node.max_length, where, "characters")
        case int() | float():
            return _in_range(value, node.minimum, node.maximum, where, "")
    return None


def _in_object(node: _Node, value: Mapping[str, Any], where: str) -> str | None:
    for name in node.required:  # stops at the first that is missing: never more than the object has
        if name not in value:
            return _said(where, None, f"{_cut(name)} is missing")
    for name, inner in value.items():
        child = node.properties.get(name)
        if child is not None:
            if found := _violation(child, inner, f"{where}.{_cut(name)}"):
                return found
        elif not node.is_open:
            return _said(where, None, f"{_cut(name)} is not a name that it knows")
    return None


def _in_array(node: _Node, value: list[Any], where: str) -> str | None:
    if found := _in_range(len(value), node.min_items, node.max_items, where, "items"):
        return found
    if node.items is not None:
        for number, inner in enumerate(value):
            if found := _violation(node.items, inner, f"{where}[{number}]"):
                return found
    return None


def _in_range(size: float, least: float | None, most: float | None, where: str, unit: str) -> str | None:
    shown = f"{json.dumps(size)} {unit}".rstrip()
    if least is not None and size < least:
        return f"{_place(where)}{shown} is less than {least}"
    if most is not None and size > most:
        return f"{_place(where)}{shown} is more than {most}"
    return None


def _said(where: str, value: object, words: str) -> str:
    """One sentence, bounded: a name or a text of the arguments may be long, or drive a terminal."""
    return f"{_place(where)}{words}" if value is None else f"{_place(where)}{_shown(value)} {words}"


def _place(where: str) -> str:
    path = where.lstrip(".")
    return f"{_cut(path)}: " if path else ""


def _shown(value: object) -> str:
    return "it" if isinstance(value, dict | list) else _cut(json.dumps(value, ensure_ascii=False))


def _cut(text: str) -> str:
    return printable(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...")


# Declarations


def _parse(declared: object, where: str, depth: int) -> _Node:
    if not isinstance(declared, dict):
        raise InvalidSchema(f"{_cut(where)} is not an object")
    if depth == 0:
        raise InvalidSchema(f"a schema has {MAX_DEPTH} levels at most")
    fields: dict[str, Any] = {}
    for keyword, value in declared.items():
        if keyword in _ANNOTATIONS:
            _text(value, keyword, where)
        elif keyword == "properties":
            fields["properties"] = _properties(value, where, depth)
        elif keyword == "items":
            fields["items"] = _parse(value, f"{where}[]", depth - 1)
        elif keyword in _KEYWORDS:
            name, read = _KEYWORDS[keyword]
            fields[name] = read(value, keyword, where)
        else:
            raise InvalidSchema(f"{_cut(where)}: {_cut(keyword)} is not understood", hint=f"one of {_UNDERSTOOD}")
    return _Node(**fields)


def _properties(value: object, where: str, depth: int) -> Mapping[str, _Node]:
    if not isinstance(value, dict):
        raise _wrong("properties", where, "an object")
    return {name: _parse(each, f"{where}.{name}", depth - 1) for name, each in value.items()}


def _wrong(keyword: str, where: str, wanted: str) -> InvalidSchema:
    return InvalidSchema(f"{_cut(where)}: {keyword} is not {wanted}")


def _text(value: object, keyword: str, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(keyword, where, "a text")
    return value


def _types(value: object, keyword: str, where: str) -> frozenset[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(each, str) and each in _IS_OF for each in names):
        raise _wrong(keyword, where, f"one of {', '.join(_IS_OF)}, or a list of them")
    if len(set(names)) != len(names):
        raise _wrong(keyword, where, "without repetition")
    return frozenset(names)


def _choices(value: object, keyword: str, where: str) -> frozenset[object]:
    if not isinstance(value, list) or not 0 < len(value) <= _MAX_ENUM:
        raise _wrong(keyword, where, f"a list of 1 to {_MAX_ENUM} values")
    if any(isinstance(each, dict | list) for each in value):
        raise _wrong(keyword, where, "a list of texts, numbers, booleans or null")
    return frozenset(map(_key, value))


def _number(value: object, keyword: str, where: str) -> float:
    if not _is_number(value):
        raise _wrong(keyword, where, "a number")
    return value  # type: ignore[return-value]


def _count(value: object, keyword: str, where: str) -> int:
    if type(value) is not int or value < 0:
        raise _wrong(keyword, where, "a whole number from 0")
    return value


def _names(value: object, keyword: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise _wrong(keyword, where, "a list of names")
    if len(set(value)) != len(value):
        raise _wrong(keyword, where, "without repetition")
    return tuple(value)


def _flag(value: object, keyword: str, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(keyword, where, "true or false")
    return value


_ANNOTATIONS: Final = ("title", "description")
_KEYWORDS: Final[Mapping[str, tuple[str, Callable[[object, str, str], object]]]] = {
    "type": ("types", _types),
    "enum": ("choices", _choices),
    "minimum": ("minimum", _number),
    "maximum": ("maximum", _number),
    "minLength": ("min_length", _count),
    "maxLength": ("max_length", _count),
    "minItems": ("min_items", _count),
    "maxItems": ("max_items", _count),
    "required": ("required", _names),
    "additionalProperties": ("is_open", _flag),
}
_UNDERSTOOD: Final = ", ".join(sorted((*_KEYWORDS, *_ANNOTATIONS, "properties", "items")))
