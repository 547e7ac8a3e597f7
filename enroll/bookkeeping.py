"""What dispatch writes into the registry and reads from it, several reports to a transaction."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, assert_never

from enroll.registry import Registry, RegistryUnavailable, Transaction, identity, messaging
from enroll.registry.records import CommandRecord, PresenceRecord
from enroll.reports import HelloSeen, Report, ResultSeen, StatusSeen
from fleet.errors import NotFound
from fleet.identity import DeviceId
from fleet.logs import event
from fleet.messages import Presence

LIMIT: Final = 200
"""So many commands in one go; the rest follows as the broker acknowledges."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Agenda:
    """What has to go out now, and when to look again at the latest."""

    due: tuple[CommandRecord, ...]
    next_deadline: datetime | None


_MAX_COUNTED: Final = 10_000


@dataclass(frozen=True, slots=True)
class SetAside:
    """Messages that cannot be handled, by device. They are acknowledged: delivered again, they would be no better."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, device: str, what: str, error: Exception) -> None:
        """One more; logged at the first, second, fourth, eighth: one device must not fill the log."""
        if len(self.counts) >= _MAX_COUNTED:
            self.counts.clear()
        count = self.counts[device] = self.counts.get(device, 0) + 1
        if count & (count - 1) == 0:
            _log.warning(event("message.set_aside", device=device, what=what, reason=str(error)[:300], count=count))


@dataclass(frozen=True, slots=True)
class Books:
    """The registry as dispatch keeps it."""

    registry: Registry
    aside: SetAside = field(default_factory=SetAside)

    def enter(self, reports: Sequence[Report], taken: Sequence[str], now: datetime) -> list[CommandRecord]:
        """Record reports, and which commands the broker has taken; what the devices that said hello must be sent.

        On disk when this returns. A report that cannot be recorded is set aside. Raises: RegistryUnavailable.
        """
        try:
            return self._enter_all(reports, taken, now)
        except RegistryUnavailable:
            raise
        except Exception as error:
            if len(reports) + len(taken) <= 1:
                self._set_aside(reports, error)
                return []
        due = self.enter((), taken, now)
        for report in reports:  # alone, so that only what is wrong is left out
            due += self.enter((report,), (), now)
        return due

    def _enter_all(self, reports: Sequence[Report], taken: Sequence[str], now: datetime) -> list[CommandRecord]:
        refused: list[tuple[Report, NotFound]] = []
        events: list[str] = []
        with self.registry.write() as transaction:
            messaging.mark_sent(transaction, taken, now)
            for report in reports:
                try:
                    events += record(transaction, report, now)
                except NotFound as error:
                    refused.append((report, error))
            greeted = dict.fromkeys(report.device for report in reports if isinstance(report, HelloSeen))
            due = [
                command
                for device in greeted
                for command in messaging.unfinished_commands(transaction, device, now, LIMIT)
            ]
        for line in events:  # not before it is true
            _log.info(line)
        for report, reason in refused:
            self._set_aside((report,), reason)
        return due

    def _set_aside(self, reports: Sequence[Report], error: Exception) -> None:
        for report in reports:
            self.aside.add(report.device, type(report).__name__, error)

    def agenda(self, now: datetime) -> Agenda:
        """What is due, once what is over has been given up. Raises: RegistryUnavailable."""
        with self.registry.read() as transaction:
            agenda = _agenda(transaction, now)
            has_expired = messaging.has_expired_commands(transaction, now)
        if not has_expired:
            return agenda
        # Only now a write: each commit wakes every watcher, this one's too.
        with self.registry.write() as transaction:
            expired = messaging.expire_commands(transaction, now, LIMIT)
            agenda = _agenda(transaction, now)
        for command in expired:
            _log.info(event("command.expired", command=command))
        return agenda


def _agenda(transaction: Transaction, now: datetime) -> Agenda:
    due = messaging.due_commands(transaction, now, LIMIT)
    return Agenda(tuple(due), messaging.next_deadline(transaction))


def record(transaction: Transaction, report: Report, now: datetime) -> tuple[str, ...]:
    """Write one report; what to log of it. Raises: NotFound (no such principal, or not its command)."""
    match report:
        case StatusSeen():
            return _record_status(transaction, report, now)
        case HelloSeen(device, agent_version):
            before = messaging.find_presence(transaction, _known(transaction, device))
            since = before.changed_at if before is not None and before.is_online else now
            messaging.set_presence(transaction, device, PresenceRecord(True, "", agent_version, since, now))
            return ()
        case ResultSeen(device, command_id, result):
            is_news = messaging.record_result(transaction, device, command_id, result, now)
            if is_news is None:
                raise NotFound(f"{device} has no command {command_id}")
            messaging.touch(transaction, device, now)
            return (event(f"command.{result.state}", device=device, command=command_id),) if is_news else ()
        case _:
            assert_never(report)


def _record_status(transaction: Transaction, report: StatusSeen, now: datetime) -> tuple[str, ...]:
    """What is retained is not news: it must not make a silent device look alive whenever dispatch connects."""
    before = messaging.find_presence(transaction, _known(transaction, report.device))
    is_online = report.status.presence is Presence.ONLINE
    has_changed = before is None or before.is_online != is_online
    if report.is_retained and not has_changed:
        return ()
    seen = min(report.status.envelope.sent_at, now) if report.is_retained else now
    after = PresenceRecord(
        is_online,
        report.status.reason,
        report.status.agent_version or (before.agent_version if before else ""),
        now if before is None or has_changed else before.changed_at,
        seen if before is None else max(seen, before.last_seen),
    )
    messaging.set_presence(transaction, report.device, after)
    news = event(f"device.{report.status.presence}", device=report.device, reason=report.status.reason)
    return (news,) if has_changed else ()


def _known(transaction: Transaction, device: DeviceId) -> DeviceId:
    if identity.find_principal(transaction, device) is None:
        raise NotFound(f"there is no {device}")
    return device
