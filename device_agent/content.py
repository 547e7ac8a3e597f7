"""What is uploaded, as it was when it was first read: its length and digest are known before a byte of it is sent."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import Final, Protocol

_CHUNK_BYTES: Final = 65_536


class Changed(Exception):
    """It is no longer what it was."""


class Content(Protocol):
    """So many bytes with that SHA-256."""

    @property
    def total(self) -> int: ...
    @property
    def digest(self) -> bytes: ...

    def read(self, first: int, length: int) -> bytes:
        """Those bytes. Raises: Changed, OSError."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Text:
    """What is in memory."""

    data: bytes = field(repr=False)

    @property
    def total(self) -> int:
        return len(self.data)

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.data).digest()

    def read(self, first: int, length: int) -> bytes:
        return self.data[first : first + length]

    def close(self) -> None:
        pass


class File:
    """A file as long as it is now; what is written behind that meanwhile is not of it.

    Who has changed what was read is found out by the digest, in the end: the service compares it.
    """

    def __init__(self, file: int, max_bytes: int) -> None:
        """Takes the descriptor over; of a file that is too long nothing is read. Raises: Changed, OSError."""
        self._file = file
        try:
            self.total = os.fstat(file).st_size
            self.digest = self._digest() if self.total <= max_bytes else b""
        except BaseException:
            os.close(file)
            raise

    def read(self, first: int, length: int) -> bytes:
        """Raises: Changed, OSError."""
        parts, at = [], first
        while at < first + length:
            part = os.pread(self._file, first + length - at, at)
            if not part:
                raise Changed("it is shorter than it was")
            parts.append(part)
            at += len(part)
        return b"".join(parts)

    def close(self) -> None:
        os.close(self._file)

    def _digest(self) -> bytes:
        found = hashlib.sha256()
        for first in range(0, self.total, _CHUNK_BYTES):
            found.update(self.read(first, min(_CHUNK_BYTES, self.total - first)))
        return found.digest()
