"""What arguments a command takes, as firmware declares it; jsonschema, which others wrote, as the oracle."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from fleet import arguments, catalogue
from fleet.arguments import InvalidSchema, Schema, parse
from fleet.catalogue import CatalogueMessage, decode_catalogue, misfit, parse_catalogue
from fleet.identity import DeviceId
from fleet.messages import Envelope, InvalidMessage

PUMP = DeviceId("pump-07")
NAMES = st.sampled_from(("a", "b", "seconds", "ü", ""))
NUMBERS = st.one_of(
    st.integers(-3, 3), st.sampled_from((0.5, 1.0, -2.0, 1e300, 2**53 - 1)), st.floats(-5, 5, allow_nan=False)
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text("abü\U0001f321", max_size=3))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
)
ARGS = st.dictionaries(NAMES, VALUES, max_size=4)
_TYPES = ("null", "boolean", "object", "array", "number", "string", "integer")
_COUNTS = st.integers(0, 4)


def _rules(inner: st.SearchStrategy[Any]) -> dict[str, st.SearchStrategy[Any]]:
    types = st.sampled_from(_TYPES) | st.lists(st.sampled_from(_TYPES), min_size=1, max_size=3, unique=True)
    return {
        "type": types,
        "enum": st.lists(SCALARS, min_size=1, max_size=4),
        "minimum": NUMBERS,
        "maximum": NUMBERS,
        "minLength": _COUNTS,
        "maxLength": _COUNTS,
        "minItems": _COUNTS,
        "maxItems": _COUNTS,
        "required": st.lists(NAMES, max_size=2, unique=True),
        "additionalProperties": st.booleans(),
        "description": st.just("for people"),
        "items": inner,
        "properties": st.dictionaries(NAMES, inner, max_size=3),
    }


def _schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({}, optional=_rules(inner))


DECLARED: st.SearchStrategy[dict[str, Any]] = st.recursive(st.just({}), _schemas, max_leaves=6)
ROOTS = DECLARED.map(lambda declared: declared | ({"type": "object"} if "type" in declared else {}))


@given(ROOTS, ARGS)
def test_arguments_fit_exactly_where_json_schema_says_so(declared: dict[str, Any], args: dict[str, Any]) -> None:
    """Firmware declares one thing, and the fleet checks another."""
    Draft202012Validator.check_schema(declared)
    assert Draft202012Validator(declared).is_valid(args) == (parse(declared).violation(args) is None)


@given(ROOTS)
def test_what_is_declared_comes_through_the_fleet_unchanged(declared: dict[str, Any]) -> None:
    """What an admin is shown, and the next service checks by, would be something else."""
    schema = parse(declared)
    assert declared == schema.fields
    taken: dict[str, Schema | None] = {"set": schema, "echo": None}
    message = CatalogueMessage(Envelope(PUMP, datetime(2026, 11, 21, tzinfo=UTC), "boot-1", 3), taken)
    assert message == decode_catalogue(message.encode(), PUMP)
    assert catalogue.size_bytes(taken) <= len(json.dumps(catalogue.catalogue_fields(taken)).encode())


@given(VALUES)
def test_what_is_no_schema_is_refused_and_never_raises_anything_else(declared: object) -> None:
    """One device's message would end dispatch, or one line of firmware the agent."""
    for read, refusal in ((parse, InvalidSchema), (parse_catalogue, InvalidMessage)):
        with contextlib.suppress(refusal):
            read(declared)


SET_INTERVAL = {
    "type": "object",
    "properties": {
        "seconds": {"type": "number", "minimum": 0.05, "maximum": 3600},
        "mode": {"enum": ["fast", "slow", None]},
        "points": {"type": "array", "maxItems": 2, "items": {"type": "integer"}},
        "name": {"type": "string", "minLength": 2, "maxLength": 3},
    },
    "required": ["seconds"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"seconds": 5, "mode": None, "points": [1, 2.0], "name": "üü"}, None),
        ({}, "seconds is missing"),
        ({"seconds": True}, "seconds: true is not of type number"),
        ({"seconds": "5"}, 'seconds: "5" is not of type number'),
        ({"seconds": 0}, "seconds: 0 is less than 0.05"),
        ({"seconds": 3600.5}, "seconds: 3600.5 is more than 3600"),
        ({"seconds": 1, "mode": "warp"}, 'mode: "warp" is not one of the values that it may have'),
        ({"seconds": 1, "points": [1, 2, 3]}, "points: 3 items is more than 2"),
        ({"seconds": 1, "points": [1, 2.5]}, "points[1]: 2.5 is not of type integer"),
        ({"seconds": 1, "name": "a"}, "name: 1 characters is less than 2"),
        ({"seconds": 1, "sec\x1bonds": 1}, "sec\\x1bonds is not a name that it knows"),
        ({"seconds": ["x" * 9_000]}, "seconds: it is not of type number"),
        ({"seconds": "x" * 9_000}, f'seconds: "{"x" * 59}... is not of type number'),
    ],
)
def test_what_is_wrong_is_said_in_a_line(args: dict[str, Any], words: str | None) -> None:
    """An admin would have to find it himself, or a terminal be driven by what somebody else wrote."""
    assert words == parse(SET_INTERVAL).violation(args)


@pytest.mark.parametrize(
    "declared",
    [
        True,
        {"pattern": "(a+)+$"},
        {"$ref": "#"},
        {"anyOf": [{}]},
        {"properties": {"a": {"format": "ipv4"}}},
        {"properties": {"a": True}},
        {"items": [{}]},
        {"type": "array"},
        {"type": ["object", "null"]},
        {"type": []},
        {"type": ["object", "object"]},
        {"type": "objekt"},
        {"enum": []},
        {"enum": [[1]]},
        {"enum": [1] * 65},
        {"required": ["a", "a"]},
        {"required": "a"},
        {"minItems": -1},
        {"minItems": True},
        {"minimum": "1"},
        {"additionalProperties": {}},
        {"description": 5},
        {"description": "x" * 4_096},
    ],
)
def test_what_would_not_be_checked_is_refused_when_it_is_declared(declared: object) -> None:
    """An author would rely on a check that nobody makes, or a device have others' time."""
    with pytest.raises(InvalidSchema):
        parse(declared)


def test_a_schema_is_bounded_in_depth_and_a_catalogue_in_length() -> None:
    """A device could fill the registry, or have the fleet recurse."""
    deep: dict[str, Any] = {}
    for _ in range(arguments.MAX_DEPTH - 1):
        deep = {"items": deep}
    parse(deep)
    with pytest.raises(InvalidSchema):
        parse({"items": deep})
    long = {"description": "x" * 4_000}
    assert 8 == len(parse_catalogue({f"c{n}": long for n in range(8)}))
    with pytest.raises(InvalidMessage):
        parse_catalogue({f"c{n}": long for n in range(9)})
    with pytest.raises(InvalidMessage):
        parse_catalogue({f"c{n}": None for n in range(257)})
    with pytest.raises(InvalidMessage):
        parse_catalogue({"a/b": None})


def test_a_misfit_says_what_would_do() -> None:
    """An admin who mistypes a name would learn of it from the device, or not at all while that is away."""
    taken = {"set-interval": parse(SET_INTERVAL), "echo": None}
    assert misfit(taken, "echo", {"any": 1}) is None
    assert misfit(taken, "set-interval", {"seconds": 1}) is None
    assert "seconds is missing" == misfit(taken, "set-interval", {})
    assert "it takes no set-intervall, but: echo, set-interval" == misfit(taken, "set-intervall", {})


class _Counted(dict[str, Any]):
    """Counts how often it is looked into."""

    looks = 0

    def __contains__(self, key: object) -> bool:
        _Counted.looks += 1
        return super().__contains__(key)


@given(st.integers(0, 50))
def test_the_cost_of_a_check_does_not_multiply(count: int) -> None:
    """A schema of many names, and arguments of many objects, would cost their product."""
    required = [f"n{number}" for number in range(400)]
    schema = parse({"properties": {"list": {"items": {"required": required}}}})
    _Counted.looks = 0
    schema.violation({"list": [_Counted() for _ in range(count)]})
    assert _Counted.looks <= 1
    _Counted.looks = 0
    assert schema.violation({"list": [_Counted.fromkeys(required, 1) for _ in range(count)]}) is None
    assert len(required) * count == _Counted.looks


@given(ROOTS, ARGS)
def test_a_violation_is_short_and_can_be_printed(declared: dict[str, Any], args: dict[str, Any]) -> None:
    """A result's error has 1024 characters, and is printed on an admin's terminal."""
    found = parse(declared).violation(args)
    assume(found is not None)
    assert found is not None
    assert found.isprintable()
    assert len(found) < 400
