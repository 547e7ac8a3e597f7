"""`fleet.toml`."""

import re
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.config import DEFAULT_CRL, Address, CrlListen, load, parse_address, parse_crl_listen
from fleet.errors import InvalidInput
from fleet.identity import DeviceId, Principal, Role
from fleet.limits import Limits
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


def test_metrics_are_for_this_host_unless_the_command_line_says_otherwise() -> None:
    """A copied file would tell the network how the broker does."""
    assert load(_GOOD).broker_metrics is None
    for host, here in (("127.0.0.1", True), ("[::1]", True), ("localhost", True), ("0.0.0.0", False), ("[::]", False)):
        text = f'{_GOOD}[broker]\nmetrics = "{host}:9464"\n'
        if here:
            assert load(text).broker_metrics == parse_address(f"{host}:9464")
        else:
            with pytest.raises(InvalidInput, match=r"broker\.metrics: .* can be reached from outside"):
                load(text)
    for wrong in ('"9464"', "9464", "true"):
        with pytest.raises(InvalidInput, match=r"broker\.metrics"):
            load(f"{_GOOD}[broker]\nmetrics = {wrong}\n")


def test_pairing_is_off_unless_it_is_switched_on() -> None:
    """Strangers may ask for a name in a fleet that never wanted them, or nobody can switch it on."""
    assert not load(_GOOD).enroll_pairing
    assert load(_GOOD + "[enroll]\npairing = true\n").enroll_pairing
    with pytest.raises(InvalidInput, match=r"enroll\.pairing is not true or false"):
        load(_GOOD + '[enroll]\npairing = "yes"\n')


def test_lives_are_durations_by_profile() -> None:
    """Certificates would live for as long as nobody chose."""
    assert {} == load(_GOOD).enroll_life
    lives = load(_GOOD + '[enroll.life]\nclient = "30d"\ntest = "60s"\n').enroll_life
    assert {"client": timedelta(days=30), "test": timedelta(seconds=60)} == lives
    for bad in ('client = "30"', "client = 30", 'client = "0d"', 'client = "-1d"', 'client = "99999999d"'):
        with pytest.raises(InvalidInput, match=r"enroll\.life\.client is not a duration"):
            load(_GOOD + f"[enroll.life]\n{bad}\n")


def test_the_grace_of_recovery_is_a_duration_or_off() -> None:
    """Devices would come back by themselves for longer than the admin wants, or never."""
    assert timedelta(days=180) == load(_GOOD).recovery_grace
    assert timedelta(days=30) == load(_GOOD + '[enroll]\nrecovery_grace = "30d"\n').recovery_grace
    assert timedelta(0) == load(_GOOD + '[enroll]\nrecovery_grace = "off"\n').recovery_grace
    for bad in ('"30"', "30", '"0d"', "true"):
        with pytest.raises(InvalidInput, match=r"enroll\.recovery_grace is not a duration"):
            load(_GOOD + f"[enroll]\nrecovery_grace = {bad}\n")


def test_the_grace_of_presence_is_a_duration() -> None:
    """A fleet that comes back slowly would be offline after each restart of its broker."""
    assert timedelta(seconds=150) == load(_GOOD).presence_grace
    assert timedelta(hours=1) == load(_GOOD + '[enroll]\npresence_grace = "1h"\n').presence_grace
    with pytest.raises(InvalidInput, match=r"enroll\.presence_grace is not a duration"):
        load(_GOOD + '[enroll]\npresence_grace = "off"\n')


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


def test_limits_of_the_broker_are_read_and_checked() -> None:
    """A gateway could not be fitted to its fleet, or a slip of the pen would open it to a flood."""
    table = "[broker.limits]\nmessages_per_second = 50\nconnect_seconds = 2.5\n"
    assert Limits(messages_per_second=50, connect_seconds=2.5) == load(_GOOD + table).broker_limits
    wrong = '[broker.limits]\nmessages_per_second = 0\nmax_connections = 2.5\nburst_seconds = "1"\nmesages = 1\n'
    with pytest.raises(InvalidInput) as caught:
        load(_GOOD + wrong)
    for name in ("messages_per_second", "max_connections", "burst_seconds", "unknown key broker.limits.mesages"):
        assert name in str(caught.value)


def test_the_documented_limits_are_the_ones_there_are() -> None:
    """An operator would set what is not read, or rely on a default that is another."""
    text = (Path(__file__).parents[3] / "docs" / "operations.md").read_text(encoding="utf-8")
    section = text.split("### What one client may take")[1].split("\n### ")[0].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", section, re.MULTILINE))
    assert {field.name: field.default for field in fields(Limits)} == {k: float(v) for k, v in rows.items()}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", DEFAULT_CRL),
        ('crl_listen = "off"', CrlListen(None)),
        ('crl_listen = "0.0.0.0:8080"', CrlListen(Address("0.0.0.0", 8080))),
        ('crl_listen = "[::1]:0"', CrlListen(Address("::1", 0))),
    ],
)
def test_where_crls_are_served(line: str, expected: CrlListen) -> None:
    """An address that was asked for is given up like the default, or `off` is a host."""
    found = load(f"{_GOOD}[enroll]\n{line}\n").crl_listen
    assert expected == found
    assert expected.is_default or parse_crl_listen(str(found)) == found


@pytest.mark.parametrize("value", ['"8080"', "8080", '""', "false", '["off"]'])
def test_a_wrong_crl_address_is_said_so(value: str) -> None:
    """A typing error switches the lists off."""
    with pytest.raises(InvalidInput, match=r"enroll\.crl_listen"):
        load(f"{_GOOD}[enroll]\ncrl_listen = {value}\n")
