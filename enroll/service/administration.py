"""What admins do about who may connect. Needs the registry alone, no CA. `by` is who asked, for the log."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from enroll import audit
from enroll.registry import Registry, Transaction, approvals, feed, identity, manufacturers
from enroll.registry import tokens as token_rows
from enroll.registry.records import CertificateRecord, CertificateState, PrincipalRecord
from enroll.service.waiting import deny_open
from fleet.errors import Denied, NotFound
from fleet.identity import DeviceId, Role, State


@dataclass(frozen=True, slots=True)
class Details:
    """A principal and every certificate that it ever had, oldest first."""

    record: PrincipalRecord
    certificates: tuple[CertificateRecord, ...]


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


def revoke_in(transaction: Transaction, id: DeviceId, *, by: str, now: datetime) -> PrincipalRecord:
    """`revoke`, in the caller's transaction."""
    return _move_in(transaction, id, State.REVOKED, by, now)


def _move(registry: Registry, id: DeviceId, state: State, by: str, now: datetime) -> PrincipalRecord:
    with registry.write() as transaction:
        return _move_in(transaction, id, state, by, now)


def _move_in(transaction: Transaction, id: DeviceId, state: State, by: str, now: datetime) -> PrincipalRecord:
    found = _find(transaction, id)
    if found.state is state:
        if state is State.REVOKED and _end(transaction, id, by, now):  # a token to replace it was made since
            audit.record(transaction, now, f"principal.{state}", principal=str(found.principal), by=by)
        return found
    if found.state is State.REVOKED:
        hint = f"give its name to a new key: enroll token create --device {id} --replace"
        raise Denied(f"{id} is revoked, and that is for good", hint=hint)
    moved = replace(found, state=state)
    identity.update_principal(transaction, moved)
    if state is State.REVOKED:
        _end(transaction, id, by, now)
    feed.announce(transaction, id)
    audit.record(transaction, now, f"principal.{state}", principal=str(found.principal), by=by)
    return moved


def _end(transaction: Transaction, id: DeviceId, by: str, now: datetime) -> bool:
    """End what `id` holds, and what could give it more; whether there was any."""
    live = [certificate.serial for certificate in identity.live_certificates_of(transaction, id)]
    identity.set_certificate_states(transaction, live, CertificateState.REVOKED)
    tokens_ended = token_rows.revoke_replace_tokens(transaction, id, now)
    claim_ended = manufacturers.end_replace(transaction, id)
    waiting = approvals.open_of_device(transaction, id, now)
    deny_open(transaction, waiting, f"{id} was revoked", by=by, now=now)
    return bool(live or tokens_ended or claim_ended or waiting)


def _find(transaction: Transaction, id: DeviceId) -> PrincipalRecord:
    found = identity.find_principal(transaction, id)
    if found is None:
        raise NotFound(f"there is no {id}", hint="enroll device list")
    return found
