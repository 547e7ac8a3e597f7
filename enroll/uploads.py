"""Files and logs of devices: asked for by a command, sent in pieces by that device alone, kept for some days.

asked --first piece--> coming --last piece, right digest--> finished --days later--> removed
  \\-----------------------\\--its time is over--> removed
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from enroll import audit, commands
from enroll.commands import Giver
from enroll.rate_limit import RateLimit
from enroll.registry import Registry, Transaction, identity
from enroll.registry import uploads as rows
from enroll.registry.records import CommandRecord, PrincipalRecord
from enroll.registry.uploads import UploadRecord
from enroll.upload_store import UploadStore
from fleet.errors import Denied, FleetError, NotFound
from fleet.identity import DeviceId, State
from fleet.layout import AdminHome
from fleet.uploads import COMMAND, Order, Piece, UploadLimits

GRACE: Final = timedelta(minutes=1)
"""For how long after the command's deadline pieces are taken: clocks differ."""
BEGINNINGS_PER_MINUTE: Final = 10
"""How often an upload may be announced or thrown away: each is a commit, which a disk has to keep."""
MAX_WRONG: Final = 3
"""With how many contents that are not what was announced an upload is over; an agent gives up as soon itself."""


class WrongOffset(FleetError):
    """A piece that does not follow what is there, or is of another content: HTTP 409."""


class WrongDigest(FleetError):
    """All pieces are there, and are not what was announced; they were thrown away: HTTP 422."""


class TooMuch(FleetError):
    """More than was asked for: HTTP 413."""


class TooOften(FleetError):
    """It is begun anew again and again: HTTP 429."""

    def __init__(self, seconds: float) -> None:
        super().__init__("this upload was begun too often of late", hint=f"try again in {math.ceil(seconds)} s")
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Received:
    """How much of an upload is there, and of which content."""

    offset: int
    digest: bytes | None
    is_finished: bool


@dataclass(frozen=True, slots=True)
class Uploads:
    """What may be asked for, and what has come. What writes files is called from one thread.

    How often a device began, and was wrong, is known of this object's time alone.
    """

    registry: Registry
    store: UploadStore
    limits: UploadLimits
    _begun: RateLimit = field(default_factory=lambda: RateLimit(BEGINNINGS_PER_MINUTE))
    _wrong: RateLimit = field(default_factory=lambda: RateLimit(MAX_WRONG - 1, math.inf))

    def ask(self, device: DeviceId, order: Order, deadline: datetime, giver: Giver) -> UploadRecord:
        """Have one active device send something until `deadline`.

        Raises: NotFound, Denied (it may not connect, or there is no room left for it), InvalidInput.
        """
        asked = commands.Order(COMMAND, order.encode(), deadline)
        with self.registry.write() as transaction:
            command = commands.give(transaction, device, asked, giver)
            self._check_room(transaction, device, order.max_bytes)
            until = deadline + GRACE
            what = (order.what, order.name, order.max_bytes)
            record = UploadRecord(command.id, device, command.epoch, *what, giver.now, until)
            rows.add(transaction, record)
            fields = {"device": device, "upload": record.id, "what": record.what, "name": record.name}
            audit.record(transaction, giver.now, "upload.asked", **fields, by=giver.by)
        return record

    def _check_room(self, transaction: Transaction, device: DeviceId, wanted: int) -> None:
        hint = "enroll fetch list shows what is kept, enroll fetch remove makes room"
        if rows.reserved_bytes(transaction, device) + wanted > self.limits.device_bytes:
            raise Denied(f"what is kept of {device} would be more than {self.limits.device_bytes} bytes", hint=hint)
        if rows.reserved_bytes(transaction) + wanted > self.limits.total_bytes:
            raise Denied(f"what is kept would be more than {self.limits.total_bytes} bytes", hint=hint)

    def look(self, id: str) -> tuple[UploadRecord | None, CommandRecord]:
        """The upload as it is now, if it is there still, and its command. Raises: NotFound."""
        with self.registry.read() as transaction:
            found = rows.find(transaction, id)
        return found, commands.find(self.registry, id)

    def find(self, id: str) -> UploadRecord:
        """What was asked for by that id. Raises: NotFound."""
        with self.registry.read() as transaction:
            found = rows.find(transaction, id)
        if found is None:
            raise NotFound(f"there is no upload {id[:40]!r}", hint="enroll fetch list")
        return found

    def finished(self, id: str) -> UploadRecord:
        """A file that is whole. Raises: NotFound."""
        found = self.find(id)
        if not found.is_finished:
            raise NotFound(f"upload {id} is not whole yet", hint="enroll fetch list")
        return found

    def listed(self, device: DeviceId | None = None) -> list[UploadRecord]:
        """All that is kept or may still come, the oldest first."""
        with self.registry.read() as transaction:
            return rows.listed(transaction, device)

    def received(self, sender: PrincipalRecord, id: str, now: datetime) -> Received:
        """How much of its upload the service has. Raises: NotFound."""
        with self.registry.read() as transaction:
            record = _of(transaction, sender, id, now)
        return self._received(record)

    def check(self, sender: PrincipalRecord, id: str, piece: Piece, digest: bytes, now: datetime) -> UploadRecord:
        """The upload that `piece` follows in; one that is finished has all of it. Raises: as `put`."""
        with self.registry.read() as transaction:
            record = _of(transaction, sender, id, now)
        is_same = (record.total, record.digest) == (piece.total, digest)
        if piece.total > record.max_bytes:
            raise TooMuch(f"it has {piece.total} bytes, {record.max_bytes} were asked for")
        have = self._received(record)
        is_next = piece.first == have.offset and not have.is_finished and (is_same or not have.offset)
        if not is_next and not (have.is_finished and is_same):
            raise WrongOffset(f"{have.offset} bytes are here, of this content or another", hint="ask for the offset")
        if not is_same:
            self._check_pace(id, now)
        return record

    def _check_pace(self, id: str, now: datetime) -> None:
        """Raises: TooOften."""
        if seconds := self._begun.retry_after(id, now.timestamp()):
            raise TooOften(seconds)

    def put(
        self, sender: PrincipalRecord, id: str, piece: Piece, digest: bytes, data: bytes, now: datetime
    ) -> Received:
        """Keep a piece, of which only the beginning may have come; with the last one the file is whole.

        Raises: NotFound, WrongOffset, TooMuch, TooOften, WrongDigest, NoSpace; nothing of that piece was kept then.
        """
        record = self.check(sender, id, piece, digest, now)
        if record.is_finished:
            return self._received(record)
        if (record.total, record.digest) != (piece.total, digest):
            self._begun.count(id, now.timestamp())
            with self.registry.write() as transaction:
                rows.announce(transaction, id, piece.total, digest)
        if data:
            self.store.append(id, piece.first, data)
        end = piece.first + len(data)
        return self._finish(sender, id, digest, now) if end == piece.total else Received(end, digest, False)

    def _finish(self, sender: PrincipalRecord, id: str, digest: bytes, now: datetime) -> Received:
        if not self.store.seal(id, digest):
            self._discard_wrong(sender, id, now)
            raise WrongDigest("what came is not what was announced", hint="send it again from the beginning")
        with self.registry.write() as transaction:
            record = _of(transaction, sender, id, now)
            rows.finish(transaction, id, now)
            fields = {"device": record.device, "upload": id, "bytes": record.total, "sha256": digest.hex()}
            audit.record(transaction, now, "upload.finished", **fields)
        return Received(record.total or 0, digest, True)

    def _discard_wrong(self, sender: PrincipalRecord, id: str, now: datetime) -> None:
        """Throw away what came, and nothing more is taken of who was wrong too often. Raises: NotFound, WrongOffset."""
        if self._wrong.retry_after(id, now.timestamp()):
            self.remove(self.find(id), now, "the service: wrong digests")
        else:
            self._wrong.count(id, now.timestamp())
            self._restart(sender, id, now)

    def restart(self, sender: PrincipalRecord, id: str, now: datetime) -> Received:
        """Throw away what came of an upload that is not finished. Raises: NotFound, WrongOffset, TooOften."""
        self._check_pace(id, now)
        return self._restart(sender, id, now)

    def _restart(self, sender: PrincipalRecord, id: str, now: datetime) -> Received:
        self._begun.count(id, now.timestamp())
        with self.registry.write() as transaction:
            record = _of(transaction, sender, id, now)
            if record.is_finished:
                raise WrongOffset("it is finished")
            rows.announce(transaction, id, None, None)
        self.store.discard(id)
        return Received(0, None, False)

    def remove(self, record: UploadRecord, now: datetime, by: str) -> None:
        """Remove a file, or forget that it was asked for."""
        with self.registry.write() as transaction:
            rows.remove(transaction, record.id)
            fields = {"device": record.device, "upload": record.id}
            audit.record(transaction, now, "upload.removed", **fields, by=by)
        self.store.discard(record.id)

    def sweep(self, now: datetime) -> list[str]:
        """Remove what is too old, what will not come any more, and files that nobody knows of; their ids."""
        kept_for = timedelta(days=self.limits.keep_days)
        over = [each for each in self.listed() if now >= _end(each, kept_for) or self._is_given_up(each)]
        if over:
            with self.registry.write() as transaction:
                for record in over:
                    rows.remove(transaction, record.id)
        known = {record.id for record in self.listed()}
        unknown = [each for each in self.store.ids() if each not in known]
        for each in unknown:
            self.store.discard(each)
        return sorted({record.id for record in over}.union(unknown))

    def _is_given_up(self, record: UploadRecord) -> bool:
        """Whether its command came to an end, and it did not."""
        found = [] if record.is_finished else commands.find_all(self.registry, [record.id])
        return any(command.state.is_final for command in found)

    def _received(self, record: UploadRecord) -> Received:
        offset = record.total if record.is_finished and record.total is not None else self.store.size(record.id)
        return Received(offset, record.digest, record.is_finished)


def uploads_of(home: AdminHome, registry: Registry, limits: UploadLimits) -> Uploads:
    """Those of a home."""
    return Uploads(registry, UploadStore(home.uploads, limits.free_bytes), limits)


def _end(record: UploadRecord, kept_for: timedelta) -> datetime:
    return record.expires_at if record.finished_at is None else record.finished_at + kept_for


def _of(transaction: Transaction, sender: PrincipalRecord, id: str, now: datetime) -> UploadRecord:
    """An upload that `sender` was asked for and may still send. Raises: NotFound; nobody learns of another's."""
    record = rows.find(transaction, id)
    holder = identity.find_principal(transaction, sender.id)
    is_senders = record is not None and (record.device, record.epoch) == (sender.id, sender.epoch)
    is_active = holder is not None and holder.state is State.ACTIVE and holder.epoch == sender.epoch
    if record is None or not is_senders or not is_active or now >= record.expires_at:
        raise NotFound("this device was not asked for that, or its time is over", hint="enroll fetch asks for it")
    return record
