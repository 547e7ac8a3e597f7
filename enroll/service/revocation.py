"""Certificates that end one by one, or with all others of their CA; their principals may come again with a new key."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from enroll import audit
from enroll.registry import Registry, Transaction, feed, identity, revocations
from enroll.registry.records import CertificateRecord, CertificateState, Reason, Revocation
from fleet.errors import NotFound
from fleet.identity import DeviceId, Serial

REVOKED_AT_ONCE: Final = 100  # a transaction keeps every device that enrols waiting, and its first line the last


@dataclass(frozen=True, slots=True)
class Ended:
    """A certificate was revoked. `is_repeated`: it had been, for that reason; `left` of its principal may connect."""

    certificate: CertificateRecord
    is_repeated: bool
    left: tuple[Serial, ...]


def find_certificate(registry: Registry, serial: Serial) -> tuple[CertificateRecord, Revocation | None]:
    """The certificate of that serial, and since when and why it is not good any more. Raises: NotFound."""
    with registry.read() as transaction:
        return _find(transaction, serial), revocations.find(transaction, serial)


def revoke_certificate(
    registry: Registry, serial: Serial, *, by: str, now: datetime, reason: Reason | None = None
) -> Ended:
    """End one certificate for good; live sessions that show it are cut. Of one that was revoked a new reason is noted.

    Raises: NotFound, RegistryUnavailable.
    """

    def end(transaction: Transaction) -> Ended:
        found, listed = _find(transaction, serial), revocations.find(transaction, serial)
        is_known = listed is not None and reason in (None, listed.reason)
        is_repeated = found.state is CertificateState.REVOKED and is_known
        if not is_repeated:
            _revoke(transaction, serial, found.principal, reason, by, now)
        left = [] if found.principal is None else identity.live_certificates_of(transaction, found.principal)
        return Ended(found, is_repeated, tuple(each.serial for each in left))

    return registry.urgently(end)


def count_issued(registry: Registry, issuer: str) -> int:
    """How many certificates `revoke_some_issued` would revoke."""
    with registry.read() as transaction:
        return revocations.count_live(transaction, issuer)


def revoke_some_issued(
    registry: Registry, issuer: str, after: int, *, by: str, now: datetime, reason: Reason | None = None
) -> list[revocations.Live]:
    """Revoke up to REVOKED_AT_ONCE certificates of a CA whose number is above `after`, the fleet's own links excepted.

    Those who carry the news, brokers and dispatch, keep theirs: without them nobody would hear. None are left when the
    list is empty. Raises: RegistryUnavailable.
    """

    def end(transaction: Transaction) -> list[revocations.Live]:
        found = revocations.live_of_issuer(transaction, issuer, after, REVOKED_AT_ONCE)
        for each in found:
            _revoke(transaction, each.serial, each.principal, reason, by, now)
        return found

    return registry.urgently(end)


def _revoke(
    transaction: Transaction, serial: Serial, holder: DeviceId | None, reason: Reason | None, by: str, now: datetime
) -> None:
    revocations.revoke(transaction, [serial], reason, now)
    if holder is not None:
        feed.announce(transaction, holder)
    why = {} if reason is None else {"reason": reason.value}
    audit.record(transaction, now, "certificate.revoked", serial=serial, id=holder or "", by=by, **why)


def _find(transaction: Transaction, serial: Serial) -> CertificateRecord:
    found = identity.find_certificate(transaction, serial)
    if found is None:
        raise NotFound(f"there is no certificate {serial}", hint="enroll cert list")
    return found
