"""What admins do: tokens, and who may connect. Needs the registry alone, no CA. `by` is who asked, for the log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from enroll import audit
from enroll import tokens as rules
from enroll.registry import Registry, Transaction, feed, identity
from enroll.registry import tokens as token_rows
from enroll.registry.records import CertificateRecord, CertificateState, PrincipalRecord, TokenRecord
from enroll.tokens import TokenOrder
from fleet.errors import Denied, NotFound
from fleet.identity import DeviceId, Role, State
from fleet.join import Token


@dataclass(frozen=True, slots=True)
class Invitation:
    """A new token. This is the only time that its secret is known here."""

    token: Token = field(repr=False)
    record: TokenRecord


@dataclass(frozen=True, slots=True)
class Details:
    """A principal and every certificate that it ever had, oldest first."""

    record: PrincipalRecord
    certificates: tuple[CertificateRecord, ...]


def invite(
    registry: Registry, order: TokenOrder, *, by: str, now: datetime, token_bytes: Callable[[int], bytes]
) -> Invitation:
    """A token as ordered. Raises: InvalidInput, Denied (it could never be used), RegistryUnavailable."""
    token, record = rules.mint(order, now=now, token_bytes=token_bytes)
    with registry.write() as transaction:
        _check_usable(transaction, record)
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
        )
    return Invitation(token, record)


def _check_usable(transaction: Transaction, record: TokenRecord) -> None:
    """An admin hears now what the device would hear in the field."""
    found = None if record.device is None else identity.find_principal(transaction, record.device)
    if found is None:
        return
    if found.principal.role is not record.role:
        raise Denied(
            f"{found.id} is of role {found.principal.role}, and an id never changes role", hint="take another id"
        )
    if not record.replace:
        raise Denied(f"{found.id} has an identity already ({found.state})", hint="add --replace to give it a new key")


def revoke_token(registry: Registry, id: str, *, by: str, now: datetime) -> TokenRecord:
    """End a token, used or not; ending it again changes nothing. Raises: NotFound, RegistryUnavailable."""
    with registry.write() as transaction:
        found = token_rows.find_token(transaction, id)
        if found is None:
            raise NotFound(f"there is no token {id[:40]!r}", hint="enroll token list")
        if found.revoked_at is not None:
            return found
        token_rows.revoke_token(transaction, id, now)
        audit.record(transaction, now, "token.revoked", token=id, by=by)
        return replace(found, revoked_at=now)


def tokens(registry: Registry) -> list[TokenRecord]:
    """Every token, oldest first."""
    with registry.read() as transaction:
        return token_rows.list_tokens(transaction)


def principals(registry: Registry, role: Role | None = None) -> list[PrincipalRecord]:
    """All principals, or those of a role, by id."""
    with registry.read() as transaction:
        return identity.list_principals(transaction, role)


def show(registry: Registry, id: DeviceId) -> Details:
    """One principal. Raises: NotFound."""
    with registry.read() as transaction:
        return Details(_find(transaction, id), tuple(identity.certificates_of(transaction, id)))


def suspend(registry: Registry, id: DeviceId, *, by: str, now: datetime) -> PrincipalRecord:
    """Keep a principal out until it is resumed. Raises: NotFound, Denied (it is revoked), RegistryUnavailable."""
    return _move(registry, id, State.SUSPENDED, by, now)


def resume(registry: Registry, id: DeviceId, *, by: str, now: datetime) -> PrincipalRecord:
    """Let a suspended principal in again. Raises: NotFound, Denied (it is revoked), RegistryUnavailable."""
    return _move(registry, id, State.ACTIVE, by, now)


def revoke(registry: Registry, id: DeviceId, *, by: str, now: datetime) -> PrincipalRecord:
    """Keep a principal out for good: its certificates and the tokens that could replace it end.

    Raises: NotFound, RegistryUnavailable.
    """
    return _move(registry, id, State.REVOKED, by, now)


def _move(registry: Registry, id: DeviceId, state: State, by: str, now: datetime) -> PrincipalRecord:
    with registry.write() as transaction:
        found = _find(transaction, id)
        if found.state is state:
            return found
        if found.state is State.REVOKED:
            hint = f"give its name to a new key: enroll token create --device {id} --replace"
            raise Denied(f"{id} is revoked, and that is for good", hint=hint)
        moved = replace(found, state=state)
        identity.update_principal(transaction, moved)
        if state is State.REVOKED:
            _end(transaction, id, now)
        feed.announce(transaction, id)
        audit.record(transaction, now, f"principal.{state}", principal=str(found.principal), by=by)
        return moved


def _end(transaction: Transaction, id: DeviceId, now: datetime) -> None:
    live = [certificate.serial for certificate in identity.live_certificates_of(transaction, id)]
    identity.set_certificate_states(transaction, live, CertificateState.REVOKED)
    token_rows.revoke_replace_tokens(transaction, id, now)


def _find(transaction: Transaction, id: DeviceId) -> PrincipalRecord:
    found = identity.find_principal(transaction, id)
    if found is None:
        raise NotFound(f"there is no {id}", hint="enroll device list")
    return found
