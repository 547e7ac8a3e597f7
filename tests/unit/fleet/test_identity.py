"""Device ids, serials and the names of principals in certificates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import InvalidInput
from fleet.identity import (
    DeviceId,
    InvalidDeviceId,
    Principal,
    Role,
    Serial,
    Server,
    TrustDomain,
    common_name,
    is_server,
    principal_uri,
    server_uri,
)
from tests.unit.fleet.strategies import device_ids

DOMAIN = TrustDomain("acme.example")


@pytest.mark.parametrize("text", ["a", "pump-07", "0", "a_b", "x" * 64])
def test_device_id_accepts_the_grammar(text: str) -> None:
    """An id within the grammar is refused."""
    assert DeviceId(text) == text


@pytest.mark.parametrize(
    "text",
    ["", "-a", "a-", "_a", "A", "a/b", "a+b", "#", "$a", "a.b", "a%b", "a b", "a\0", "a\n", "ä", "x" * 65, "a\u0130"],
)
def test_device_id_refuses_all_else(text: str) -> None:
    """An id that means something in a filter, a path or a URI is accepted (CVE-2017-7650)."""
    with pytest.raises(InvalidDeviceId):
        DeviceId(text)


@given(st.text(max_size=70))
def test_an_accepted_id_is_one_harmless_level(text: str) -> None:
    """An accepted id could leave its place in a topic, a file name or a URI."""
    try:
        accepted = DeviceId(text)
    except InvalidDeviceId:
        return
    assert not set(accepted) & set("+#/$.% \0\n")
    assert accepted.isascii()
    assert 1 <= len(accepted) <= 64


@given(st.integers(min_value=1, max_value=(1 << 159) - 1))
def test_serial_is_the_number_in_hexadecimal(number: int) -> None:
    """A serial does not survive its textual form."""
    assert int(Serial.from_int(number), 16) == number


@pytest.mark.parametrize("text", ["", "0", "01", "AB", "g", "a" * 41, "a\n"])
def test_serial_refuses_a_second_spelling(text: str) -> None:
    """Two texts stand for one serial, so that a revoked one could come back under the other."""
    with pytest.raises(InvalidInput):
        Serial(text)


@pytest.mark.parametrize("text", ["", "Acme.example", "a/b", "a b", ".a", "a\n"])
def test_trust_domain_refuses_what_spiffe_refuses(text: str) -> None:
    """A trust domain outside SPIFFE's grammar is accepted."""
    with pytest.raises(InvalidInput):
        TrustDomain(text)


def test_uris() -> None:
    """The SPIFFE ids are not those of DESIGN section 4."""
    assert principal_uri(DOMAIN, Principal(Role.DEVICE, DeviceId("pump-07"))) == "spiffe://acme.example/device/pump-07"
    assert server_uri(DOMAIN, Server.BROKER) == "spiffe://acme.example/server/broker"


def _peer(*uris: str) -> dict[str, object]:
    return {"subjectAltName": (("DNS", "gateway.local"), *(("URI", uri) for uri in uris))}


def test_is_server_names_just_this_server() -> None:
    """The service's certificate is taken for the broker's, or the other way round."""
    peer = _peer(server_uri(DOMAIN, Server.BROKER))
    assert is_server(peer, Server.BROKER)
    assert not is_server(peer, Server.ENROLL)


@given(device_ids)
def test_no_principal_is_a_server(device: DeviceId) -> None:
    """A client's certificate passes for a server's, whatever its id."""
    for role in Role:
        assert not is_server(_peer(principal_uri(DOMAIN, Principal(role, device))), Server.BROKER)


def test_two_spiffe_ids_are_nobodys() -> None:
    """A certificate with two SPIFFE ids is accepted for one of them."""
    both = _peer(server_uri(DOMAIN, Server.BROKER), server_uri(DOMAIN, Server.ENROLL))
    assert not is_server(both, Server.BROKER)
    assert not is_server(None, Server.BROKER)
    assert not is_server(_peer("https://acme.example/server/broker"), Server.BROKER)


def test_common_name_is_the_only_one() -> None:
    """A second common name is overlooked."""
    one = ((("commonName", "a"),),)
    assert common_name({"subject": one}) == "a"
    assert common_name({"subject": one * 2}) is None
    assert common_name({}) is None
