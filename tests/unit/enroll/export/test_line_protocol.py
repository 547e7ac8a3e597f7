"""InfluxDB line protocol: what is written is what a reader reads."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enroll.export.line_protocol import (
    MAX_FIELDS,
    clean_name,
    flatten,
    is_timestamp,
    line,
    timestamp,
)
from tests.unit.enroll.export.lines import parse

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ['a"b', "a\\", "\\\\", "a b,c=d", "=", ",", " ", '"', "\n", "a\r\nb", "\\n", "#", "_x", "time", "é", "\u2028", "\0"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=20
)


@given(VALUES)
def test_what_is_written_is_one_line_and_reads_back(data: Any) -> None:
    """A device's text ends the line, becomes a field of its own, or makes InfluxDB refuse the batch."""
    fields, _ = flatten(data)
    if not fields:
        return
    written = line("load", {"device": "pump-07"}, fields, 1)
    assert [written] == written.splitlines() or all(c not in written for c in "\n\r")
    point = parse(written)
    assert ("load", {"device": "pump-07"}, 1) == (point.measurement, point.tags, point.nanoseconds)
    assert {name: _as_read(value) for name, value in fields.items()} == point.fields


def _as_read(value: float | bool | str) -> float | bool | str:
    if isinstance(value, str):
        return value.replace("\n", "\\n").replace("\r", "\\r").replace("\f", "\\f")
    return value


@given(TEXTS, TEXTS)
def test_names_read_back(measurement: str, tag: str) -> None:
    """A name with a comma, a blank or a backslash at its end would run into what follows."""
    point = parse(line(measurement, {tag: tag or "x"}, {tag: 1.0}, -5))
    name = clean_name(tag)
    assert (clean_name(measurement), {name: clean_name(tag or "x")}, {name: 1.0}) == (
        point.measurement,
        point.tags,
        point.fields,
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cpu load", "cpu load"),
        ("time", "field_time"),
        ("_field", "field_field"),
        ("", "field"),
        ("__", "field"),
        ("#a", "field_a"),
        ("a\\", "a_"),
        ("a\nb\0", "a_b_"),
    ],
)
def test_names_that_influxdb_refuses_are_replaced(name: str, expected: str) -> None:
    """InfluxDB would refuse the point, or take the name for one of its own."""
    assert expected == clean_name(name)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (21, {"value": 21}),
        ("on", {"value": "on"}),
        (None, {}),
        ([], {}),
        ({"a": {}}, {}),
        (
            {"cpu": {"load": 0.5, "cores": [1, 2]}, "ok": True},
            {"cpu.load": 0.5, "cpu.cores.0": 1, "cpu.cores.1": 2, "ok": True},
        ),
        ([[1], {"a": 2}], {"0.0": 1, "1.a": 2}),
        ({"a": {"b": 1}, "a.b": 2}, {"a.b": 2}),
        ({"": 1}, {"field": 1}),
    ],
)
def test_flattening(data: Any, expected: dict[str, Any]) -> None:
    """Dashboards would look for other names than docs/sinks.md gives."""
    assert (expected, 0) == flatten(data)


def test_what_is_too_much_is_left_out_and_counted() -> None:
    """One message makes thousands of series, or InfluxDB refuses the line."""
    fields, left_out = flatten({f"f{n}": n for n in range(MAX_FIELDS + 10)})
    assert (MAX_FIELDS, 10) == (len(fields), left_out)
    assert ({"b": 1}, 2) == flatten({"a": "x" * 65_536, "b": 1, "n" * 256: 2})


def test_every_number_is_a_float() -> None:
    """A field that was 21 and is 21.5 is refused: a field keeps the type of its first value."""
    assert "load value=21 1" == line("load", {}, {"value": 21}, 1)
    assert "load value=21.5 1" == line("load", {}, {"value": 21.5}, 1)


AT = datetime(2026, 11, 21, 8, 0, 0, 5000, tzinfo=UTC)


def test_messages_of_one_millisecond_stay_apart() -> None:
    """Two readings of one millisecond would be one point to InfluxDB."""
    assert 1_795_248_000_005_000_007 == timestamp(AT, 7)
    assert timestamp(AT, 7) != timestamp(AT, 8)
    assert timestamp(AT, 999_999) < timestamp(AT + timedelta(milliseconds=1), 0)
    assert timestamp(AT + timedelta(microseconds=1), 999) < timestamp(AT + timedelta(microseconds=2), 0)


@given(
    st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-12)), timezone(timedelta(hours=14))])),
    st.integers(0, 2**53 - 1),
)
def test_any_time_is_kept_to_its_precision_or_known_to_be_none_of_influxdbs(moment: datetime, seq: int) -> None:
    """A clock of 1970 or 9999 moves the reading, or InfluxDB refuses the batch."""
    found = timestamp(moment, seq)
    micros = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert micros - found // 1000 <= 0 < 1000 - (found // 1000 - micros)
    assert is_timestamp(found) == (-(2**63) + 2 <= found <= 2**63 - 2)
