"""Which devices have a session, from what a broker announces (pure): in whatever order it comes, lost or repeated.

A broker's list and its changes may overtake each other, and both may be lost. Each says what was so at one number, and
of what was said of a device, that with the highest number holds; a list says it of everybody in its bucket, also of
those who are not in it. What is different from what is recorded becomes a report. A gap is found by the numbers, and
whoever finds one asks for the list again.

Whoever was online under an earlier start of the broker has a grace from the present start on to come back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, assert_never

from enroll.reports import SessionOver, SessionSeen
from fleet.errors import InvalidInput
from fleet.identity import DeviceId, Role
from fleet.sessions import Alive, Announcement, Began, Changes, Ended, Ending, Page, bucket_of

ASK_AGAIN_SECONDS: Final = 5.0
_DIVISIONS: Final = 2  # a broker has one number of buckets; when it takes another, lists of both are under way

Recorded = Mapping[DeviceId, tuple[str, int]]
"""Who is online by the registry, in which session: the broker's boot and its number; "" and 0 where it has none."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Now: in seconds that never jump, and as the time of day."""

    seconds: float
    clock: datetime


@dataclass(slots=True)
class Roll:
    """Who has a session with the broker of one connection; `broker` is what the history calls it.

    The list was asked for when it begins. `stopped` is the boot that said goodbye, if one did.
    """

    broker: str
    grace_seconds: float
    _online: dict[DeviceId, tuple[str, int]]  # as it will be recorded once every report has been taken
    _asked_at: float
    stopped: str = ""
    _boot: str = ""
    _booted_at: float | None = None
    _seq: int = 0  # all up to here was heard
    _first: int | None = None  # where what was heard without a gap begins
    _has_gap: bool = False
    _is_swept: bool = True
    _is_grace_over: bool = False
    _as_of: dict[DeviceId, int] = field(default_factory=dict)  # the number of the last that was said of it by name
    _floors: dict[int, dict[int, int]] = field(default_factory=dict)  # buckets -> bucket -> the number of its list
    _reports: deque[SessionSeen | SessionOver] = field(default_factory=deque)

    @classmethod
    def begin(cls, broker: str, recorded: Recorded, grace_seconds: float, now: Moment, stopped: str = "") -> Roll:
        """As a connection begins."""
        return cls(broker, grace_seconds, dict(recorded), now.seconds, stopped)

    @property
    def is_called(self) -> bool:
        """Whether the broker tells of its sessions at all."""
        return bool(self._boot)

    @property
    def is_complete(self) -> bool:
        """Whether a list of everybody has come."""
        return any(len(floors) == buckets for buckets, floors in self._floors.items())

    @property
    def has_reports(self) -> bool:
        """Whether `take` would give some."""
        return bool(self._reports)

    def must_ask(self, now: Moment) -> bool:
        """Whether to ask for the list again: it did not come, or something after it."""
        is_lacking = self.is_called and (self._has_gap or not self.is_complete)
        return is_lacking and now.seconds - self._asked_at >= ASK_AGAIN_SECONDS

    def asked(self, now: Moment) -> None:
        """The list was asked for again."""
        self._asked_at, self._has_gap = now.seconds, False

    def hear(self, said: Announcement, now: Moment, *, is_retained: bool) -> None:
        """Take one message of the broker. A connection knows one start of it: what is of another is not heard."""
        self._boot = self._boot or said.boot
        if said.boot != self._boot:
            return
        match said:
            case Alive():
                self._hear_alive(said, now, is_retained=is_retained)
            case Changes():
                self._hear_changes(said, now)
            case Page():
                self._hear_page(said, now)
            case _:
                assert_never(said)

    def _hear_alive(self, alive: Alive, now: Moment, *, is_retained: bool) -> None:
        if alive.is_stopping:
            self.stopped = self._boot
        self._booted_at = now.seconds - alive.uptime_seconds
        if not is_retained:
            self._has_gap |= self._first is not None and alive.seq > self._seq
        elif self._first is not None:
            self._has_gap |= self._first > alive.seq + 1
        if self._first is None:
            self._first = alive.seq + 1
        self._seq = max(self._seq, alive.seq)

    def _hear_changes(self, said: Changes, now: Moment) -> None:
        if self._first is None:
            self._first = said.first
        else:
            self._has_gap |= said.first > self._seq + 1
        self._seq = max(self._seq, said.last)
        for change in said.changes:
            if isinstance(change, Began):
                self._is_there(change, change.seq, now)
            else:
                self._has_left(change, change.seq)

    def _hear_page(self, page: Page, now: Moment) -> None:
        floors = self._floors.setdefault(page.buckets, {})
        if page.seq < floors.get(page.bucket, 0):
            return
        for ended in page.ended:
            self._has_left(ended, page.seq, is_listed=True)
        for began in page.sessions:
            self._is_there(began, page.seq, now)
        floors[page.bucket], self._is_swept = page.seq, False
        if len(self._floors) > _DIVISIONS:
            del self._floors[min(self._floors, key=lambda each: max(self._floors[each].values()))]

    def _is_there(self, began: Began, seq: int, now: Moment) -> None:
        device, session = began.principal.id, (self._boot, began.seq)
        if began.principal.role is not Role.DEVICE or not self._is_news(device, seq):
            return
        self._as_of[device] = seq
        before = self._online.get(device)
        if before == session:
            return
        if before is not None and before[0]:
            self._leave(device, Ending.UNHEARD if before[0] == self._boot else self._how_it_ended(before[0]), now)
        self._online[device] = session
        since = min(began.at, now.clock)
        self._reports.append(SessionSeen(device, *session, since, began.address, self.broker))

    def _has_left(self, ended: Ended, seq: int, *, is_listed: bool = False) -> None:
        """A list tells of the last few that left; who came again stands in it too."""
        try:
            device = DeviceId(ended.client_id)
        except InvalidInput:
            return  # one of several connections of an operator or a service
        session = self._online.get(device)
        if not self._is_news(device, seq) or (is_listed and session != (self._boot, ended.began)):
            return
        if not is_listed:
            self._as_of[device] = seq
        if session is not None:
            del self._online[device]
            self._reports.append(SessionOver(device, self._boot, ended.began, ended.ending, ended.at, self.broker))

    def _is_news(self, device: DeviceId, seq: int) -> bool:
        """Whether nothing as new as that number was said of it, by its name or by a list that may be without it."""
        return seq > max(self._as_of.get(device, 0), self._floor(device))

    def _floor(self, device: DeviceId) -> int:
        return max((floors.get(bucket_of(device, each), 0) for each, floors in self._floors.items()), default=0)

    def take(self, limit: int, now: Moment) -> list[SessionSeen | SessionOver]:
        """Up to so many reports, in the order in which they are to be recorded."""
        if self.is_complete:
            if not self._is_swept:
                self._sweep(now)
            self._end_grace(now)
        return [self._reports.popleft() for _ in range(min(limit, len(self._reports)))]

    def _sweep(self, now: Moment) -> None:
        """Whoever is in no list that is newer than what was said of it has left."""
        self._is_swept = True
        for device, (boot, _) in list(self._online.items()):
            if boot == self._boot and self._as_of.get(device, 0) < self._floor(device):
                self._leave(device, Ending.UNHEARD, now)

    def _end_grace(self, now: Moment) -> None:
        """Whoever was there before the broker began, and has not come back in time, is not there."""
        if self._is_grace_over or self._booted_at is None or now.seconds - self._booted_at < self.grace_seconds:
            return
        self._is_grace_over = True
        for device, (boot, _) in list(self._online.items()):
            if boot != self._boot:
                self._leave(device, self._how_it_ended(boot), now)

    def _how_it_ended(self, boot: str) -> Ending:
        if not boot:
            return Ending.NO_SESSION
        return Ending.STOPPED if boot == self.stopped else Ending.RESTARTED

    def _leave(self, device: DeviceId, ending: Ending, now: Moment) -> None:
        """It ended at a time that nobody said: before this start of the broker, or before now."""
        boot, number = self._online.pop(device)
        began_at = now.seconds if boot == self._boot or self._booted_at is None else self._booted_at
        at = now.clock - timedelta(seconds=now.seconds - began_at)
        self._reports.append(SessionOver(device, boot, number, ending, at, self.broker))
