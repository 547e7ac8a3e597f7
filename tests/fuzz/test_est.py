"""Whatever a stranger sends to the enrollment service is the stranger's mistake: an answer of 4xx, never a failure."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet import directory, est, recovery
from fleet.errors import FleetError
from fleet.est import EstRequest, InvalidCsr
from fleet.join import Token
from tests.fleets import Office, enrolment_request, open_office
from tests.fuzz.requests import REQUESTS, spoilt, written

PATHS = (
    *(est.CACERTS, est.CSRATTRS, est.SIMPLE_ENROLL, est.SIMPLE_REENROLL, est.CONFIG, est.HEALTH, directory.PATH),
    *(f"{est.BASE}/serverkeygen", "/", recovery.NONCE, recovery.RECOVER),
)


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """One office for all examples; the time moves on, so that no limit is met."""
    with open_office(tmp_path_factory.mktemp("fuzz") / "fleet") as opened:
        yield opened


@pytest.fixture(scope="module")
def token(office: Office) -> Token:
    """A token that is good for everything."""
    return office.invite(pattern="*", uses=100_000)


@pytest.mark.fuzz
@given(st.binary(max_size=300))
def test_any_body_decodes_or_is_refused(body: bytes) -> None:
    """A body breaks the decoder."""
    try:
        assert est.decode_body(body)
    except InvalidCsr:
        return


@pytest.mark.fuzz
@given(st.sampled_from(REQUESTS).flatmap(lambda der: st.tuples(st.just(der), written(der))))
def test_a_request_is_read_however_it_is_written(both: tuple[bytes, bytes]) -> None:
    """A client cannot enrol because of where it breaks its lines."""
    der, body = both
    assert der == est.decode_body(body)


@pytest.mark.fuzz
@given(st.one_of(st.binary(max_size=300), spoilt()))
def test_any_request_parses_or_is_refused(der: bytes) -> None:
    """A request breaks the parser."""
    try:
        csr = est.parse_csr(der)
    except FleetError:
        return
    assert "pump-07" == csr.device


@pytest.mark.fuzz
@given(st.one_of(st.binary(max_size=300), spoilt()), st.booleans())
def test_a_stranger_with_a_token_gets_a_certificate_or_4xx(
    office: Office, token: Token, body: bytes, is_encoded: bool
) -> None:
    """A crafted request ends in 500, or counts as a break-in."""
    sent = base64.encodebytes(body) if is_encoded else body
    response = office.app.handle(enrolment_request(token, sent))
    assert response.status in (200, 400, 403)
    assert 200 == response.status or response.body


@pytest.mark.fuzz
@given(
    st.sampled_from(["GET", "POST", "PUT", "HEAD", ""]),
    st.one_of(st.sampled_from(PATHS), st.text(max_size=40)),
    st.dictionaries(st.sampled_from(["authorization", "content-type", "x"]), st.text(max_size=80)),
    st.binary(max_size=80),
    st.dictionaries(st.sampled_from(["serial", "after", "feed"]), st.text(max_size=40)),
    st.text(max_size=40),
)
def test_any_request_has_an_answer(
    office: Office, method: str, path: str, headers: dict[str, str], body: bytes, query: dict[str, str], address: str
) -> None:
    """Some request ends in 500, or in a certificate for nothing."""
    request = EstRequest(method, path, headers, body, query, None, address)
    response = office.app.handle(request)
    is_open = method == "GET" and path in (est.CACERTS, est.CSRATTRS, est.HEALTH, recovery.NONCE)
    assert is_open == (200 == response.status)
    assert 200 == response.status or 400 <= response.status < 500
    response.body.decode()


@pytest.mark.fuzz
@given(st.text(max_size=100))
def test_any_credential_is_refused(office: Office, credential: str) -> None:
    """A crafted credential breaks the service, or is one."""
    header = "Basic " + base64.b64encode(credential.encode("utf-8", "surrogatepass")).decode()
    headers = {"content-type": est.PKCS10, "authorization": header}
    response = office.app.handle(enrolment_request(None, b"", headers=headers, address=credential))
    assert response.status in (401, 429)
