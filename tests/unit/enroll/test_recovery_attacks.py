"""What a stranger does with the requests of expired devices: forged, repeated, in floods, or no requests at all."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from enroll import est_app, nonces
from fleet import est, recovery
from fleet.est import EstRequest
from fleet.identity import Serial
from tests.fleets import Office, certificate_in, csr, new_key, open_office
from tests.unit.enroll.sleepers import Sleeper, nonce_of, post, states


def test_a_nonce_is_good_once(office: Office, pump: Sleeper) -> None:
    """Whoever recorded a recovery plays it again."""
    claim = pump.claim().encode()
    certificate_in(post(office, claim))
    assert (401, recovery.SCHEME) == (post(office, claim).status, post(office, claim).headers["WWW-Authenticate"])


def test_a_nonce_is_good_for_a_while(office: Office, pump: Sleeper) -> None:
    """A request that was kept back for a year is as good as a fresh one."""
    claim = pump.claim().encode()
    office.wait(timedelta(seconds=recovery.NONCE_SECONDS))
    assert 401 == post(office, claim).status


def test_a_nonce_of_another_service_is_none(office: Office, pump: Sleeper, tmp_path: Path) -> None:
    """What was signed for one service is good at another; a restarted one knows no nonce of before as well."""
    with open_office(tmp_path / "other") as other:
        assert 401 == pump.recover(nonce=nonce_of(other)).status


def other(letter: str) -> str:
    return "B" if letter == "A" else "A"


@pytest.mark.parametrize(
    "spoil", [lambda n: n[:-1] + other(n[-1]), lambda n: other(n[0]) + n[1:], lambda n: n + "A", lambda n: "n" * 54]
)
def test_a_nonce_that_was_changed_is_none(office: Office, pump: Sleeper, spoil: Callable[[str], str]) -> None:
    """A nonce could be made by whoever wants one, or have two texts and be used twice."""
    assert 401 == pump.recover(nonce=spoil(nonce_of(office))).status


def test_another_text_of_the_same_nonce_is_none() -> None:
    """The bits that base64 leaves over make sixteen nonces of each."""
    made = nonces.Nonces(b"secret", secrets.token_bytes, 60.0)
    nonce = made.draw(0.0)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    assert [nonce] == [text for text in (nonce[:-1] + letter for letter in letters) if made.is_good(text, 0.0)]


@pytest.mark.parametrize("what", ["key", "certificate", "csr", "nonce", "serial", "signature"])
def test_a_signature_is_for_all_that_it_says(office: Office, pump: Sleeper, what: str) -> None:
    """A relayed or a forged signature gets a key of the attacker's certified."""
    other = Sleeper(office, "pump-08")
    other.oversleep()
    pump.oversleep(timedelta(0))
    good = pump.claim()
    forged = {
        "key": lambda: pump.claim(key=other.key),
        "certificate": lambda: pump.claim(certificate=other.certificate.public_bytes(Encoding.DER)),
        "csr": lambda: replace(good, csr=csr("pump-07")),
        "nonce": lambda: replace(good, nonce=nonce_of(office)),
        "serial": lambda: replace(good, serial=other.serial),
        "signature": lambda: replace(good, signature=good.signature[:-1] + bytes([good.signature[-1] ^ 1])),
    }
    refused = post(office, forged[what]().encode())
    assert 401 == refused.status
    assert ["1 confirmed"] == states(office)
    certificate_in(post(office, good.encode())), "what others got wrong spends nothing"


def test_an_unknown_serial_is_answered_as_a_wrong_signature(office: Office, pump: Sleeper) -> None:
    """A stranger learns which certificates there are, and what became of them."""
    office.revoke("pump-07")
    wrong, unknown = pump.recover(key=new_key()), pump.recover(serial=Serial("abc123"))
    assert (wrong.status, wrong.body) == (unknown.status, unknown.body)


def test_the_name_of_another_device_is_refused(office: Office, pump: Sleeper) -> None:
    """An expired device comes back as another."""
    Sleeper(office, "pump-08")
    assert 403 == pump.recover(device="pump-08").status
    assert 403 == pump.recover(device="pump-99").status


def test_a_request_that_is_none_is_refused_and_uses_nothing_up(office: Office, pump: Sleeper) -> None:
    """A forged request gets a certificate, or costs the device its chance."""
    request = csr("pump-07", pump.next_key)
    for spoilt in (b"rubbish", request[:-1] + bytes([request[-1] ^ 1]), request[:100]):
        assert 400 == pump.recover(csr=spoilt).status
    certificate_in(pump.recover())


def test_the_old_key_is_not_certified_again(office: Office, pump: Sleeper) -> None:
    """A key that was copied once is good for ever."""
    assert 403 == pump.recover(next_key=pump.key).status


RUBBISH = (
    *(b"", b"[]", b"{", b"\xff", b'{"v":1}', b'{"v":true}', b'{"v":1,"v":1}', b'{"v":2,"serial":"a"}', b'{"v":NaN}'),
    b"[" * 5000,
    b'{"v":1,"serial":"\\ud800"}',
    b'{"v":1,"serial":"a","nonce":"x\\ny","csr":"AA==","signature":"AA=="}',
)


@pytest.mark.parametrize("body", RUBBISH)
def test_rubbish_is_refused(office: Office, body: bytes) -> None:
    """A stranger's JSON ends in a traceback, or costs more than a look."""
    assert 400 == post(office, body).status


def test_too_large_and_of_another_type(office: Office) -> None:
    """A stranger fills the memory."""
    assert 413 == post(office, b"x" * 20_000).status
    assert 415 == post(office, b"{}", headers={"content-type": est.PKCS10}).status
    assert 405 == office.app.handle(EstRequest("GET", recovery.RECOVER)).status
    assert 405 == office.app.handle(EstRequest("POST", recovery.NONCE)).status


def test_a_flood_of_nonces_costs_nothing_and_takes_nothing_away(office: Office, pump: Sleeper) -> None:
    """A stranger who asks without end fills the memory, or makes a device's own nonce forgotten."""
    nonce = nonce_of(office)
    assert 3_000 == len({nonce_of(office) for _ in range(3_000)})
    assert {} == office.app._nonces._spent
    certificate_in(pump.recover(nonce=nonce))
    assert 1 == len(office.app._nonces._spent)


def test_used_nonces_are_bounded_and_forgotten(office: Office, pump: Sleeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has an old key fills the memory, or nobody recovers any more."""
    monkeypatch.setattr(nonces, "MAX_SPENT", 3)
    assert [200, 200, 200, 503] == [pump.recover().status for _ in range(4)]
    office.wait(timedelta(seconds=recovery.NONCE_SECONDS))
    assert 200 == pump.recover().status


def test_guessing_is_limited_and_locks_nobody_out(office: Office, pump: Sleeper) -> None:
    """A stranger tries keys without end, or keeps the devices behind the same address out."""
    answers = [pump.recover(key=new_key()).status for _ in range(est_app.REFUSALS_PER_ADDRESS + 2)]
    assert [401] * est_app.REFUSALS_PER_ADDRESS + [429] * 2 == answers
    certificate_in(pump.recover())


def test_who_holds_an_old_key_is_limited_by_certificate(office: Office, pump: Sleeper) -> None:
    """One expired device keeps the service busy, or the others out."""
    other = Sleeper(office, "pump-08")
    other.oversleep()
    office.revoke("pump-07")
    limit = est_app.RECOVERIES_PER_CERTIFICATE
    assert [403] * limit + [429] == [pump.recover().status for _ in range(limit + 1)]
    certificate_in(other.recover())
