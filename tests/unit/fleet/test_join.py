"""Tokens and join codes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import InvalidInput
from fleet.join import (
    InvalidJoinCode,
    InvalidToken,
    JoinCode,
    check_enroll_url,
    new_token,
    parse_join_code,
    parse_root_pin,
    parse_token,
)

_tokens = st.binary(min_size=21, max_size=21).map(new_token)
_urls = st.sampled_from(["https://gateway.local:8443", "https://127.0.0.1:1", "https://[::1]:8443", "https://a"])
_codes = st.builds(JoinCode, _urls, st.binary(min_size=32, max_size=32), _tokens)


@given(_codes)
def test_a_code_survives_pasting(code: JoinCode) -> None:
    """A code is not what it was after a mail program wrapped it and a keyboard shouted it."""
    text = str(code)
    assert parse_join_code(text) == code
    assert parse_join_code(f"  {text[:40].upper()}\n {text[40:]}\t") == code
    assert parse_token(str(code.token)) == code.token


@given(_codes, st.data())
def test_one_wrong_character_is_noticed(code: JoinCode, data: st.DataObject) -> None:
    """A typing error yields another code instead of an error."""
    text = str(code)
    at = data.draw(st.integers(7, len(text) - 1))
    other = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz234567").filter(lambda c: c != text[at]))
    with pytest.raises(InvalidJoinCode):
        parse_join_code(text[:at] + other + text[at + 1 :])


@given(st.one_of(st.text(max_size=200), st.text("abcdefgh234567", max_size=200).map("fleet1_".__add__)))
def test_garbage_is_refused_without_being_repeated(text: str) -> None:
    """Something else than InvalidJoinCode is raised, or the error repeats a secret."""
    with pytest.raises(InvalidJoinCode) as caught:
        parse_join_code(text)
    assert len(text) < 12 or text not in str(caught.value)
    with pytest.raises(InvalidToken):
        parse_token(text)


@given(_codes)
def test_no_secret_in_a_representation(code: JoinCode) -> None:
    """A log line or a traceback shows the secret."""
    assert str(code.token.secret) not in repr(code)
    assert str(code.token) not in repr(code)


def test_a_digest_is_not_the_secret() -> None:
    """What is stored would do to enrol."""
    token = new_token(bytes(range(21)))
    assert token.secret not in token.digest
    assert token.digest != new_token(bytes(21)).digest


@pytest.mark.parametrize(
    "url",
    ["http://a", "https://", "https://a/path", "https://a?x", "https://u:p@a", "https://a:0", "https://a:99999",
     "https://a b", "ftp://a", "", "https://a\n", "https://" + "a" * 600],
)  # fmt: skip
def test_urls_that_are_not_a_service(url: str) -> None:
    """A join code sends a device somewhere else than to an https service."""
    with pytest.raises(InvalidInput):
        check_enroll_url(url)


def test_pins() -> None:
    """A pin as `openssl` or `enroll` prints it is refused, or half a pin accepted."""
    assert parse_root_pin("AB:" * 31 + "ab") == b"\xab" * 32
    for bad in ("", "ab", "zz" * 32, "ab" * 33):
        with pytest.raises(InvalidInput):
            parse_root_pin(bad)
