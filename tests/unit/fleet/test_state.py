"""Documents, merge patches, and the messages that carry them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet import state as rules
from fleet.errors import InvalidInput
from fleet.identity import DeviceId
from fleet.messages import Envelope, InvalidMessage, encode_object
from fleet.state import (
    EMPTY,
    MAX_AHEAD,
    MAX_DEPTH,
    MAX_DOCUMENT_BYTES,
    MAX_STATE_BYTES,
    NONE_YET,
    Delta,
    DesiredMessage,
    Mark,
    Marks,
    ReportedMessage,
    Whole,
)
from tests.fleets import NOW

PUMP = DeviceId("pump-07")
ENVELOPE = Envelope(PUMP, NOW, "boot", 1)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=4)
SCALARS = st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
ARRAYS = st.lists(st.none() | SCALARS | st.dictionaries(TEXTS, st.none() | SCALARS, max_size=2), max_size=3)
PLAIN = st.recursive(SCALARS | ARRAYS, lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3))
DOCUMENTS = st.dictionaries(st.sampled_from("abc"), PLAIN, max_size=3)
MARKS = st.builds(Mark, st.integers(1, 2**52), st.from_regex(r"\A[A-Za-z0-9_-]{1,32}\Z"))
PARTS = MARKS | st.just(NONE_YET) | st.builds(Whole, MARKS, DOCUMENTS) | st.builds(Delta, MARKS, MARKS, DOCUMENTS)


def is_document(value: dict[str, Any]) -> bool:
    """Whether it is within the bounds."""
    try:
        return bool(rules.owned(value, 1).version)
    except InvalidMessage:
        return False


def text(value: object) -> str:
    return json.dumps(value, sort_keys=True)


@pytest.mark.parametrize(
    ("target", "patch", "expected"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_patch_does_what_the_rfc_says(target: Any, patch: dict[str, Any], expected: dict[str, Any]) -> None:
    """Firmware in another language merges otherwise (RFC 7396, appendix A)."""
    assert expected == rules.merge(target, patch)


@given(DOCUMENTS, DOCUMENTS)
def test_a_difference_makes_one_document_of_the_other(before: dict[str, Any], after: dict[str, Any]) -> None:
    """A delta leaves a device with what nobody wanted."""
    original = text(before)
    patch = rules.diff(before, after)
    assert text(after) == text(rules.merge(before, patch))
    assert (not patch) == (text(before) == text(after))
    assert original == text(before), "what others hold was changed"


@given(DOCUMENTS, DOCUMENTS)
def test_nothing_is_lacking_where_all_that_is_wanted_is_there(
    desired: dict[str, Any], reported: dict[str, Any]
) -> None:
    """`state diff` shows a difference for ever, or none where there is one."""
    assert [] == list(rules.lacking(desired, rules.merge(reported, desired)))
    found = list(rules.lacking(desired, reported))
    merged = rules.merge(reported, desired)
    assert bool(found) == (text(merged) != text(reported))
    for path, wanted, _ in found:
        there: Any = desired
        for name in path:
            there = there[name]
        assert text(wanted) == text(there)


@given(MARKS | st.just(NONE_YET), PARTS)
def test_messages_come_back_as_they_were(mark: Mark, part: rules.Part) -> None:
    """A value changes on its way."""
    reported, desired = ReportedMessage(ENVELOPE, mark, part), DesiredMessage(PUMP, NOW, part, mark)
    assert text(encoded(reported)) == text(encoded(rules.decode_reported(reported.encode(), PUMP)))
    assert text(encoded(desired)) == text(encoded(rules.decode_desired(desired.encode(), PUMP)))
    assert part == rules.decode_desired(desired.encode(), PUMP).desired
    assert Marks(mark, NONE_YET) == rules.read_marks(Marks(mark, NONE_YET).fields())


def encoded(message: ReportedMessage | DesiredMessage) -> Any:
    return json.loads(message.encode())


_HEAD = {"v": 1, "id": PUMP, "ts": "2026-11-21T08:00:00Z", "boot": "b", "seq": 1}
_M = {"version": 1, "tag": "a"}
_BAD: tuple[dict[str, Any], ...] = (
    {},
    {"reported": _M},
    {"desired": [], "reported": _M},
    {"desired": _M | {"version": -1}, "reported": _M},
    {"desired": _M | {"version": True}, "reported": _M},
    {"desired": _M | {"version": 1.0}, "reported": _M},
    {"desired": _M | {"version": 2**52 + 1}, "reported": _M},
    {"desired": _M | {"tag": ""}, "reported": _M},
    {"desired": _M | {"tag": "a\n"}, "reported": _M},
    {"desired": {"version": 0, "tag": "a"}, "reported": _M},
    {"desired": _M, "reported": _M | {"document": []}},
    {"desired": _M, "reported": {"version": 0, "tag": "", "document": {}}},
    {"desired": _M, "reported": _M | {"patch": {}}},
    {"desired": _M, "reported": _M | {"base": _M}},
    {"desired": _M, "reported": _M | {"base": _M, "patch": None}},
    {"desired": _M, "reported": _M | {"base": {"version": 1}, "patch": {}}},
    {"desired": _M, "reported": _M | {"document": {}, "patch": {}}},
)


@pytest.mark.parametrize("said", _BAD, ids=range(len(_BAD)))
def test_what_is_not_as_agreed_is_refused(said: dict[str, Any]) -> None:
    """Half a document becomes what a device is."""
    with pytest.raises(InvalidMessage):
        rules.decode_reported(encode_object(_HEAD | said), PUMP)


def test_a_device_cannot_write_what_is_desired_of_it() -> None:
    """A device that was taken over orders itself about, and the registry believes it."""
    said = {"desired": _M | {"document": {"a": 1}}, "reported": _M}
    assert Mark(1, "a") == rules.decode_reported(encode_object(_HEAD | said), PUMP).desired


@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,0aé', max_size=60).map(str.encode))
def test_rubbish_is_refused_and_nothing_worse(payload: bytes) -> None:
    """One message ends dispatch, or the agent."""
    for decode in (rules.decode_reported, rules.decode_desired):
        with pytest.raises(InvalidInput):
            decode(payload, PUMP)


def test_a_document_has_bounds() -> None:
    """One device fills the registry, and every message to it the broker."""
    fits: dict[str, Any] = {"a": "x" * (MAX_DOCUMENT_BYTES - len('{"a":""}'))}
    assert fits == rules.owned(fits, 1).value
    with pytest.raises(InvalidMessage, match="8193 bytes"):
        rules.owned({"a": fits["a"] + "x"}, 1)
    deep: dict[str, Any] = {}
    for _ in range(MAX_DEPTH - 1):
        deep = {"a": deep}
    assert deep == rules.owned(deep, 1).value
    with pytest.raises(InvalidMessage, match="deeper"):
        rules.owned({"a": [deep]}, 1)
    with pytest.raises(InvalidMessage, match="8193 bytes"):
        rules.take(rules.owned(fits, 1), Delta(Mark(2, "b"), rules.owned(fits, 1).mark, {"a": fits["a"] + "x"}))


def test_the_largest_document_fits_into_a_message_however_it_is_written() -> None:
    """A device with a state near the limit is never told of it."""
    for character in ("x", "é", "€", "😀", "\x01", '"'):
        room = MAX_DOCUMENT_BYTES - len('{"a":""}')
        value = {"a": character * (room // len(json.dumps(character, ensure_ascii=False)[1:-1].encode()))}
        message = DesiredMessage(PUMP, NOW, Whole(Mark(1, "a"), rules.bounded(value)), NONE_YET)
        assert len(json.dumps(encoded(message))) + 512 < MAX_STATE_BYTES


@given(st.integers(1, 3), st.integers(1, 3), DOCUMENTS)
def test_an_older_part_changes_nothing(mine: int, theirs: int, value: dict[str, Any]) -> None:
    """A message that comes twice, or late, takes back what came after it."""
    copy = rules.owned({"mine": 1}, mine)
    for part in (Whole(Mark(theirs, "t"), value), Delta(Mark(theirs, "t"), copy.mark, value), Mark(theirs, "t")):
        after = rules.take(copy, part)
        assert (after is not copy) == (theirs > mine and not isinstance(part, Mark))


def test_a_difference_to_another_document_changes_nothing() -> None:
    """A device has half of what one admin wanted and half of what another did."""
    copy = rules.owned({"a": 1}, 1)
    assert copy == rules.take(copy, Delta(Mark(3, "c"), Mark(1, "other"), {"b": 1}))
    assert copy == rules.take(copy, Delta(Mark(3, "c"), Mark(2, copy.mark.tag), {"b": 1}))


def test_an_owner_goes_past_what_it_does_not_know() -> None:
    """After a restored backup a device ignores what it is told for as long as it has the higher version."""
    own = rules.owned({"a": 1}, 5)
    assert own == rules.outrun(own, own.mark) == rules.outrun(own, Mark(4, "x")) == rules.outrun(own, NONE_YET)
    for claim in (Mark(5, "x"), Mark(9, own.mark.tag), Mark(5 + MAX_AHEAD, "x")):
        after = rules.outrun(own, claim)
        assert (after.value, after.version) == (own.value, claim.version + 1)
    with pytest.raises(InvalidMessage):
        rules.outrun(own, Mark(6 + MAX_AHEAD, "x"))


@given(DOCUMENTS.filter(is_document), DOCUMENTS.filter(is_document))
@settings(max_examples=50)
def test_what_is_offered_is_taken(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Owner and follower disagree on what a message says."""
    known, own = rules.owned(before, 1), rules.owned(after, 2)
    for has, knows in ((known, known), (known, None), (EMPTY, None), (own, known)):
        assert own == rules.take(has, rules.offer(own, has.mark, knows))
    assert own.mark == rules.offer(own, own.mark, None)
