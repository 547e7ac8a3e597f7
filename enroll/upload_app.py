"""Uploads as functions from request to response: GET says how much is there, PUT brings a piece, DELETE begins anew.

A piece is decided upon before its body is read, and again when it is kept. What may block is called from one thread.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from enroll.est_app import EstApp, LengthRequired
from enroll.registry.records import PrincipalRecord
from enroll.uploads import Received, TooMuch, Uploads
from fleet import uploads as wire
from fleet.errors import FleetError, InvalidInput, NotFound
from fleet.est import EstRequest, EstResponse
from fleet.identity import Role
from fleet.logs import event
from fleet.uploads import Piece

_log = logging.getLogger(__name__)
_METHODS: Final = ("GET", "PUT", "DELETE")


@dataclass(frozen=True, slots=True)
class Incoming:
    """A piece whose body may be read."""

    request: EstRequest
    sender: PrincipalRecord
    id: str
    piece: Piece
    digest: bytes


@dataclass(frozen=True, slots=True)
class UploadApp:
    """Answers whoever `app` admits as a device."""

    app: EstApp
    uploads: Uploads
    clock: Callable[[], datetime]

    def begin(self, request: EstRequest) -> Incoming | EstResponse:
        """The answer; or, to a PUT that may go on, what its body is a piece of."""
        if request.method not in _METHODS:
            return EstResponse(405, b"", {"Allow": ", ".join(_METHODS)})
        try:
            sender = self.app.admitted(request, Role.DEVICE).record
            wanted = wire.id_in(request.path)
            if wanted is None:
                raise NotFound("there is no such upload")
            if request.method == "PUT":
                return self._incoming(request, sender, wanted)
            tell = self.uploads.received if request.method == "GET" else self.uploads.restart
            return _answer(tell(sender, wanted, self.clock()))
        except FleetError as error:
            return self.app.refused(request, error)

    def _incoming(self, request: EstRequest, sender: PrincipalRecord, id: str) -> Incoming:
        """Raises: FleetError, if the body need not be read."""
        piece = wire.parse_piece(request.headers.get("content-range", ""))
        digest = wire.parse_digest(request.headers.get("repr-digest", ""))
        _check_length(request, piece)
        self.uploads.check(sender, id, piece, digest, self.clock())
        return Incoming(request, sender, id, piece, digest)

    def put(self, incoming: Incoming, body: bytes) -> EstResponse:
        """The answer to a piece, of which `body` has come."""
        sender, piece = incoming.sender, incoming.piece
        try:
            received = self.uploads.put(sender, incoming.id, piece, incoming.digest, body, self.clock())
        except FleetError as error:
            return self.app.refused(incoming.request, error)
        if received.is_finished:
            _log.info(event("upload.finished", device=sender.id, upload=incoming.id, bytes=received.offset))
        return _answer(received)

    def sweep(self) -> None:
        """Remove what is too old; told in the log, errors too."""
        try:
            for upload in self.uploads.sweep(self.clock()):
                _log.info(event("upload.removed", upload=upload))
        except (FleetError, OSError) as error:
            _log.warning(event("uploads.not_removed", reason=error))


def _check_length(request: EstRequest, piece: Piece) -> None:
    """Raises: FleetError unless it is said how long the body is, and that is what is to come."""
    length = request.headers.get("content-length", "")
    if "transfer-encoding" in request.headers or not (length.isascii() and length.isdigit()):
        raise LengthRequired("this needs a Content-Length")
    if int(length[:20]) > wire.PIECE_BYTES:
        raise TooMuch(f"a piece has at most {wire.PIECE_BYTES} bytes", hint="send the next piece with the next request")
    if int(length) != piece.length:
        raise InvalidInput("Content-Length and Content-Range contradict each other")


def _answer(received: Received) -> EstResponse:
    digest = None if received.digest is None else received.digest.hex()
    fields = {"v": 1, "offset": received.offset, "sha256": digest, "is_finished": received.is_finished}
    return EstResponse(200, json.dumps(fields).encode() + b"\n", {"Content-Type": "application/json"})
