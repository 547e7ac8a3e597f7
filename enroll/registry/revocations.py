"""What stands on CRLs: certificates that ended before their time, or are on hold; within a caller's transaction.

Whoever ends a certificate does it here, so that brokers (`certificates.state`) and CRLs (`revocations`) never differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Column, Connection, ForeignKey, Index, Integer, String, Table, bindparam, delete, func, select
from sqlalchemy import update as updating

from enroll.registry import identity
from enroll.registry.records import CertificateState, Reason, Revocation
from enroll.registry.schema import Instant, certificates, metadata, principals
from enroll.registry.statement import Row, Statement, insert_into
from fleet.identity import DISPATCH, DeviceId, Role, Serial

revocations: Final = Table(
    "revocations",
    metadata,
    Column("number", ForeignKey("certificates.number"), primary_key=True),
    Column("serial", String(40), nullable=False),
    Column("issuer", String(16), nullable=False),
    Column("shard", Integer, nullable=False),
    Column("not_after", Instant, nullable=False),
    Column("at", Instant, nullable=False),
    Column("reason", String(24), nullable=True),
    Index(None, "shard"),
    Index(None, "issuer", "not_after"),
)
"""The lines of CRLs. What the certificate itself says stands here again: a CRL is read without any certificate."""

crl_shards: Final = Table(
    "crl_shards",
    metadata,
    Column("shard", Integer, primary_key=True),
    Column("revision", Integer, nullable=False),
)
"""How often the lines of a shard changed; one that never had any has no row."""

_CERTIFICATE = Statement(
    select(certificates.c.number, certificates.c.issuer, certificates.c.shard, certificates.c.not_after).where(
        certificates.c.serial == bindparam("of")
    )
)
_ADD = insert_into(revocations, "number", "serial", "issuer", "shard", "not_after", "at", "reason")
_SET_REASON = Statement(
    updating(revocations).where(revocations.c.number == bindparam("of")).values(reason=bindparam("reason"))
)
_REMOVE = Statement(delete(revocations).where(revocations.c.number == bindparam("of")))
_FOUND = select(revocations.c.serial, revocations.c.at, revocations.c.reason)
_OF_SERIAL = Statement(
    _FOUND.select_from(revocations)
    .join(certificates, certificates.c.number == revocations.c.number)
    .where(certificates.c.serial == bindparam("of"))
)
_OF_SHARD = Statement(
    _FOUND.where(revocations.c.shard == bindparam("shard"), revocations.c.not_after >= bindparam("since")).order_by(
        revocations.c.number
    )
)
_OF_ISSUER = Statement(
    _FOUND.where(revocations.c.issuer == bindparam("issuer"), revocations.c.not_after >= bindparam("since"))
)
_HELD_OF = Statement(
    select(revocations.c.number, revocations.c.shard)
    .select_from(certificates)
    .join(revocations, certificates.c.number == revocations.c.number)
    .where(certificates.c.principal == bindparam("of"), revocations.c.reason == Reason.CERTIFICATE_HOLD.value)
)
_TOUCH = Statement(
    updating(crl_shards).where(crl_shards.c.shard == bindparam("of")).values(revision=crl_shards.c.revision + 1)
)
_FIRST_TOUCH = insert_into(crl_shards, "shard", "revision")
_IS_OF_OTHERS = (
    identity.IS_LIVE,
    certificates.c.issuer == bindparam("issuer"),
    principals.c.role != Role.BROKER.value,
    principals.c.id != DISPATCH.id,
)
_LIVE_OF_ISSUER = Statement(
    select(certificates.c.number, certificates.c.serial, certificates.c.principal)
    .join(principals, principals.c.id == certificates.c.principal)
    .where(certificates.c.number > bindparam("after"), *_IS_OF_OTHERS)
    .order_by(certificates.c.number)
    .limit(bindparam("limit", type_=Integer))
)
_COUNT_LIVE = Statement(
    select(func.count())
    .select_from(certificates)
    .join(principals, principals.c.id == certificates.c.principal)
    .where(*_IS_OF_OTHERS)
)
_REVISIONS = Statement(select(crl_shards.c.shard, crl_shards.c.revision))


@dataclass(frozen=True, slots=True)
class Live:
    """A certificate with which its principal may connect."""

    number: int
    serial: Serial
    principal: DeviceId


def supersede(transaction: Connection, serials: Iterable[Serial], now: datetime) -> None:
    """End certificates whose successors are in use."""
    _end(transaction, serials, CertificateState.SUPERSEDED, Reason.SUPERSEDED, now)


def revoke(transaction: Connection, serials: Iterable[Serial], reason: Reason | None, now: datetime) -> None:
    """End certificates for good. One that had ended, or was on hold, has done so since then, and for the new reason.

    Nobody is told but the readers of CRLs: `feed.announce` is the caller's.
    """
    _end(transaction, serials, CertificateState.REVOKED, reason, now)


def _end(
    transaction: Connection, serials: Iterable[Serial], state: CertificateState, reason: Reason | None, now: datetime
) -> None:
    for serial in serials:
        identity.set_certificate_states(transaction, [serial], state)
        _list(transaction, serial, reason, now)


def hold(transaction: Connection, device: DeviceId, now: datetime) -> None:
    """The live certificates of a principal are not good for now."""
    for certificate in identity.live_certificates_of(transaction, device):
        _list(transaction, certificate.serial, Reason.CERTIFICATE_HOLD, now)


def release(transaction: Connection, device: DeviceId) -> None:
    """What was on hold is good again; what ended meanwhile is not."""
    for number, shard in _HELD_OF.all(transaction, of=device):
        _REMOVE.run(transaction, of=number)
        _touch(transaction, shard)


def _list(transaction: Connection, serial: Serial, reason: Reason | None, now: datetime) -> None:
    row, listed = _CERTIFICATE.first(transaction, of=serial), find(transaction, serial)
    assert row is not None, "only what was signed ends"
    number, issuer, shard, not_after = row
    if listed is None:
        _ADD.run(
            transaction,
            number=number,
            serial=serial,
            issuer=issuer,
            shard=shard,
            not_after=not_after,
            at=now,
            reason=_text(reason),
        )
    else:
        kept = None if listed.reason is Reason.CERTIFICATE_HOLD else listed.reason
        _SET_REASON.run(transaction, of=number, reason=_text(reason or kept))
    _touch(transaction, shard)


def _text(reason: Reason | None) -> str | None:
    return None if reason is None else reason.value


def _touch(transaction: Connection, shard: int) -> None:
    if not _TOUCH.run(transaction, of=shard):
        _FIRST_TOUCH.run(transaction, shard=shard, revision=1)


def find(transaction: Connection, serial: Serial) -> Revocation | None:
    """Since when, and why, the certificate is not good before its end."""
    row = _OF_SERIAL.first(transaction, of=serial)
    return None if row is None else _revocation(row)


def of_shard(transaction: Connection, shard: int, since: datetime) -> Iterator[Revocation]:
    """The lines of a shard whose certificates end by themselves at `since` or later, as they were issued."""
    return map(_revocation, _OF_SHARD.each(transaction, shard=shard, since=since))


def of_issuer(transaction: Connection, issuer: str, since: datetime) -> Iterator[Revocation]:
    """The lines of all shards of an issuer whose certificates end by themselves at `since` or later."""
    return map(_revocation, _OF_ISSUER.each(transaction, issuer=issuer, since=since))


def revisions(transaction: Connection) -> dict[int, int]:
    """Every shard that there is, with a number that is another one when its lines have changed."""
    last = identity.shard_of(identity.last_number(transaction))
    return dict.fromkeys(range(last + 1), 0) | dict(_REVISIONS.all(transaction))


def live_of_issuer(transaction: Connection, issuer: str, after: int, limit: int) -> list[Live]:
    """Up to `limit` live certificates of an issuer behind that number, by number; none of brokers and dispatch."""
    found = _LIVE_OF_ISSUER.all(transaction, issuer=issuer, after=after, limit=limit)
    return [Live(number, Serial(serial), DeviceId(principal)) for number, serial, principal in found]


def count_live(transaction: Connection, issuer: str) -> int:
    """How many certificates `live_of_issuer` gives in the end."""
    row = _COUNT_LIVE.first(transaction, issuer=issuer)
    assert row is not None
    return int(row[0])


def _revocation(row: Row) -> Revocation:
    serial, at, reason = row
    return Revocation(Serial(serial), at, None if reason is None else Reason(reason))
