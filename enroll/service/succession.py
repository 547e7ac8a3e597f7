"""The end of a renewal: the successor is confirmed by whoever uses it, and its predecessor ends a little later."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from enroll import audit
from enroll.registry import Registry, Transaction, endings, feed, identity, revocations
from enroll.registry.records import LIVE, CertificateRecord, CertificateState
from enroll.service import lineage
from enroll.service.admission import Peer, admit, holder
from enroll.service.grace import plan_ends
from enroll.service.lineage import Forked
from enroll.service.waiting import Asker
from fleet.identity import DeviceId, Principal, Serial

_NOBODY_KNOWN: Final = Asker()
_ENDED_AT_ONCE: Final = 200  # a transaction keeps every device that enrols waiting


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A certificate is in use. `is_repeated`: that was known. `ends_at`: when its predecessor ends, if it has one."""

    principal: Principal
    serial: Serial
    is_repeated: bool
    ends_at: datetime | None


def confirm(registry: Registry, serial: Serial, now: datetime, asker: Asker = _NOBODY_KNOWN) -> Confirmed:
    """The holder of `serial` came with it, and wants it to be its only one soon. The same again changes nothing.

    Raises: NotAdmitted, Forked, RegistryUnavailable.
    """
    with registry.write() as transaction:
        outcome = _confirm_or_freeze(transaction, serial, now, asker)
    if isinstance(outcome, Forked):  # only now: the alarm must stay
        raise outcome
    return outcome


def _confirm_or_freeze(transaction: Transaction, serial: Serial, now: datetime, asker: Asker) -> Confirmed | Forked:
    found = holder(transaction, serial)
    if lineage.never_used(transaction, found.certificate):  # its holder uses it, and another one was given since
        return lineage.freeze(transaction, found, asker, now)
    peer = admit(transaction, serial)
    others = identity.live_certificates_of(transaction, peer.record.id)
    older = [each for each in others if each.generation < peer.certificate.generation]
    is_repeated = peer.certificate.state is CertificateState.CONFIRMED
    if not is_repeated:
        if lineage.is_frozen(transaction, peer):
            return Forked(peer.record.id, serial)
        _confirm(transaction, peer, older, asker, now)
    ends = [end for each in older if (end := endings.planned(transaction, each.serial)) is not None]
    return Confirmed(peer.record.principal, serial, is_repeated, max(ends, default=None))


def _confirm(transaction: Transaction, peer: Peer, older: list[CertificateRecord], asker: Asker, now: datetime) -> None:
    certificate = peer.certificate
    lineage.note_use(transaction, certificate, asker, now)
    plan_ends(transaction, older, now)
    audit.record(
        transaction,
        now,
        "certificate.confirmed",
        principal=str(peer.record.principal),
        serial=certificate.serial,
        generation=certificate.generation,
    )


def end_due(registry: Registry, now: datetime) -> list[tuple[DeviceId, Serial]]:
    """End the predecessors whose grace is over, and tell the brokers; those that were still good until now.

    Raises: RegistryUnavailable.
    """
    with registry.read() as transaction:
        first = endings.first(transaction)
    if first is None or first > now:  # each write wakes every watcher of the registry
        return []
    with registry.write() as transaction:
        found = [_end(transaction, serial, now) for serial in endings.due(transaction, now, _ENDED_AT_ONCE)]
    return [each for each in found if each is not None]


def _end(transaction: Transaction, serial: Serial, now: datetime) -> tuple[DeviceId, Serial] | None:
    endings.done(transaction, serial)
    certificate = identity.find_certificate(transaction, serial)
    if certificate is None or certificate.principal is None or certificate.state not in LIVE:
        return None
    revocations.supersede(transaction, [serial], now)
    feed.announce(transaction, certificate.principal)
    audit.record(transaction, now, "certificate.superseded", principal=certificate.principal, serial=serial)
    return certificate.principal, serial
