"""Strangers who guess tokens: limited and sparsely logged, and in nobody's way."""

from __future__ import annotations

from datetime import timedelta

import pytest

from enroll.rate_limit import WINDOW_SECONDS
from fleet import est
from fleet.identity import DeviceId
from fleet.join import Token, new_token
from tests.fleets import Office, certificate_in, csr, enrolment_request

PUMP = DeviceId("pump-07")


def guesses(office: Office, count: int, token: Token | str, address: str = "192.0.2.7") -> list[int]:
    """The statuses of so many attempts with a wrong token."""
    return [office.app.handle(enrolment_request(token, b"", address=address)).status for _ in range(count)]


def test_guessing_is_limited_by_address(office: Office) -> None:
    """Tokens can be guessed without end, each at the price of a transaction."""
    foreign = new_token(bytes(21))
    assert [401] * 30 + [429] == guesses(office, 31, f"{foreign}x")
    response = office.enrol(foreign, csr("pump-07"))
    assert 429 == response.status
    assert 0 < int(response.headers["Retry-After"]) <= WINDOW_SECONDS
    assert [401] == guesses(office, 1, foreign, "192.0.2.8")
    office.wait(timedelta(minutes=1))
    assert [401] == guesses(office, 1, foreign)


def test_a_right_token_is_let_through_whatever_others_guessed(office: Office) -> None:
    """One clumsy or hostile device locks its whole site out, or another's token by its name."""
    token = office.invite("pump-07")
    guesses(office, 31, "no token")
    assert [429] == guesses(office, 1, Token(token.id, bytes(16)))
    for number in range(11):
        guesses(office, 1, Token(token.id, bytes(16)), f"192.0.2.{100 + number}")
    der = csr("pump-07")
    certificate = certificate_in(office.enrol(token, der))
    elsewhere = enrolment_request(token, est.encode_body(der), address="192.0.2.99")
    assert 429 == office.app.handle(elsewhere).status, "a spent token was tried too often"
    office.wait(timedelta(minutes=1))
    assert certificate == certificate_in(office.enrol(token, der))


def test_requests_without_credentials_do_not_count(office: Office) -> None:
    """Thirty bad requests a minute from behind a gateway's address keep its devices from enrolling."""
    certificate = office.enrolled("pump-07")
    assert {401} == {office.get(est.CONFIG).status for _ in range(40)}
    assert {401} == {office.app.handle(enrolment_request(None, b"")).status for _ in range(40)}
    assert 200 == office.get(est.CONFIG, certificate).status
    assert 401 == office.enrol(new_token(bytes(21)), csr("pump-08")).status
    assert 200 == office.enrol(office.invite("pump-08"), csr("pump-08")).status


def test_guessing_is_limited_by_token(office: Office) -> None:
    """One token's secret can be guessed from many addresses."""
    token = office.invite("pump-07")
    guess = Token(token.id, bytes(16))
    statuses = [guesses(office, 1, guess, f"192.0.2.{number}") for number in range(11)]
    assert [[401]] * 10 + [[429]] == statuses


def test_a_flood_of_refusals_does_not_fill_the_log(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    """One stranger fills the gateway's disk with log lines, and hides what others do."""
    caplog.set_level("INFO")
    guesses(office, 1000, "no token")
    guesses(office, 1, "no token", "192.0.2.8")
    lines = [record.getMessage() for record in caplog.records]
    assert 25 > len(lines)
    assert any("status=429" in line and line.endswith("count=512") for line in lines)
    assert "address=192.0.2.8" in lines[-1]


@pytest.mark.parametrize("where", ["/.well-known/est/simpleenroll/{}", "/{}", "/.well-known/est/{}/cacerts/x"])
def test_a_token_in_a_path_is_not_logged(office: Office, caplog: pytest.LogCaptureFixture, where: str) -> None:
    """A secret pasted into the wrong place is kept in every copy of the log."""
    caplog.set_level("INFO")
    token = office.invite("pump-07")
    assert 404 == office.get(where.format(token)).status
    assert "request.refused path=unknown status=404" in caplog.text
    assert str(token)[:12] not in caplog.text
