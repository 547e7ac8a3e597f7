"""A file that takes room on the registry's disk and is given up for what must not wait: who is revoked when it is full.

It is given up a step at a time, and what nobody used of a step is taken back: so nobody else gets much of it, and it is
enough for several revocations. What is asked of the disk here it may refuse; that is never an error.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

RESERVE_BYTES: Final = 2 << 20
STEP_BYTES: Final = 256 << 10
_PAGE_BYTES: Final = 16 << 10


@dataclass(slots=True)
class Reserve:
    """The file at `path`. `was_needed`: some of it was given up through this object."""

    path: Path
    was_needed: bool = False

    @property
    def size_bytes(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    @property
    def is_whole(self) -> bool:
        return self.size_bytes >= RESERVE_BYTES

    def fill(self) -> None:
        """It is whole if as much again stays free: it must not be what fills the disk."""
        with contextlib.suppress(OSError):
            if not self.is_whole and shutil.disk_usage(self.path.parent).free >= 2 * RESERVE_BYTES:
                self._extend(RESERVE_BYTES)

    def give_up(self) -> bool:
        """A step of it is free; whether there was any left."""
        size = self.size_bytes
        if not size:
            return False
        with contextlib.suppress(OSError):
            file = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.ftruncate(file, max(0, size - STEP_BYTES))
                os.fsync(file)  # some file systems free nothing before that
            finally:
                os.close(file)
            self.was_needed = True
        return self.size_bytes < size

    def take_back(self, size: int) -> None:
        """It has `size` bytes, or as many as are still free."""
        with contextlib.suppress(OSError):
            for end in range(self.size_bytes + _PAGE_BYTES, size + 1, _PAGE_BYTES):
                self._extend(end)

    def _extend(self, size: int) -> None:
        """Raises: OSError."""
        file = os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(file, 0, size)
        finally:
            os.close(file)


def reserve_of(registry: Path) -> Reserve:
    """That of the registry at this path."""
    return Reserve(registry.with_name(registry.name + ".reserve"))
