"""What admins do about requests that wait for them. Needs the registry alone, no CA. `by` is who asked, for the log."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Final

from enroll import audit
from enroll.registry import Registry, Transaction, approvals, identity
from enroll.registry import tokens as token_rows
from enroll.registry.records import ApprovalRecord, ApprovalState, TokenRecord
from enroll.service.invitations import check_usable
from enroll.service.recoverable import recoverable
from enroll.service.waiting import denied, life_of, log_fields
from fleet.errors import Denied, InvalidInput, NotFound
from fleet.identity import Role

MAX_REASON_CHARS: Final = 200
_LIST: Final = "enroll request list"


def requests(registry: Registry, now: datetime) -> list[ApprovalRecord]:
    """Every request whose time has not come, whatever became of it, oldest first."""
    with registry.read() as transaction:
        return approvals.in_time(transaction, now)


def find_request(registry: Registry, id: str, now: datetime) -> ApprovalRecord:
    """One request. Raises: NotFound, also when its time has come."""
    with registry.read() as transaction:
        return _find(transaction, id, now)


def check_approvable(registry: Registry, id: str, now: datetime) -> ApprovalRecord:
    """The request, if `approve` would approve it. Raises: NotFound, Denied."""
    with registry.read() as transaction:
        found = _find(transaction, id, now)
        _check(transaction, found, now)
        return found


def approve(registry: Registry, id: str, *, by: str, now: datetime) -> ApprovalRecord:
    """Let the device have its certificate when it next asks; approving it again changes nothing.

    Raises: NotFound (also when its time has come), Denied (it was denied, or could not be redeemed),
    RegistryUnavailable.
    """
    with registry.write() as transaction:
        found = _find(transaction, id, now)
        if found.state in (ApprovalState.APPROVED, ApprovalState.ISSUED):
            return found
        token = _check(transaction, found, now)
        decided = replace(found, state=ApprovalState.APPROVED, decided_by=by, expires_at=now + life_of(found, token))
        approvals.change(transaction, decided)
        audit.record(transaction, now, "request.approved", **log_fields(decided), by=by)
        return decided


def deny(registry: Registry, id: str, reason: str, *, by: str, now: datetime) -> ApprovalRecord:
    """Tell the device no, and why, whenever it asks while the request's time lasts; denying it again changes nothing.

    Raises: NotFound, Denied (it has its certificate), InvalidInput (the reason), RegistryUnavailable.
    """
    if not (reason.strip() and reason.isprintable() and len(reason) <= MAX_REASON_CHARS):
        raise InvalidInput(
            f"a reason is a line of 1 to {MAX_REASON_CHARS} characters", hint="the device shows it: --reason TEXT"
        )
    with registry.write() as transaction:
        found = _find(transaction, id, now)
        if found.state is ApprovalState.ISSUED:
            raise Denied(f"{found.device} has its certificate already", hint=f"enroll device revoke {found.device}")
        return found if found.state is ApprovalState.DENIED else denied(transaction, found, reason, by, now)


def _check(transaction: Transaction, found: ApprovalRecord, now: datetime) -> TokenRecord | None:
    """The request's token. Raises: Denied where the device could not be given what it asks for."""
    if found.state is ApprovalState.DENIED:
        raise Denied(f"request {found.id} was denied by {found.decided_by}", hint="the device has to ask anew")
    token = None if found.token is None else token_rows.find_token(transaction, found.token)
    if token is not None:
        _check_token(transaction, token, now)
    if found.recovers is not None:
        recoverable(transaction, found.recovers)
    else:
        role, replaces = (Role.DEVICE, False) if token is None else (token.role, token.replace)
        check_usable(transaction, found.device, role, replaces=replaces)
    if identity.is_key_known(transaction, found.key):
        raise Denied(f"the key of request {found.id} was certified before", hint="the device has to make a new one")
    for other in approvals.open_of_device(transaction, found.device, now):
        if other.state is ApprovalState.APPROVED and other.id != found.id:
            raise Denied(f"request {other.id} for {found.device} was approved", hint=f"enroll request deny {other.id}")
    return token


def _check_token(transaction: Transaction, token: TokenRecord, now: datetime) -> None:
    if token.revoked_at is not None:
        raise Denied(f"token {token.id} was revoked", hint="make another: enroll token create")
    siblings = approvals.open_of_token(transaction, token.id, now)
    promised = sum(1 for other in siblings if other.state is ApprovalState.APPROVED)
    if promised >= token.uses_left:
        raise Denied(f"token {token.id} has no use left for it", hint="make another: enroll token create")


def _find(transaction: Transaction, id: str, now: datetime) -> ApprovalRecord:
    found = approvals.find(transaction, id.replace("-", "").strip().lower())
    if found is None:
        raise NotFound(f"there is no request {id[:40]!r}", hint=_LIST)
    if found.expires_at <= now:
        raise NotFound(f"the time of request {found.id} is over", hint=f"the device asks anew: {_LIST}")
    return found
