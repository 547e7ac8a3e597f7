"""The words in which the fleet and a device speak of uploads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import InvalidInput
from fleet.uploads import (
    FileWanted,
    ListingWanted,
    LogWanted,
    Order,
    Piece,
    check_file_name,
    decode_order,
    digest_header,
    id_in,
    parse_digest,
    parse_piece,
    path_of,
)

_PARTS = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
_NAMES = st.lists(_PARTS.filter(lambda part: part not in (".", "..")), min_size=1, max_size=4).map(
    lambda parts: "/" + "/".join(parts)
)
_WANTED = st.one_of(
    st.builds(LogWanted, st.integers(1, 10_000)), st.builds(FileWanted, _NAMES), st.just(ListingWanted())
)


@given(st.builds(Order, _WANTED, st.integers(1, 2**40)))
def test_a_device_reads_what_was_ordered(order: Order) -> None:
    """A device sends another file than was asked for."""
    assert order == decode_order(order.encode())


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"what": "log", "lines": 5},
        {"what": "log", "max_bytes": 5},
        {"what": "log", "lines": True, "max_bytes": 5},
        {"what": "log", "lines": 10**9, "max_bytes": 5},
        {"what": "file", "max_bytes": 5},
        {"what": "file", "name": 7, "max_bytes": 5},
        {"what": "file", "name": "/a", "max_bytes": 0},
        {"what": "keys", "max_bytes": 5},
        {"what": ["log"], "lines": 5, "max_bytes": 5},
    ],
)
def test_an_order_that_cannot_be_read_is_refused(args: dict[str, object]) -> None:
    """An agent ends in a traceback, or sends what nobody asked for."""
    with pytest.raises(InvalidInput):
        decode_order(args)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "a",
        "a/b",
        "/a/",
        "//a",
        "/a//b",
        "/..",
        "/a/../b",
        "/a/..",
        "/./a",
        "/a\0",
        "/\ud800",
        "/" + "a" * 1024,
    ],
)
def test_a_path_that_names_more_than_one_thing_is_refused(name: str) -> None:
    """A path leads out of the folder that it begins with."""
    with pytest.raises(InvalidInput):
        check_file_name(name)


@given(st.integers(0, 10**12), st.integers(1, 10**6), st.integers(0, 10**6))
def test_the_place_of_a_piece(first: int, length: int, after: int) -> None:
    """A piece is written where it does not belong."""
    piece = Piece(first, length, first + length + after)
    assert piece == parse_piece(piece.header)
    end = Piece(first, 0, first)
    assert end == parse_piece(end.header)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "bytes",
        "bytes 0-9",
        "bytes 5-4/9",
        "bytes 0-9/9",
        "bytes 0-/9",
        "bytes */*",
        "bytes 0-1/*",
        "bits 0-1/2",
        "bytes 0-1/2\n",
        "bytes 0-1/2, 3-4/9",
        "bytes -1-1/2",
        "bytes \u0660-1/2",
        "bytes 0-1/" + "9" * 16,
    ],
)
def test_a_place_that_contradicts_itself_is_refused(header: str) -> None:
    """A piece is written where it does not belong."""
    with pytest.raises(InvalidInput):
        parse_piece(header)


@given(st.binary(min_size=32, max_size=32))
def test_digests(digest: bytes) -> None:
    """A whole file is thrown away, or half of one kept."""
    assert digest == parse_digest(digest_header(digest))


@pytest.mark.parametrize("header", ["", "sha-256=::", "sha-512=:" + "A" * 43 + "=:", "sha-256=:" + "A" * 42 + "=:"])
def test_a_digest_that_is_none_is_refused(header: str) -> None:
    """A file counts as whole without having been compared."""
    with pytest.raises(InvalidInput):
        parse_digest(header)


@given(st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=16, max_size=16), st.text(max_size=20))
def test_the_id_in_a_path(id: str, other: str) -> None:
    """A path names a file elsewhere on the service's disk."""
    assert id == id_in(path_of(id))
    if other != id:
        assert id_in(path_of(other)) in (None, other)
    assert id_in(f"/v1/uploads/../{id}") is None
    assert id_in(f"/v1/uploads/{id}\n") is None
