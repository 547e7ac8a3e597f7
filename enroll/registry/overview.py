"""What admins look at: principals with their presence and expiry, certificates, counts; reads alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Select, func, select

from enroll.registry.identity import CERTIFICATE_COLUMNS, certificate_of, decode_names
from enroll.registry.records import LIVE, CertificateRecord, CertificateState, PresenceRecord, PrincipalRecord
from enroll.registry.schema import certificates, commands, presence, principals
from fleet.identity import DeviceId, Principal, Role, State

_EXPIRY: Final = (
    select(func.max(certificates.c.not_after))
    .where(certificates.c.principal == principals.c.id, certificates.c.state.in_([state.value for state in LIVE]))
    .scalar_subquery()
)
_SUMMARY = (
    select(
        principals.c.id,
        principals.c.role,
        principals.c.state,
        principals.c.epoch,
        principals.c.groups,
        principals.c.created_at,
        presence.c.online,
        presence.c.reason,
        presence.c.agent,
        presence.c.changed_at,
        presence.c.last_seen,
        _EXPIRY,
    )
    .outerjoin(presence, presence.c.principal == principals.c.id)
    .order_by(principals.c.id)
)
_SIGNED = (
    select(*CERTIFICATE_COLUMNS)
    .where(certificates.c.state != CertificateState.INTENDED.value)
    .order_by(certificates.c.number)
)


@dataclass(frozen=True, slots=True)
class Summary:
    """A principal, what was last heard of it, and until when its newest live certificate lasts."""

    record: PrincipalRecord
    presence: PresenceRecord | None
    not_after: datetime | None


def summaries(transaction: Connection, role: Role | None = None) -> list[Summary]:
    """All principals, or those of a role, by id."""
    query = _SUMMARY if role is None else _SUMMARY.where(principals.c.role == role.value)
    return list(_summaries(transaction, query))


def summary(transaction: Connection, id: DeviceId) -> Summary | None:
    """The principal of that id."""
    return next(_summaries(transaction, _SUMMARY.where(principals.c.id == id)), None)


def _summaries(transaction: Connection, query: Select[*tuple[Any, ...]]) -> Iterator[Summary]:
    for row in transaction.execute(query):
        name, role, state, epoch, groups, created_at, online, reason, agent, changed_at, last_seen, not_after = row
        record = PrincipalRecord(
            Principal(Role(role), DeviceId(name)), State(state), epoch, decode_names(groups), created_at
        )
        heard = None if online is None else PresenceRecord(online, reason, agent, changed_at, last_seen)
        yield Summary(record, heard, not_after)


def all_certificates(transaction: Connection) -> list[CertificateRecord]:
    """Every certificate that was signed, oldest first."""
    return [certificate_of(row) for row in transaction.execute(_SIGNED)]


def command_counts(transaction: Connection) -> dict[str, int]:
    """How many commands are in each state that occurs."""
    return dict(transaction.execute(select(commands.c.state, func.count()).group_by(commands.c.state)).tuples().all())
