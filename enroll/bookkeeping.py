"""What dispatch writes into the registry and reads from it, several reports to a transaction."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, assert_never

from enroll import presence
from enroll.presence import Fused
from enroll.rate_limit import RateLimit, Sparsely
from enroll.registry import Registry, RegistryUnavailable, Transaction, catalogues, history, identity, messaging
from enroll.registry.records import CommandRecord, CommandState, PresenceRecord, PrincipalRecord
from enroll.reports import CatalogueSeen, HelloSeen, Report, ResultSeen, SessionOver, SessionSeen, StateSeen, StatusSeen
from enroll.service.starts import Start, heard
from fleet.catalogue import catalogue_fields
from fleet.errors import NotFound
from fleet.identity import DeviceId
from fleet.logs import event
from fleet.messages import encode_object

LIMIT: Final = 200
"""So many commands in one go; the rest follows as the broker acknowledges."""

_log = logging.getLogger(__name__)


_CHANGES_KEPT: Final = 20  # a minute, of one device, in its history

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
    kept: RateLimit = field(default_factory=lambda: RateLimit(_CHANGES_KEPT))

    def enter(
        self, reports: Sequence[Report], taken: Sequence[str], now: datetime, *, is_witnessed: bool = False
    ) -> list[CommandRecord]:
        """Record reports, and which commands the broker has taken; what the devices that said hello must be sent.

        `is_witnessed`: the broker tells of its sessions. On disk when this returns. A report that cannot be recorded is
        set aside. Raises: RegistryUnavailable.
        """
        try:
            return self._enter_all(reports, taken, now, is_witnessed)
        except RegistryUnavailable:
            raise
        except Exception as error:
            if len(reports) + len(taken) <= 1:
                self._set_aside(reports, error)
                for command in taken:
                    self.aside.add(command, "sent", error)
                return []
        # Alone, so that only what is wrong is left out.
        for some in [taken] if reports else [(command,) for command in taken]:
            self.enter((), some, now)
        return [each for report in reports for each in self.enter((report,), (), now, is_witnessed=is_witnessed)]

    def _enter_all(
        self, reports: Sequence[Report], taken: Sequence[str], now: datetime, is_witnessed: bool
    ) -> list[CommandRecord]:
        refused: list[tuple[Report, NotFound]] = []
        news: list[News] = []
        with self.registry.write() as transaction:
            messaging.mark_sent(transaction, taken, now)
            for report in reports:
                try:
                    news += record(transaction, report, Hearing(now, is_witnessed, self.kept))
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

    def who_is_online(self) -> dict[DeviceId, tuple[str, int]]:
        """Everybody who is by the registry, each with its session. Raises: RegistryUnavailable."""
        with self.registry.read() as transaction:
            return messaging.who_is_online(transaction)

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


@dataclass(frozen=True, slots=True)
class Hearing:
    """When a report is heard, whether the broker tells of its sessions, and how much of the history is written."""

    now: datetime
    is_witnessed: bool
    kept: RateLimit


def record(transaction: Transaction, report: Report, hearing: Hearing) -> tuple[News, ...]:
    """Write one report; what is new by it. Raises: NotFound (no such principal, or not its command)."""
    match report:
        case StatusSeen() | SessionSeen() | SessionOver():
            return _record_presence(transaction, report, hearing)
        case HelloSeen():
            return _record_hello(transaction, report, hearing)
        case ResultSeen(device, command_id, result):
            is_news = messaging.record_result(transaction, device, command_id, result, hearing.now)
            if is_news is None:
                raise NotFound(f"{device} has no command {command_id}")
            messaging.touch(transaction, device, hearing.now)
            name, fields = f"command.{result.state}", {"device": device, "command": command_id}
            return (News(f"{name} {command_id}", name, fields),) if is_news else ()
        case CatalogueSeen(device, catalogue):
            text = encode_object(catalogue_fields(catalogue)).decode()
            is_news = catalogues.put(transaction, _principal(transaction, device), text, hearing.now)
            fields = {"device": device, "commands": str(len(catalogue))}
            return (News(f"commands {device}", "device.commands", fields),) if is_news else ()
        case StateSeen(device):  # a sign of life; the rest is `state_desk`'s
            messaging.touch(transaction, device, hearing.now)
            return ()
        case _:
            assert_never(report)


def _record_hello(transaction: Transaction, report: HelloSeen, hearing: Hearing) -> tuple[News, ...]:
    principal, now = _principal(transaction, report.device), hearing.now
    before = messaging.find_presence(transaction, report.device)
    fused = presence.hello(before, report, now, is_witnessed=hearing.is_witnessed)
    news = _record_fused(transaction, report.device, before, fused, hearing)
    start = Start(report.boot, report.seq, report.serial, report.hardware)
    alarms = heard(transaction, principal, start, now) if report.boot else []
    return (*news, *(News(f"{kind} {report.device}", f"alarm.{kind}", {"device": report.device}) for kind in alarms))


def _record_presence(
    transaction: Transaction, report: StatusSeen | SessionSeen | SessionOver, hearing: Hearing
) -> tuple[News, ...]:
    before, now = messaging.find_presence(transaction, _known(transaction, report.device)), hearing.now
    match report:
        case StatusSeen():
            fused = presence.status(before, report, now, is_witnessed=hearing.is_witnessed)
        case SessionSeen():
            fused = presence.session_seen(before, report, now)
        case SessionOver():
            fused = presence.session_over(before, report, now)
        case _:
            assert_never(report)
    return () if fused is None else _record_fused(transaction, report.device, before, fused, hearing)


def _record_fused(
    transaction: Transaction, device: DeviceId, before: PresenceRecord | None, fused: Fused, hearing: Hearing
) -> tuple[News, ...]:
    """Of a device that comes and goes all the time some changes are counted alone: a disk has its life."""
    messaging.set_presence(transaction, device, fused.after)
    seconds = hearing.now.timestamp()
    for change in fused.changes:
        if not hearing.kept.retry_after(device, seconds):
            hearing.kept.count(device, seconds)
            history.add(transaction, device, change)
    return tuple(_news(device, fused, before))


def _news(device: DeviceId, fused: Fused, before: PresenceRecord | None) -> Iterator[News]:
    for change in fused.changes:
        word = "online" if change.is_online else "offline"
        fields = {"device": device, "reason": _cut(change.reason), "said": _cut(change.said), "address": change.address}
        yield News(f"presence {device}", f"device.{word}", {name: value for name, value in fields.items() if value})
    said = fused.after.said if fused.after.is_claimed else ""
    if said and (before is None or before.said != said):
        yield News(f"unwell {device}", "device.unwell", {"device": device, "said": _cut(said)})
    version = fused.after.agent_version
    if version and (before is None or before.agent_version != version):
        yield News(f"agent {device}", "device.agent", {"device": device, "version": _cut(version)})


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
