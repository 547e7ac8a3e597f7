"""`fleet.toml`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.config import Address, load, parse_address
from fleet.errors import InvalidInput
from fleet.identity import DeviceId, Principal, Role
from fleet.policy import Action

_GOOD = 'trust_domain = "acme.example"\nhosts = ["gateway.local"]\ncrl_url = "http://gateway.local:8080/crl"\n'


def test_defaults() -> None:
    """A minimal file does not give a usable configuration."""
    config = load(_GOOD)
    assert config.hosts == ("gateway.local",)
    assert (config.enroll_listen, config.broker_listen) == (Address("0.0.0.0", 8443), Address("0.0.0.0", 8883))


def test_rules_are_added_to_the_defaults() -> None:
    """A site's own rule is lost, or takes the place of the defaults."""
    rule = '[[policy.rules]]\nname = "bridge"\nrole = "service"\nid = "bridge"\npublish = ["homeassistant/#"]\n'
    policy = load(_GOOD + rule).policy
    bridge = Principal(Role.SERVICE, DeviceId("bridge"))
    assert policy.decide(bridge, Action.PUBLISH, "homeassistant/x").allowed
    assert policy.decide(bridge, Action.SUBSCRIBE, "devices/+/up/#").allowed


def test_every_problem_is_reported_at_once() -> None:
    """An admin mends one line a try."""
    with pytest.raises(InvalidInput) as caught:
        load(
            'trust_domain = "Acme"\nhosts = []\ncolour = 1\n[enroll]\nlisten = "x"\nport = 1\n'
            '[[policy.rules]]\nrole = "king"\n'
        )
    for problem in ("trust_domain", "hosts", "colour", "enroll.listen", "enroll.port", "crl_url", "policy.rules[0]"):
        assert problem in str(caught.value)


@pytest.mark.parametrize("text", ["=", "hosts = 1", "enroll = 1", "policy = {rules = 1}", "policy = {rules = [1]}"])
def test_bad_files(text: str) -> None:
    """A file of the wrong shape ends in a traceback."""
    with pytest.raises(InvalidInput):
        load(text)


@given(st.sampled_from(["0.0.0.0", "::1", "gateway.local"]), st.integers(0, 65_535))
def test_addresses(host: str, port: int) -> None:
    """An address does not survive its text."""
    assert parse_address(str(Address(host, port))) == Address(host, port)


@pytest.mark.parametrize("text", ["", "8443", "a:", ":1", "a:65536", "a:-1", "a b:1", "::1:8443", "a:1²"])
def test_bad_addresses(text: str) -> None:
    """An address that nobody can listen on is accepted."""
    with pytest.raises(InvalidInput):
        parse_address(text)
