"""The lines of the directory feed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.directory import MAX_LINE_BYTES, Current, Entry, FeedLine, SnapshotStart, decode, encode
from fleet.errors import InvalidInput
from fleet.identity import DeviceId, Principal, Role, Serial, State
from tests.unit.fleet.strategies import principals

_serials = st.integers(1, (1 << 159) - 1).map(Serial.from_int)
_feeds = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20)
_lines = st.one_of(
    st.builds(
        Entry,
        st.integers(0),
        principals,
        st.sampled_from(State),
        st.integers(0),
        st.frozensets(_serials, max_size=3),
    ),
    st.builds(SnapshotStart, _feeds, st.integers(0)),
    st.builds(Current, _feeds, st.integers(0)),
)


@given(_lines)
def test_decode_is_the_inverse_of_encode(line: FeedLine) -> None:
    """A broker learns something else than the service said."""
    encoded = encode(line)
    assert decode(encoded) == line
    assert encoded.index(b"\n") == len(encoded) - 1
    assert len(encoded) <= MAX_LINE_BYTES


def test_the_mark_of_the_log_comes_through() -> None:
    """A broker could not tell a restored registry from the one that it has followed."""
    line = decode(encode(Current("f", 1, "17-ab")))
    assert isinstance(line, Current)
    assert "17-ab" == line.mark


@given(st.binary(max_size=100))
def test_garbage_raises_only_invalid_input(data: bytes) -> None:
    """A damaged snapshot or a hostile service ends the broker."""
    with pytest.raises(InvalidInput):
        decode(data)


@pytest.mark.parametrize(
    "line",
    [
        b'{"type":"current","feed":"\\ud800","seq":1}',
        b'{"type":"current","feed":"f","seq":1,"log":"\\ud800"}',
        b'{"type":"current","feed":"f","seq":1,"log":1}',
        b'{"type":"snapshot","feed":"a\\nb","seq":1}',
        b'{"type":"current","feed":"f","seq":true}',
        b'{"type":"current","feed":"f","seq":-1}',
        b'{"type":"current","feed":"f","seq":1.0}',
        b'{"type":"entry","seq":true,"id":"a","role":"device","state":"active","epoch":1,"serials":[]}',
        b'{"type":"entry","seq":1,"id":"a","role":"device","state":"active","epoch":false,"serials":[]}',
    ],
)
def test_what_cannot_be_sent_back_or_counted_is_no_line(line: bytes) -> None:
    """The follower's next request, or its file, would fail where nobody looks for the service's mistake."""
    with pytest.raises(InvalidInput):
        decode(line)


@pytest.mark.parametrize("state", list(State))
def test_only_an_active_principal_with_that_serial_is_admitted(state: State) -> None:
    """A suspended or revoked principal, or another serial, is let in."""
    known = Serial("ab")
    entry = Entry(1, Principal(Role.DEVICE, DeviceId("a")), state, 1, frozenset({known}))
    assert entry.admits(known) == (state is State.ACTIVE)
    assert not entry.admits(Serial("ac"))
