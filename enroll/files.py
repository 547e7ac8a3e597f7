"""Small files that others read at any time: replaced whole, and looked at for changes."""

from __future__ import annotations

import os
from pathlib import Path


def replace(path: Path, data: bytes) -> None:
    """The whole new file or the one before it, whoever reads when, after a power cut too; 0600 as all in a home.

    Raises: OSError.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def stamp(path: Path) -> tuple[int, int] | None:
    """What is another one when the file was replaced or changed; None while there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
