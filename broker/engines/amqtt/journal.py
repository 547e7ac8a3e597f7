"""What a commit has to put on disk: the changes since the last one, each thing's last state only. No IO, no waiting.

Whoever is promised something is answered once the commit has ended whose number was current when it was noted here.
What came and went between two commits is never written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from broker.engines.amqtt.packets import Publish, Will
from fleet.identity import DeviceId, Principal

NO_ROW: Final = 0
"""The row of a message that is kept in memory alone."""


class Queued:
    """One message of QoS 1 or 2 for one session; `packet_id` is 0 until it is sent first."""

    __slots__ = ("is_released", "packet_id", "publish", "qos", "retain", "sender", "session")

    def __init__(
        self, session: int, publish: Publish, qos: int, sender: DeviceId | None, packet_id: int, retain: bool
    ) -> None:
        self.session = session
        self.publish = publish
        self.qos = qos
        self.sender = sender
        self.packet_id = packet_id
        self.retain = retain
        self.is_released = False


@dataclass(frozen=True, slots=True)
class StoredSession:
    """One session; `absent_since` is in Unix time, None while it has a connection."""

    client_id: str
    owner: Principal
    epoch: int
    absent_since: float | None


@dataclass(frozen=True, slots=True)
class StoredRetained:
    """A retained message; with the enrolments, at the time, of who sent it and of the device whose topic it is."""

    message: Publish
    owner: DeviceId | None
    owner_epoch: int
    subject_epoch: int


@dataclass(frozen=True, slots=True)
class StoredWill:
    """What is published at the next start if the broker ends before the connection."""

    will: Will
    owner: Principal
    epoch: int


@dataclass(slots=True)
class Batch:
    """What one commit writes; None where something is no more. Sessions are named by their number."""

    sessions: dict[int, StoredSession] = field(default_factory=dict)
    purged: set[int] = field(default_factory=set)
    filters: dict[tuple[int, str], int | None] = field(default_factory=dict)
    owed: dict[tuple[int, str], int | None] = field(default_factory=dict)
    received: dict[tuple[int, int], bool] = field(default_factory=dict)
    queued: dict[int, Queued] = field(default_factory=dict)
    moved: dict[int, tuple[int, bool]] = field(default_factory=dict)  # packet id, and whether PUBREC came
    done: set[int] = field(default_factory=set)
    retained: dict[str, StoredRetained | None] = field(default_factory=dict)
    wills: dict[str, StoredWill | None] = field(default_factory=dict)

    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        return not (
            self.queued
            or self.done
            or self.moved
            or self.received
            or self.sessions
            or self.purged
            or self.filters
            or self.owed
            or self.retained
            or self.wills
        )

    def absorb(self, later: Batch) -> None:
        """Take in what came after it, for this one was not written; or was, and the disk did not say so."""
        self.sessions.update(later.sessions)
        self.purged |= later.purged
        self.filters.update(later.filters)
        self.owed.update(later.owed)
        self.received.update(later.received)
        self.queued.update(later.queued)
        self.retained.update(later.retained)
        self.wills.update(later.wills)
        for row, (packet_id, is_released) in later.moved.items():
            if (queued := self.queued.get(row)) is not None:
                queued.packet_id, queued.is_released = packet_id, is_released
            else:
                self.moved[row] = packet_id, is_released
        for row in later.done:
            self.queued.pop(row, None)
            self.moved.pop(row, None)
        self.done |= later.done


class Journal:
    """Notes changes; `wake` is called when a commit is due now, `wake_later` when one is in a while."""

    def __init__(self, wake: Callable[[], None], wake_later: Callable[[], None]) -> None:
        self._wake = wake
        self._wake_later = wake_later
        self._batch = Batch()
        self.number = 1  # of the commit that what is noted now is part of
        self.committed = 0
        self.has_promises = False  # in the present batch: somebody waits for it
        self.has_notes = False  # what nobody waits for
        self.is_failing = False  # the disk does not take what it is given
        self.is_touched = False  # whoever wants to know whether anything was promised says no first
        self._newest_session = 0
        self._newest_row = NO_ROW

    def start_after(self, session: int, row: int) -> None:
        """Numbers up to these are taken."""
        self._newest_session, self._newest_row = session, row

    def take(self) -> Batch:
        """What is to be written now; what is noted from here on is part of the next commit."""
        batch, self._batch = self._batch, Batch()
        self.number += 1
        self.has_promises = self.has_notes = False
        return batch

    def give_back(self, batch: Batch) -> None:
        """It could not be written: it is part of the next commit."""
        batch.absorb(self._batch)
        self._batch = batch

    def _promise(self) -> None:
        self.is_touched = True
        if not self.has_promises:
            self.has_promises = True
            self._wake()

    def _note(self) -> None:
        if not self.has_notes:
            self.has_notes = True
            self._wake_later()

    # Sessions

    def new_session(self) -> int:
        """A number that no session has or had."""
        self._newest_session += 1
        return self._newest_session

    def session(self, number: int, stored: StoredSession, *, is_new: bool = False) -> None:
        """Keep a session, or when it was connected last."""
        self._batch.sessions[number] = stored
        if is_new:
            self._promise()
        else:
            self._note()

    def purge(self, session: int) -> None:
        """Nothing of a session is left."""
        self._batch.purged.add(session)
        self._promise()

    def filter(self, session: int, topic_filter: str, qos: int | None) -> None:
        """A subscription, or its end."""
        self._batch.filters[session, topic_filter] = qos
        self._promise()

    def owed(self, session: int, topic: str, qos: int | None) -> None:
        """A retained message that a session is owed, or that it was sent."""
        self._batch.owed[session, topic] = qos
        if qos is None:
            self._note()
        else:
            self._promise()

    def received(self, session: int, packet_id: int, is_received: bool) -> None:
        """A message of QoS 2 that came, or that was released by its sender."""
        self._batch.received[session, packet_id] = is_received
        self._promise()

    # Messages

    def queue(
        self,
        session: int,
        publish: Publish,
        qos: int,
        sender: DeviceId | None,
        packet_id: int = 0,
        retain: bool = False,
    ) -> int:
        """A message for a session; its row."""
        self._newest_row = row = self._newest_row + 1
        self._batch.queued[row] = Queued(session, publish, qos, sender, packet_id, retain)
        if not self.has_promises:
            self._promise()
        self.is_touched = True
        return row

    def sent(self, row: int, packet_id: int, *, is_promised: bool) -> None:
        """A message that waited goes out under this id."""
        self._move(row, packet_id, False)
        if is_promised:
            self._promise()
        else:
            self._note()

    def released(self, row: int, packet_id: int) -> None:
        """PUBREC came for a message."""
        self._move(row, packet_id, True)
        self._promise()

    def _move(self, row: int, packet_id: int, is_released: bool) -> None:
        queued = self._batch.queued.get(row)
        if queued is not None:
            queued.packet_id, queued.is_released = packet_id, is_released
        else:
            self._batch.moved[row] = packet_id, is_released

    def done(self, row: int) -> None:
        """A message was acknowledged, or dropped."""
        batch = self._batch
        if batch.queued.pop(row, None) is None:
            batch.moved.pop(row, None)
            batch.done.add(row)
            if not self.has_notes:
                self._note()

    # What belongs to no session

    def retain(self, topic: str, stored: StoredRetained | None) -> None:
        """The retained message of a topic, or its end."""
        self._batch.retained[topic] = stored
        self._promise()

    def will(self, client_id: str, stored: StoredWill | None) -> None:
        """The will of a connection, or its end."""
        self._batch.wills[client_id] = stored
        if stored is None:
            self._promise()  # nobody waits for it, but what was withdrawn must not be published
        else:
            self._note()
