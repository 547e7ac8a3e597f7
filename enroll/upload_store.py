"""The files that devices send: `HOME/uploads/ID.part` while it comes, `HOME/uploads/ID` once it is whole, both 0600.

A piece is written behind what is there, or not at all. A file has its name without `.part` only when its digest was
right and it is on disk, so a power cut never shows half of one as whole. To be used from one thread.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from enroll.home import make_private
from fleet.errors import FleetError, reason_of

_PART: Final = ".part"
_CHUNK_BYTES: Final = 1 << 20


class NoSpace(FleetError):
    """The disk cannot take it now."""


@dataclass(frozen=True, slots=True)
class UploadStore:
    """The files in `folder`. `free_bytes` of its disk are left for others."""

    folder: Path
    free_bytes: int

    def prepare(self) -> None:
        """Make the folder. Raises: OSError."""
        make_private(self.folder)

    def path(self, id: str) -> Path:
        """Where a whole file is."""
        return self.folder / id

    def part(self, id: str) -> Path:
        """Where a file is while it comes."""
        return self.folder / f"{id}{_PART}"

    def size(self, id: str) -> int:
        """How much of it is there."""
        for path in (self.part(id), self.path(id)):
            with contextlib.suppress(FileNotFoundError):
                return path.stat().st_size
        return 0

    def append(self, id: str, offset: int, data: bytes) -> None:
        """Write `data` at `offset`, the present size. Raises: NoSpace (then nothing was written)."""
        try:
            found = os.statvfs(self.folder)
            if found.f_bavail * found.f_frsize - len(data) < self.free_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._write(id, offset, data)
        except OSError as error:
            raise NoSpace(
                f"the service cannot keep it: {reason_of(error)}", hint=f"free space where {self.folder} is"
            ) from error

    def _write(self, id: str, offset: int, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        file, rest, at = os.open(self.part(id), flags, 0o600), memoryview(data), offset
        try:
            while rest:
                written = os.pwrite(file, rest, at)
                rest, at = rest[written:], at + written
        except OSError:
            os.ftruncate(file, offset)
            raise
        finally:
            os.close(file)

    def seal(self, id: str, digest: bytes) -> bool:
        """Whether what is there has that SHA-256: then it is whole, on disk, and has its name. Raises: NoSpace."""
        try:
            if self.path(id).exists() and not self.part(id).exists():  # the service ended before the registry knew
                return self._digest(self.path(id)) == digest
            self.part(id).touch(0o600)  # an empty file has had no piece
            if self._digest(self.part(id)) != digest:
                return False
            self._sync(self.part(id))
            self.part(id).replace(self.path(id))
            self._sync(self.folder)
        except OSError as error:
            raise NoSpace(f"the service cannot keep it: {reason_of(error)}") from error
        return True

    def discard(self, id: str) -> None:
        """Remove whatever there is of it."""
        for path in (self.part(id), self.path(id)):
            path.unlink(missing_ok=True)

    def ids(self) -> Iterator[str]:
        """Of all that there is anything of."""
        with contextlib.suppress(FileNotFoundError):
            yield from {path.name.removesuffix(_PART) for path in self.folder.iterdir()}

    @staticmethod
    def _digest(path: Path) -> bytes:
        found = hashlib.sha256()
        with path.open("rb") as file:
            while data := file.read(_CHUNK_BYTES):
                found.update(data)
        return found.digest()

    @staticmethod
    def _sync(path: Path) -> None:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)
