"""Enrolment tokens and their redemptions: reads and writes within a caller's transaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, Integer, and_, bindparam, func, select, update

from enroll.registry.identity import decode_names, encode_names
from enroll.registry.records import Approval, TokenRecord
from enroll.registry.schema import certificates, keys, principals, requests, tokens
from enroll.registry.statement import Row, Statement, insert_into
from fleet.identity import DeviceId, Role, Serial, State

_COLUMNS = (
    *("id", "digest", "device", "pattern", "role", "groups", "profile", "replace", "uses", "uses_left"),
    *("created_at", "expires_at", "revoked_at", "sources", "approval"),
)
_TOKEN = select(*(tokens.c[name] for name in _COLUMNS))
_TOKEN_BY_ID = Statement(_TOKEN.where(tokens.c.id == bindparam("of")))
_NEWEST = Statement(_TOKEN.order_by(tokens.c.created_at.desc()).limit(bindparam("limit", type_=Integer)))
_ADD = insert_into(tokens, *_COLUMNS)
_REDEEM = Statement(
    update(tokens)
    .where(
        tokens.c.id == bindparam("of"),
        tokens.c.uses_left > 0,
        tokens.c.revoked_at.is_(None),
        tokens.c.expires_at > bindparam("now"),
    )
    .values(uses_left=tokens.c.uses_left - 1)
)
_REVOKE = Statement(
    update(tokens)
    .where(tokens.c.id == bindparam("of"), tokens.c.revoked_at.is_(None))
    .values(revoked_at=bindparam("now"))
)
_REVOKE_REPLACING = Statement(
    update(tokens)
    .where(tokens.c.device == bindparam("of"), tokens.c.replace, tokens.c.revoked_at.is_(None))
    .values(revoked_at=bindparam("now"))
)
_ENROLLED: Final = (
    select(certificates.c.principal, requests.c.key)
    .select_from(requests)
    .join(certificates, certificates.c.number == requests.c.certificate)
    .join(principals, principals.c.id == certificates.c.principal)
    .where(
        requests.c.token == bindparam("of"),
        requests.c.key > bindparam("after"),
        principals.c.epoch == certificates.c.epoch,
        principals.c.state != State.REVOKED.value,
    )
    .order_by(requests.c.key)
)
"""Whom a token let in, but for those that were given a new identity since, and those that are out for good."""
_ENROLLED_BY = Statement(_ENROLLED.limit(bindparam("limit", type_=Integer)))
_RECORD_REDEMPTION = insert_into(requests, "token", "key", "certificate", "created_at")
_REDEMPTIONS = Statement(select(requests.c.token, func.count()).group_by(requests.c.token))
_USE_OF_KEY = Statement(
    select(certificates.c.serial)
    .select_from(keys)
    .outerjoin(requests, and_(requests.c.key == keys.c.spki_sha256, requests.c.token == bindparam("token")))
    .outerjoin(certificates, certificates.c.number == requests.c.certificate)
    .where(keys.c.spki_sha256 == bindparam("of"))
)


def add_token(transaction: Connection, record: TokenRecord) -> None:
    """Add a token."""
    _ADD.run(
        transaction,
        id=record.id,
        digest=record.digest,
        device=record.device,
        pattern=record.pattern,
        role=record.role.value,
        groups=encode_names(record.groups),
        profile=record.profile,
        replace=record.replace,
        uses=record.uses,
        uses_left=record.uses_left,
        created_at=record.created_at,
        expires_at=record.expires_at,
        revoked_at=record.revoked_at,
        sources=encode_names(record.sources),
        approval=record.approval.value,
    )


def find_token(transaction: Connection, id: str) -> TokenRecord | None:
    """The token of that id."""
    row = _TOKEN_BY_ID.first(transaction, of=id)
    return None if row is None else _token(row)


def newest_tokens(transaction: Connection, limit: int) -> list[TokenRecord]:
    """The `limit` tokens that were made last, oldest first."""
    return [_token(row) for row in _NEWEST.all(transaction, limit=limit)][::-1]


def redeem(transaction: Connection, id: str, now: datetime) -> bool:
    """Take one use by compare-and-swap; False if the token is used up, over or revoked."""
    return _REDEEM.run(transaction, of=id, now=now) == 1


def revoke_token(transaction: Connection, id: str, now: datetime) -> None:
    """End a token."""
    _REVOKE.run(transaction, of=id, now=now)


def revoke_replace_tokens(transaction: Connection, device: DeviceId, now: datetime) -> int:
    """End the tokens that could give `device` a new identity; how many there were."""
    return _REVOKE_REPLACING.run(transaction, of=device, now=now)


def record_redemption(transaction: Connection, token: str, key: bytes, certificate: int, now: datetime) -> None:
    """Remember which certificate a token gave to a key."""
    _RECORD_REDEMPTION.run(transaction, token=token, key=key, certificate=certificate, created_at=now)


def enrolled_by(transaction: Connection, id: str, after: bytes, limit: int) -> list[tuple[DeviceId, bytes]]:
    """Up to `limit` principals that hold the identity which the token gave them and are not revoked.

    With the key that the token certified, in whose order they come: those whose key is above `after`.
    """
    found = _ENROLLED_BY.all(transaction, of=id, after=after, limit=limit)
    return [(DeviceId(name), bytes(key)) for name, key in found]


def redemptions(transaction: Connection) -> dict[str, int]:
    """How often each token was redeemed, by its id; tokens that never were are left out."""
    return {token: int(count) for token, count in _REDEMPTIONS.all(transaction)}


@dataclass(frozen=True, slots=True)
class KeyUse:
    """What a key was used for: whether it was ever certified, and the serial if it was for the token in question."""

    is_known: bool
    redeemed: Serial | None


def use_of_key(transaction: Connection, token: str, key: bytes) -> KeyUse:
    """What the key with that SHA-256 was used for, as seen by a token."""
    row = _USE_OF_KEY.first(transaction, token=token, of=key)
    if row is None:
        return KeyUse(is_known=False, redeemed=None)
    return KeyUse(is_known=True, redeemed=None if row[0] is None else Serial(row[0]))


def _token(row: Row) -> TokenRecord:
    (name, digest, device, pattern, role, groups, profile, replace, uses, left, *dates, sources, approval) = row
    made, over, ended = dates
    return TokenRecord(
        name,
        digest,
        None if device is None else DeviceId(device),
        pattern,
        Role(role),
        decode_names(groups),
        profile,
        replace,
        uses,
        left,
        made,
        over,
        ended,
        decode_names(sources),
        Approval(approval),
    )
