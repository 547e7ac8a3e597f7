"""What dispatch writes into the registry and reads from it, several reports to a transaction."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, assert_never

from enroll.rate_limit import Sparsely
from enroll.registry import Registry, RegistryUnavailable, Transaction, identity, messaging
from enroll.registry.records import CommandRecord, CommandState, PresenceRecord, PrincipalRecord
from enroll.reports import HelloSeen, Report, ResultSeen, StatusSeen
from enroll.service.starts import Start, heard
from fleet.errors import NotFound
from fleet.identity import DeviceId
from fleet.logs import event
from fleet.messages import Presence

LIMIT: Final = 200
"""So many commands in one go; the rest follows as the broker acknowledges."""

_log = logging.getLogger(__name__)


_MAX_SHOWN: Final = 80
"""So much of a text that a device chose is in a line of the log."""


@dataclass(frozen=True, slots=True)
class News:
    """What happened because of a report. `key`: what the device can have happen again and again."""

    key: str
    name: str
    fields: Mapping[str, object]


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
            _log.warning(
                event("message.set_aside", device=_cut(device), what=_cut(what), reason=_cut(error), count=count)
            )


@dataclass(frozen=True, slots=True)
class Books:
    """The registry as dispatch keeps it."""

    registry: Registry
    aside: SetAside = field(default_factory=SetAside)
    told: Sparsely = field(default_factory=lambda: Sparsely(forget_seconds=60.0))

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
        news: list[News] = []
        with self.registry.write() as transaction:
            messaging.mark_sent(transaction, taken, now)
            for report in reports:
                try:
                    news += record(transaction, report, now)
                except NotFound as error:
                    refused.append((report, error))
            greeted = dict.fromkeys(report.device for report in reports if isinstance(report, HelloSeen))
            due = [
                command
                for device in greeted
                for command in messaging.unfinished_commands(transaction, device, now, LIMIT)
            ]
        for each in news:  # not before it is true
            self._tell(each, now)
        for report, reason in refused:
            self._set_aside((report,), reason)
        return due

    def _tell(self, news: News, now: datetime) -> None:
        if count := self.told.count(news.key, now.timestamp()):
            _log.info(event(news.name, **news.fields, count=count if count > self.told.first else None))

    def given(self, command_ids: Collection[str]) -> dict[str, tuple[DeviceId, CommandState]]:
        """Of these commands those that there are: whose, and how far they have come. Raises: RegistryUnavailable."""
        if not command_ids:
            return {}
        with self.registry.read() as transaction:
            return messaging.states_of(transaction, command_ids)

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


def record(transaction: Transaction, report: Report, now: datetime) -> tuple[News, ...]:
    """Write one report; what is new by it. Raises: NotFound (no such principal, or not its command)."""
    match report:
        case StatusSeen():
            return _record_status(transaction, report, now)
        case HelloSeen():
            return _record_hello(transaction, report, now)
        case ResultSeen(device, command_id, result):
            is_news = messaging.record_result(transaction, device, command_id, result, now)
            if is_news is None:
                raise NotFound(f"{device} has no command {command_id}")
            messaging.touch(transaction, device, now)
            name, fields = f"command.{result.state}", {"device": device, "command": command_id}
            return (News(f"{name} {command_id}", name, fields),) if is_news else ()
        case _:
            assert_never(report)


def _record_hello(transaction: Transaction, report: HelloSeen, now: datetime) -> tuple[News, ...]:
    principal = _principal(transaction, report.device)
    before = messaging.find_presence(transaction, report.device)
    since = before.changed_at if before is not None and before.is_online else now
    messaging.set_presence(transaction, report.device, PresenceRecord(True, "", report.agent_version, since, now))
    start = Start(report.boot, report.seq, report.serial, report.hardware)
    alarms = heard(transaction, principal, start, now) if report.boot else []
    return tuple(News(f"{kind} {report.device}", f"alarm.{kind}", {"device": report.device}) for kind in alarms)


def _record_status(transaction: Transaction, report: StatusSeen, now: datetime) -> tuple[News, ...]:
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
    if not has_changed:
        return ()
    fields = {"device": report.device, "reason": _cut(report.status.reason)}
    return (News(f"presence {report.device}", f"device.{report.status.presence}", fields),)


def _cut(text: object) -> str:
    shown = str(text)
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}..."


def _known(transaction: Transaction, device: DeviceId) -> DeviceId:
    return _principal(transaction, device).id


def _principal(transaction: Transaction, device: DeviceId) -> PrincipalRecord:
    found = identity.find_principal(transaction, device)
    if found is None:
        raise NotFound(f"there is no {device}")
    return found
