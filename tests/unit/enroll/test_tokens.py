"""What tokens may be minted."""

from __future__ import annotations

from datetime import timedelta

import pytest

from enroll import tokens
from enroll.cli.options import parse_duration
from enroll.tokens import TokenOrder
from fleet.errors import InvalidInput
from fleet.identity import DeviceId, Role
from tests.fleets import NOW

PUMP = DeviceId("pump-07")


def entropy(count: int) -> bytes:
    return bytes(range(count))


@pytest.mark.parametrize(
    "order",
    [
        TokenOrder(),
        TokenOrder(device=PUMP, pattern="pump-*"),
        TokenOrder(device=PUMP, uses=2),
        TokenOrder(pattern="pump-*", uses=0),
        TokenOrder(pattern="pump-*", replace=True),
        TokenOrder(pattern="pump-[07]"),
        TokenOrder(pattern=""),
        TokenOrder(pattern="PUMP-*"),
        TokenOrder(pattern="op-*", role=Role.OPERATOR),
        TokenOrder(device=PUMP, role=Role.OPERATOR, ttl=timedelta(hours=2)),
        TokenOrder(device=PUMP, role=Role.BROKER, ttl=timedelta(hours=1, seconds=1)),
        TokenOrder(device=PUMP, ttl=timedelta(days=31)),
        TokenOrder(device=PUMP, ttl=timedelta(0)),
        TokenOrder(device=PUMP, groups=("a b",)),
        TokenOrder(device=PUMP, profile="server"),
        TokenOrder(device=PUMP, profile="root"),
        TokenOrder(device=PUMP, sources=("10.1.2.3/16",)),
        TokenOrder(device=PUMP, sources=("gateway.local",)),
    ],
)
def test_a_token_that_may_not_exist_is_not_minted(order: TokenOrder) -> None:
    """A token lets in more, for longer or as something else than DESIGN section 11 allows."""
    with pytest.raises(InvalidInput) as raised:
        tokens.mint(order, now=NOW, token_bytes=entropy)
    assert raised.value.hint


@pytest.mark.parametrize(("role", "ttl"), [(Role.DEVICE, timedelta(hours=24)), (Role.OPERATOR, timedelta(hours=1))])
def test_a_token_lives_a_day_and_for_other_roles_an_hour(role: Role, ttl: timedelta) -> None:
    """A forgotten token of an operator is good for a day."""
    _, record = tokens.mint(TokenOrder(device=PUMP, role=role), now=NOW, token_bytes=entropy)
    assert NOW + ttl == record.expires_at


@pytest.mark.parametrize(("role", "longest"), [(Role.DEVICE, "720h"), (Role.OPERATOR, "1h")])
def test_how_long_a_token_may_live_is_said_as_the_flag_takes_it(role: Role, longest: str) -> None:
    """An admin types what the error says, and gets the next error."""
    with pytest.raises(InvalidInput, match=f"lives 1s to {longest}$"):
        tokens.mint(TokenOrder(device=PUMP, role=role, ttl=timedelta(days=31)), now=NOW, token_bytes=entropy)
    ttl = parse_duration(longest)
    assert NOW + ttl == tokens.mint(TokenOrder(PUMP, role=role, ttl=ttl), now=NOW, token_bytes=entropy)[1].expires_at


def test_the_record_does_not_hold_the_secret() -> None:
    """Whoever reads the registry can enrol."""
    token, record = tokens.mint(TokenOrder(device=PUMP), now=NOW, token_bytes=entropy)
    assert token.secret not in repr(record).encode()
    assert token.digest == record.digest
    assert token.secret != record.digest


@pytest.mark.parametrize(
    ("pattern", "device", "matches"),
    [
        ("*", "a", True),
        ("pump-*", "pump-1", True),
        ("pump-*", "pump1", False),
        ("*-07", "pump-07", True),
        ("*-07", "pump-070", False),
        ("p*p-*7", "pump-07", True),
        ("pump-07", "pump-07", True),
        ("pump-0", "pump-07", False),
    ],
)
def test_a_pattern_matches_the_whole_id(pattern: str, device: str, matches: bool) -> None:
    """A pattern lets in a name that only begins or ends like it."""
    _, record = tokens.mint(TokenOrder(pattern=pattern), now=NOW, token_bytes=entropy)
    assert matches == tokens.allows(record, DeviceId(device))


@pytest.mark.parametrize(
    ("sources", "address", "allowed"),
    [
        ((), "192.0.2.7", True),
        ((), "", True),
        (("192.0.2.0/24",), "192.0.2.7", True),
        (("192.0.2.0/24",), "::ffff:192.0.2.7", True),
        (("192.0.2.0/24",), "192.0.3.7", False),
        (("192.0.2.0/24", "2001:db8::/32"), "2001:db8:1::9", True),
        (("192.0.2.7",), "192.0.2.7", True),
        (("192.0.2.7",), "192.0.2.70", False),
        (("2001:db8::/32",), "192.0.2.7", False),
        (("192.0.2.0/24",), "", False),
        (("0.0.0.0/0",), "::1", False),
    ],
)
def test_a_token_is_taken_from_its_networks_alone(sources: tuple[str, ...], address: str, allowed: bool) -> None:
    """A token that was read off a site's wall works from anywhere."""
    _, record = tokens.mint(TokenOrder(device=PUMP, sources=sources), now=NOW, token_bytes=entropy)
    assert allowed == tokens.allows_from(record, address)
