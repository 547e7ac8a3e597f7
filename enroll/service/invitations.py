"""Tokens as admins make and end them. Needs the registry alone, no CA. `by` is who asked, for the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

from enroll import audit
from enroll import tokens as rules
from enroll.registry import Registry, Transaction, approvals, identity
from enroll.registry import tokens as token_rows
from enroll.registry.records import Approval, Reason, TokenRecord
from enroll.service import administration
from enroll.service.revocation import REVOKED_AT_ONCE
from enroll.service.waiting import deny_open
from enroll.tokens import TokenOrder
from fleet.errors import Denied, InvalidInput, NotFound
from fleet.identity import DeviceId, Role
from fleet.join import Token


@dataclass(frozen=True, slots=True)
class Invitation:
    """A new token. This is the only time that its secret is known here."""

    token: Token = field(repr=False)
    record: TokenRecord


def invite(
    registry: Registry, order: TokenOrder, *, by: str, now: datetime, token_bytes: Callable[[int], bytes]
) -> Invitation:
    """A token as ordered. Raises: InvalidInput, Denied (it could never be used), RegistryUnavailable."""
    (invitation,) = invite_all(registry, [order], by=by, now=now, token_bytes=token_bytes)
    return invitation


def invite_all(
    registry: Registry, orders: Sequence[TokenOrder], *, by: str, now: datetime, token_bytes: Callable[[int], bytes]
) -> list[Invitation]:
    """A token for each order, all or none. Raises: InvalidInput, Denied, RegistryUnavailable."""
    minted = [Invitation(*rules.mint(order, now=now, token_bytes=token_bytes)) for order in orders]
    with registry.write() as transaction:
        for invitation in minted:
            _add(transaction, invitation.record, by, now)
    return minted


def _add(transaction: Transaction, record: TokenRecord, by: str, now: datetime) -> None:
    check_usable(transaction, record.device, record.role, replaces=record.replace)
    token_rows.add_token(transaction, record)
    audit.record(
        transaction,
        now,
        "token.created",
        token=record.id,
        names=record.device or record.pattern,
        role=record.role,
        uses=record.uses,
        replace=record.replace,
        by=by,
        **({"approval": record.approval} if record.approval is Approval.MANUAL else {}),
        **({"sources": " ".join(record.sources)} if record.sources else {}),
    )


def check_orders(registry: Registry, orders: Sequence[TokenOrder]) -> list[str]:
    """What is wrong with each order that could never be used, by its place; empty texts for the others."""
    problems = []
    with registry.read() as transaction:
        for order in orders:
            try:
                rules.check_order(order)
                check_usable(transaction, order.device, order.role, replaces=order.replace)
                problems.append("")
            except (InvalidInput, Denied) as error:
                problems.append(error.message)
    return problems


def check_usable(transaction: Transaction, device: DeviceId | None, role: Role, *, replaces: bool) -> None:
    """An admin hears now what the device would hear in the field. Raises: Denied."""
    found = None if device is None else identity.find_principal(transaction, device)
    if found is None:
        return
    if found.principal.role is not role:
        raise Denied(
            f"{found.id} is of role {found.principal.role}, and an id never changes role", hint="take another id"
        )
    if not replaces:
        raise Denied(f"{found.id} has an identity already ({found.state})", hint="add --replace to give it a new key")


def revoke_token(registry: Registry, id: str, *, by: str, now: datetime) -> TokenRecord:
    """End a token, used or not; ending it again changes nothing. Raises: NotFound, RegistryUnavailable."""

    def end(transaction: Transaction) -> TokenRecord:
        found = _find(transaction, id)
        if found.revoked_at is not None:
            return found
        token_rows.revoke_token(transaction, id, now)
        deny_open(transaction, approvals.open_of_token(transaction, id, now), "its token was revoked", by=by, now=now)
        audit.record(transaction, now, "token.revoked", token=id, by=by)
        return replace(found, revoked_at=now)

    return registry.urgently(end)


def enrolled_by(registry: Registry, id: str) -> list[DeviceId]:
    """Whom the token let in, by id: those that still have that identity. Raises: NotFound."""
    with registry.read() as transaction:
        record = _find(transaction, id)
        return sorted(device for device, _ in token_rows.enrolled_by(transaction, id, b"", record.uses))


def revoke_enrolled(
    registry: Registry, id: str, *, by: str, now: datetime, reason: Reason | None = None
) -> Iterator[list[DeviceId]]:
    """Revoke whom the token let in, REVOKED_AT_ONCE in a transaction, and tell them. Revoke the token first.

    Raises: RegistryUnavailable.
    """
    after = b""
    while True:
        found = registry.urgently(partial(_revoke_some, id=id, after=after, by=by, now=now, reason=reason))
        if not found:
            return
        yield [device for device, _ in found]
        after = found[-1][1]


def _revoke_some(
    transaction: Transaction, *, id: str, after: bytes, by: str, now: datetime, reason: Reason | None
) -> list[tuple[DeviceId, bytes]]:
    found = token_rows.enrolled_by(transaction, id, after, REVOKED_AT_ONCE)
    for device, _ in found:
        administration.revoke_in(transaction, device, by=by, now=now, reason=reason)
    return found


def tokens(registry: Registry, limit: int = 1000) -> list[TokenRecord]:
    """The `limit` tokens that were made last, oldest first."""
    with registry.read() as transaction:
        return token_rows.newest_tokens(transaction, limit)


def _find(transaction: Transaction, id: str) -> TokenRecord:
    found = token_rows.find_token(transaction, id)
    if found is None:
        raise NotFound(f"there is no token {id[:40]!r}", hint="enroll token list")
    return found
