"""How a signature is written into a message."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet import downlink, messages
from fleet.downlink import encode_header, join, split
from fleet.identity import DeviceId
from fleet.messages import MAX_DOWN_BYTES, MAX_SIGNATURE_BYTES, CommandMessage

KEY_ID = "n4bQgYhMfWWaL-qgxVrQFaO_TxsrC4Is0V1sFbDwCgg"
UNTIL = datetime(2026, 11, 21, 8, tzinfo=UTC)
HEADER = encode_header(KEY_ID, UNTIL)
COMMAND = CommandMessage(DeviceId("pump-07"), UNTIL, UNTIL + timedelta(minutes=1), {"say": "hi"})

bodies = st.dictionaries(st.text(max_size=8), st.text() | st.integers(-9, 9), min_size=1).map(messages.encode_object)
signatures = st.binary(min_size=64, max_size=64)


@given(bodies, signatures, st.integers(86_400, 253_402_300_799).map(lambda at: datetime.fromtimestamp(at, UTC)))
def test_what_was_joined_is_split(body: bytes, signature: bytes, until: datetime) -> None:
    """A message that was signed could not be read, or another than the one that was signed."""
    header = encode_header(KEY_ID, until)
    signed = split(join(body, header, signature))
    assert signed is not None
    assert (body, KEY_ID, header, signature) == (signed.body, signed.key_id, signed.protected, signed.signature)
    assert until == signed.until


def test_an_agent_that_knows_of_no_signatures_reads_the_message() -> None:
    """A service could not be updated before all of its devices are."""
    payload = join(COMMAND.encode(), HEADER, bytes(64))
    assert COMMAND == messages.decode_command(payload, DeviceId("pump-07"))


def test_a_message_of_the_largest_size_can_be_signed_and_read_by_anybody() -> None:
    """A command that the service took would be refused by the agents."""
    body = messages.encode_object({"v": 1, "pad": "x" * (MAX_DOWN_BYTES - 16)})
    assert len(body) == MAX_DOWN_BYTES
    payload = join(body, encode_header(KEY_ID, datetime(9999, 12, 31, tzinfo=UTC)), bytes(64))
    assert len(payload) <= messages.MAX_MESSAGE_BYTES
    assert len(payload) - len(body) <= MAX_SIGNATURE_BYTES


def test_what_is_signed_names_topic_and_body_and_nothing_runs_together() -> None:
    """A message could be moved to a topic that ends where its body begins."""
    first = downlink.signing_input(HEADER, "devices/a/down/control", b'{"v":1}')
    assert HEADER + b'.devices/a/down/control\0{"v":1}' == first
    assert 1 == first.count(b"\0")


def changed(**fields: Any) -> bytes:
    """The header with other fields, as somebody else would write it."""
    text = json.dumps(json.loads(base64.urlsafe_b64decode(HEADER + b"==")) | fields, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=")


@pytest.mark.parametrize(
    "header",
    [
        changed(alg="none"),
        changed(alg="HS256"),
        changed(b64=True),
        changed(crit=[]),
        changed(crit=["b64", "x"]),
        changed(jwk={}),
        changed(exp=1.5),
        changed(exp=True),
        changed(exp=-1),
        changed(exp=2**53),
        changed(**{"x5t#S256": "short"}),
        changed(**{"x5t#S256": None}),
        base64.urlsafe_b64encode(b"[]"),
        base64.urlsafe_b64encode(b'{"alg":"ES256","alg":"ES256"}').rstrip(b"="),
        b"e" * 400,
    ],
)
def test_no_header_but_ours_is_read(header: bytes) -> None:
    """Whoever signs could choose how it is verified (RFC 8725, 3.1)."""
    assert split(join(COMMAND.encode(), header, bytes(64))) is None


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        COMMAND.encode(),
        join(COMMAND.encode(), HEADER, bytes(64)) + b" ",
        join(COMMAND.encode(), HEADER, bytes(64))[:-1],
        join(COMMAND.encode(), HEADER, bytes(64)).replace(b"..", b"."),
        join(COMMAND.encode(), HEADER, bytes(64)).replace(b'A"}', b'B"}'),  # bits that nobody reads
        b',"sig":"' + HEADER + b".." + b"A" * 86 + b'"}',
        b'{"v":1,"args":{"a":1,"sig":"x"}}',
    ],
)
def test_anything_else_is_unsigned(payload: bytes) -> None:
    """Something half read would be verified as another message than it is acted on."""
    assert split(payload) is None


@given(st.binary(max_size=600))
def test_whatever_comes_is_signed_or_not(payload: bytes) -> None:
    """A broker could end the agent with a message."""
    assert split(payload) is None
    assert split(join(COMMAND.encode(), HEADER, bytes(64)) + payload) is None or not payload


@pytest.mark.parametrize(("body", "signature"), [(b"{}", 64), (b"[1]", 64), (b"", 64), (b'{"v":1}', 63)])
def test_only_an_object_with_members_is_joined(body: bytes, signature: int) -> None:
    """Dispatch would send what nobody can read."""
    with pytest.raises(ValueError, match=r"only|bytes"):
        join(body, HEADER, bytes(signature))
