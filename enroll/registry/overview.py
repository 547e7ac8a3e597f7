"""What admins look at: pages of principals with their presence and expiry, certificates, counts; reads alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Select, case, func, select, text

from enroll.registry import lineage
from enroll.registry.identity import CERTIFICATE_COLUMNS, certificate_of, decode_names
from enroll.registry.records import (
    LIVE,
    UNDELIVERED,
    CertificateRecord,
    CommandState,
    PresenceRecord,
    PrincipalRecord,
)
from enroll.registry.schema import certificates, commands, memberships, presence, principals
from enroll.registry.selecting import fits, like
from enroll.selection import Selection
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
    .select_from(principals)
    .outerjoin(presence, presence.c.principal == principals.c.id)
)
_NEWEST = select(*CERTIFICATE_COLUMNS).order_by(certificates.c.number.desc())


_STATES = (
    select(principals.c.state, func.count()).where(principals.c.role == Role.DEVICE.value).group_by(principals.c.state)
)
_ONLINE = select(func.count()).select_from(presence).where(presence.c.online)
_UNWELL = select(presence.c.principal).where(presence.c.online, presence.c.claimed, presence.c.said != "")


@dataclass(frozen=True, slots=True)
class Summary:
    """A principal, what was last heard of it, and until when its newest live certificate lasts."""

    record: PrincipalRecord
    presence: PresenceRecord | None
    not_after: datetime | None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which principals to look at: those to whom all of this applies. `pattern` is an id with `*` for any run."""

    role: Role | None = None
    state: State | None = None
    group: str | None = None
    is_online: bool | None = None
    pattern: str | None = None
    is_alarmed: bool = False
    where: Selection | None = None


EVERYBODY: Final = Filter()


def page(transaction: Connection, wanted: Filter, after: DeviceId | None, limit: int) -> list[Summary]:
    """Up to `limit` principals behind the id `after`, by id.

    An index leads to what is rare (a group, who is not active, no device, or offline), in the order of ids; whatever
    else is wanted is looked at on the way. Nothing is scanned from its beginning or sorted.
    """
    leading, query = _led(wanted)
    prefix = "" if wanted.pattern is None else wanted.pattern.partition("*")[0]
    behind = after or ""
    query = query.where(leading > behind if behind >= prefix else leading >= prefix)  # one bound: SQLite seeks but one
    if wanted.pattern is not None:
        query = query.where(*_matching(leading, wanted.pattern, prefix))
    if wanted.where is not None:
        query = query.where(fits(wanted.where))
    return list(_summaries(transaction, query.order_by(leading).limit(limit)))


def _led(wanted: Filter) -> tuple[ColumnElement[str], Select[*tuple[Any, ...]]]:
    """The column whose index gives the order, and the query without its range."""
    query = _SUMMARY
    leading: ColumnElement[str] = principals.c.id
    if wanted.group is not None:
        leading = memberships.c.principal
        query = query.join(memberships, memberships.c.principal == principals.c.id)
        query = query.where(memberships.c.name == wanted.group)
    if wanted.is_online is not None:
        if wanted.group is None and wanted.state in (None, State.ACTIVE) and wanted.role in (None, Role.DEVICE):
            leading = presence.c.principal
            query = query.where(presence.c.online == wanted.is_online)
        else:  # an expression keeps SQLite from leading with it all the same, and then sorting
            query = query.where(func.coalesce(presence.c.online, not wanted.is_online) == wanted.is_online)
    if wanted.state is not None:
        query = query.where(principals.c.state == wanted.state.value, *_unusual("state", wanted.state, State.ACTIVE))
    if wanted.role is not None:
        query = query.where(principals.c.role == wanted.role.value, *_unusual("role", wanted.role, Role.DEVICE))
    if wanted.is_alarmed:
        query = query.where(principals.c.id.in_(lineage.alarmed()))
    return leading, query


def _unusual(column: str, value: StrEnum, usual: StrEnum) -> tuple[ColumnElement[bool], ...]:
    """The condition of the partial index, word for word, where it holds: or SQLite does not see that it does."""
    return () if value is usual else (text(f"principals.{column} != '{usual.value}'"),)  # type: ignore[return-value]


def _matching(leading: ColumnElement[str], pattern: str, prefix: str) -> Iterator[ColumnElement[bool]]:
    yield leading < prefix + "\x7f"  # behind every character of an id
    if pattern != prefix + "*":
        yield like(leading, pattern)


def counts(transaction: Connection) -> dict[str, int]:
    """How many devices there are, how many are online, and how many in each state."""
    states: dict[str, int] = dict(transaction.execute(_STATES).all())
    online = transaction.execute(_ONLINE).scalar_one()
    return {"known": sum(states.values()), "online": online} | {state: states[state] for state in sorted(states)}


def unwell(transaction: Connection, limit: int) -> list[DeviceId]:
    """Up to `limit` devices that are online and say that something is wrong with them, by id."""
    found = transaction.execute(_UNWELL.order_by(presence.c.principal).limit(limit))
    return [DeviceId(name) for (name,) in found]


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


def newest_certificates(transaction: Connection, limit: int) -> list[CertificateRecord]:
    """The `limit` certificates that were signed last, oldest first."""
    return [certificate_of(row) for row in transaction.execute(_NEWEST.limit(limit))][::-1]


def command_counts(transaction: Connection, now: datetime) -> dict[str, int]:
    """How many commands are in each state that occurs, as of `CommandRecord.at`."""
    is_over = commands.c.state.in_([each.value for each in UNDELIVERED]) & (commands.c.deadline <= now)
    state = case((is_over, CommandState.EXPIRED.value), else_=commands.c.state)
    return dict(transaction.execute(select(state, func.count()).group_by(state).order_by(state)).all())
