"""What a telemetry message says, whatever its bytes are."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enroll.export.readings import read
from fleet.errors import FleetError
from fleet.identity import DeviceId
from fleet.messages import Envelope

AT = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
TOPIC = "devices/pump-07/up/telemetry/load"
ENVELOPE = Envelope(DeviceId("pump-07"), AT, "b1", 7)


def encoded(**fields: Any) -> bytes:
    return json.dumps(ENVELOPE.fields() | fields).encode()


def test_what_the_agent_wraps_is_unwrapped() -> None:
    """The key by which a message that comes twice is known would be lost, or kept as data."""
    reading = read(TOPIC, encoded(data={"cpu": 0.5}), AT)
    assert ("pump-07", "load", "b1", 7, AT) == (
        reading.device,
        reading.stream,
        reading.boot,
        reading.seq,
        reading.sent_at,
    )
    assert ({"cpu": 0.5}, '{"cpu":0.5}', None) == (reading.data, reading.json, reading.payload)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({"c": 21}, {"c": 21}), ({"data": 1, "c": 2}, {"data": 1, "c": 2}), ({}, {}), ({"data": None}, None)],
)
def test_what_stands_beside_the_envelope_is_the_data(fields: dict[str, Any], expected: Any) -> None:
    """Firmware without the agent would lose what it says."""
    reading = read(TOPIC, encoded(**fields), AT)
    assert (expected, 7) == (reading.data, reading.seq)


def test_an_envelope_of_another_is_set_aside() -> None:
    """A device could write into another's history."""
    with pytest.raises(FleetError, match="id is 'valve-1', the topic says pump-07"):
        read(TOPIC, encoded(id="valve-1"), AT)


@pytest.mark.parametrize("fields", [{"v": 2}, {"seq": -1}, {"seq": True}, {"boot": ""}, {"boot": 5}, {"ts": "now"}])
def test_an_envelope_that_cannot_be_read_is_data(fields: dict[str, Any]) -> None:
    """What a later version says would be lost, or stand under a key that it does not have."""
    reading = read(TOPIC, encoded(**fields), AT)
    assert (None, None, ENVELOPE.fields() | fields) == (reading.envelope, reading.seq, reading.data)


@pytest.mark.parametrize("payload", [b"21.5", b'"on"', b"null", b"[1]", b'{"id": "valve-1", "c": 1}'])
def test_json_without_an_envelope_is_data(payload: bytes) -> None:
    """A sensor that publishes a number would be kept as bytes that nobody can query."""
    reading = read(TOPIC, payload, AT)
    assert (json.loads(payload), None, None) == (reading.data, reading.payload, reading.envelope)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x00\xff",
        b"[" * 100_000,
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": 1, "a": 2}',
        b'{"a": "\\ud800"}',
        b'{"a": 9007199254740993}',
        b"9" * 5000,
        b'{"id": "valve-1", "v": 1, "ts": "", "boot": "", "seq": 0, "seq": 1}',
        b" " * 200_000 + b"1",
    ],
)
def test_what_is_no_json_is_kept_as_it_came(payload: bytes) -> None:
    """A poison message would stop the export, or be lost."""
    reading = read(TOPIC, payload, AT)
    assert (payload, None, None) == (reading.payload, reading.json, reading.envelope)


@pytest.mark.parametrize(
    "topic", ["devices/pump-07/up/status", "devices/P/up/telemetry/a", "a", "", "devices/p/up/telemetry/a/b"]
)
def test_what_is_no_telemetry_is_set_aside(topic: str) -> None:
    """The end of the export would be a topic that nobody thought of."""
    with pytest.raises(FleetError):
        read(topic, b"1", AT)


@given(st.binary(max_size=200))
def test_any_bytes_can_be_kept(payload: bytes) -> None:
    """A device could end the export."""
    reading = read(TOPIC, payload, AT)
    assert (reading.json is None) == (reading.payload is not None)
    if reading.json is not None:
        assert json.loads(reading.json) == json.loads(payload)
