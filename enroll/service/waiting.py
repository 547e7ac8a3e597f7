"""Requests that wait for an admin, as devices make them: bounded in number and time, in the caller's transaction.

A request is its key and its id, all that is taken from a CSR: the same two are the same request, however often it is
signed and sent. It is found again, not made again, so a device may ask as often as it likes.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from enroll import audit
from enroll.registry import Transaction, approvals
from enroll.registry.records import ApprovalRecord, ApprovalState, TokenRecord
from enroll.service.admission import NotAllowed
from fleet.errors import FleetError
from fleet.identity import DeviceId, Role, Serial

LIFE: Final = timedelta(days=7)
LIFE_OF_OTHER_ROLES: Final = timedelta(hours=1)  # as their tokens, DESIGN section 11
PAIRING_LIFE: Final = timedelta(minutes=15)  # DESIGN section 3
KEPT_ISSUED: Final = timedelta(days=7)  # so long a device may ask again for an answer that got lost
MAX_WITH_TOKEN: Final = 10_000
MAX_RECOVERIES_OF_DEVICE: Final = 3  # as with a token, for the same reason
SPARE_OF_TOKEN: Final = 3  # a device that was set up anew while it waited has another key
MAX_PAIRINGS: Final = 100
MAX_PAIRINGS_OF_NETWORK: Final = 10
_DECIDES: Final = "an admin decides: enroll request list"
_ID_BYTES: Final = 5
RETRY_SECONDS: Final = 30.0
_PAIRING_RETRY_SECONDS: Final = 180.0  # of the 15 minutes that a pairing lasts
_SOONEST: Final = timedelta(seconds=2)
_LATEST: Final = timedelta(minutes=5)
_LATEST_PAIRING: Final = timedelta(seconds=5)  # somebody stands before the device


class TooManyWaiting(FleetError):
    """So many requests wait, or came of late, that this one cannot be met: HTTP 503. `seconds`: when to try again."""

    def __init__(self, message: str, *, hint: str = "", seconds: float = RETRY_SECONDS) -> None:
        super().__init__(message, hint=hint or f"try again in {math.ceil(seconds)} s")
        self.seconds = seconds


class RequestDenied(NotAllowed):
    """An admin said no."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks: the peer's address, the network that counts as one address, and what the device says that it is."""

    address: str = ""
    network: str = ""
    hardware_serial: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for: a certificate for `device` and the key with that SHA-256.

    By a token, by the key of the expired certificate `recovers`, or as a pairing.
    """

    device: DeviceId
    key: bytes
    token: TokenRecord | None
    asker: Asker
    recovers: Serial | None = None

    @property
    def is_pairing(self) -> bool:
        return self.token is None and self.recovers is None


@dataclass(frozen=True, slots=True)
class Waiting:
    """The request waits. `retry_after` is when to ask again."""

    request: str
    device: DeviceId
    key: bytes
    retry_after: timedelta
    is_new: bool


def life_of(wanted: Wanted | ApprovalRecord, token: TokenRecord | None) -> timedelta:
    """How long a request may wait for an admin, and then how long its approval waits for the device."""
    if wanted.is_pairing:
        return PAIRING_LIFE
    return LIFE if token is None or token.role is Role.DEVICE else LIFE_OF_OTHER_ROLES


def find(
    transaction: Transaction, key: bytes, token: str | None, now: datetime, recovers: Serial | None = None
) -> ApprovalRecord | None:
    """What became of the request of that key, if its time has not come."""
    found = approvals.find_of_key(transaction, key, token, recovers)
    return found if found is not None and found.expires_at > now else None


def approved(
    transaction: Transaction,
    found: ApprovalRecord | None,
    wanted: Wanted,
    now: datetime,
    token_bytes: Callable[[int], bytes],
) -> ApprovalRecord | Waiting:
    """The approval of what is wanted, or that it waits; a request that is not there yet is made.

    Raises: RequestDenied, NotAllowed (the key waits for another id), TooManyWaiting.
    """
    if found is None:
        return _waiting(_made(transaction, wanted, now, token_bytes), now, is_new=True)
    if found.device != wanted.device:
        raise NotAllowed(f"this key asked for {found.device} before", hint="keep the id, or make a new key")
    if found.state is ApprovalState.DENIED:
        raise RequestDenied(f"an admin denied request {found.id}: {found.reason}", hint="ask whoever runs the fleet")
    return found if found.state is ApprovalState.APPROVED else _waiting(found, now, is_new=False)


def issued(transaction: Transaction, request: ApprovalRecord, certificate: int, now: datetime) -> None:
    """Note what an approved request was given."""
    done = replace(request, state=ApprovalState.ISSUED, certificate=certificate, expires_at=now + KEPT_ISSUED)
    approvals.change(transaction, done)


def deny_open(
    transaction: Transaction, open_requests: list[ApprovalRecord], reason: str, *, by: str, now: datetime
) -> None:
    """End requests with what they hang on, in the caller's transaction."""
    for found in open_requests:
        denied(transaction, found, reason, by, now)


def denied(transaction: Transaction, found: ApprovalRecord, reason: str, by: str, now: datetime) -> ApprovalRecord:
    """End one request; the device hears why for as long as its time lasts."""
    decided = replace(found, state=ApprovalState.DENIED, decided_by=by, reason=reason)
    approvals.change(transaction, decided)
    audit.record(transaction, now, "request.denied", **log_fields(decided), reason=reason, by=by)
    return decided


def log_fields(record: ApprovalRecord) -> dict[str, str]:
    """What the audit log says of a request."""
    fields = {"request": record.id, "device": record.device, "key": record.key.hex(), "address": record.address}
    proofs = {"token": record.token, "recovers": record.recovers}
    return fields | {name: str(proof) for name, proof in proofs.items() if proof is not None}


def _made(
    transaction: Transaction, wanted: Wanted, now: datetime, token_bytes: Callable[[int], bytes]
) -> ApprovalRecord:
    approvals.forget_over(transaction, now)
    _check_room(transaction, wanted, now)
    asker = wanted.asker
    record = ApprovalRecord(
        base64.b32encode(token_bytes(_ID_BYTES)).decode().lower(),
        None if wanted.token is None else wanted.token.id,
        wanted.device,
        wanted.key,
        ApprovalState.WAITING,
        asker.address,
        asker.network,
        asker.hardware_serial,
        asker.model,
        now,
        now + life_of(wanted, wanted.token),
        recovers=wanted.recovers,
    )
    approvals.add(transaction, record)
    if not wanted.is_pairing:  # a stranger writes no log that is kept for ever
        audit.record(transaction, now, "request.made", **log_fields(record))
    return record


def _check_room(transaction: Transaction, wanted: Wanted, now: datetime) -> None:
    """Raises: TooManyWaiting."""
    if wanted.is_pairing:
        is_full = approvals.count_open_pairings(transaction, now) >= MAX_PAIRINGS
        of_network = approvals.count_open_pairings(transaction, now, wanted.asker.network)
        if is_full or of_network >= MAX_PAIRINGS_OF_NETWORK:
            raise TooManyWaiting("too many devices wait to be paired", seconds=_PAIRING_RETRY_SECONDS)
        return
    if wanted.token is not None:
        of_token = len(approvals.open_of_token(transaction, wanted.token.id, now))
        if of_token >= wanted.token.uses_left + SPARE_OF_TOKEN:
            raise TooManyWaiting("as many requests wait as the token has uses", hint=_DECIDES)
    else:
        of_device = approvals.open_of_device(transaction, wanted.device, now)
        if sum(each.recovers is not None for each in of_device) >= MAX_RECOVERIES_OF_DEVICE:
            raise TooManyWaiting(f"too many requests of {wanted.device} wait for an admin", hint=_DECIDES)
    if approvals.count_open_proven(transaction, now) >= MAX_WITH_TOKEN:
        raise TooManyWaiting("too many requests wait for an admin", hint=_DECIDES)


def _waiting(record: ApprovalRecord, now: datetime, *, is_new: bool) -> Waiting:
    """Who has waited for long is asked to come less often: a tenth of its age, within bounds."""
    latest = _LATEST_PAIRING if record.is_pairing else _LATEST
    retry = min(max((now - record.created_at) / 10, _SOONEST), latest)
    return Waiting(record.id, record.device, record.key, retry, is_new)
