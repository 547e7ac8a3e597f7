"""What dispatch does about the state of devices: hears what they have and are, and tells them what they are to be.

A device that says hello and agrees with the registry is told nothing. One that says something of its state is always
answered, so that it knows what has arrived; how often it is heard has a bound (`greetings`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from enroll.bookkeeping import LIMIT, SetAside
from enroll.downlink import GOOD_FOR
from enroll.greetings import Greetings
from enroll.rate_limit import Sparsely
from enroll.registry import Registry, RegistryUnavailable, Transaction, identity
from enroll.registry import state as rows
from enroll.registry.state import StateRecord
from enroll.reports import HelloSeen, Report, StateSeen
from enroll.states import due_part, hear
from fleet.errors import NotFound
from fleet.identity import DeviceId
from fleet.logs import event
from fleet.state import DesiredMessage, Mark, Part, mark_of
from fleet.topics import DesiredState

INTERVAL_SECONDS: Final = 1.0
"""How often one device is heard at most; of what it says in between, the last."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sending:
    """A message to a device, and which version of its desired state it is about."""

    version: int
    message: DesiredMessage

    @property
    def key(self) -> tuple[DeviceId, int]:
        return self.message.device, self.version


@dataclass(frozen=True, slots=True)
class _Said:
    """What a device says that it has, and what it reports."""

    device: DeviceId
    claim: Mark
    reported: Part
    is_hello: bool

    def agrees(self, record: StateRecord, part: Part) -> bool:
        return isinstance(part, Mark) and mark_of(self.reported) == record.reported.mark


@dataclass(frozen=True, slots=True)
class _Heard:
    """What a device's word has changed, and what it is told."""

    before: StateRecord
    after: StateRecord
    answer: Sending | None


@dataclass(frozen=True, slots=True)
class StateBooks:
    """The states in the registry, as dispatch keeps them. What it remembers outlives a connection."""

    registry: Registry
    aside: SetAside
    pace: Greetings = field(default_factory=lambda: Greetings(StateSeen, INTERVAL_SECONDS))
    told: Sparsely = field(default_factory=lambda: Sparsely(forget_seconds=60.0))

    def enter(self, reports: Iterable[Report], taken: Sequence[tuple[DeviceId, int]], now: datetime) -> list[Sending]:
        """Record what devices say of their state, and what the broker has taken; what they have to be told.

        On disk when this returns. What cannot be recorded is set aside. Raises: RegistryUnavailable.
        """
        said = self._without_agreed([each for report in reports for each in _said(report)])
        if not said and not taken:
            return []
        with self.registry.group():
            with self.registry.write() as transaction:
                rows.mark_states_sent(transaction, taken)
            heard = [each for one in said for each in self._enter_one(one, now)]
        for each in heard:  # not before it is true
            self._tell(each, now)
        return [each.answer for each in heard if each.answer is not None]

    def due(self, now: datetime) -> list[Sending]:
        """What devices that are there were not sent. Raises: RegistryUnavailable."""
        with self.registry.read() as transaction:
            return [_sending(record, due_part(record), now) for record in rows.due_states(transaction, LIMIT)]

    def tell(self, name: str, device: DeviceId, version: int, now: datetime) -> None:
        """A line for the log, but not for each of a flood."""
        if count := self.told.count(f"{name} {device}", now.timestamp()):
            shown = count if count > self.told.first else None
            _log.info(event(name, device=device, version=version, count=shown))

    def _without_agreed(self, said: list[_Said]) -> list[_Said]:
        """Without the hellos that say what is known: a whole fleet may come back at once."""
        greeted = {each.device for each in said if each.is_hello}
        if not greeted:
            return said
        with self.registry.read() as transaction:
            found = rows.find_states(transaction, greeted)
        return [each for each in said if not (each.is_hello and _is_known(each, found.get(each.device)))]

    def _enter_one(self, said: _Said, now: datetime) -> list[_Heard]:
        try:
            with self.registry.write() as transaction:
                return [_record(transaction, said, now)]
        except RegistryUnavailable:
            raise
        except Exception as error:  # one device's nonsense must not stop what others say
            self.aside.add(said.device, "state", error)
            return []

    def _tell(self, heard: _Heard, now: datetime) -> None:
        before, after = heard.before, heard.after
        if after.reported.mark != before.reported.mark:
            self.tell("state.reported", after.device, after.reported.version, now)
        if after.known is not None and (before.known is None or before.known.mark != after.known.mark):
            self.tell("state.acknowledged", after.device, after.known.version, now)


@dataclass(slots=True)
class StateTraffic:
    """What is under way of it on one connection. `publish` gives a packet id; None if it cannot be sent now.

    Then it stays due; a device that waits for an answer asks again.
    """

    books: StateBooks
    publish: Callable[[str, bytes, datetime], int | None]
    _in_flight: dict[int, tuple[DeviceId, int]] = field(default_factory=dict)

    def turn(self, reports: Sequence[Report], published: Iterable[int], now: datetime) -> None:
        """Record and answer. Raises: Unreachable, RegistryUnavailable."""
        taken = [self._in_flight.pop(each) for each in published if each in self._in_flight]
        for sending in self.books.enter(reports, taken, now):
            self._send(sending, now)

    def send_due(self, now: datetime) -> None:
        """Send what is due and not under way. Raises: Unreachable, RegistryUnavailable."""
        under_way = set(self._in_flight.values())
        for sending in self.books.due(now):
            if sending.key not in under_way:
                self._send(sending, now)

    def _send(self, sending: Sending, now: datetime) -> None:
        message = sending.message
        packet = self.publish(DesiredState(message.device).format(), message.encode(), now + GOOD_FOR)
        if packet is None:
            return
        self._in_flight[packet] = sending.key
        if not isinstance(message.desired, Mark):
            self.books.tell("state.published", message.device, sending.version, now)


def _said(report: Report) -> list[_Said]:
    match report:
        case HelloSeen(device=device, state=marks) if marks is not None:
            return [_Said(device, marks.desired, marks.reported, is_hello=True)]
        case StateSeen(device, message):
            return [_Said(device, message.desired, message.reported, is_hello=False)]
        case _:
            return []


def _is_known(said: _Said, record: StateRecord | None) -> bool:
    """Whether the registry knows already what this hello says."""
    if record is None:
        return said.claim.version == 0 and mark_of(said.reported).version == 0
    is_noted = record.known is not None or record.desired.version == 0
    return is_noted and said.claim == record.desired.mark and said.agrees(record, record.desired.mark)


def _record(transaction: Transaction, said: _Said, now: datetime) -> _Heard:
    holder = identity.find_principal(transaction, said.device)
    if holder is None:
        raise NotFound(f"there is no {said.device}")
    found = rows.find_states(transaction, (said.device,))
    before = found.get(said.device, StateRecord(said.device, holder.epoch))
    after, part = hear(before, said.claim, said.reported, now)
    if after != before:
        rows.put_state(transaction, after)
    is_silent = said.is_hello and said.agrees(after, part)
    return _Heard(before, after, None if is_silent else _sending(after, part, now))


def _sending(record: StateRecord, part: Part, now: datetime) -> Sending:
    return Sending(record.desired.version, DesiredMessage(record.device, now, part, record.reported.mark))
