"""The server's side of one TLS connection over memory: bytes of the wire in and out, no socket and no waiting."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from typing import Final

_RECORD_BYTES: Final = 16_384  # the most that one record holds (RFC 8446, 5.1): more is never read at once


class TlsChannel:
    """Feed what came, flush what is to be sent: `outgoing`. Raises: ssl.SSLError where OpenSSL does."""

    __slots__ = ("_incoming", "_object", "_read", "_write", "is_established", "outgoing")

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self.outgoing, server_side=True)
        # What `SSLObject.read` and `write` only hand on to: a call less for every record, where it is as in CPython.
        inner = getattr(self._object, "_sslobj", self._object)
        self._read: Callable[[int], bytes] = inner.read
        self._write: Callable[[bytes], int] = inner.write
        self.is_established = False

    @property
    def was_resumed(self) -> bool:
        """Whether an earlier session was resumed, so that no certificate was shown in this handshake."""
        return bool(self._object.session_reused)

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

    def read(self, size: int = _RECORD_BYTES) -> tuple[bytes, bool]:
        """What was sent to us, and whether the peer has closed its side.

        `size` is how much is expected: no more than came from the wire, unless a record had begun before.
        """
        incoming = self._incoming
        try:
            data = self._read(size)
            if not incoming.pending and 0 < len(data) < size:
                return data, False  # one record, and all of it: nothing else is asked for every message
        except ssl.SSLWantReadError:
            return b"", False
        except ssl.SSLZeroReturnError:
            return b"", True
        return self._read_on(data)

    def _read_on(self, data: bytes) -> tuple[bytes, bool]:
        """The rest of several records, or of one that was longer than expected; `data` is empty at an end."""
        pieces = [data]
        while pieces[-1] and (self._incoming.pending or self._object.pending()):
            try:
                pieces.append(self._read(_RECORD_BYTES))
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                pieces.append(b"")
        return b"".join(pieces), not pieces[-1]

    def encrypt(self, data: bytes) -> bytes:
        """What is to be sent over the wire now, so that the peer gets `data`."""
        self._write(data)
        return self.outgoing.read()

    def flush(self) -> bytes:
        """What is to be sent over the wire now."""
        return self.outgoing.read()

    def close(self) -> None:
        """Say that nothing more will be sent."""
        with contextlib.suppress(ssl.SSLError):  # the peer's own close_notify is not waited for
            self._object.unwrap()
