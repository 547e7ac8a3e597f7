"""The server's side of one TLS connection over memory: bytes of the wire in and out, no socket and no waiting."""

from __future__ import annotations

import contextlib
import ssl
from typing import Final

_READ_BYTES: Final = 65_536


class TlsChannel:
    """Feed what came, flush what is to be sent. Raises: ssl.SSLError where OpenSSL does."""

    __slots__ = ("_incoming", "_object", "_outgoing", "is_established")

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self.is_established = False

    @property
    def was_resumed(self) -> bool:
        """Whether an earlier session was resumed, so that no certificate was shown in this handshake."""
        return bool(self._object.session_reused)

    @property
    def has_output(self) -> bool:
        """Whether `flush` would give something."""
        return self._outgoing.pending > 0

    def feed(self, data: bytes | memoryview) -> None:
        """Take in what came from the wire."""
        self._incoming.write(data)

    def handshake(self) -> bool:
        """Go on with the handshake; whether it is done. After an error there may be an alert to flush."""
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self.is_established = True
        return True

    def certificate(self) -> bytes | None:
        """The peer's certificate in DER."""
        return self._object.getpeercert(binary_form=True)

    def version(self) -> str:
        return self._object.version() or ""

    def read(self) -> tuple[bytes, bool]:
        """What was sent to us, and whether the peer has closed its side."""
        pieces: list[bytes] = []
        while self._incoming.pending or self._object.pending():
            try:
                piece = self._object.read(_READ_BYTES)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                return b"".join(pieces), True
            if not piece:
                return b"".join(pieces), True
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces), False

    def write(self, data: bytes) -> None:
        """Encrypt."""
        self._object.write(data)

    def flush(self) -> bytes:
        """What is to be sent over the wire now."""
        return self._outgoing.read()

    def close(self) -> None:
        """Say that nothing more will be sent."""
        with contextlib.suppress(ssl.SSLError):  # the peer's own close_notify is not waited for
            self._object.unwrap()
