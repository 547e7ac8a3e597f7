"""What admins do about who may connect. Needs the registry alone, no CA. `by` is who asked, for the log."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import assert_never

from enroll import audit
from enroll.registry import Registry, Transaction, approvals, feed, identity, manufacturers, messaging, revocations
from enroll.registry import tokens as token_rows
from enroll.registry.records import CertificateRecord, CertificateState, PrincipalRecord, Reason
from enroll.service.waiting import deny_open
from fleet.errors import Denied, NotFound
from fleet.identity import DeviceId, Role, Serial, State


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


def revoke(
    registry: Registry, id: DeviceId, *, by: str, now: datetime, reason: Reason | None = None
) -> PrincipalRecord:
    """Keep a principal out for good: its certificates and the tokens that could replace it end.

    Of one that is revoked already, the reason is stated anew. Raises: NotFound, RegistryUnavailable.
    """
    return registry.urgently(partial(revoke_in, id=id, by=by, now=now, reason=reason))


def revoke_in(
    transaction: Transaction, id: DeviceId, *, by: str, now: datetime, reason: Reason | None = None
) -> PrincipalRecord:
    """`revoke`, in the caller's transaction."""
    found = _find(transaction, id)
    if found.state is not State.REVOKED:
        return _moved(transaction, found, State.REVOKED, by, now, reason)
    ended = _end(transaction, id, by, now, reason)  # a token to replace it was made since
    if _explain(transaction, found, reason, now) or ended:
        _record(transaction, found, State.REVOKED, by, now, reason)
    return found


def _explain(transaction: Transaction, found: PrincipalRecord, reason: Reason | None, now: datetime) -> bool:
    """State why its certificates were revoked; whether that is news."""
    if reason is None:
        return False
    revoked = [
        each.serial
        for each in identity.certificates_of(transaction, found.id)
        if each.state is CertificateState.REVOKED and each.epoch == found.epoch
    ]
    others = [serial for serial in revoked if not _is_known(transaction, serial, reason)]
    revocations.revoke(transaction, others, reason, now)
    return bool(others)


def _is_known(transaction: Transaction, serial: Serial, reason: Reason) -> bool:
    listed = revocations.find(transaction, serial)
    return listed is not None and listed.reason is reason


def _move(registry: Registry, id: DeviceId, state: State, by: str, now: datetime) -> PrincipalRecord:
    with registry.write() as transaction:
        found = _find(transaction, id)
        return found if found.state is state else _moved(transaction, found, state, by, now)


def _moved(
    transaction: Transaction, found: PrincipalRecord, state: State, by: str, now: datetime, reason: Reason | None = None
) -> PrincipalRecord:
    if found.state is State.REVOKED:
        hint = f"give its name to a new key: enroll token create --device {found.id} --replace"
        raise Denied(f"{found.id} is revoked, and that is for good", hint=hint)
    moved = replace(found, state=state)
    identity.update_principal(transaction, moved)
    match state:
        case State.ACTIVE:
            revocations.release(transaction, found.id)
        case State.SUSPENDED:
            revocations.hold(transaction, found.id, now)
        case State.REVOKED | State.REMOVED:
            _end(transaction, found.id, by, now, reason)
        case _:
            assert_never(state)
    feed.announce(transaction, found.id)
    _record(transaction, found, state, by, now, reason)
    return moved


def _record(
    transaction: Transaction, found: PrincipalRecord, state: State, by: str, now: datetime, reason: Reason | None
) -> None:
    why = {} if reason is None else {"reason": reason.value}
    audit.record(transaction, now, f"principal.{state}", principal=str(found.principal), by=by, **why)


def _end(transaction: Transaction, id: DeviceId, by: str, now: datetime, reason: Reason | None) -> bool:
    """End what `id` holds, and what could give it more; whether there was any."""
    live = [certificate.serial for certificate in identity.live_certificates_of(transaction, id)]
    revocations.revoke(transaction, live, reason, now)
    tokens_ended = token_rows.revoke_replace_tokens(transaction, id, now)
    claim_ended = manufacturers.end_replace(transaction, id)
    waiting = approvals.open_of_device(transaction, id, now)
    deny_open(transaction, waiting, f"{id} was revoked", by=by, now=now)
    messaging.orphan_commands(transaction, id, now)
    return bool(live or tokens_ended or claim_ended or waiting)


def _find(transaction: Transaction, id: DeviceId) -> PrincipalRecord:
    found = identity.find_principal(transaction, id)
    if found is None:
        raise NotFound(f"there is no {id}", hint="enroll device list")
    return found
