"""Whether the file system of a home takes writing: worn cards do not, once the kernel has seen that they fail."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LOOK_SECONDS: Final = 15.0
# How soon an agent goes on after somebody has repaired it.
RETRY_SECONDS: Final = 1.0


def is_read_only(folder: Path, *, is_doubtful: bool = False) -> bool:
    """Whether nothing can be written. `is_doubtful`: something could not be, or nothing for a while: try it.

    Else it is only asked: where all is well a look costs the card nothing. Some file systems refuse to write after an
    error and do not say that they are read-only (ext4 of Linux 6.15).
    """
    try:
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            return True
        if is_doubtful:
            os.utime(folder)
    except OSError as error:
        return error.errno == errno.EROFS
    return False


@dataclass(slots=True)
class StorageWatch:
    """Looks at one folder, now and then. `tell` is called where it is another than before."""

    folder: Path
    tell: Callable[[bool], None]
    is_read_only: bool = False
    _looked_at: float = 0.0

    @property
    def pause_seconds(self) -> float:
        return RETRY_SECONDS if self.is_read_only else LOOK_SECONDS

    def look(self, now: float, *, is_doubtful: bool = False) -> None:
        """At once if something was not written; else if it is time to (`now` is monotonic)."""
        if not is_doubtful and now - self._looked_at < self.pause_seconds:
            return
        self._looked_at = now
        found = is_read_only(self.folder, is_doubtful=is_doubtful or self.is_read_only)
        if found is not self.is_read_only:
            self.is_read_only = found
            self.tell(found)
