"""Sends what the fleet asked for to the enrollment service, in pieces, over mutual TLS (docs/files.md).

One upload at a time, on a thread of its own that nobody waits for. After whatever cuts it, it asks how much arrived and
goes on there, until it is told no or the command's time is over.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, assert_never

from device_agent import https, tls
from device_agent.backoff import delay_seconds
from device_agent.clock import Clock
from device_agent.content import Changed, Content, File, Text
from device_agent.core.effects import Upload
from device_agent.core.events import Event, UploadEnded
from device_agent.failures import Cause, Failure, words
from device_agent.last_lines import LastLines
from device_agent.sharing import Shares
from fleet import messages
from fleet.errors import FleetError, InvalidInput, printable, reason_of
from fleet.identity import Server
from fleet.layout import AgentHome
from fleet.logs import event
from fleet.uploads import PIECE_BYTES, FileWanted, ListingWanted, LogWanted, Piece, digest_header, path_of

MAX_VERSIONS: Final = 3
"""How often a file that changes while it is read is begun again."""
BYTES_PER_SECOND: Final = 2 << 20
_FINAL: Final = (400, 401, 403, 404, 411, 413)

_log = logging.getLogger("device_agent.upload")


class UploadFailed(Exception):
    """It will not be sent; the text says why."""


class _Interrupted(Exception):
    """It may be gone on with later; the text says why not now."""


class _Stopped(Exception):
    """The agent ends."""


@dataclass(frozen=True, slots=True)
class _Arrived:
    """What the service has, whole."""

    total: int
    digest: str


@dataclass(frozen=True, slots=True)
class Sources:
    """What there is to send."""

    lines: LastLines
    shares: Shares

    def open(self, order: Upload) -> Content:
        """What is asked for. Raises: FleetError, OSError, Changed."""
        wanted, max_bytes = order.order.wanted, order.order.max_bytes
        match wanted:
            case LogWanted(lines):
                return Text(self.lines.tail(lines, max_bytes))
            case FileWanted(name):
                return File(self.shares.open(name), max_bytes)
            case ListingWanted():
                return Text(self.shares.listing(max_bytes))
            case _:
                assert_never(wanted)


@dataclass(slots=True)
class Uploader:
    """Performs the core's orders. `chance` draws from [0, 1)."""

    home: AgentHome
    url: str
    clock: Clock
    chance: Callable[[], float]
    sources: Sources
    post: Callable[[Event], None]
    _stop: threading.Event = field(default_factory=threading.Event)

    def perform(self, order: Upload) -> None:
        """Begin it; `UploadEnded` comes of it."""
        threading.Thread(target=self._run, args=(order,), name="upload", daemon=True).start()

    def close(self) -> None:
        """End what is under way, soon; the next run of the agent goes on with it."""
        self._stop.set()

    def _run(self, order: Upload) -> None:
        ended = UploadEnded(order.command_id, error="the agent failed; its log says how")
        try:
            ended = self._outcome(order)
        except _Stopped:
            return
        finally:
            if not self._stop.is_set():
                self.post(ended)

    def _outcome(self, order: Upload) -> UploadEnded:
        try:
            arrived = self._send_any(order)
        except (UploadFailed, FleetError) as error:
            return UploadEnded(order.command_id, error=str(error))
        except OSError as error:
            return UploadEnded(order.command_id, error=reason_of(error))
        return UploadEnded(order.command_id, {"bytes": arrived.total, "sha256": arrived.digest})

    def _send_any(self, order: Upload) -> _Arrived:
        """Send one version of it. Raises: UploadFailed, FleetError, OSError, _Stopped."""
        for _ in range(MAX_VERSIONS):
            with contextlib.suppress(Changed), contextlib.closing(self.sources.open(order)) as content:
                if content.total > order.order.max_bytes:
                    raise UploadFailed(f"it has {content.total} bytes, {order.order.max_bytes} may be sent")
                return self._send(order, content)
        raise UploadFailed("it changes while it is read")

    def _send(self, order: Upload, content: Content) -> _Arrived:
        """Until it is there. Raises: UploadFailed, Changed, OSError, _Stopped."""
        failures, sending = 0, _Sending(self, order, content)
        while True:
            before = sending.offset
            try:
                with https.conversation(self.url, self._context()) as talk:
                    return sending.converse(talk)
            except https.RequestFailed as error:
                reason = words(error.failure, None).message
            except _Interrupted as error:
                reason = str(error)
            failures = 1 if sending.offset > before else failures + 1
            _log.warning(event("upload.interrupted", upload=order.command_id, offset=sending.offset, reason=reason))
            self.pause(order, delay_seconds(failures, self.chance()), reason)

    def _context(self) -> tls.FleetContext:
        """With the certificate that is in use now. Raises: https.RequestFailed."""
        try:
            return tls.context_for(Server.ENROLL, self.home.trust.read_text(), self.clock, self.home.identity)
        except (OSError, ValueError) as error:
            raise https.RequestFailed(Failure(Cause.LOCAL, https.peer_of(self.url), str(error))) from error

    def pause(self, order: Upload, seconds: float, reason: str = "") -> None:
        """Wait, but not past the order's end. Raises: UploadFailed (it has come), _Stopped."""
        left = order.until - self.clock.monotonic()
        if self._stop.wait(max(0.0, min(seconds, left))):
            raise _Stopped
        if seconds >= left:
            raise UploadFailed(f"it was not sent in time{f': {reason}' if reason else ''}")


@dataclass(slots=True)
class _Sending:
    """One version of a content on its way. `offset`: how much the service has."""

    uploader: Uploader
    order: Upload
    content: Content
    offset: int = 0

    def converse(self, talk: https.Conversation) -> _Arrived:
        """Send what is missing. Raises: https.RequestFailed, _Interrupted, UploadFailed, Changed, OSError, _Stopped."""
        began, sent = self.uploader.clock.monotonic(), 0
        is_finished, digest = self._ask(talk, "GET")
        if is_finished:  # an earlier run of the agent ended before it heard so; the file may have changed since
            return _Arrived(self.offset, digest or "")
        if self.offset and digest != self.content.digest.hex():  # another version of it
            is_finished, _ = self._ask(talk, "DELETE")
        while not is_finished:
            length = min(PIECE_BYTES, self.content.total - self.offset)
            piece = Piece(self.offset, length, self.content.total)
            is_finished, _ = self._ask(talk, "PUT", piece)
            if not is_finished and self.offset != piece.end:
                raise _Interrupted("the service did not take all of a piece")
            sent += length
            if not is_finished:  # or it would have failed though it is there, if its time is over by now
                self.uploader.pause(self.order, began + sent / BYTES_PER_SECOND - self.uploader.clock.monotonic())
        return _Arrived(self.content.total, self.content.digest.hex())

    def _ask(self, talk: https.Conversation, method: str, piece: Piece | None = None) -> tuple[bool, str | None]:
        """Whether it is finished, and the digest of what the service has of it."""
        body, headers = b"", {}
        if piece is not None:
            body = self.content.read(piece.first, piece.length)
            headers = {"Content-Range": piece.header, "Repr-Digest": digest_header(self.content.digest)}
        path = path_of(self.order.command_id)
        answer = talk.ask(https.Request(self.uploader.url, path, method, headers, None if piece is None else body))
        if answer.status != 200:
            raise _refusal(answer, is_first=method == "GET")
        try:
            fields = messages.decode_object(answer.body)
        except InvalidInput as error:
            raise _Interrupted(f"the service answers what this agent does not understand: {error}") from error
        self.offset = fields["offset"] if type(fields.get("offset")) is int else 0
        return fields.get("is_finished") is True, fields.get("sha256")


def _refusal(answer: https.Answer, *, is_first: bool) -> Exception:
    """What an answer that is not 200 means. Who is refused later only has maybe a new certificate by now."""
    if answer.status == 422:
        return Changed("what arrived is not what was announced")
    said = printable(answer.body.partition(b"\n")[0].decode("utf-8", "replace"))[:200]
    text = f"the service says: {said or f'HTTP {answer.status}'}"
    is_final = answer.status in _FINAL and (is_first or answer.status not in (401, 403))
    return UploadFailed(text) if is_final else _Interrupted(text)
