"""The rules of enrolment tokens: what may be minted, what lets in, and whom (pure; the registry keeps them)."""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Final

from enroll.registry.records import Approval, TokenRecord
from fleet import pki
from fleet.errors import Denied, InvalidInput
from fleet.identity import DeviceId, Role
from fleet.join import SECRET_BYTES, TOKEN_ID_BYTES, Token, new_token

DEFAULT_TTL: Final = timedelta(hours=24)
MAX_TTL: Final = timedelta(days=30)
MAX_TTL_OF_OTHER_ROLES: Final = timedelta(hours=1)  # DESIGN section 11
MAX_USES: Final = 100_000
_HINT: Final = "ask for a new one: enroll token create"
_PATTERN = re.compile(r"[a-z0-9_*-]{1,64}")
_GROUP = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")


class TokenRefused(Denied):
    """The token lets nobody in (any more): HTTP 401."""


@dataclass(frozen=True, slots=True)
class TokenOrder:
    """What an admin asks for: a token for the id `device`, or for every id that `pattern` matches (`*` is any run).

    `sources` are the networks (or addresses) that it is taken from, as the service sees them; none means any.
    """

    device: DeviceId | None = None
    pattern: str | None = None
    role: Role = Role.DEVICE
    groups: tuple[str, ...] = ()
    profile: str = pki.CLIENT.name
    uses: int = 1
    ttl: timedelta | None = None  # None: as long as the role may have
    replace: bool = False
    sources: tuple[str, ...] = ()
    approval: Approval = Approval.AUTO


def mint(order: TokenOrder, *, now: datetime, token_bytes: Callable[[int], bytes]) -> tuple[Token, TokenRecord]:
    """A token and what the registry keeps of it. Raises: InvalidInput."""
    check_order(order)
    token = new_token(token_bytes(TOKEN_ID_BYTES + SECRET_BYTES))
    return token, TokenRecord(
        id=token.id,
        digest=token.digest,
        device=order.device,
        pattern=order.pattern,
        role=order.role,
        groups=order.groups,
        profile=order.profile,
        replace=order.replace,
        uses=order.uses,
        uses_left=order.uses,
        created_at=now,
        expires_at=now + (order.ttl or _longest_default(order.role)),
        sources=tuple(str(_network(source)) for source in order.sources),
        approval=order.approval,
    )


def check_order(order: TokenOrder) -> None:
    """Raises: InvalidInput for a token that may not exist."""
    if (order.device is None) == (order.pattern is None):
        raise InvalidInput("a token is for one id or for one pattern", hint="give --device ID or --match 'pump-*'")
    if order.pattern is not None and not _PATTERN.fullmatch(order.pattern):
        raise InvalidInput(f"{order.pattern!r} is not a pattern of ids", hint="use a-z, 0-9, _, - and *: 'pump-*'")
    if not 1 <= order.uses <= MAX_USES:
        raise InvalidInput(f"a token has 1 to {MAX_USES} uses", hint="give --uses a number in that range")
    if order.device is not None and order.uses != 1:
        raise InvalidInput("a token for one id has one use", hint="give --match for several devices")
    if order.replace and order.device is None:
        raise InvalidInput("only a token for one id can replace", hint="give --device ID with --replace")
    if order.profile not in (pki.CLIENT.name, pki.TEST_CLIENT.name):
        raise InvalidInput(f"no client profile {order.profile!r}", hint="use client or test")
    for group in order.groups:
        check_group(group)
    for source in order.sources:
        _network(source)
    _check_ttl(order)


def check_group(name: str) -> str:
    """The name, if a group may be called so. Raises: InvalidInput."""
    if not _GROUP.fullmatch(name):
        raise InvalidInput(f"{name[:80]!r} is not a group's name", hint="use a-z, 0-9, _ and -")
    return name


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise InvalidInput(f"{text[:60]!r} is not a network", hint="write 10.1.0.0/16 or 2001:db8::/32") from error


def _check_ttl(order: TokenOrder) -> None:
    longest = MAX_TTL if order.role is Role.DEVICE else MAX_TTL_OF_OTHER_ROLES
    if order.role is not Role.DEVICE and order.device is None:
        raise InvalidInput(f"a token of role {order.role} is for one exact id", hint="give --device ID")
    if order.ttl is not None and not timedelta(seconds=1) <= order.ttl <= longest:
        hours = f"{longest // timedelta(hours=1)}h"
        raise InvalidInput(f"a token of role {order.role} lives 1s to {hours}", hint=f"as --ttl {hours}")


def _longest_default(role: Role) -> timedelta:
    return DEFAULT_TTL if role is Role.DEVICE else MAX_TTL_OF_OTHER_ROLES


def check_secret(record: TokenRecord | None, token: Token) -> TokenRecord:
    """The record, if the token is one of ours and was not revoked; used and expired ones too. Raises: TokenRefused."""
    if record is None or not hmac.compare_digest(record.digest, token.digest):
        raise TokenRefused("the token is not one of this fleet", hint=_HINT)
    if record.revoked_at is not None:
        raise TokenRefused("the token was revoked", hint=_HINT)
    return record


def check_unspent(record: TokenRecord, now: datetime) -> None:
    """Raises: TokenRefused if the token cannot be redeemed (again)."""
    if record.uses_left < 1:
        raise TokenRefused("the token was used already, with another key", hint=_HINT)
    if record.expires_at <= now:
        raise TokenRefused(
            f"the token expired at {record.expires_at:%Y-%m-%d %H:%M} UTC",
            hint=_HINT,
        )


def allows(record: TokenRecord, device: DeviceId) -> bool:
    """Whether the token lets that id enrol; patterns are matched whole."""
    if record.device is not None:
        return record.device == device
    return record.pattern is not None and fnmatchcase(device, record.pattern)


def allows_from(record: TokenRecord, address: str) -> bool:
    """Whether the token is taken from that address, as the listener saw it."""
    if not record.sources:
        return True
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped  # what a socket for both families says of an IPv4 peer
    return any(found in ipaddress.ip_network(source) for source in record.sources)
