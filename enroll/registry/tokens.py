"""Enrolment tokens and their redemptions: reads and writes within a caller's transaction."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from enroll.registry.identity import CERTIFICATE_COLUMNS, certificate_of, decode_groups, encode_groups
from enroll.registry.records import CertificateRecord, TokenRecord
from enroll.registry.schema import certificates, requests, tokens
from fleet.identity import DeviceId, Role

_TOKEN = select(
    tokens.c.id,
    tokens.c.digest,
    tokens.c.device,
    tokens.c.pattern,
    tokens.c.role,
    tokens.c.groups,
    tokens.c.profile,
    tokens.c.replace,
    tokens.c.uses,
    tokens.c.uses_left,
    tokens.c.created_at,
    tokens.c.expires_at,
    tokens.c.revoked_at,
)
_TOKEN_BY_ID = _TOKEN.where(tokens.c.id == bindparam("id"))
_REDEEM = (
    update(tokens)
    .where(
        tokens.c.id == bindparam("of"),
        tokens.c.uses_left > 0,
        tokens.c.revoked_at.is_(None),
        tokens.c.expires_at > bindparam("now"),
    )
    .values(uses_left=tokens.c.uses_left - 1)
)
_REDEMPTION = (
    select(*CERTIFICATE_COLUMNS)
    .join(requests, requests.c.certificate == certificates.c.number)
    .where(requests.c.token == bindparam("token"), requests.c.key == bindparam("key"))
)


def add_token(transaction: Connection, record: TokenRecord) -> None:
    """Add a token."""
    transaction.execute(
        insert(tokens),
        {
            "id": record.id,
            "digest": record.digest,
            "device": record.device,
            "pattern": record.pattern,
            "role": record.role.value,
            "groups": encode_groups(record.groups),
            "profile": record.profile,
            "replace": record.replace,
            "uses": record.uses,
            "uses_left": record.uses_left,
            "created_at": record.created_at,
            "expires_at": record.expires_at,
            "revoked_at": record.revoked_at,
        },
    )


def find_token(transaction: Connection, id: str) -> TokenRecord | None:
    """The token of that id."""
    row = transaction.execute(_TOKEN_BY_ID, {"id": id}).first()
    return None if row is None else _token(row)


def list_tokens(transaction: Connection) -> list[TokenRecord]:
    """Every token, oldest first."""
    return [_token(row) for row in transaction.execute(_TOKEN.order_by(tokens.c.created_at, tokens.c.id))]


def redeem(transaction: Connection, id: str, now: datetime) -> bool:
    """Take one use by compare-and-swap; False if the token is used up, over or revoked."""
    return transaction.execute(_REDEEM, {"of": id, "now": now}).rowcount == 1


def revoke_token(transaction: Connection, id: str, now: datetime) -> None:
    """End a token."""
    of = (tokens.c.id == id) & tokens.c.revoked_at.is_(None)
    transaction.execute(update(tokens).where(of).values(revoked_at=now))


def revoke_replace_tokens(transaction: Connection, device: DeviceId, now: datetime) -> None:
    """End the tokens that could give `device` a new identity."""
    of = (tokens.c.device == device) & tokens.c.replace & tokens.c.revoked_at.is_(None)
    transaction.execute(update(tokens).where(of).values(revoked_at=now))


def record_redemption(transaction: Connection, token: str, key: bytes, certificate: int, now: datetime) -> None:
    """Remember which certificate a token gave to a key."""
    values = {"token": token, "key": key, "certificate": certificate, "created_at": now}
    transaction.execute(insert(requests), values)


def redemption(transaction: Connection, token: str, key: bytes) -> CertificateRecord | None:
    """The certificate that the token gave to that key."""
    row = transaction.execute(_REDEMPTION, {"token": token, "key": key}).first()
    return None if row is None else certificate_of(row)


def _token(row: Row[*tuple[Any, ...]]) -> TokenRecord:
    name, digest, device, pattern, role, groups, profile, replace, uses, uses_left, created, expires, revoked = row
    return TokenRecord(
        name,
        digest,
        None if device is None else DeviceId(device),
        pattern,
        Role(role),
        decode_groups(groups),
        profile,
        replace,
        uses,
        uses_left,
        created,
        expires,
        revoked,
    )
