"""The strict JSON decoder, and the messages."""

import contextlib
import json
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.identity import DeviceId
from fleet.messages import (
    MAX_DEPTH,
    MAX_PRESENCE_BYTES,
    CommandMessage,
    Envelope,
    HelloMessage,
    InvalidMessage,
    Presence,
    ResultMessage,
    ResultState,
    StatusMessage,
    decode_command,
    decode_hello,
    decode_object,
    decode_result,
    decode_status,
    decode_value,
    encode_object,
    format_time,
    parse_time,
)
from tests.unit.fleet.strategies import device_ids

_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)
_objects = st.dictionaries(st.text(), _json, max_size=5)
_times = st.datetimes(datetime(1970, 1, 1), datetime(2040, 1, 1)).map(  # noqa: DTZ001 - made aware in the next line
    lambda t: t.replace(microsecond=t.microsecond // 1000 * 1000, tzinfo=UTC)
)
_envelopes = st.builds(Envelope, device_ids, _times, st.text(min_size=1, max_size=64), st.integers(0, 2**53 - 1))


@given(_objects)
def test_objects_survive(value: dict[str, Any]) -> None:
    """An object that JSON can hold is changed or refused."""
    assert decode_object(encode_object(value)) == value


@given(st.binary(max_size=300))
def test_bytes_raise_only_invalid_message(payload: bytes) -> None:
    """A payload from a peer raises something that nobody catches."""
    for decode in (
        decode_object,
        lambda p: decode_status(p, DeviceId("a")),
        lambda p: decode_command(p, DeviceId("a")),
    ):
        try:
            decode(payload)
        except InvalidMessage:
            continue


@pytest.mark.parametrize(
    "payload",
    [b"", b"[]", b"1", b"null", b"{", b'{"a":1}x', b'{"a":NaN}', b'{"a":Infinity}', b'{"a":-Infinity}', b'{"a":1e999}',
     b'{"a":1,"a":2}', b'{"a":{"b":1,"b":1}}', b'{"a":"\\ud800"}', b'{"\\udfff":1}', b'{"a":"\xff"}', b"\xef\xbb\xbf{}",
     b'{"a":9007199254740992}', b'{"a":' + b"9" * 5000 + b"}", b'{"a":' + b"[" * 40 + b"]" * 40 + b"}",
     b"[" * 100_000, b'{"a":"' + b"x" * 70_000 + b'"}'],
)  # fmt: skip
def test_what_is_refused(payload: bytes) -> None:
    """DESIGN section 11: depth and size bounded; NaN, duplicate keys and lone surrogates refused."""
    with pytest.raises(InvalidMessage):
        decode_object(payload)


def test_brackets_in_texts_are_not_depth() -> None:
    """A text full of brackets counts as nesting, or a quoted quote hides real nesting."""
    assert decode_object(json.dumps({"a": "[" * 100}).encode()) == {"a": "[" * 100}
    hidden = b'{"a":"\\\\","b":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}"
    with pytest.raises(InvalidMessage):
        decode_object(hidden)


@given(_envelopes, st.sampled_from(Presence), st.text(max_size=50))
def test_status_survives(envelope: Envelope, presence: Presence, reason: str) -> None:
    """A status or hello is not read as it was written."""
    status = StatusMessage(envelope, presence, reason, "0.1.0")
    assert decode_status(status.encode(), envelope.device) == status
    hello = HelloMessage(envelope, "0.1.0", "12ab", reason[:64])
    assert decode_hello(hello.encode(), envelope.device) == hello


@given(_envelopes, st.sampled_from(ResultState), _json)
def test_result_survives(envelope: Envelope, state: ResultState, output: Any) -> None:
    """A result is not read as it was written."""
    result = ResultMessage(envelope, state, output)
    assert decode_result(result.encode(), envelope.device) == result


@given(_envelopes)
def test_an_error_of_any_length_can_be_read(envelope: Envelope) -> None:
    """What a device could not do is set aside unread, and its command never ends."""
    result = ResultMessage(envelope, ResultState.FAILED, None, "ä" * 2000)
    assert "ä" * 1024 == decode_result(result.encode(), envelope.device).error


@given(device_ids, _times, _objects)
def test_command_survives(device: DeviceId, moment: datetime, args: dict[str, Any]) -> None:
    """A command is not read as it was written."""
    command = CommandMessage(device, moment, moment + timedelta(seconds=30), args)
    assert decode_command(command.encode(), device) == command


_FRAGMENTS = st.sampled_from(
    ["[", "]", "{", "}", ",", ":", '"', "\\", "\\\\", '\\"', '"a"', '"[["', "[" * 20, "]" * 20, "[" * 33, "1", "-", ".",
     "e", "E+", "1e308", "1e309", "1e-400", "0.1234567890123456789", "9007199254740991", "-9007199254740992",
     "12345678901234567", "9" * 300, "9" * 210 + "e99", "9" * 305 + "e9", "\\ud83d", "\\ude00", "\\\\ud800",
     "NaN", "true", "é", '{"a":1,"a":2}', " "]
)  # fmt: skip
_shapes = st.lists(_FRAGMENTS, max_size=30).map("".join)
_texts = st.one_of(_shapes, _shapes.map(lambda text: f"[{text}]"), _json.map(json.dumps), st.integers().map(str))


def _refused(text: str) -> bool:
    """What I-JSON refuses, decided slowly: every number, key and text is looked at, and each byte for its depth."""
    depth, inside, escaped = 0, False, False
    for each in text:
        if inside:
            inside, escaped = escaped or each != '"', each == "\\" and not escaped
        elif each == '"':
            inside = True
        depth += 0 if inside else (each in "[{") - (each in "]}")
        if depth > MAX_DEPTH:
            return True
    try:
        return _is_refused(json.loads(text, object_pairs_hook=_Pairs, parse_constant=lambda _: _Nan))
    except (ValueError, RecursionError):
        return True


class _Pairs(list[tuple[str, Any]]):
    """An object as it was written."""


_Nan = float("nan")


def _is_refused(value: Any) -> bool:
    if isinstance(value, _Pairs):
        keys = [key for key, _ in value]
        return len(set(keys)) < len(keys) or any(_is_refused(key) or _is_refused(each) for key, each in value)
    if isinstance(value, list):
        return any(_is_refused(each) for each in value)
    if isinstance(value, str):
        return any("\ud800" <= each <= "\udfff" for each in value)
    if isinstance(value, float):
        return not math.isfinite(value)
    return type(value) is int and abs(value) >= 2**53


@given(_texts)
def test_what_is_looked_at_in_a_hurry_is_decided_as_if_with_care(text: str) -> None:
    """The short cuts of the decoder let something pass, or refuse what is sound."""
    try:
        decode_value(text.encode())
        is_refused = False
    except InvalidMessage:
        is_refused = True
    assert _refused(text) == is_refused


@pytest.mark.parametrize(
    "of_length",
    [lambda n: b"[" * n, lambda n: b"[" * (n // 2) + b"]" * (n // 2), lambda n: b'"' * n,
     lambda n: b'"' + b"\\" * (n - 1), lambda n: b'"' + b'\\"' * (n // 2 - 1),
     lambda n: b"[" + b'"",' * (n // 3 - 1) + b'""]',
     lambda n: b"[" + (b"[" * 30 + b"]" * 30 + b",") * (n // 64) + b"0]",
     lambda n: b"0." * (n // 2)],
    ids=("open", "deep", "quotes", "backslashes", "escapes", "texts", "nested", "digits"),
)  # fmt: skip
def test_no_payload_takes_more_than_its_length(of_length: Callable[[int], bytes]) -> None:
    """One device's messages, each within the bounds, keep the service from everybody else's: quadratic is seconds."""

    def seconds(payload: bytes) -> float:
        began = time.process_time()
        with contextlib.suppress(InvalidMessage):
            decode_value(payload)
        return time.process_time() - began

    # Two lengths and not a time: quadratic work would be sixteen times as much, not four. The least of five, as a
    # collection of this process's garbage takes longer than all of it.
    short, long = (min(seconds(of_length(length)) for _ in range(5)) for length in (16_384, 65_536))
    assert long < 9 * short + 0.02


def test_a_status_is_small() -> None:
    """A status of the size of a result is parsed 200 times a second."""
    status = StatusMessage(
        Envelope(DeviceId("a"), datetime(2026, 1, 1, tzinfo=UTC), "b", 1), Presence.ONLINE, "\0" * 1024
    )
    assert status == decode_status(status.encode(), DeviceId("a"))
    with pytest.raises(InvalidMessage):
        decode_status(status.encode() + b" " * MAX_PRESENCE_BYTES, DeviceId("a"))


def test_the_topic_says_who_sent_it() -> None:
    """A message under one device's topic speaks for another."""
    status = StatusMessage(Envelope(DeviceId("a"), datetime(2026, 1, 1, tzinfo=UTC), "boot", 1), Presence.ONLINE)
    with pytest.raises(InvalidMessage):
        decode_status(status.encode(), DeviceId("b"))


@pytest.mark.parametrize(
    "change",
    [{"v": 2}, {"v": True}, {"boot": ""}, {"boot": 1}, {"boot": "x" * 65}, {"seq": -1}, {"seq": True}, {"seq": "1"},
     {"ts": "yesterday"}, {"ts": "2026-01-01T00:00:00"}, {"ts": 1}, {"status": "asleep"}, {"status": []},
     {"reason": 5}, {"reason": "x" * 2000}],
)  # fmt: skip
def test_fields_that_are_refused(change: dict[str, Any]) -> None:
    """A field of the wrong kind is passed on."""
    envelope = Envelope(DeviceId("a"), datetime(2026, 1, 1, tzinfo=UTC), "boot", 1)
    fields = json.loads(StatusMessage(envelope, Presence.ONLINE).encode()) | change
    with pytest.raises(InvalidMessage):
        decode_status(json.dumps(fields).encode(), DeviceId("a"))


def test_times_are_utc() -> None:
    """A time is written with another offset than Z, or read without one."""
    moment = datetime(2026, 11, 21, 9, 0, tzinfo=timezone(timedelta(hours=1)))
    assert format_time(moment) == "2026-11-21T08:00:00.000Z"
    assert parse_time("2026-11-21T09:00:00+01:00") == moment
    with pytest.raises(InvalidMessage):
        parse_time("0001-01-01T00:00:00+14:00")
